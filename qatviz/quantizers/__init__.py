"""The mathematics: tensors in, tensors on a grid out. Torch only; no model, no data."""

from qatviz.quantizers.adaround import AdaRound, rounding_beta, rounding_penalty
from qatviz.quantizers.affine import Affine
from qatviz.quantizers.affine_lsq import AffineLSQ
from qatviz.quantizers.as_released import ReleasedDoReFa, released_lsq, released_pact
from qatviz.quantizers.base import Quantizer
from qatviz.quantizers.dorefa import DoReFa
from qatviz.quantizers.ewgs import EWGS
from qatviz.quantizers.lsq import LSQ, mean_step, three_sigma_step
from qatviz.quantizers.lsq_plus import LSQPlus
from qatviz.quantizers.nipq import NIPQ, histogram_noise, released_range, uniform_noise
from qatviz.quantizers.pact import PACT
from qatviz.quantizers.ranges import fixed_range, lp_range, min_max_range
from qatviz.quantizers.straight_through import straight_through

__all__ = [
    "EWGS",
    "LSQ",
    "NIPQ",
    "PACT",
    "AdaRound",
    "Affine",
    "AffineLSQ",
    "DoReFa",
    "LSQPlus",
    "Quantizer",
    "ReleasedDoReFa",
    "fixed_range",
    "histogram_noise",
    "lp_range",
    "mean_step",
    "min_max_range",
    "released_lsq",
    "released_pact",
    "released_range",
    "rounding_beta",
    "rounding_penalty",
    "straight_through",
    "three_sigma_step",
    "uniform_noise",
]
