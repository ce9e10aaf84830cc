"""What analyses return and plots draw: frozen records of NumPy arrays, without torch."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class TransferCurve:
    """What a quantizer does to one number, and what its backward pass claims it does.

    Args:
        x: Inputs, ascending.
        y: Outputs, in the units of ``x``.
        gradient: ∂y/∂x as the backward pass returns it.
        levels: All levels of the grid.
        label: Name of the quantizer, for a legend.
    """

    x: Float[Array, "points"]
    y: Float[Array, "points"]
    gradient: Float[Array, "points"]
    levels: Float[Array, "levels"]
    label: str

    @property
    def error(self) -> Float[Array, "points"]:
        """Rounding and clipping error y − x."""
        return self.y - self.x


@dataclass(frozen=True, eq=False)
class Histogram:
    """How the values of one tensor are spread, and the grid they are rounded to.

    Args:
        label: Name of the tensor.
        counts: Values in each bin.
        edges: Borders of the bins, ascending, one more than counts.
        levels: All levels of the grid; empty where there is no quantizer.
        used: Values rounded to each level.
        mean_squared_error: Mean of (x̂ − x)²; zero where there is no quantizer.
        signal: Mean of x².
    """

    label: str
    counts: Int[Array, "bins"]
    edges: Float[Array, "borders"]
    levels: Float[Array, "levels"]
    used: Int[Array, "levels"]
    mean_squared_error: float
    signal: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in decibels, 10·log10(E[x²]/E[(x̂−x)²])."""
        if self.mean_squared_error == 0:
            return float("inf")
        return 10 * float(np.log10(self.signal / self.mean_squared_error))


@dataclass(frozen=True, eq=False)
class History:
    """How a training run went, epoch by epoch.

    Args:
        terms: Mean over the epoch of each loss term (nats for cross-entropy), by name.
        rate: Learning rate at the end of each epoch.
        validation: Validation accuracy after each epoch, 0 to 1; empty if there was no
            validation split.
        accuracy: Accuracy on the labelled training images over each epoch, 0 to 1, in
            training mode and as the first view of each step showed them; NaN where none was
            labelled; empty in runs that did not count it.
    """

    terms: dict[str, Float[Array, "epochs"]] = field(default_factory=dict)
    rate: Float[Array, "epochs"] = field(default_factory=lambda: np.empty(0))
    validation: Float[Array, "validations"] = field(default_factory=lambda: np.empty(0))
    accuracy: Float[Array, "counted"] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.rate)


@dataclass(frozen=True, eq=False)
class RangeSweep:
    """The error of one uniform grid while its range shrinks.

    Args:
        label: Name of the tensor.
        bits: Bits of the grid.
        shares: Ranges tried, as shares of the range of the data, ascending, up to 1.
        clipping: Mean squared error of the values beyond the outermost levels, over all values.
        rounding: Mean squared error of the others, over all values.
        signal: Mean of x².
    """

    label: str
    bits: int
    shares: Float[Array, "points"]
    clipping: Float[Array, "points"]
    rounding: Float[Array, "points"]
    signal: float

    @property
    def total(self) -> Float[Array, "points"]:
        """Mean squared error at each range."""
        return self.clipping + self.rounding

    @property
    def best(self) -> int:
        """Index of the range whose mean squared error is smallest."""
        return int(self.total.argmin())


@dataclass(frozen=True, eq=False)
class ChannelSQNR:
    """What each channel of a weight gets from a shared grid, and from a grid of its own.

    Args:
        label: Name of the layer.
        bits: Bits of the grids.
        largest: Largest magnitude in each channel.
        per_tensor: SQNR in decibels of each channel, one grid for all.
        per_channel: SQNR in decibels of each channel, one grid each.
        tensor_overall: SQNR in decibels of the whole layer, one grid for all.
        channel_overall: SQNR in decibels of the whole layer, one grid each.
    """

    label: str
    bits: int
    largest: Float[Array, "channels"]
    per_tensor: Float[Array, "channels"]
    per_channel: Float[Array, "channels"]
    tensor_overall: float
    channel_overall: float


@dataclass(frozen=True, eq=False)
class BitsCurve:
    """A number against bits.

    Args:
        label: Name of the curve, for a legend.
        bits: Bit-widths.
        values: The number at each.
        quantity: What the number is, with its unit.
    """

    label: str
    bits: Int[Array, "widths"]
    values: Float[Array, "widths"]
    quantity: str


@dataclass(frozen=True, eq=False)
class StepGradient:
    """What a quantizer's step is told by one number v, against where v lies on the grid.

    Args:
        ratio: v/s, ascending.
        learned: ∂v̂/∂s as LSQ's backward pass returns it, without the gradient scale.
        clipped_only: ∂v̂/∂s if only clipped values counted, as in PACT.
        low: Lowest code.
        high: Highest code.
    """

    ratio: Float[Array, "points"]
    learned: Float[Array, "points"]
    clipped_only: Float[Array, "points"]
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class StepRatios:
    """How large the updates of the steps are beside the updates of the weights.

    Args:
        names: Quantizers, in the order of the layers.
        is_input: Whether the quantizer is that of a layer's input.
        with_scale: R = (|∂L/∂s|/s) / (‖∂L/∂w‖/‖w‖), w the weights of the same layer.
        without_scale: The same without the gradient scale g.
        scale: g.
        batches: Batches that R is averaged over.
    """

    names: tuple[str, ...]
    is_input: Bool[Array, "quantizers"]
    with_scale: Float[Array, "quantizers"]
    without_scale: Float[Array, "quantizers"]
    scale: Float[Array, "quantizers"]
    batches: int


@dataclass(frozen=True, eq=False)
class StepTrace:
    """The learned steps of a network over training.

    Args:
        label: Name of the run.
        steps: Optimizer steps taken when each row was recorded.
        sizes: Step size of each quantizer, the units of its tensor; a row per record.
        names: Quantizers.
        is_input: Whether the quantizer is that of a layer's input.
    """

    label: str
    steps: Int[Array, "records"]
    sizes: Float[Array, "records quantizers"]
    names: tuple[str, ...]
    is_input: Bool[Array, "quantizers"]


@dataclass(frozen=True, eq=False)
class StepErrors:
    """Learned steps beside the steps whose rounding error would be smallest.

    Args:
        names: Quantizers, in the order of the layers.
        is_input: Whether the quantizer is that of a layer's input.
        ratio: Learned step over the step of least ∑|x̂ − x|^p.
        excess: Error ∑|x̂ − x|^p of the learned step over the least.
        p: The exponent.
    """

    names: tuple[str, ...]
    is_input: Bool[Array, "quantizers"]
    ratio: Float[Array, "quantizers"]
    excess: Float[Array, "quantizers"]
    p: float


@dataclass(frozen=True, eq=False)
class OneWeight:
    """How gradient descent moved the one weight of a model, in units of its step.

    Args:
        weight: The latent weight before each update, and after the last.
        level: What the forward pass made of it, for the same moments.
        target: The number that the level should equal, at each update.
        gradient: ∂L/∂w as the backward pass returned it, at each update.
        thresholds: Where the forward pass goes from one level to the next.
        surrogate: What the backward pass differentiated.
    """

    weight: Float[Array, "moments"]
    level: Float[Array, "moments"]
    target: Float[Array, "updates"]
    gradient: Float[Array, "updates"]
    thresholds: Float[Array, "thresholds"]
    surrogate: str

    def share(self, level: float, *, after: int = 0) -> float:
        """The share of the updates that saw the weight at one level.

        Args:
            level: The level.
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            0 to 1.
        """
        return float(np.mean(self.level[after:-1] == level))

    def mean_level(self, *, after: int = 0) -> float:
        """The level, averaged over the updates.

        Args:
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            A number that need not be a level.
        """
        return float(np.mean(self.level[after:-1]))

    def changes(self, *, after: int = 0) -> float:
        """Changes of level per update.

        Args:
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            0 (at rest) to 1 (another level at every update).
        """
        return float(np.mean(np.diff(self.level[after:]) != 0))


@dataclass(frozen=True, eq=False)
class StaircaseLoss:
    """The loss of one rounded weight, blurred by noise, and the gradients claimed for it.

    Args:
        weight: Latent weights, ascending, in units of the step.
        loss: The true loss (ŵ − t)²: a staircase.
        smoothed: The mean of the loss when noise is added to the weight.
        smoothed_gradient: Its exact derivative.
        gradients: What backward passes return, by surrogate.
        target: The number t.
        noise: Width of the uniform noise, in steps.
    """

    weight: Float[Array, "points"]
    loss: Float[Array, "points"]
    smoothed: Float[Array, "points"]
    smoothed_gradient: Float[Array, "points"]
    gradients: dict[str, Float[Array, "points"]]
    target: float
    noise: float


@dataclass(frozen=True, eq=False)
class GradientAgreement:
    """The gradients of a quantized network beside those of the float network it came from.

    Args:
        layers: Names of the convolutions and linear layers, in forward order.
        cosine: Cosine between the two weight gradients, −1 to 1; NaN where one is zero.
        zeros: Share of a layer's weights whose gradient in the quantized network is exactly
            zero.
        parameters: All parameters of the quantized network but those of its quantizers.
        reached: How many of them have a gradient that is not zero.
        label: Name of the quantized network, for a legend.
    """

    layers: tuple[str, ...]
    cosine: Float[Array, "layers"]
    zeros: Float[Array, "layers"]
    parameters: int
    reached: int
    label: str


@dataclass(frozen=True, eq=False)
class Descent:
    """The loss of a network along its gradient, and along the same numbers shuffled.

    Args:
        length: Distances moved, as shares of the norm of all weights.
        along: Loss in nats after moving against the gradient.
        shuffled: Loss in nats after moving along each shuffled gradient.
        label: Name of the network, for a title.
    """

    length: Float[Array, "lengths"]
    along: Float[Array, "lengths"]
    shuffled: Float[Array, "draws lengths"]
    label: str


@dataclass(frozen=True, eq=False)
class ZooCurve:
    """The staircase of one of several quantizers, all calibrated on the same tensor.

    Args:
        name: Name of the quantizer.
        curve: Output and gradient, as ``analysis.transfer_curve`` returns them, times ``scale``.
        opposed: (∂L/∂x)/(∂L/∂x̂) for ∂L/∂x̂ = −1, times ``scale``; ``curve.gradient`` is that
            for +1.
        band: Lowest and highest output that training may make of each input; two empty arrays
            where training computes the staircase.
        band_label: What the band is; "" where there is none.
        scale: What levels were multiplied by: 1, or for a quantizer whose levels have units of
            their own the factor that makes the error on the tensor least.
        signed: Whether the grid is that of weights.
    """

    name: str
    curve: TransferCurve
    opposed: Float[Array, "points"]
    band: tuple[Float[Array, "..."], Float[Array, "..."]]
    band_label: str
    scale: float
    signed: bool

    @property
    def asymmetric(self) -> bool:
        """Whether the gradient depends on the sign of the gradient that comes in."""
        return not np.allclose(self.opposed, self.curve.gradient, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True, eq=False)
class LearnedGrid:
    """What a quantizer's own parameters became when only they were trained, on one layer.

    Args:
        name: Name of the quantizer.
        part: "weight" or "input": what is quantized.
        bits: Bits of the grid.
        loss: ‖ŷ − y‖²/‖y‖² of the layer's output y (without bias) as training saw it, before
            each step; empty where there is nothing to learn.
        before: The same before training, in evaluation.
        after: The same after training, in evaluation.
        levels_before: Levels before training.
        levels_after: Levels after training.
        parameters_before: Parameters by name; empty where there is nothing to learn.
        parameters_after: The same after training.
        scale: What levels were multiplied by before and after; 1 unless they have units of
            their own.
        moved: Share of the values that were rounded to another code after than before.
    """

    name: str
    part: str
    bits: int
    loss: Float[Array, "steps"]
    before: float
    after: float
    levels_before: Float[Array, "levels"]
    levels_after: Float[Array, "levels"]
    parameters_before: dict[str, Float[Array, "..."]]
    parameters_after: dict[str, Float[Array, "..."]]
    scale: tuple[float, float]
    moved: float

    @property
    def learned(self) -> int:
        """How many numbers were learned."""
        return sum(values.size for values in self.parameters_after.values())


@dataclass(frozen=True, eq=False)
class ZooErrors:
    """The error of several quantizers on one tensor, against bits.

    Args:
        label: Name of the tensor.
        bits: Bit-widths.
        names: Quantizers.
        best: 10·log10(‖x‖²/min_c ‖x − c·x̂‖²) in decibels, a row per quantizer; NaN where a
            quantizer does not exist.
        plain: 10·log10(‖x‖²/‖x − x̂‖²); NaN also where levels have units of their own.
        values: Values of the tensor that were rounded.
    """

    label: str
    bits: Int[Array, "widths"]
    names: tuple[str, ...]
    best: Float[Array, "quantizers widths"]
    plain: Float[Array, "quantizers widths"]
    values: int


@dataclass(frozen=True, eq=False)
class Released:
    """A quantizer as its paper intends it, beside what released code computes.

    Args:
        title: What differs.
        label: Name of the tensor that errors were measured on.
        intended: The curve as intended.
        released: The curve as released.
        used: Share of the levels that take any value of the tensor: intended, released.
        sqnr: 10·log10(‖x‖²/‖x − x̂‖²) in decibels: intended, released.
        best: The same after the best scalar, 10·log10(‖x‖²/min_c ‖x − c·x̂‖²).
        gradient: Whether what differs is the gradient, not the output.
    """

    title: str
    label: str
    intended: TransferCurve
    released: TransferCurve
    used: tuple[float, float]
    sqnr: tuple[float, float]
    best: tuple[float, float]
    gradient: bool
