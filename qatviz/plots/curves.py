"""Draw what a quantizer does to one number."""

from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import TransferCurve


def transfer_curve(ax: Axes, curve: TransferCurve) -> Axes:
    """Draw the staircase of a quantizer over the line that a float network follows.

    Args:
        ax: Where.
        curve: What ``analysis.transfer_curve`` returned.

    Returns:
        The axes.
    """
    for level in curve.levels:
        ax.axhline(level, color=COLOURS["levels"], lw=0.6, alpha=0.5, zorder=0)
    ax.plot(curve.x, curve.x, color=COLOURS["float"], lw=1, ls="--", label="float: y = x")
    ax.plot(curve.x, curve.y, color=COLOURS["quantized"], lw=2, label=curve.label)
    ax.set(xlabel="input x", ylabel="output x̂ (same units as x)")
    ax.margins(x=0)
    ax.legend(loc="upper left")
    return ax


def surrogate_gradient(ax: Axes, curve: TransferCurve) -> Axes:
    """Draw the gradient that the backward pass uses in place of the staircase's own.

    Args:
        ax: Where.
        curve: What ``analysis.transfer_curve`` returned.

    Returns:
        The axes.
    """
    ax.plot(curve.x, curve.gradient, color=COLOURS["gradient"], lw=2, label=curve.label)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.set(xlabel="input x", ylabel="∂x̂/∂x used in training")
    ax.set_ylim(min(-0.1, curve.gradient.min() * 1.1), max(1.3, curve.gradient.max() * 1.2))
    ax.margins(x=0)
    return ax
