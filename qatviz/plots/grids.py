"""Draw the error of a uniform grid against its range, its channels and its bits."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import BitsCurve, ChannelSQNR, RangeSweep

DECIBELS_PER_BIT = 20 * np.log10(2)


def range_sweep(ax: Axes, record: RangeSweep) -> Axes:
    """Draw clipping error, rounding error and their sum while the range shrinks.

    Args:
        ax: Where.
        record: What ``analysis.range_sweep`` returned.

    Returns:
        The axes.
    """
    share, scale = 100 * record.shares, 100 / record.signal
    colour = COLOURS["rounded"]
    ax.plot(share, scale * record.clipping, color=colour, ls="--", lw=1.5, label="clipping")
    ax.plot(share, scale * record.rounding, color=colour, ls=":", lw=2, label="rounding")
    ax.plot(share, scale * record.total, color=colour, lw=2, label="both")
    ax.plot(share[record.best], scale * record.total[record.best], "o", color=colour)
    ax.set(xlabel="range (% of min-max)", ylabel="squared error (% of signal)")
    ax.set(xlim=(0, 102), ylim=(0, min(100, 2.5 * scale * record.total[-1])))
    ax.set_title(f"{record.label}, {record.bits} bit")
    ax.legend(loc="upper right")
    return ax


def range_minima(ax: Axes, records: Sequence[RangeSweep]) -> Axes:
    """Draw the whole error against the range for several bit-widths, each with its minimum.

    Args:
        ax: Where.
        records: Sweeps of the same tensor at different bits.

    Returns:
        The axes.
    """
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(records)))
    for record, shade in zip(records, shades, strict=True):
        share, total = 100 * record.shares, 100 * record.total / record.signal
        ax.semilogy(share, total, color=shade, lw=1.5)
        ax.plot(share[record.best], total[record.best], "o", color=shade)
        ax.annotate(
            f"{record.bits} bit",
            (share[-1], total[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=shade,
            fontsize="small",
        )
    ax.set(xlabel="range (% of min-max)", ylabel="squared error (% of signal)", xlim=(0, 114))
    ax.set_xticks(range(0, 101, 25))
    ax.set_title(records[0].label)
    return ax


def channel_sqnr(ax: Axes, record: ChannelSQNR) -> Axes:
    """Draw the SQNR of every channel, with one grid for all and with a grid of its own.

    Args:
        ax: Where.
        record: What ``analysis.channel_sqnr`` returned.

    Returns:
        The axes.
    """
    colour = COLOURS["rounded"]
    for low, high, x in zip(record.per_tensor, record.per_channel, record.largest, strict=True):
        ax.plot([x, x], [low, high], color=colour, lw=0.8, alpha=0.5)
    ax.plot(
        record.largest,
        record.per_tensor,
        "o",
        mfc="white",
        color=colour,
        label=f"one grid for all: layer {record.tensor_overall:.1f} dB",
    )
    ax.plot(
        record.largest,
        record.per_channel,
        "o",
        color=colour,
        label=f"a grid each: layer {record.channel_overall:.1f} dB",
    )
    ax.set(xlabel="largest weight of the channel (magnitude)", ylabel="SQNR of the channel (dB)")
    ax.set_title(f"{record.label}, {record.bits} bit, {len(record.largest)} channels")
    ax.margins(y=0.25)
    ax.legend(loc="lower right")
    return ax


def bits_curve(
    ax: Axes, record: BitsCurve, *, colour: str = COLOURS["rounded"], style: str = "o-"
) -> Axes:
    """Draw a number against bits.

    Args:
        ax: Where.
        record: What ``analysis.sqnr_by_bits`` or ``analysis.accuracy_by_bits`` returned.
        colour: Of the curve. Default: that of rounding without training.
        style: Marker and line, as Matplotlib names them. Default: "o-".

    Returns:
        The axes.
    """
    percent = record.quantity == "accuracy"
    values = 100 * record.values if percent else record.values
    ax.plot(record.bits, values, style, color=colour, ms=5, mfc="white", label=record.label)
    ax.set(xlabel="bits", ylabel="accuracy (%)" if percent else record.quantity)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="lower right")
    return ax


def six_decibels(ax: Axes, record: BitsCurve) -> Axes:
    """Draw the line of 6.02 dB per bit through the last point of a curve.

    Args:
        ax: Where.
        record: What ``analysis.sqnr_by_bits`` returned.

    Returns:
        The axes.
    """
    line = record.values[-1] + DECIBELS_PER_BIT * (record.bits - record.bits[-1])
    ax.plot(record.bits, line, color=COLOURS["float"], lw=0.8, zorder=0, label="6.02 dB per bit")
    ax.legend(loc="lower right")
    return ax
