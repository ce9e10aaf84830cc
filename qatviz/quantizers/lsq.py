"""Learned step size quantization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import hardtanh
from typing_extensions import override

from qatviz.quantizers.base import BITS, Quantizer
from qatviz.quantizers.straight_through import straight_through


class LSQ(Quantizer):
    """Learned step size: the distance between levels is a parameter, trained with the weights.

    Forward, with step s and codes from −Q_N to Q_P::

        v̄ = round(clip(v/s, −Q_N, Q_P))        v̂ = v̄ · s

    Backward::

        ∂v̂/∂v = 1                 where −Q_N < v/s < Q_P, else 0
        ∂v̂/∂s = round(v/s) − v/s  where −Q_N < v/s < Q_P
                −Q_N              where v/s ≤ −Q_N
                Q_P               where v/s ≥ Q_P
        and ∂L/∂s is multiplied by g = 1/√(N · Q_P)

    N counts the weights that share a step, or, for the input of a layer (``batched``), the
    features of one image. Without g the steps outrun the weights and training collapses.
    Signed: Q_N = 2^(b−1), Q_P = 2^(b−1) − 1; unsigned: Q_N = 0, Q_P = 2^b − 1. One signed bit
    has Q_P = 0 and is refused: g and the initial step would divide by zero.

    Args:
        bits: Bits per code: 2 to 8 signed, 1 to 8 unsigned.
        signed: See ``Quantizer``. Default: None: signed if the data have negative values
            (the paper: weights signed, activations after ReLU unsigned; section 2).
        axis: See ``Quantizer``. Default: None: one step per layer (paper, section 2).

    Raises:
        ValueError: If the bits are not allowed.

    Source: Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153,
    equations 1 to 5 and sections 2.1, 2.2.
    """

    def __init__(self, bits: int, *, signed: bool | None = None, axis: int | None = None) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.step = nn.Parameter(torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS[1:] if signed else BITS

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        ratio = x / self._scaled_step(x)
        # hardtanh is the clip whose gradient is zero on the bounds themselves, as in equation 3.
        clipped = hardtanh(ratio, self.low, self.high)
        return straight_through(clipped.round(), clipped)

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return codes * self._scaled_step(codes)

    def gradient_scale(self, x: Float[Tensor, "*shape"]) -> float:
        """The factor g on the gradient of the step (section 2.2).

        Args:
            x: The tensor being quantized; only its shape counts.

        Returns:
            1/√(N · Q_P), N the elements that share a step, without the batch axis.
        """
        shared = x.numel()
        if self.axis is not None:
            shared //= x.shape[self.axis]
        if self.batched:
            shared //= max(x.shape[0], 1)
        return 1 / math.sqrt(max(shared, 1) * self.high)

    def _scaled_step(self, x: Tensor) -> Tensor:
        return straight_through(self.step, self.step * self.gradient_scale(x))

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set the step to 2·mean|v|/√Q_P (section 2.1), in place.

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite, or negative data meet a single bit.
        """
        self._begin(x)
        mean = self._per_grid(self._rows(x.abs()).mean(1), x)
        # An all-zero channel has no scale; any positive step represents it exactly.
        mean = torch.where(mean == 0, torch.ones_like(mean), mean)
        self.step.data = 2 * mean.to(self.step.dtype) / math.sqrt(self.high)
