"""Means and paired differences over seeds, with 95 % t-intervals."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Args:
        mean: m = ∑x/n.
        deviation: s = √(∑(x − m)²/(n − 1)); NaN for one number.
        n: How many numbers.
        low: m − t·s/√n, with t the 97.5 % quantile of Student's t with n − 1 degrees of
            freedom; NaN for one number.
        high: m + t·s/√n.
    """

    mean: float
    deviation: float
    n: int
    low: float
    high: float


def estimate(values: Iterable[float | None]) -> Estimate:
    """The mean of some numbers, with its 95 % t-interval.

    Args:
        values: Numbers; what is None or not finite is left out.

    Returns:
        The estimate; all NaN if there is no number.
    """
    x = np.asarray([v for v in values if v is not None], float)
    x = x[np.isfinite(x)]
    n, nothing = len(x), float("nan")
    if n == 0:
        return Estimate(nothing, nothing, 0, nothing, nothing)
    mean = float(x.mean())
    if n == 1:
        return Estimate(mean, nothing, 1, nothing, nothing)
    deviation = float(x.std(ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / n**0.5
    return Estimate(mean, deviation, n, mean - half, mean + half)


def paired_difference(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Estimate:
    """The mean of ours − theirs over the seeds that both have, with its 95 % t-interval.

    Args:
        ours: Numbers by seed.
        theirs: Numbers by seed.

    Returns:
        The estimate of the difference.
    """
    common = [seed for seed in ours if seed in theirs]
    return estimate([ours[seed] - theirs[seed] for seed in common])
