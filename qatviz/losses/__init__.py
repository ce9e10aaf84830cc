"""Distances between predictions: pure functions, one paper per file."""

from qatviz.losses.consistency import (
    feature_distance,
    jensen_shannon,
    logit_distance,
    probability_distance,
    pseudo_label,
    reverse_divergence,
)
from qatviz.losses.kd import distillation

__all__ = [
    "distillation",
    "feature_distance",
    "jensen_shannon",
    "logit_distance",
    "probability_distance",
    "pseudo_label",
    "reverse_divergence",
]
