"""Learned steps: their gradients, their sizes, their errors."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array


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
