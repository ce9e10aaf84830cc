"""What it looks like: ``(ax, record) -> ax``. Draws only; never computes, never shows."""

from qatviz.plots.curves import surrogate_gradient, transfer_curve
from qatviz.plots.distributions import histogram
from qatviz.plots.style import COLOURS, use_style
from qatviz.plots.training import accuracy_dots, history

__all__ = [
    "COLOURS",
    "accuracy_dots",
    "histogram",
    "history",
    "surrogate_gradient",
    "transfer_curve",
    "use_style",
]
