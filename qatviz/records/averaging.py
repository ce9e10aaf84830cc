"""What an average over training makes of weights that go to and fro."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class AveragingToy:
    """Weights that oscillate between two levels, and moving averages of them, rounded.

    All lengths are in steps of the grid, from the level below the target. Rates are changes of
    code per update.

    Args:
        codes: Whose codes: the first axis of the rates.
        targets: (w* − ŵ↓)/s: where weights are pulled to, between 0 and 1.
        flips: Rate of each weight after the updates that are not counted.
        counted: Updates that it is counted over.
        settled: Updates before, in which the averages forget where they began.
        window: Updates in each of the equal parts that the whole run is cut into.
        window_flips: Rate in each part from the first update on, the mean over weights.
        rate: η, the learning rate.
        decay: α of the averages.
        seed: Of the inputs.
    """

    codes: tuple[str, ...]
    targets: Float[Array, "targets"]
    flips: Float[Array, "codes targets weights"]
    counted: int
    settled: int
    window: int
    window_flips: Float[Array, "windows codes targets"]
    rate: float
    decay: float
    seed: int

    @property
    def mean(self) -> Float[Array, "codes targets"]:
        """The mean over weights."""
        return self.flips.mean(-1)

    @property
    def standard_error(self) -> Float[Array, "codes targets"]:
        """Of the mean, from how independent weights differ; 0 where none changed its code."""
        return self.flips.std(-1, ddof=1) / np.sqrt(self.flips.shape[-1])

    @property
    def updates(self) -> int:
        """Updates behind each mean, those of all weights."""
        return self.counted * self.flips.shape[-1]

    @property
    def distance(self) -> Float[Array, "targets"]:
        """d/s: how far each target is from its nearest level."""
        return np.minimum(self.targets, 1 - self.targets)

    @property
    def predicted_student(self) -> Float[Array, "targets"]:
        """2d/s·(1 − ½·√(d/(s − d))), whatever the learning rate: see ``averaging_toy``."""
        near = self.distance
        return 2 * near * (1 - np.sqrt(near / (1 - near)) / 2)

    @property
    def predicted_integer(self) -> Float[Array, "targets"]:
        """Rate of the average of codes, if it is normal: see ``averaging_toy``."""
        rest = 1 - self.decay
        spread = np.sqrt(rest / 2 * 0.8 * self.targets * (1 - self.targets))
        off = (self.targets - 0.5) / spread
        return rest / 2 * np.exp(-(off**2) / 2) / (np.sqrt(2 * np.pi) * spread)
