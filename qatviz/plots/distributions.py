"""Draw how values are spread, and the grid they are rounded to."""

import numpy as np
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
    ax.set(xlabel="value", ylabel="share of values (%)", title=record.label)
    if log:
        ax.set_yscale("log")
    top = share.max()
    for level in record.levels:
        ax.axvline(level, color=COLOURS["levels"], lw=1, zorder=0)
    if 0 < len(record.levels) <= 8:
        ax.set_ylim(top=top * (3 if log else 1.15))
        for level, used in zip(record.levels, record.used / record.used.sum(), strict=True):
            ax.text(
                level,
                1,
                f"{used:.0%}",
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize="x-small",
                color=COLOURS["levels"],
            )
        ax.set_title(record.label, pad=16)
    if len(record.levels):
        low, high = (
            min(record.edges[0], record.levels[0]),
            max(record.edges[-1], record.levels[-1]),
        )
        margin = 0.03 * (high - low)
        ax.set_xlim(low - margin, high + margin)
        if np.isfinite(record.sqnr):
            ax.text(
                0.98,
                0.95,
                f"SQNR {record.sqnr:.1f} dB",
                transform=ax.transAxes,
                ha="right",
                va="top",
            )
    return ax
