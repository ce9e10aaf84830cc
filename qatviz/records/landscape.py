"""The loss around a network: along a line, over a plane, and on the way to another network."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class Conditions:
    """What was moved and how it was measured: without it two losses cannot be compared.

    Args:
        space: "dequantized", "latent" or "float", see ``analysis.Surface``; or two of them with
            " to " between, of a path from one to the other.
        size: How many numbers may move.
        norm: Their L2 norm where the network stands.
        samples: Images that the loss is the mean over.
        activation_quantizers: Whether there were any, and on.
        requantized: Whether the weights were quantized again at every point.
        batchnorm: "running": statistics of training, as in evaluation; "batch": those of the
            images themselves; "re-estimated": at every point anew, from training images.
        reestimate: Batches that these were estimated from; 0 where they were not.
    """

    space: str
    size: int
    norm: float
    samples: int
    activation_quantizers: bool
    requantized: bool
    batchnorm: str
    reestimate: int = 0

    @property
    def words(self) -> str:
        """The space in words, for a title."""
        again = ", rounded again at every point" if self.requantized else ""
        return f"{self.space} weights{again}"

    def __str__(self) -> str:
        quantizers = ", activation quantizers on" if self.activation_quantizers else ""
        batchnorm = {
            "running": "",
            "batch": ", BatchNorm of the images",
            "re-estimated": f", BatchNorm re-estimated on {self.reestimate} batches",
        }[self.batchnorm]
        return f"{self.words} ({self.size:,}){quantizers}{batchnorm}; {self.samples:,} images"


@dataclass(frozen=True, eq=False)
class LossLine:
    """Loss and accuracy along a line through a network.

    Args:
        conditions: What moved, and how it was measured.
        direction: Name of the direction.
        unit: What 1 on the axis is.
        length: L2 length of that 1, in weights.
        x: Positions, ascending; 0, the middle one, is the network.
        loss: Mean loss at each, nats for cross-entropy; infinite or NaN where it is.
        accuracy: Share of images classified as their label, 0 to 1.
        computed: Whether a point was computed; NaN stands where not.
        seconds: Duration.
    """

    conditions: Conditions
    direction: str
    unit: str
    length: float
    x: Float[Array, "points"]
    loss: Float[Array, "points"]
    accuracy: Float[Array, "points"]
    computed: Bool[Array, "points"]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every point was computed."""
        return bool(self.computed.all())

    @property
    def centre(self) -> float:
        """The loss of the network itself."""
        return float(self.loss[len(self.x) // 2])

    def __repr__(self) -> str:
        return (
            f"LossLine({self.direction}, ±{self.x[-1]:.3g} {self.unit}, {len(self.x)} points; "
            f"loss {_range(self.loss)}, {self.centre:.4g} at the centre; "
            f"{self.conditions}{_missing(self.computed)})"
        )


@dataclass(frozen=True, eq=False)
class LossSurface:
    """Loss and accuracy over a plane through a network.

    Args:
        conditions: What moved, and how it was measured.
        directions: Names of the directions of x and y.
        units: What 1 on either axis is.
        lengths: L2 lengths of these, in weights.
        cosine: Cosine between the directions: 0 where the picture is not sheared.
        x: Positions along the first direction, ascending; 0, the middle one, is the network.
        y: Positions along the second.
        loss: Mean loss, a row per y, nats for cross-entropy; infinite or NaN where it is.
        accuracy: Share of images classified as their label, 0 to 1.
        computed: Whether a point was computed; NaN stands where not.
        seconds: Duration, earlier parts of a resumed one included.
    """

    conditions: Conditions
    directions: tuple[str, str]
    units: tuple[str, str]
    lengths: tuple[float, float]
    cosine: float
    x: Float[Array, "columns"]
    y: Float[Array, "rows"]
    loss: Float[Array, "rows columns"]
    accuracy: Float[Array, "rows columns"]
    computed: Bool[Array, "rows columns"]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every point was computed."""
        return bool(self.computed.all())

    @property
    def centre(self) -> float:
        """The loss of the network itself."""
        return float(self.loss[len(self.y) // 2, len(self.x) // 2])

    def row(self, index: int) -> LossLine:
        """The slice along x at one y.

        Args:
            index: Which y.

        Returns:
            A line. Its middle is the network only where y is 0.
        """
        at = "" if self.y[index] == 0 else f" at {self.y[index]:.3g} of {self.directions[1]}"
        return LossLine(
            conditions=self.conditions,
            direction=self.directions[0] + at,
            unit=self.units[0],
            length=self.lengths[0],
            x=self.x,
            loss=self.loss[index],
            accuracy=self.accuracy[index],
            computed=self.computed[index],
            seconds=self.seconds,
        )

    def __repr__(self) -> str:
        return (
            f"LossSurface({self.directions[0]} × {self.directions[1]}, "
            f"±{self.x[-1]:.3g} {self.units[0]}, {len(self.x)}×{len(self.y)} points; "
            f"loss {_range(self.loss)}, {self.centre:.4g} at the centre; "
            f"{self.conditions}{_missing(self.computed)})"
        )


@dataclass(frozen=True, eq=False)
class LossPath:
    """Loss and accuracy on the straight way from one network to another.

    Args:
        conditions: What moved, and how it was measured.
        ends: Names of the two networks.
        t: Positions, ascending: 0 is the first network, 1 the second; both are among them.
        loss: Mean loss at each, nats for cross-entropy; infinite or NaN where it is.
        accuracy: Share of images classified as their label, 0 to 1.
        computed: Whether a point was computed; NaN stands where not.
        distance: ‖w_B − w_A‖ of the weights.
        seconds: Duration.
    """

    conditions: Conditions
    ends: tuple[str, str]
    t: Float[Array, "points"]
    loss: Float[Array, "points"]
    accuracy: Float[Array, "points"]
    computed: Bool[Array, "points"]
    distance: float
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every point was computed."""
        return bool(self.computed.all())

    @property
    def chord(self) -> Float[Array, "points"]:
        """(1 − t)·L_A + t·L_B: the losses of the ends, joined by a straight line."""
        first, second = self.loss[self.t == 0][0], self.loss[self.t == 1][0]
        return (1 - self.t) * first + self.t * second

    @property
    def barrier(self) -> float:
        """The largest L(t) − (1 − t)·L_A − t·L_B from A to B: 0 or more.

        It is infinite where a loss on the way is not finite, and of the points computed so far
        where the path is not complete; NaN until the ends are.
        """
        inside = (self.t >= 0) & (self.t <= 1) & self.computed
        excess = (self.loss - self.chord)[inside]
        if not np.isfinite(self.chord).all() or not len(excess):
            return float("nan")
        return float(np.nan_to_num(excess, nan=np.inf, posinf=np.inf).max())

    def __repr__(self) -> str:
        return (
            f"LossPath({self.ends[0]} to {self.ends[1]}, {len(self.t)} points; barrier "
            f"{self.barrier:.4g}, weights {self.distance:.4g} apart; "
            f"{self.conditions}{_missing(self.computed)})"
        )


def _range(loss: Array) -> str:
    finite = loss[np.isfinite(loss)]
    return f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "nowhere finite"


def _missing(computed: Array) -> str:
    return "" if computed.all() else f"; INCOMPLETE: {computed.sum()} of {computed.size} points"
