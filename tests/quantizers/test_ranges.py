import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.quantizers import Affine, fixed_range, lp_range, min_max_range, ranges


def grid_from_range(low, high, levels):
    """Section 2.4 of the notes on PD-Quant: s and z from a range."""
    s = max((max(high, 0.0) - min(low, 0.0)) / (levels - 1), 1e-8)
    z = min(max(-round(min(low, 0.0) / s), 0), levels - 1)
    return s, z


def error_of(row, low, high, levels, p):
    s, z = grid_from_range(low, high, levels)
    quantized = (np.clip(np.round(row / s) + z, 0, levels - 1) - z) * s
    return np.mean(np.abs(row - quantized) ** p)


def candidates_of(row, levels, sided):
    """Every range that the search tries, in order."""
    if sided == "two":
        low, high = min(row.min(), 0.0), max(row.max(), 0.0)
        for i in range(1, 101):
            width = (high - low) * i / 100
            for k in range(levels):
                d = width / (levels - 1)
                yield -k * d, width - k * d
    else:
        largest = max(abs(row.min()), row.max())
        for i in range(1, 101):
            reach = largest * i / 100
            yield (0.0, reach) if sided == "pos" else (-reach, 0.0)


def searched(row, levels, sided, p=2.4):
    """The first candidate with the smallest error: (s, z), its error, candidates tried."""
    best, grid, tried = math.inf, None, 0
    for low, high in candidates_of(row, levels, sided):
        error = error_of(row, low, high, levels, p)
        tried += 1
        if error < best:
            best, grid = error, grid_from_range(low, high, levels)
    return grid, best, tried


def sidedness(data):
    if data.min() >= 0:
        return "pos"
    return "neg" if data.max() <= 0 else "two"


def affine_from(x, bits, **kwargs):
    quantizer = Affine(bits, **kwargs).double()
    quantizer.init_from(x.double())
    return quantizer


# --- The search


@settings(deadline=None, max_examples=20)
@given(
    bits=st.integers(1, 3),
    size=st.integers(2, 40),
    sided=st.sampled_from(["pos", "neg", "two"]),
    seed=st.integers(0, 10**6),
)
def test_the_search_finds_what_brute_force_finds(bits, size, sided, seed):
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = {"pos": x.abs(), "neg": -x.abs(), "two": torch.cat([x, -x[:1]])}[sided]
    levels = 2**bits
    (s, z), smallest, tried = searched(x.numpy(), levels, sidedness(x))
    assert tried == (100 * levels if sided == "two" else 100)
    quantizer = affine_from(x, bits)
    got_error = (x - quantizer(x)).abs().pow(2.4).mean().item()
    assert got_error == pytest.approx(smallest, rel=1e-9, abs=1e-300)
    # Two candidates may tie up to rounding; the step and zero point are then either's.
    rivals = [
        grid_from_range(low, high, levels)
        for low, high in candidates_of(x.numpy(), levels, sidedness(x))
        if error_of(x.numpy(), low, high, levels, 2.4) <= smallest * (1 + 1e-9)
    ]
    assert (s, z) in rivals
    found = (quantizer.step.item(), quantizer.zero_point.item())
    assert any(found == pytest.approx(rival, rel=1e-9) for rival in rivals)


@pytest.mark.parametrize("sided", ["pos", "neg", "two"])
def test_the_search_at_four_bits(sided):
    x = torch.randn(60, dtype=torch.float64) ** 3
    x = {"pos": x.abs(), "neg": -x.abs(), "two": x + 0.3}[sided]
    (s, z), smallest, _ = searched(x.numpy(), 16, sidedness(x))
    quantizer = affine_from(x, 4)
    assert quantizer.step.item() == pytest.approx(s, rel=1e-12)
    assert quantizer.zero_point.item() == z
    assert (x - quantizer(x)).abs().pow(2.4).mean().item() == pytest.approx(smallest, rel=1e-12)


@pytest.mark.parametrize(
    ("bits", "two_sided", "expected"),
    [(2, True, 400), (4, True, 1600), (8, True, 25_600), (4, False, 100), (8, False, 100)],
)
def test_how_many_candidates_are_tried(bits, two_sided, expected, monkeypatch):
    tried = []

    def counted(row, low, high, levels, p):
        steps, zero_points = ranges._grid(low.flatten(), high.flatten(), levels)
        tried.extend(zip(steps.tolist(), zero_points.tolist(), strict=True))
        return low[0, 0], high[0, 0]

    # Counting, not computing: the search itself is what the tests above compare.
    monkeypatch.setattr(ranges, "_search", counted)
    x = torch.tensor([[-0.7 if two_sided else 0.2, 0.1, 1.0]], dtype=torch.float64)
    lp_range(x, 2**bits)
    assert len(tried) == expected
    wanted = [
        grid_from_range(low, high, 2**bits)
        for low, high in candidates_of(x[0].numpy(), 2**bits, "two" if two_sided else "pos")
    ]
    np.testing.assert_allclose(tried, wanted, rtol=1e-12)


def test_the_first_of_two_equal_candidates_is_kept():
    # Symmetric data and one bit: the step is the width itself, so that both positions of zero
    # have the same error to the bit.
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    (s, z), smallest, _ = searched(x.numpy(), 2, "two")
    assert error_of(x.numpy(), 0.0, s, 2, 2.4) == error_of(x.numpy(), -s, 0.0, 2, 2.4) == smallest
    quantizer = affine_from(x, 1)
    assert z == 0
    assert quantizer.zero_point.item() == 0


def test_each_row_is_searched_on_its_own():
    # One side is decided for all rows together: a positive row beside a mixed one is
    # searched in two dimensions too.
    x = torch.randn(4, 30, dtype=torch.float64)
    x[1] = x[1].abs()
    x[2] = 0
    low, high = lp_range(x, 4)
    for i in range(4):
        s, z = grid_from_range(low[i].item(), high[i].item(), 4)
        _, smallest, _ = searched(x[i].numpy(), 4, "two")
        error = error_of(x[i].numpy(), low[i].item(), high[i].item(), 4, 2.4)
        assert error == pytest.approx(smallest, rel=1e-9, abs=1e-300)
        quantizer = affine_from(x, 2, axis=0)
        assert quantizer.step[i].item() == pytest.approx(s, rel=1e-12)
        assert quantizer.zero_point[i].item() == z


def exhaustive(rows, levels, p=2.4):
    """Every candidate evaluated, one after another, in the type of the data; the first wins."""
    lower, upper = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    zero_points = range(levels)
    if (rows >= 0).all() or (rows <= 0).all():
        zero_points = [0 if (rows >= 0).all() else levels - 1]
    best, low, high = torch.full_like(lower, math.inf), lower.clone(), upper.clone()
    for i in range(1, 101):
        step = (upper - lower) * (i / 100) / (levels - 1)
        for k in zero_points:
            a, b = -k * step, (levels - 1 - k) * step
            s = ((b - a) / (levels - 1)).clamp(min=1e-8)[:, None]
            z = (0 - (a[:, None] / s).round()).clamp(0, levels - 1)
            quantized = (((rows / s).round() + z).clamp(0, levels - 1) - z) * s
            error = (rows - quantized).abs().pow(p).mean(1)
            better = error < best
            best = torch.where(better, error, best)
            low, high = torch.where(better, a, low), torch.where(better, b, high)
    return low, high


@settings(deadline=None, max_examples=25)
@given(
    bits=st.integers(1, 4),
    p=st.sampled_from([1.0, 2.0, 2.4, 6.0]),
    power=st.sampled_from([0.5, 1.0, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 0.3, -2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_leaving_candidates_out_changes_nothing(bits, p, power, scale, shift, dtype, seed):
    # Light and heavy tails, centred or not: the same bounds, to the last bit.
    x = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x = scale * (x.sign() * x.abs() ** power + shift)
    x[1] = 0
    got, wanted = lp_range(x, 2**bits, p=p), exhaustive(x, 2**bits, p)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_leaving_candidates_out_changes_nothing_at_eight_bits():
    x = torch.randn(2, 40)
    got, wanted = lp_range(x, 256), exhaustive(x, 256)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "values", [[-1.0, 1.0], [-1.0, 3.0], [-1.0, 0.0, 1.0, 2.0], [-0.5, 0.25], [-7.0, 0.0, 0.0, 8.0]]
)
@pytest.mark.parametrize(("bits", "at_once"), [(1, 1), (2, 1), (2, 50), (4, 2**17)])
def test_of_many_ranges_that_fit_exactly_the_first_is_kept(
    values, bits, at_once, dtype, monkeypatch
):
    # The first, even where a later one is evaluated before it.
    monkeypatch.setattr(ranges, "AT_ONCE", at_once)
    x = torch.tensor([values], dtype=dtype)
    got, wanted = lp_range(x, 2**bits), exhaustive(x, 2**bits)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("bits", range(1, 7))
def test_of_two_mirrored_ranges_the_first_is_kept(bits):
    # The mirror image of a range has the same error, and its zero further up.
    low, high = lp_range(torch.tensor([[-0.7, 0.7]]), 2**bits)
    assert -low < high


@pytest.mark.parametrize("p", [1.0, 2.4, 8.0])
def test_the_bound_of_the_error_is_below_it(p):
    row = torch.randn(500, dtype=torch.float64) ** 3 + 0.4
    zero_points = torch.arange(8, dtype=torch.float64)
    low, high = ranges._candidates(row.min(), row.max(), zero_points, 8)
    bound = ranges._least_errors(row, low, high, 8, p)
    true = np.array(
        [
            [error_of(row.numpy(), a, b, 8, p) for a, b in zip(*ends, strict=True)]
            for ends in zip(low.tolist(), high.tolist(), strict=True)
        ]
    )
    assert (bound.numpy() <= true * (1 + 1e-9)).all()
    # Where nothing is clipped it is the error itself.
    step = (high - low) / 7
    inside = (low - step / 2 < row.min()) & (row.max() < high + step / 2)
    inside = inside.numpy()
    assert inside.any()
    np.testing.assert_allclose(bound.numpy()[inside], true[inside], rtol=1e-9)


def test_few_candidates_are_evaluated(monkeypatch):
    evaluated, original = [], ranges._round_to

    def counted(rows, step, zero_point, levels):
        evaluated.append(len(rows))
        return original(rows, step, zero_point, levels)

    monkeypatch.setattr(ranges, "_round_to", counted)
    lp_range(torch.randn(1, 100_000), 16)
    assert 1 <= sum(evaluated) <= 160


def test_errors_that_overflow_leave_the_range_of_the_data():
    x = torch.tensor([[-1e30, 0.3, 2e30]])
    low, high = lp_range(x, 4, p=50.0)
    wanted = exhaustive(x, 4, 50.0)
    assert (low.item(), high.item()) == (wanted[0].item(), wanted[1].item())
    x = torch.tensor([[-3e38, 0.0, 3e38]])
    assert [bound.item() for bound in lp_range(x, 4)] == x[0, ::2].tolist()


@pytest.mark.parametrize("p", [0.9, 0.0, -1.0, math.nan])
def test_an_exponent_below_one_is_refused(p):
    with pytest.raises(ValueError, match=f"p must be 1 or more, got {p!r}"):
        lp_range(torch.randn(1, 9), 4, p=p)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_the_exponent_is_that_of_the_error(p):
    x = torch.randn(80, dtype=torch.float64) ** 3
    (s, z), _, _ = searched(x.numpy(), 8, "two", p)
    quantizer = affine_from(x, 3, find_range=partial(lp_range, p=p))
    assert (quantizer.step.item(), quantizer.zero_point.item()) == pytest.approx((s, z), rel=1e-12)


def test_a_larger_exponent_clips_less():
    x = torch.randn(400, dtype=torch.float64).abs() ** 3
    steps = [affine_from(x, 3, find_range=partial(lp_range, p=p)).step.item() for p in (1, 2.4, 50)]
    assert steps[0] < steps[1] < steps[2]
    assert affine_from(x, 3).step.item() == steps[1]
    assert steps[2] <= affine_from(x, 3, find_range=min_max_range).step.item()


# --- Minimum and maximum


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_min_max_spans_the_data_and_zero(axis):
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    x[:, 1] = x[:, 1].abs() + 1
    quantizer = affine_from(x, 4, axis=axis, find_range=min_max_range)
    channels = [x.numpy()] if axis is None else np.moveaxis(x.numpy(), axis, 0)
    for i, channel in enumerate(channels):
        s, z = grid_from_range(channel.min(), channel.max(), 16)
        assert quantizer.step.flatten()[i].item() == pytest.approx(s, rel=1e-12)
        assert quantizer.zero_point.flatten()[i].item() == z
    # Half a step of rounding, and up to half a step because zero is put on the grid.
    assert ((quantizer(x) - x).abs() <= quantizer.step * (1 + 1e-9)).all()


def test_min_max_of_rows_by_hand():
    rows = torch.tensor([[-1.0, 2.0, 0.5], [1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])
    low, high = min_max_range(rows, 16)
    assert low.tolist() == [-1, 0, -3]
    assert high.tolist() == [2, 3, 0]


# --- A range that is given


@pytest.mark.parametrize("axis", [None, 0])
def test_a_fixed_range_is_that_of_every_row_whatever_the_data(axis):
    steps = []
    for scale in (0.01, 100.0):
        quantizer = Affine(3, axis=axis, signed=True, find_range=fixed_range(-1.0, 2.5))
        quantizer.init_from(scale * torch.randn(4, 9))
        assert quantizer.step.flatten().tolist() == pytest.approx(
            [0.5] * (1 if axis is None else 4)
        )
        assert (quantizer.zero_point == 2).all()
        steps.append(quantizer.step)
    assert torch.equal(*steps)


def test_a_fixed_range_can_be_pickled():
    find_range = pickle.loads(pickle.dumps(fixed_range(-1.0, 2.0)))
    low, high = find_range(torch.zeros(2, 3, dtype=torch.float64), 16)
    assert (low.tolist(), high.tolist(), low.dtype) == ([-1, -1], [2, 2], torch.float64)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (-math.inf, 1.0), (0.0, math.nan)]
)
def test_a_fixed_range_without_zero_or_without_width_is_refused(low, high):
    with pytest.raises(ValueError, match=f"fixed_range: .* got low={low!r}, high={high!r}"):
        fixed_range(low, high)
