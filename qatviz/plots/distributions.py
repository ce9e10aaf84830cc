"""Draw how values are spread, and the grid they are rounded to."""

from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import Histogram


def histogram(ax: Axes, record: Histogram, *, log: bool = False) -> Axes:
    """Draw the values as bars, each level as a line with the share of values it takes.

    Args:
        ax: Where.
        record: What ``analysis.histogram`` returned.
        log: Whether the counts are on a logarithmic scale. Default: False (ours).

    Returns:
        The axes.
    """
    share = 100 * record.counts / record.counts.sum()
    ax.stairs(share, record.edges, fill=True, color=COLOURS["float"], alpha=0.35)
    ax.set(xlabel="value", ylabel="share of values (%)")
    if log:
        ax.set_yscale("log")
    margin = 0.08 * (record.edges[-1] - record.edges[0])
    ax.set_xlim(record.edges[0] - margin, record.edges[-1] + margin)
    for level in record.levels:
        width = 1 if len(record.levels) <= 16 else 0.3
        ax.axvline(level, color=COLOURS["levels"], lw=width, zorder=0)
    error = f" (SQNR {record.sqnr:.1f} dB)" if len(record.levels) else ""
    ax.set_title(record.label + error, pad=16)
    if len(record.levels) <= 8:
        _label_levels(ax, record)
    return ax


def _label_levels(ax: Axes, record: Histogram) -> None:
    """Write above each visible level how many of the values are rounded to it."""
    low, high = ax.get_xlim()
    for level, used in zip(record.levels, record.used / record.used.sum(), strict=True):
        if low <= level <= high:
            ax.annotate(
                f"{used:.0%}",
                (level, 1),
                xycoords=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize="x-small",
                color=COLOURS["levels"],
            )
