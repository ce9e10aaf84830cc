"""What analyses return and plots draw: frozen records of NumPy arrays, without torch."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

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
    """

    terms: dict[str, Float[Array, "epochs"]] = field(default_factory=dict)
    rate: Float[Array, "epochs"] = field(default_factory=lambda: np.empty(0))
    validation: Float[Array, "validations"] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.rate)
