"""Where a grid begins and ends: rules that choose a range from data."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from qatviz.quantizers.base import SMALLEST_STEP

CANDIDATES = 100
AT_ONCE = 2**17  # numbers in memory at once, while searching

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


def fixed_range(low: float, high: float) -> Callable[[Rows, int], Bounds]:
    """A range that data do not change.

    Args:
        low: Lower bound, zero or less.
        high: Upper bound, zero or more.

    Returns:
        A ``find_range`` that returns these bounds for every row.

    Raises:
        ValueError: If the bounds are not finite, are equal, or zero is not between them.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high and low < high):
        raise ValueError(
            f"fixed_range: bounds must be finite with low ≤ 0 ≤ high, low < high, "
            f"got low={low!r}, high={high!r}"
        )
    return partial(_fixed_range, low=low, high=high)


def _fixed_range(rows: Tensor, levels: int, *, low: float, high: float) -> Bounds:
    return rows.new_full([len(rows)], low), rows.new_full([len(rows)], high)


def lp_range(rows: Rows, levels: int, *, p: float = 2.4) -> Bounds:
    """The range whose rounding error ∑|x − x̂|^p is smallest, by exhaustive search.

    One-sided data (all ≥ 0 or all ≤ 0): 100 ranges from zero to i/100 of the largest
    magnitude. Two-sided data: 100 widths, i/100 of max − min, each with every position of
    zero on the grid: 100·levels candidates, 25,600 at 8 bits. Of equal errors the first wins.

    Candidates that a lower bound of the error rules out are not evaluated: the result is that
    of trying all (``_least_errors``).

    Args:
        rows: One row per grid.
        levels: Levels of the grid, 2^bits.
        p: Exponent of the error, 1 or more. Default: 2.4 (PD-Quant's released search, also
            BRECQ's and QDrop's; between 2, which is mean squared error, and ∞, which is
            min-max).

    Returns:
        Lower and upper bound per row, zero always on the grid.

    Raises:
        ValueError: If ``p`` is less than 1.

    Source: the search of the PD-Quant paper, arXiv 2212.07048 (released code, observer).
    """
    if not p >= 1:
        raise ValueError(f"lp_range: p must be 1 or more, got {p!r}")
    lower, upper = min_max_range(rows, levels)
    zero_points = torch.arange(levels, dtype=rows.dtype, device=rows.device)
    if (rows >= 0).all():
        zero_points = zero_points[:1]
    elif (rows <= 0).all():
        zero_points = zero_points[-1:]
    for i, row in enumerate(rows):
        if row.any():
            candidates = _candidates(lower[i], upper[i], zero_points, levels)
            lower[i], upper[i] = _search(row, *candidates, levels, p)
    return lower, upper


def _candidates(
    lower: Tensor, upper: Tensor, zero_points: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Bounds ``[width, zero point]`` of all ranges to try for one row, in the order of trying."""
    shares = torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
    step = (upper - lower) * shares.to(lower) / (levels - 1)
    return -zero_points * step[:, None], (levels - 1 - zero_points) * step[:, None]


def _search(row: Tensor, low: Tensor, high: Tensor, levels: int, p: float) -> tuple[Tensor, Tensor]:
    """The first of the ranges with the smallest error, most promising ones first."""
    bounds, order = _least_errors(row, low, high, levels, p).flatten().sort()
    low, high = low.flatten(), high.flatten()
    # Bound and error are sums of the same terms, rounded differently.
    rounding = (8 * torch.finfo(row.dtype).eps * row.abs().max()).pow(p)
    best, found = math.inf, -1
    at_once = max(1, AT_ONCE // len(row))
    for bound, some in zip(bounds[::at_once], order.split(at_once), strict=True):
        if bound > 1.01 * best + rounding:
            break
        rows = row.expand(len(some), -1)
        quantized = _round_to(rows, *_grid(low[some], high[some], levels), levels)
        errors = (rows - quantized).abs().pow(p).mean(1).nan_to_num(nan=math.inf, posinf=math.inf)
        smallest = errors.min()
        first = some[errors == smallest].min()
        best, found = min((best, found), (smallest.item(), first.item()))
    if found < 0:  # every error overflows
        return row.min().clamp(max=0), row.max().clamp(min=0)
    return low[found], high[found]


def _least_errors(row: Tensor, low: Tensor, high: Tensor, levels: int, p: float) -> Tensor:
    """A lower bound of each range's mean error, from few powers."""
    # What lies inside a range is rounded in the same way wherever zero stands: with the row
    # sorted, a range's error inside is a difference of two cumulative sums. The n numbers that
    # it clips at one end have distances that average to δ, and ∑distance^p ≥ n·δ^p (Jensen).
    x, below = row.sort().values, row.new_zeros(1, dtype=torch.float64)
    sums, n = torch.cat([below, x.double().cumsum(0)]), len(row)
    parts = max(1, AT_ONCE // n)
    found = []
    for a, b in zip(low.split(parts), high.split(parts), strict=True):
        step, _ = _grid(a[:, :1], b[:, :1], levels)
        codes = (x / step).round()
        errors = (x - codes * step).abs().pow(p).cumsum(1, dtype=torch.float64)
        errors = pad(errors, (1, 0))
        first = torch.searchsorted(codes, (a / step).round())
        last = torch.searchsorted(codes, (b / step).round(), right=True)
        short = (a - sums[first] / first.clamp(min=1)).clamp(min=0).to(x.dtype).pow(p)
        long = ((sums[-1] - sums[last]) / (n - last).clamp(min=1) - b).clamp(min=0).to(x.dtype)
        inside = errors.gather(1, last) - errors.gather(1, first)
        found.append((inside + first * short + (n - last) * long.pow(p)) / n)
    return torch.cat(found).nan_to_num(nan=0.0, posinf=math.inf)


def choose_grid(
    rows: Rows, levels: int, signed: bool, find_range: Callable[[Rows, int], Bounds]
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The grid of a range that is chosen from data.

    Args:
        rows: One row per grid.
        levels: Levels of the grid, 2^bits.
        signed: False: negative data count as zero.
        find_range: ``(rows, levels) -> (lower, upper)``.

    Returns:
        Step and zero point per row.
    """
    rows = rows if signed else rows.clamp(min=0)
    return _grid(*find_range(rows, levels), levels)


def _grid(lower: Tensor, upper: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Step and zero point of the grid that spans a range."""
    step = ((upper - lower) / (levels - 1)).clamp(min=SMALLEST_STEP)
    # 0 − …, because a minus sign would make the zero point of one-sided data −0.
    return step, (0 - (lower / step).round()).clamp(0, levels - 1)


def _round_to(rows: Tensor, step: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    codes = (rows / step[:, None]).round() + zero_point[:, None]
    return (codes.clamp(0, levels - 1) - zero_point[:, None]) * step[:, None]
