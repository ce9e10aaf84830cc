"""Draw how sure networks are, against how often they are right."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, check_kind, colours_of
from qatviz.records import Reliability


def reliability(ax: Axes, record: Reliability) -> Axes:
    """Draw the accuracy in each bin of confidence, the gap to the diagonal, and the counts.

    Args:
        ax: Where.
        record: What ``analysis.reliability`` returned.

    Returns:
        The axes. Error bars are one standard error of the accuracy; above each bin stands how
        many images it holds.
    """
    check_kind(record, Reliability)
    full = record.counts > 0
    left, width = 100 * record.edges[:-1][full], 100 * np.diff(record.edges)[full]
    accuracy, confidence = 100 * record.bin_accuracy[full], 100 * record.bin_confidence[full]
    look = {"color": COLOURS["quantized"], "edgecolor": "white", "ecolor": COLOURS["float"]}
    error = 100 * record.bin_error[full]
    ax.bar(left, accuracy, width, yerr=error, align="edge", label="accuracy", **look)
    gap = {"color": COLOURS["rounded"], "alpha": 0.35, "hatch": "//", "edgecolor": "white"}
    ax.bar(
        left, confidence - accuracy, width, accuracy, align="edge", label="gap to confidence", **gap
    )
    ax.plot([0, 100], [0, 100], "--", color=COLOURS["float"], lw=1)
    ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    low, high = record.interval
    scores = f"ECE {100 * record.ece:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"
    ax.set_title(f"{record.label}\n{scores}, n = {record.samples}".strip(), pad=32)
    ax.legend(loc="upper left")
    _counts(ax, record)
    return ax


def _counts(ax: Axes, record: Reliability) -> None:
    """Write how many images each bin holds above it."""
    middle = 100 * (record.edges[:-1] + record.edges[1:]) / 2
    for place, count in zip(middle, record.counts, strict=True):
        if count:
            look = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": "x-small"}
            ax.annotate(str(count), (place, 1.01), xycoords=ax.get_xaxis_transform(), **look)


def reliability_curves(ax: Axes, records: Mapping[str, Reliability]) -> Axes:
    """Draw confidence against accuracy of several networks, one line each.

    Args:
        ax: Where.
        records: What ``analysis.reliability`` returned, by name of the network.

    Returns:
        The axes.
    """
    check_kind(records, Reliability)
    colours = colours_of(records)
    for name, record in records.items():
        full = record.counts > 0
        look = {"fmt": "o-", "ms": 4, "capsize": 2, "color": colours[name]}
        score = f"ECE {100 * record.ece:.1f} %, accuracy {100 * record.accuracy:.1f} %"
        points = 100 * record.bin_confidence[full], 100 * record.bin_accuracy[full]
        ax.errorbar(*points, 100 * record.bin_error[full], label=f"{name}: {score}", **look)
    ax.plot([0, 100], [0, 100], "--", color="0.6", lw=1)
    ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
    ax.legend(loc="upper left")
    return ax
