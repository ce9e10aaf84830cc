"""Draw how sure networks are, against how often they are right."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of, images, joined, plus_minus
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
    title = f"{record.label}\n{_scores(record, '95 %: ')}\n{images([record.samples])}".strip()
    ax.set_title(title, pad=32, fontsize="medium")
    ax.legend(loc="upper left")
    _counts(ax, record)
    return ax


def _scores(record: Reliability, words: str = "") -> str:
    """ECE with the interval that holds 95 %, accuracy with its standard error."""
    low, high = record.interval
    accuracy = plus_minus(100 * record.accuracy, 100 * record.accuracy_error, ".1f")
    interval = f"{words}{100 * low:.1f} to {100 * high:.1f}"
    return f"ECE {100 * record.ece:.1f} % ({interval}), accuracy {accuracy} %"


def _counts(ax: Axes, record: Reliability) -> None:
    """Write how many images each bin holds above it."""
    middle = 100 * (record.edges[:-1] + record.edges[1:]) / 2
    for place, count in zip(middle, record.counts, strict=True):
        if count:
            look = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": "x-small"}
            ax.annotate(str(count), (place, 1.01), xycoords=ax.get_xaxis_transform(), **look)


def reliability_curves(ax: Axes, records: Reliability | Mapping[str, Reliability]) -> Axes:
    """Draw confidence against accuracy of several networks, one line each.

    Args:
        ax: Where.
        records: What ``analysis.reliability`` returned, or several by name of the network.

    Returns:
        The axes.
    """
    several = by_label(records, Reliability)
    colours = colours_of(several)
    for name, record in several.items():
        full = record.counts > 0
        look = {"fmt": "o-", "ms": 4, "capsize": 2, "color": colours[name]}
        points = 100 * record.bin_confidence[full], 100 * record.bin_accuracy[full]
        ax.errorbar(
            *points, 100 * record.bin_error[full], label=joined(name, _scores(record)), **look
        )
    ax.plot([0, 100], [0, 100], "--", color="0.6", lw=1)
    ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
    many = images(record.samples for record in several.values())
    look = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "fontsize": "small"}
    ax.legend(title=f"(95 %), ± standard error; {many}", title_fontsize="small", **look)
    return ax
