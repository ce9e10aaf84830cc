"""What is true: models or arrays in, frozen records of NumPy arrays out."""

from qatviz.analysis.curves import transfer_curve
from qatviz.analysis.distributions import activation_histograms, histogram, weight_histograms

__all__ = ["activation_histograms", "histogram", "transfer_curve", "weight_histograms"]
