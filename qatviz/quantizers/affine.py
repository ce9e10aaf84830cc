"""A fixed uniform grid: step and zero point chosen once from data."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardtanh
from typing_extensions import override

from qatviz.quantizers.base import SMALLEST_STEP, Quantizer
from qatviz.quantizers.straight_through import straight_through

CANDIDATES = 100

Rows = Float[Tensor, "rows elements"]
Bounds = tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]


def min_max_range(rows: Rows, levels: int) -> Bounds:
    """The range of the data: nothing is clipped, and outliers cost resolution.

    Args:
        rows: One row per grid.
        levels: Levels of the grid (not used: the range does not depend on it).

    Returns:
        Lower and upper bound per row, each with zero between them.
    """
    return rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)


def lp_range(rows: Rows, levels: int, *, p: float = 2.4) -> Bounds:
    """The range whose rounding error ∑|x − x̂|^p is smallest, by exhaustive search.

    One-sided data (all ≥ 0 or all ≤ 0): 100 ranges from zero to i/100 of the largest
    magnitude. Two-sided data: 100 widths, i/100 of max − min, each with every position of
    zero on the grid: 100·levels candidates, 25,600 at 8 bits.

    Args:
        rows: One row per grid.
        levels: Levels of the grid, 2^bits.
        p: Exponent of the error. Default: 2.4 (PD-Quant's released search, also BRECQ's and
            QDrop's; between 2, which is mean squared error, and ∞, which is min-max).

    Returns:
        Lower and upper bound per row, zero always on the grid.

    Source: the search of the PD-Quant paper, arXiv 2212.07048 (released code, observer).
    """
    lower, upper = min_max_range(rows, levels)
    if (rows >= 0).all() or (rows <= 0).all():
        zero_points = [0 if (rows >= 0).all() else levels - 1]
    else:
        zero_points = range(levels)
    best = torch.full_like(lower, math.inf)
    best_lower, best_upper = lower.clone(), upper.clone()
    for i in range(1, CANDIDATES + 1):
        step = (upper - lower) * (i / CANDIDATES) / (levels - 1)
        for zero_point in zero_points:
            low, high = -zero_point * step, (levels - 1 - zero_point) * step
            quantized = _round_to(rows, *_grid(low, high, levels), levels)
            error = (rows - quantized).abs().pow(p).mean(1)
            better = error < best
            best = torch.where(better, error, best)
            best_lower = torch.where(better, low, best_lower)
            best_upper = torch.where(better, high, best_upper)
    return best_lower, best_upper


def _grid(lower: Tensor, upper: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Step and zero point of the grid that spans a range."""
    step = ((upper - lower) / (levels - 1)).clamp(min=SMALLEST_STEP)
    # 0 − …, because a minus sign would make the zero point of one-sided data −0.
    return step, (0 - (lower / step).round()).clamp(0, levels - 1)


def _round_to(rows: Tensor, step: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    codes = (rows / step[:, None]).round() + zero_point[:, None]
    return (codes.clamp(0, levels - 1) - zero_point[:, None]) * step[:, None]


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
        x = x if self.signed else x.clamp(min=0)
        levels = 2**self.bits
        step, zero_point = _grid(*self.find_range(self._rows(x), levels), levels)
        self.step.data = self._per_grid(step, x).to(self.step.dtype)
        self.zero_point.data = self._per_grid(zero_point, x).to(self.step.dtype)
