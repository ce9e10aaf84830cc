"""What it looks like: ``(ax, record) -> ax``. Draws only; never computes, never shows."""

from qatviz.plots.averaging import averaging_toy
from qatviz.plots.confidence import reliability, reliability_curves
from qatviz.plots.curvature import against_bits, density, eigenvalues, spectrum, traces
from qatviz.plots.curves import surrogate_gradient, transfer_curve
from qatviz.plots.dense import dense_curves, dense_differences, dense_pictures, dense_scores
from qatviz.plots.distributions import histogram
from qatviz.plots.entropy import bits_used, code_occupancy, entropy_by_layer, network_entropy
from qatviz.plots.gradients import descent, gradient_agreement
from qatviz.plots.grids import (
    bits_curve,
    channel_sqnr,
    range_minima,
    range_sweep,
    six_decibels,
)
from qatviz.plots.images import image_grid
from qatviz.plots.landscape import loss_contour, loss_contours, loss_line, loss_path, loss_relief
from qatviz.plots.oscillation import (
    batchnorm_drift,
    bin_distances,
    code_survival,
    frequency_spread,
    oscillating_layers,
    oscillation_causes,
    oscillation_lottery,
    oscillation_series,
    oscillation_toy,
    toy_decay,
    trajectories,
)
from qatviz.plots.perturbation import (
    accuracy_by_samples,
    accuracy_difference,
    corruption_accuracy,
    corruption_means,
    input_noise,
    view_consistency,
    weight_noise,
)
from qatviz.plots.propositions import (
    convolution_mismatch,
    divergence_as_sharpness,
    error_propagation,
)
from qatviz.plots.sensitivity import layer_sqnr, sensitivity_lines, sensitivity_map
from qatviz.plots.sharpness import sharpness_panels, sharpness_points
from qatviz.plots.similarity import similarity_lines, similarity_map
from qatviz.plots.steps import step_errors, step_gradient, step_ratios, step_sizes, step_trace
from qatviz.plots.studies import grouped_intervals, paired_intervals, study_dots
from qatviz.plots.style import COLOURS, use_style
from qatviz.plots.toys import loss_gradients, one_weight, staircase_loss
from qatviz.plots.training import accuracy_dots, history, relative_gradients
from qatviz.plots.zoo import compared, learned_grids, released, zoo_curve, zoo_curves, zoo_errors

__all__ = [
    "COLOURS",
    "accuracy_by_samples",
    "accuracy_difference",
    "accuracy_dots",
    "against_bits",
    "averaging_toy",
    "batchnorm_drift",
    "bin_distances",
    "bits_curve",
    "bits_used",
    "channel_sqnr",
    "code_occupancy",
    "code_survival",
    "compared",
    "convolution_mismatch",
    "corruption_accuracy",
    "corruption_means",
    "dense_curves",
    "dense_differences",
    "dense_pictures",
    "dense_scores",
    "density",
    "descent",
    "divergence_as_sharpness",
    "eigenvalues",
    "entropy_by_layer",
    "error_propagation",
    "frequency_spread",
    "gradient_agreement",
    "grouped_intervals",
    "histogram",
    "history",
    "image_grid",
    "input_noise",
    "layer_sqnr",
    "learned_grids",
    "loss_contour",
    "loss_contours",
    "loss_gradients",
    "loss_line",
    "loss_path",
    "loss_relief",
    "network_entropy",
    "one_weight",
    "oscillating_layers",
    "oscillation_causes",
    "oscillation_lottery",
    "oscillation_series",
    "oscillation_toy",
    "paired_intervals",
    "range_minima",
    "range_sweep",
    "relative_gradients",
    "released",
    "reliability",
    "reliability_curves",
    "sensitivity_lines",
    "sensitivity_map",
    "sharpness_panels",
    "sharpness_points",
    "similarity_lines",
    "similarity_map",
    "six_decibels",
    "spectrum",
    "staircase_loss",
    "step_errors",
    "step_gradient",
    "step_ratios",
    "step_sizes",
    "step_trace",
    "study_dots",
    "surrogate_gradient",
    "toy_decay",
    "traces",
    "trajectories",
    "transfer_curve",
    "use_style",
    "view_consistency",
    "weight_noise",
    "zoo_curve",
    "zoo_curves",
    "zoo_errors",
]
