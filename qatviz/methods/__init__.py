"""How to train: one file per paper, all under the same three verbs."""

from qatviz.methods.base import CrossEntropy, Method

__all__ = ["CrossEntropy", "Method"]
