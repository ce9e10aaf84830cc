"""How to train: one file per paper, all under the same three verbs."""

from qatviz.methods.base import CrossEntropy, Method
from qatviz.methods.ewgs import HessianScaling, match_outputs

__all__ = ["CrossEntropy", "HessianScaling", "Method", "match_outputs"]
