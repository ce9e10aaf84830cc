"""How much the loss rises when weights are moved a little: the worst, or on average."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from qatviz.records.landscape import Conditions


@dataclass(frozen=True, eq=False)
class Sharpness:
    """The rise of the loss within a region around a network, or on average over noise.

    Args:
        conditions: What moved, and how it was measured.
        measure: What was measured, in words.
        region: Where the weights were moved to, with its size.
        radius: That size: ε, ρ or σ.
        loss: L(w), nats for cross-entropy.
        rises: L(w + z) − L(w): one number, the largest that was found; or one for every pair of
            opposite draws, their mean.
        average: Whether it is an average over draws.
        passes: Passes over the images that it took.
        complete: Whether all steps or draws were taken.
    """

    conditions: Conditions
    measure: str
    region: str
    radius: float
    loss: float
    rises: Float[Array, "draws"]
    average: bool
    passes: int
    complete: bool

    @property
    def value(self) -> float:
        """The rise of the loss, or its mean; a maximum that was searched for is a lower bound."""
        return float(self.rises.mean()) if len(self.rises) else float("nan")

    @property
    def percent(self) -> float:
        """100·rise/(1 + L), the unit of Keskar et al., in %."""
        return 100 * self.value / (1 + self.loss)

    @property
    def standard_error(self) -> float:
        """Of ``value``, from the spread of the draws; 0 for a maximum, which has no draws."""
        if not self.average:
            return 0.0
        if len(self.rises) < 2:
            return float("nan")
        return float(self.rises.std(ddof=1) / np.sqrt(len(self.rises)))

    def __repr__(self) -> str:
        error = f" ± {self.standard_error:.1g} ({len(self.rises)} pairs)" if self.average else ""
        state = "" if self.complete else "; INCOMPLETE"
        return (
            f"Sharpness({self.measure}, {self.region}: {self.value:+.4g}{error} "
            f"on a loss of {self.loss:.4g}; {self.conditions}{state})"
        )
