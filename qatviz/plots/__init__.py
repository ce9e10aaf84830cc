"""What it looks like: ``(ax, record) -> ax``. Draws only; never computes, never shows."""

from qatviz.plots.curves import surrogate_gradient, transfer_curve
from qatviz.plots.distributions import histogram
from qatviz.plots.gradients import descent, gradient_agreement
from qatviz.plots.grids import (
    bits_curve,
    channel_sqnr,
    range_minima,
    range_sweep,
    six_decibels,
)
from qatviz.plots.images import image_grid
from qatviz.plots.steps import step_errors, step_gradient, step_ratios, step_sizes, step_trace
from qatviz.plots.studies import paired_intervals, study_dots
from qatviz.plots.style import COLOURS, use_style
from qatviz.plots.toys import loss_gradients, one_weight, staircase_loss
from qatviz.plots.training import accuracy_dots, history, relative_gradients
from qatviz.plots.zoo import compared, learned_grids, released, zoo_curve, zoo_curves, zoo_errors

__all__ = [
    "COLOURS",
    "accuracy_dots",
    "bits_curve",
    "channel_sqnr",
    "compared",
    "descent",
    "gradient_agreement",
    "histogram",
    "history",
    "image_grid",
    "learned_grids",
    "loss_gradients",
    "one_weight",
    "paired_intervals",
    "range_minima",
    "range_sweep",
    "relative_gradients",
    "released",
    "six_decibels",
    "staircase_loss",
    "step_errors",
    "step_gradient",
    "step_ratios",
    "step_sizes",
    "step_trace",
    "study_dots",
    "surrogate_gradient",
    "transfer_curve",
    "use_style",
    "zoo_curve",
    "zoo_curves",
    "zoo_errors",
]
