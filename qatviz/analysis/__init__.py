"""What is true: models or arrays in, frozen records of NumPy arrays out."""

from qatviz.analysis.as_released import released
from qatviz.analysis.curves import transfer_curve
from qatviz.analysis.distributions import activation_histograms, histogram, weight_histograms
from qatviz.analysis.errors import decibels, zoo_errors
from qatviz.analysis.gradients import descent, gradient_agreement, without_surrogate
from qatviz.analysis.grids import (
    accuracy_by_bits,
    channel_sqnr,
    range_sweep,
    scaled_range,
    sqnr_by_bits,
    symmetric_range,
)
from qatviz.analysis.learned_grids import learn_grid, learn_grids
from qatviz.analysis.steps import (
    LSQWithoutScale,
    StepRecorder,
    step_errors,
    step_gradient,
    step_ratios,
)
from qatviz.analysis.toys import staircase_loss, train_weight
from qatviz.analysis.zoo import (
    measured_mu,
    unified_view,
    zoo_curve,
    zoo_curves,
    zoo_names,
    zoo_quantizer,
    zoo_unit,
)

__all__ = [
    "LSQWithoutScale",
    "StepRecorder",
    "accuracy_by_bits",
    "activation_histograms",
    "channel_sqnr",
    "decibels",
    "descent",
    "gradient_agreement",
    "histogram",
    "learn_grid",
    "learn_grids",
    "measured_mu",
    "range_sweep",
    "released",
    "scaled_range",
    "sqnr_by_bits",
    "staircase_loss",
    "step_errors",
    "step_gradient",
    "step_ratios",
    "symmetric_range",
    "train_weight",
    "transfer_curve",
    "unified_view",
    "weight_histograms",
    "without_surrogate",
    "zoo_curve",
    "zoo_curves",
    "zoo_errors",
    "zoo_names",
    "zoo_quantizer",
    "zoo_unit",
]
