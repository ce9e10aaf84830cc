"""Distances between predictions: pure functions, one paper per file."""

from qatviz.losses.kd import distillation

__all__ = ["distillation"]
