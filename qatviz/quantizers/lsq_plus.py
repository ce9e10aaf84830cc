"""LSQ+: the step of the grid and the place where it begins are both trained."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantizers.base import BITS, usable
from qatviz.quantizers.lsq import LSQ
from qatviz.quantizers.ranges import Bounds, Rows, lp_range
from qatviz.quantizers.straight_through import straight_through

squared_error_range = partial(lp_range, p=2.0)


class LSQPlus(LSQ):
    """``LSQ`` of x − β, with a learned offset β: for activations that do not begin at zero.

    Forward, with step s, offset β and n = 2^b − 1::

        q = round(clip((x − β)/s, 0, n))        x̂ = q · s + β

    Backward, with v = (x − β)/s::

        ∂x̂/∂x = 1             where 0 < v < n, else 0
        ∂x̂/∂s = round(v) − v  where 0 < v < n;  0 where v ≤ 0;  n where v ≥ n
        ∂x̂/∂β = 0             where 0 < v < n, else 1
        and ∂L/∂s and ∂L/∂β are multiplied by g = 1/√(N · n)

    N and g are those of LSQ; that β has the same factor is how we read the paper. β is a real
    number, so zero need not be a level, and codes are 0 to n whatever the sign. The weights of
    LSQ+ are ``LSQ(bits, find_step=three_sigma_step)``.

    Args:
        bits: Bits per code, 1 to 8.
        signed: Only what the first range is chosen from: with False, the data clipped at zero.
            β is trained in either case. Default: None: see ``Quantizer``.
        axis: See ``Quantizer``. Default: None: one grid per layer (paper).
        find_range: ``(rows, levels) -> (lower, upper)``; s and β begin as (upper − lower)/n
            and lower. Default: ``lp_range`` with p = 2: the smallest squared error, as in the
            paper, over ranges with zero on the grid (ours).

    Raises:
        ValueError: If the bits are not allowed.

    Source: Bhalgat et al. 2020, "LSQ+: Improving low-bit quantization through learnable
    offsets and better initialization", arXiv 2004.09576, section 3.
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        find_range: Callable[[Rows, int], Bounds] = squared_error_range,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.find_range = find_range
        self.offset = nn.Parameter(torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS

    @property
    @override
    def low(self) -> int:
        """The lowest code: 0, whatever the sign; the offset says what it stands for."""
        return 0

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return super().codes(x - self._offset(x))

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return super().dequantize(codes) + self._offset(codes)

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        offset = self._offset(x)
        return super()._quantize(x - offset) + offset

    def _offset(self, x: Tensor) -> Tensor:
        """The offset, with g on its gradient."""
        return straight_through(self.offset, self.offset * self.gradient_scale(x))

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set step and offset with ``find_range``, in place.

        Args:
            x: A batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite.
        """
        self._begin(x)
        x = x if self.signed else x.clamp(min=0)
        lower, upper = self.find_range(self._rows(x), 2**self.bits)
        step = usable((upper - lower) / self.high)
        self.step.data = self._per_grid(step, x).to(self.step.dtype)
        self.offset.data = self._per_grid(lower, x).to(self.step.dtype)
