"""The mathematics: tensors in, tensors on a grid out. Torch only; no model, no data."""

from qatviz.quantizers.affine import Affine, lp_range, min_max_range
from qatviz.quantizers.base import Quantizer
from qatviz.quantizers.lsq import LSQ
from qatviz.quantizers.straight_through import straight_through

__all__ = ["LSQ", "Affine", "Quantizer", "lp_range", "min_max_range", "straight_through"]
