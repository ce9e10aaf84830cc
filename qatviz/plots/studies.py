"""Draw what studies found: every seed, means, intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS


def study_dots(
    ax: Axes,
    seeds: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[float]],
    colours: Mapping[str, str] | None = None,
) -> Axes:
    """Draw one dot per seed beside the mean of each arm with its interval.

    Args:
        ax: Where.
        seeds: Accuracies (0 to 1) of the seeds, by arm; NaN where a run failed.
        intervals: Mean, low and high end by arm, such as the rows of ``Study.summary()``; these
            arms are drawn, from left to right. NaN ends: no interval.
        colours: Colours by arm. Default: None: that of a quantized network.

    Returns:
        The axes.
    """
    colours, names = colours or {}, []
    for place, (label, interval) in enumerate(intervals.items()):
        colour = colours.get(label, COLOURS["quantized"])
        values = 100 * np.asarray(seeds[label], float)
        values = values[np.isfinite(values)]
        ax.plot([place - 0.12] * len(values), values, "o", ms=5, mfc="white", color=colour)
        mean, below, above = _ends(interval)
        look = {"fmt": "_", "ms": 14, "mew": 2, "capsize": 4, "color": colour}
        ax.errorbar(place + 0.12, mean, [[below], [above]], **look)
        names.append(f"{label}\nn = {len(values)}")
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="test accuracy (%)", xlim=(-0.5, len(names) - 0.5))
    return ax


def paired_intervals(ax: Axes, intervals: Mapping[str, Sequence[float]]) -> Axes:
    """Draw mean paired differences with their intervals, and zero.

    Args:
        ax: Where.
        intervals: Mean, low and high end of the difference in accuracy (−1 to 1) by arm, such as
            the rows of ``Study.paired``. NaN ends: no interval.

    Returns:
        The axes, the first arm on top.
    """
    for place, interval in enumerate(intervals.values()):
        mean, below, above = _ends(interval)
        look = {"fmt": "o", "ms": 5, "capsize": 4, "color": COLOURS["quantized"]}
        ax.errorbar(mean, place, xerr=[[below], [above]], **look)
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_yticks(range(len(intervals)), list(intervals))
    ax.set(xlabel="difference in test accuracy (points)", ylim=(len(intervals) - 0.5, -0.5))
    return ax


def _ends(interval: Sequence[float]) -> tuple[float, float, float]:
    """Mean in percent, and the lengths below and above it."""
    mean, low, high = (100 * value for value in interval)
    return mean, mean - low, high - mean
