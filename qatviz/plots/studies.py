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


def grouped_intervals(
    ax: Axes,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    seeds: Mapping[str, Sequence[float]],
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw paired differences under headings, with every seed: a map of where a method gains.

    Blue: the whole interval is above zero; orange: below; grey: neither, or no interval.

    Args:
        ax: Where; about a quarter of an inch high for each row and heading.
        groups: Mean, low and high end of the difference in accuracy (−1 to 1) by arm, under
            each heading, such as rows of ``Study.paired``.
        seeds: The differences of the seeds, by arm; NaN where a run failed.
        limits: Ends of the axis in points; what lies beyond is marked by an arrow at the end.
            Default: None: so that everything is seen.

    Returns:
        The axes, the first group on top.
    """
    names, bold, place = [], set(), 0
    for heading, intervals in groups.items():
        bold.add(place)
        names.append(heading)
        place += 1
        for label, interval in intervals.items():
            values = 100 * np.asarray(seeds[label], float)
            values = values[np.isfinite(values)]
            mean, below, above = _ends(interval)
            colour = _verdict(mean - below, mean + above)
            _dots(ax, values, place, colour, limits)
            look = {"fmt": "|", "ms": 9, "mew": 2, "capsize": 3, "color": colour}
            ax.errorbar(mean, place, xerr=[[below], [above]], **look)
            names.append(f"{label} (n = {len(values)})")
            place += 1
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    for text, row in zip(ax.set_yticks(range(place), names), range(place), strict=True):
        text.label1.set_fontweight("bold" if row in bold else "normal")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="difference in test accuracy (points)", ylim=(place - 0.5, -0.5))
    if limits is not None:
        ax.set_xlim(*limits)
    return ax


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return COLOURS["quantized"]
    return COLOURS["rounded"] if high < 0 else "0.45"


def _dots(
    ax: Axes, values: np.ndarray, place: int, colour: str, limits: tuple[float, float] | None
) -> None:
    """One ring per seed; an arrow at the end of the axis for what lies beyond it."""
    low, high = limits or (-np.inf, np.inf)
    inside = (values >= low) & (values <= high)
    look = {"ls": "", "mfc": "white", "color": colour, "alpha": 0.8}
    ax.plot(values[inside], [place] * int(inside.sum()), marker="o", ms=3.5, **look)
    for beyond, end, marker in ((values < low, low, "<"), (values > high, high, ">")):
        look = {"ls": "", "color": colour, "clip_on": False}
        if beyond.any():
            ax.plot([end], [place], marker=marker, ms=6, **look)


def _ends(interval: Sequence[float]) -> tuple[float, float, float]:
    """Mean in percent, and the lengths below and above it."""
    mean, low, high = (100 * value for value in interval)
    return mean, mean - low, high - mean
