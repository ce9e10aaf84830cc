"""Why weights oscillate, and what of a network hangs on where they are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class OscillationToy:
    """Weights that are each pulled to a point between two levels: ½(q(w) − w*)², straight through.

    All lengths are in steps of the grid, from the level below the target.

    Args:
        targets: (w* − ŵ↓)/s: where each weight is pulled to, between 0 and 1.
        events: Measured oscillations per update.
        upper: Measured share of updates that saw the weight at the upper level.
        counted: Updates that ``events`` and ``upper`` are counted over, the last ones.
        rates: The learning rate of each update.
        window: Updates in each of the equal parts that training is cut into.
        window_events: Oscillations per update in each part.
        window_spread: Largest minus smallest latent weight in each part.
        shown: Which of the weights is kept whole.
        position: Its latent weight before each update, and after the last.
        code: Its code at the same moments, 0 or 1.
        schedule: ``"constant"`` or ``"cosine"``.
    """

    targets: Float[Array, "targets"]
    events: Float[Array, "targets"]
    upper: Float[Array, "targets"]
    counted: int
    rates: Float[Array, "updates"]
    window: int
    window_events: Float[Array, "windows targets"]
    window_spread: Float[Array, "windows targets"]
    shown: int
    position: Float[Array, "moments"]
    code: Int[Array, "moments"]
    schedule: str

    @property
    def distance(self) -> Float[Array, "targets"]:
        """d/s: how far each target is from its nearest level."""
        return np.minimum(self.targets, 1 - self.targets)

    @property
    def predicted_events(self) -> Float[Array, "targets"]:
        """2d/s oscillations per update, whatever the learning rate."""
        return 2 * self.distance

    @property
    def predicted_upper(self) -> Float[Array, "targets"]:
        """(w* − ŵ↓)/s, the share that makes the mean level the target."""
        return self.targets

    @property
    def resolution(self) -> float:
        """What one update more or less makes of a rate."""
        return 1 / self.counted

    @property
    def window_rates(self) -> Float[Array, "windows"]:
        """The mean learning rate of each part; the spread cannot exceed the largest of it."""
        return self.rates.reshape(-1, self.window).mean(1)


@dataclass(frozen=True, eq=False)
class OscillationLottery:
    """A network whose oscillating weights are drawn anew: is its last step one of many?

    Args:
        accuracy: Accuracy with each draw, 0 to 1.
        loss: Mean cross-entropy with each draw, in nats.
        checkpoint_accuracy: Accuracy of the network as it is.
        checkpoint_loss: Its loss, in nats.
        settled_accuracy: Accuracy with every oscillating weight at its mean code, rounded.
        settled_loss: The loss there, in nats.
        drawn: Weights that were drawn, those with a frequency above ``above``.
        weights: Weights that were tracked.
        moved: Share of the drawn weights that a draw puts on another code than the network's,
            by draw; NaN if none is drawn.
        apart: Share of the tracked weights whose code in the network is not the one that the
            tracker saw last: 0 for the network that training ended with.
        above: The frequency.
        samples: Images.
        complete: Whether all draws that were asked for are there.
        label: Name of the network.
    """

    accuracy: Float[Array, "draws"]
    loss: Float[Array, "draws"]
    checkpoint_accuracy: float
    checkpoint_loss: float
    settled_accuracy: float
    settled_loss: float
    drawn: int
    weights: int
    moved: Float[Array, "draws"]
    apart: float
    above: float
    samples: int
    complete: bool
    label: str = ""

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy from draw to draw; NaN of fewer than two."""
        return float(self.accuracy.std(ddof=1)) if len(self.accuracy) > 1 else float("nan")

    @property
    def standard_error(self) -> float:
        """What the choice of images alone makes of the checkpoint's accuracy, √(a(1 − a)/n)."""
        a = self.checkpoint_accuracy
        return float(np.sqrt(a * (1 - a) / self.samples))

    @property
    def beaten(self) -> float:
        """Share of the draws that are less accurate than the checkpoint; a tie counts half."""
        worse = (self.accuracy < self.checkpoint_accuracy).mean()
        return float(worse + (self.accuracy == self.checkpoint_accuracy).mean() / 2)


@dataclass(frozen=True, eq=False)
class BatchNormDrift:
    """How far BatchNorm's running statistics are from those of the network as it is now.

    Args:
        layers: Names of the BatchNorm layers.
        kinds: What is before each: ``"depthwise"``, ``"pointwise"``, ``"convolution"``,
            ``"linear"`` or ``""``.
        divergence: Of each channel, KL(running ‖ estimated anew) of two normal distributions, in
            nats, by layer.
        noise: The same between estimates of two halves of the images.
        images: Images of the estimate.
        label: Name of the network.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    divergence: tuple[Float[Array, "_"], ...]
    noise: tuple[Float[Array, "_"], ...]
    images: int
    label: str = ""

    @property
    def means(self) -> Float[Array, "layers"]:
        """Mean divergence of each layer's channels, in nats."""
        return np.array([values.mean() for values in self.divergence])

    @property
    def standard_errors(self) -> Float[Array, "layers"]:
        """Standard error of ``means`` from channel to channel; NaN of a single channel."""
        return np.array(
            [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan for v in self.divergence]
        )

    @property
    def noise_means(self) -> Float[Array, "layers"]:
        """Mean of ``noise`` over each layer's channels, in nats."""
        return np.array([values.mean() for values in self.noise])

    @property
    def by_kind(self) -> dict[str, float]:
        """Mean divergence of the channels of all layers of a kind, in nats."""
        pooled = {
            kind: np.concatenate(
                [v for k, v in zip(self.kinds, self.divergence, strict=True) if k == kind]
            )
            for kind in dict.fromkeys(self.kinds)
        }
        return {kind: float(values.mean()) for kind, values in pooled.items()}
