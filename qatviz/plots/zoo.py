"""Draw every quantizer side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from qatviz.plots.grids import DECIBELS_PER_BIT
from qatviz.plots.style import COLOURS
from qatviz.records import Histogram, LearnedGrid, Released, ZooCurve, ZooErrors

Grid = Sequence[Axes] | np.ndarray

MARKERS = "os^Dv*XPh<>"
SHADES = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#444444")


def zoo_curves(figure: FigureBase, records: Sequence[ZooCurve], *, columns: int = 4) -> np.ndarray:
    """Draw small multiples: each quantizer's staircase, and below it its surrogate gradient.

    Args:
        figure: An empty figure or subfigure with constrained layout; about 2.4 inches a column
            and 3 inches for each row of quantizers suit it.
        records: What ``analysis.zoo_curves`` returned.
        columns: Quantizers beside each other. Default: 4 (ours).

    Returns:
        The axes, two rows (staircase, gradient) for each row of quantizers.
    """
    rows = -(-len(records) // columns)
    axes = figure.subplots(
        2 * rows,
        columns,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [2, 1] * rows},
    )
    for index, record in enumerate(records):
        row, column = divmod(index, columns)
        zoo_curve(axes[2 * row, column], axes[2 * row + 1, column], record)
    _share_limits(axes[0::2], records, [_reach(r.curve.x, r.curve.y, *r.band) for r in records])
    _share_limits(axes[1::2], records, [_reach(r.curve.gradient, r.opposed) for r in records])
    for place in range(len(records), rows * columns):
        for offset in (0, 1):
            axes[2 * (place // columns) + offset, place % columns].set_axis_off()
    _outer_labels(axes, len(records))
    _legend(figure, records)
    return axes


def zoo_curve(upper: Axes, lower: Axes, record: ZooCurve) -> Axes:
    """Draw the staircase of one quantizer and its gradient.

    Args:
        upper: Where the staircase goes.
        lower: Where the gradient goes.
        record: One of what ``analysis.zoo_curves`` returned.

    Returns:
        The upper axes.
    """
    curve = record.curve
    upper.plot(curve.x, curve.x, color=COLOURS["float"], lw=1, ls="--")
    if record.band_label:
        upper.fill_between(curve.x, *record.band, color=COLOURS["rounded"], alpha=0.3, lw=0)
    upper.plot(curve.x, curve.y, color=COLOURS["quantized"], lw=1.6)
    scaled = "" if record.scale == 1 else f"  (levels × {record.scale:.2g})"
    upper.set_title(record.name + scaled, fontsize="medium")
    lower.axhline(0, color=COLOURS["float"], lw=0.6)
    lower.plot(curve.x, curve.gradient, color=COLOURS["gradient"], lw=1.6)
    if record.asymmetric:
        lower.plot(curve.x, record.opposed, color=COLOURS["rounded"], lw=1.2, ls=":")
    lower.margins(x=0)
    return upper


def _reach(*values: np.ndarray) -> tuple[float, float]:
    values = [v for v in values if v.size]
    return min(v.min() for v in values), max(v.max() for v in values)


def _share_limits(
    axes: np.ndarray, records: Sequence[ZooCurve], reach: Sequence[tuple[float, float]]
) -> None:
    low, high = min(r[0] for r in reach), max(r[1] for r in reach)
    margin = 0.08 * (high - low) or 1.0
    for ax in axes.flat[: len(records)]:
        ax.set_ylim(low - margin, high + margin)


def _outer_labels(axes: np.ndarray, count: int) -> None:
    """Names and numbers at the left and at the bottom of each column only."""
    columns = axes.shape[1]
    for (row, column), ax in np.ndenumerate(axes):
        ax.tick_params(labelsize="small", labelleft=column == 0)
        last = row % 2 and (row // 2 + 1) * columns + column >= count
        ax.tick_params(labelbottom=bool(last))
        if last:
            ax.set_xlabel("x", fontsize="small")
        if not column:
            ax.set_ylabel("∂x̂/∂x" if row % 2 else "x̂", fontsize="small")
    figure = axes[0, 0].figure
    figure.align_ylabels(list(axes[:, 0]))


def _legend(figure: FigureBase, records: Sequence[ZooCurve]) -> None:
    handles = [
        Line2D([], [], color=COLOURS["quantized"], lw=1.6, label="output x̂"),
        Line2D([], [], color=COLOURS["float"], lw=1, ls="--", label="float: x̂ = x"),
        Line2D([], [], color=COLOURS["gradient"], lw=1.6, label="gradient, ∂L/∂x̂ = +1"),
    ]
    if any(r.asymmetric for r in records):
        label = "where ∂L/∂x̂ = −1 differs"
        handles.append(Line2D([], [], color=COLOURS["rounded"], lw=1.2, ls=":", label=label))
    for record in records:
        if record.band_label:
            label = f"{record.name}: {record.band_label}"
            handles.append(Patch(color=COLOURS["rounded"], alpha=0.3, lw=0, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")


def learned_grids(axes: Grid, records: Sequence[LearnedGrid], histogram: Histogram) -> Grid:
    """Draw the levels of every quantizer before and after it learned, over the same values.

    Args:
        axes: One for each record, below each other; about 0.7 inches high each.
        records: What ``analysis.learn_grids`` returned.
        histogram: What ``analysis.histogram`` returned for the tensor, without a quantizer.

    Returns:
        The axes.
    """
    share = 100 * histogram.counts / histogram.counts.sum()
    low, high = _view(records, histogram)
    for ax, record in zip(axes, records, strict=True):
        ax.stairs(share, histogram.edges, fill=True, color=COLOURS["float"], alpha=0.25)
        top = 1.05 * _second(share)  # activations are mostly zero: their bar may be cut
        ax.set(xlim=(low, high), ylim=(0, top), yticks=[])
        before, after = COLOURS["rounded"], COLOURS["quantized"]
        ax.vlines(record.levels_before, 0.5 * top, top, color=before, lw=1, ls="--")
        ax.vlines(record.levels_after, 0, 0.75 * top, color=after, lw=2)
        ax.set_ylabel(record.name, rotation=0, ha="right", va="center")
        ax.text(1.01, 0.5, _told(record), transform=ax.transAxes, va="center", fontsize="small")
        ax.tick_params(labelbottom=False)
        ax.spines["left"].set_visible(False)
    axes[-1].tick_params(labelbottom=True)
    cut = ", longest bar cut" if share.max() > top else ""
    axes[-1].set_xlabel(f"{histogram.label or 'value'}  (grey: share of values{cut})")
    axes[0].legend(
        handles=[
            Line2D([], [], color=before, lw=1, ls="--", label="levels before"),
            Line2D([], [], color=after, lw=2, label="levels after"),
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        fontsize="small",
    )
    axes[0].text(
        1.01,
        1.05,
        "error of the output",
        transform=axes[0].transAxes,
        fontsize="small",
        va="bottom",
    )
    return axes


def _second(share: np.ndarray) -> float:
    """The second largest share, or the largest where all others are zero."""
    return np.sort(share)[-2:][0] or share.max()


def _view(records: Sequence[LearnedGrid], histogram: Histogram) -> tuple[float, float]:
    """The values, and what lies no further out than half their range again."""
    low, high = histogram.edges[0], histogram.edges[-1]
    reach = 0.5 * (high - low)
    levels = np.concatenate([x for r in records for x in (r.levels_before, r.levels_after)])
    levels = np.append(levels[(levels > low - reach) & (levels < high + reach)], [low, high])
    margin = 0.02 * np.ptp(levels)
    return levels.min() - margin, levels.max() + margin


def _told(record: LearnedGrid) -> str:
    if not record.learned:
        return f"{record.before:.2%}\nnothing to learn"
    numbers = "1 number" if record.learned == 1 else f"{record.learned:,} numbers"
    return f"{record.before:.2%} → {record.after:.2%}\n{numbers} learned"


def zoo_errors(ax: Axes, record: ZooErrors, *, plain: bool = False, relative: bool = False) -> Axes:
    """Draw the SQNR of every quantizer against bits, with a guide of 6.02 dB per bit.

    Args:
        ax: Where; the legend stands to its right.
        record: What ``analysis.zoo_errors`` returned.
        plain: True: without the best scalar; quantizers whose levels have units of their own
            are left out. Default: False.
        relative: True: less 6.02 dB for each bit, so that lines that lie close are apart, and
            the guide is level. Default: False.

    Returns:
        The axes.
    """
    values, slope = record.plain if plain else record.best, DECIBELS_PER_BIT
    name = "SQNR (dB)" if plain else "SQNR after the best scalar (dB)"
    if relative:
        values, slope = values - DECIBELS_PER_BIT * record.bits, 0.0
        name = name.replace("(dB)", "− 6.02·bits (dB)")
    shown = np.isfinite(values).any(1)
    for index in np.flatnonzero(shown):
        ax.plot(
            record.bits,
            values[index],
            marker=MARKERS[index % len(MARKERS)],
            color=SHADES[index % len(SHADES)],
            ls=("-", "--", "-.", ":")[index % 4],
            lw=1.4,
            ms=6,
            mfc="white" if index % 2 else None,
            label=record.names[index],
        )
    guide = np.nanmax(values[:, -1]) + slope * (record.bits - record.bits[-1])
    ax.plot(record.bits, guide, color=COLOURS["float"], lw=0.8, zorder=0, label="6.02 dB per bit")
    ax.set(xlabel="bits", ylabel=name, title=record.label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return ax


def released(axes: Grid, records: Sequence[Released]) -> Grid:
    """Draw each quantizer as intended and as released on the same axes, with its numbers.

    Args:
        axes: One for each record or more; those left over are switched off.
        records: What ``analysis.released`` returned.

    Returns:
        The axes.
    """
    places = list(np.ravel(axes))
    for ax, record in zip(places, records, strict=False):
        _released(ax, record)
    for ax in places[len(records) :]:
        ax.set_axis_off()
    return axes


def _released(ax: Axes, record: Released) -> None:
    both = (record.intended, record.released)
    values = [c.gradient if record.gradient else c.y for c in both]
    low, high = _reach(*values)
    if record.gradient:
        ax.axhline(0, color=COLOURS["float"], lw=0.6)
        low = min(low, 0)
    else:
        x = both[0].x[(both[0].x >= low) & (both[0].x <= high)]
        ax.plot(x, x, color=COLOURS["float"], lw=1, ls=":", zorder=0)
    styles = (("quantized", "-", 2.2), ("rounded", "--", 1.6))
    for index, (colour, style, width) in enumerate(styles):
        told = f"{record.used[index]:.0%} of levels, {record.sqnr[index]:.1f} dB"
        label = f"{both[index].label}: {told}"
        ax.plot(both[index].x, values[index], style, color=COLOURS[colour], lw=width, label=label)
    # Room for the legend above the curves.
    ax.set_ylim(low - 0.06 * (high - low), high + 0.5 * (high - low))
    ax.set(xlabel=f"x ({record.label})", ylabel="∂x̂/∂x, ∂L/∂x̂ = +1" if record.gradient else "x̂")
    ax.set_title(record.title, fontsize="medium")
    ax.margins(x=0)
    ax.legend(loc="upper left", fontsize="small")


def compared(
    left: Axes, right: Axes, records: Sequence[ZooCurve], histogram: Histogram
) -> tuple[Axes, Axes]:
    """Draw the staircases of two quantizers over the values, and their gradients.

    Args:
        left: Where staircases and values go.
        right: Where the gradients go.
        records: Two of what ``analysis.zoo_curves`` returned.
        histogram: What ``analysis.histogram`` returned for the tensor, without a quantizer.

    Returns:
        Both axes.
    """
    share = 100 * histogram.counts / histogram.counts.sum()
    behind = left.twinx()
    highest = 1.2 * _second(share)
    shown = np.minimum(share, highest)
    behind.stairs(shown, histogram.edges, fill=True, color=COLOURS["float"], alpha=0.25)
    behind.set(ylim=(0, 2 * highest), yticks=[])
    behind.spines["right"].set_visible(False)
    # The twin lies above; its bars must not cover the lines.
    left.set_zorder(behind.get_zorder() + 1)
    left.patch.set_visible(False)
    x = records[0].curve.x
    left.plot(x, x, color=COLOURS["float"], lw=1, ls=":")
    styles = (("quantized", "-", 2.2), ("rounded", "--", 1.6))
    for record, (colour, style, width) in zip(records, styles, strict=True):
        look = {"color": COLOURS[colour], "ls": style, "lw": width}
        scaled = "" if record.scale == 1 else f", levels × {record.scale:.2g}"
        left.plot(x, record.curve.y, label=record.name + scaled, **look)
        right.plot(x, record.curve.gradient, label=record.name, **look)
        if record.asymmetric:
            label = f"{record.name}, ∂L/∂x̂ = −1"
            right.plot(x, record.opposed, color=COLOURS[colour], lw=1, ls=":", label=label)
    cut = ", longest bar cut" if share.max() > highest else ""
    left.set(xlabel=f"x (grey: share of values{cut})", ylabel="x̂", title=histogram.label)
    right.set(xlabel="x", ylabel="∂x̂/∂x used in training", title="gradient")
    low, high = _reach(*[g for r in records for g in (r.curve.gradient, r.opposed)])
    right.set_ylim(min(low, 0) - 0.05, max(high, 1) * 1.5)
    for ax in (left, right):
        ax.margins(x=0)
        ax.legend(loc="upper left", fontsize="small")
    return left, right
