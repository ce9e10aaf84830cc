"""A fixed uniform grid: step and zero point chosen once from data."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardtanh
from typing_extensions import override

from qatviz.quantizers.base import Quantizer
from qatviz.quantizers.ranges import Bounds, Rows, choose_grid, lp_range
from qatviz.quantizers.straight_through import straight_through


class Affine(Quantizer):
    """A fixed step and zero point, chosen once from data and never trained.

    Forward, with step s, zero point z and n = 2^b levels::

        q = clip(round(x/s) + z, 0, n − 1)      x̂ = (q − z) · s

    Backward: ∂x̂/∂x = 1 where 0 < x/s + z < n − 1, else 0; s and z have no gradient.

    Zero is always a level. With ``signed=False`` the zero point is 0.

    Args:
        bits: Bits per code, 1 to 8.
        signed: See ``Quantizer``. Default: None: z = 0 if nothing is negative.
        axis: See ``Quantizer``. Default: None (ours); PD-Quant gives each output channel of a
            weight its own grid (axis 0).
        find_range: ``(rows, levels) -> (lower, upper)``: ``lp_range``, ``min_max_range`` or
            one of your own. Default: ``lp_range`` (PD-Quant, BRECQ, QDrop).

    Raises:
        ValueError: If the bits are not allowed.

    Source: PD-Quant, arXiv 2212.07048 (released code); Krishnamoorthi 2018,
    arXiv 1806.08342, section 2.1.
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        find_range: Callable[[Rows, int], Bounds] = lp_range,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.find_range = find_range
        self.register_buffer("step", torch.tensor(math.nan))
        self.register_buffer("zero_point", torch.tensor(math.nan))

    @property
    @override
    def low(self) -> int:
        """The lowest code: 0, whatever the sign; the zero point says which code is zero."""
        return 0

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        ratio = x / self.step
        rounded = (ratio.round() + self.zero_point).clamp(self.low, self.high)
        return straight_through(rounded, hardtanh(ratio + self.zero_point, self.low, self.high))

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (codes - self.zero_point) * self.step

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        self._begin(x)
        levels = 2**self.bits
        step, zero_point = choose_grid(self._rows(x), levels, self.signed, self.find_range)
        self.step.data = self._per_grid(step, x).to(self.step.dtype)
        self.zero_point.data = self._per_grid(zero_point, x).to(self.step.dtype)
