"""What is true: models or arrays in, frozen records of NumPy arrays out."""

from qatviz.analysis.as_released import released
from qatviz.analysis.average_tracking import AverageTracker
from qatviz.analysis.averaging import averaging_toy
from qatviz.analysis.batchnorm import reestimated_accuracy
from qatviz.analysis.confidence import fit_temperature, reliability
from qatviz.analysis.curvature import eigenvalues, spectral_density, trace
from qatviz.analysis.curves import transfer_curve
from qatviz.analysis.dense import DensePlan, compare_dense, detection_toy, segmentation_toy
from qatviz.analysis.distributions import activation_histograms, histogram, weight_histograms
from qatviz.analysis.entropy import activation_entropy, code_entropy, gaussian_entropy
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
from qatviz.analysis.input_changes import equivalent_input_change
from qatviz.analysis.landscape import (
    Direction,
    between,
    eigenvector_directions,
    line,
    plane,
    random_directions,
)
from qatviz.analysis.learned_grids import learn_grid, learn_grids
from qatviz.analysis.measures import (
    largest_eigenvalue,
    on_test_images,
    on_training_images,
    weight_distance,
    weight_entropy,
)
from qatviz.analysis.oscillation import (
    batchnorm_drift,
    bin_distances,
    oscillation_lottery,
    oscillation_toy,
)
from qatviz.analysis.perturbation import (
    accuracy_by_samples,
    corruption_accuracy,
    input_noise,
    view_consistency,
    weight_noise,
)
from qatviz.analysis.propagation import error_propagation
from qatviz.analysis.propositions import (
    convolution_mismatch,
    divergence_as_sharpness,
    equivalent_weight_change,
    multiplicative_weight_change,
    pac_bayes_bound,
    tolerated_noise,
)
from qatviz.analysis.sensitivity import bit_sensitivity, layer_sqnr, rank_agreement
from qatviz.analysis.sharpness import (
    average_sharpness,
    box_sharpness,
    sharpness_measures,
    worst_sharpness,
)
from qatviz.analysis.similarity import linear_cka
from qatviz.analysis.steps import (
    LSQWithoutScale,
    StepRecorder,
    step_errors,
    step_gradient,
    step_ratios,
)
from qatviz.analysis.surface import Surface
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
    "AverageTracker",
    "DensePlan",
    "Direction",
    "LSQWithoutScale",
    "StepRecorder",
    "Surface",
    "accuracy_by_bits",
    "accuracy_by_samples",
    "activation_entropy",
    "activation_histograms",
    "average_sharpness",
    "averaging_toy",
    "batchnorm_drift",
    "between",
    "bin_distances",
    "bit_sensitivity",
    "box_sharpness",
    "channel_sqnr",
    "code_entropy",
    "compare_dense",
    "convolution_mismatch",
    "corruption_accuracy",
    "decibels",
    "descent",
    "detection_toy",
    "divergence_as_sharpness",
    "eigenvalues",
    "eigenvector_directions",
    "equivalent_input_change",
    "equivalent_weight_change",
    "error_propagation",
    "fit_temperature",
    "gaussian_entropy",
    "gradient_agreement",
    "histogram",
    "input_noise",
    "largest_eigenvalue",
    "layer_sqnr",
    "learn_grid",
    "learn_grids",
    "line",
    "linear_cka",
    "measured_mu",
    "multiplicative_weight_change",
    "on_test_images",
    "on_training_images",
    "oscillation_lottery",
    "oscillation_toy",
    "pac_bayes_bound",
    "plane",
    "random_directions",
    "range_sweep",
    "rank_agreement",
    "reestimated_accuracy",
    "released",
    "reliability",
    "scaled_range",
    "segmentation_toy",
    "sharpness_measures",
    "spectral_density",
    "sqnr_by_bits",
    "staircase_loss",
    "step_errors",
    "step_gradient",
    "step_ratios",
    "symmetric_range",
    "tolerated_noise",
    "trace",
    "train_weight",
    "transfer_curve",
    "unified_view",
    "view_consistency",
    "weight_distance",
    "weight_entropy",
    "weight_histograms",
    "weight_noise",
    "without_surrogate",
    "worst_sharpness",
    "zoo_curve",
    "zoo_curves",
    "zoo_errors",
    "zoo_names",
    "zoo_quantizer",
    "zoo_unit",
]
