"""An affine grid whose step is trained and whose zero point is not."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from qatviz.quantizers.base import BITS
from qatviz.quantizers.lsq import LSQ
from qatviz.quantizers.ranges import Bounds, Rows, choose_grid, min_max_range


class AffineLSQ(LSQ):
    """``LSQ`` on the grid of ``Affine``: what Consistency Regularization and PD-Quant train.

    Forward, with step s, zero point z and n = 2^b − 1::

        q = clip(round(x/s) + z, 0, n)      x̂ = (q − z) · s

    Backward::

        ∂x̂/∂x = 1  where −z·s < x < (n − z)·s, else 0
        ∂x̂/∂s = (q − z) − (x/s) · 1[0 < x/s + z < n]
        and ∂L/∂s is multiplied by g = 1/√(N · n)

    z is chosen once with the first step and has no gradient. N counts all numbers that share a
    step, the images of a batch too: so does MQBench, whose factor this is; LSQ counts the
    features of one image. A step below 1e-8 counts as 1e-8 and goes on learning.

    PD-Quant's activations are the same with ``find_range=lp_range`` and no factor: override
    ``gradient_scale`` with 1.

    Args:
        bits: Bits per code, 1 to 8.
        signed: See ``Affine``. Default: None: z = 0 if nothing is negative.
        axis: See ``Quantizer``. Default: None (ours).
        find_range: See ``Affine``. Default: ``min_max_range``, s = (max − min)/n (CR's rig).

    Raises:
        ValueError: If the bits are not allowed.

    Source: Pang & Cai 2025 (FPQ), arXiv 2503.11159, section 3.1, equations 3 to 5: the rig of
    the authors of CR (arXiv 2402.13497), which we take to be that of CR too. Gradient: Esser et
    al. 2020, arXiv 1902.08153. Factor: MQBench (released code). PD-Quant: arXiv 2212.07048
    (released code).
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        find_range: Callable[[Rows, int], Bounds] = min_max_range,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.find_range = find_range
        self.register_buffer("zero_point", torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS

    @property
    @override
    def low(self) -> int:
        """The lowest code: 0, whatever the sign; the zero point says which code is zero."""
        return 0

    @override
    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.low - self.zero_point, self.high - self.zero_point

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return super().codes(x) + self.zero_point

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return super().dequantize(codes - self.zero_point)

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        # The compiler cannot read the zero point as a number.
        if torch.compiler.is_compiling():
            return self._formulas(x, self.step, *self._ends())
        return super()._quantize(x)

    @override
    def gradient_scale(self, x: Float[Tensor, "*shape"]) -> float:
        """The factor g on the gradient of the step.

        Args:
            x: The tensor being quantized; only its shape counts.

        Returns:
            1/√(N · n), N the elements that share a step, with the batch axis.
        """
        shared = x.numel() if self.axis is None else x.numel() // x.shape[self.axis]
        return 1 / math.sqrt(max(shared, 1) * self.high)

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Choose step and zero point with ``find_range``, in place.

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite.
        """
        self._begin(x)
        levels = 2**self.bits
        step, zero_point = choose_grid(self._rows(x), levels, self.signed, self.find_range)
        self.step.data = self._per_grid(step, x).to(self.step.dtype)
        self.zero_point.data = self._per_grid(zero_point, x).to(self.step.dtype)
