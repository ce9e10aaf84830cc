import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.quantizers import AdaRound, lp_range, min_max_range, ranges
from qatviz.quantizers.adaround import rounding_beta, rounding_penalty
from tests.quantizers.conformance import Case, Config, grid_of, state_of


def h(a):
    return min(max(1.2 / (1 + math.exp(-a)) - 0.1, 0.0), 1.0)


def adaround_oracle(state, x, upstream, config, soft=False):
    """s·(clip(⌊w/s⌋ + up + z, 0, n − 1) − z); the gradient is that of the soft weight."""
    steps, zero_points = state["step"].reshape(-1), state["zero_point"].reshape(-1)
    value, to_a = np.zeros_like(x), np.zeros_like(x)
    last = 2**config.bits - 1
    for index in np.ndindex(*x.shape):
        s, z = steps[grid_of(index, config)], zero_points[grid_of(index, config)]
        a, below = float(state["rounding"][index]), math.floor(x[index] / s)
        up = h(a) if soft else float(a >= 0)
        value[index] = s * (min(max(below + up + z, 0), last) - z)
        sigma = 1 / (1 + math.exp(-a))
        slope = 1.2 * sigma * (1 - sigma) if 0 < 1.2 * sigma - 0.1 < 1 else 0.0
        to_a[index] = upstream[index] * s * slope * (0 < below + h(a) + z < last)
    return value, np.zeros_like(x), {"rounding": to_a}


CASES = {
    # The searched range costs seconds at 8 bits; its own tests are below.
    AdaRound: Case(
        partial(AdaRound, find_range=min_max_range),
        adaround_oracle,
        idempotent=False,
        one_shape=True,
        evaluates=True,
        trains_input=False,
    )
}


def made(x, bits=3, axis=None, find_range=min_max_range):
    quantizer = AdaRound(bits, axis=axis, find_range=find_range).to(x.dtype)
    quantizer.init_from(x)
    return quantizer


@st.composite
def problems(draw):
    """A quantizer whose numbers a are anything, its weight beyond the range, a gradient."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    bits, size = draw(st.integers(1, 8)), 10.0 ** draw(st.integers(-6, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    signed = draw(st.booleans())
    quantizer = made(x if signed else x.abs(), bits, axis)
    a = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    quantizer.rounding.data = torch.where(a > 5, 1000.0, torch.where(a < -5, 0.0, a))
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    return quantizer, 1.5 * x, upstream, Config(bits, signed, axis, False)


@settings(deadline=None, max_examples=150)
@given(problem=problems(), training=st.booleans())
def test_values_and_gradients_are_the_formulas(problem, training):
    quantizer, x, upstream, config = problem
    quantizer.train(training)
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, _, grads = adaround_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config, soft=training
    )
    scale = value.__abs__().max() + 1e-300
    np.testing.assert_allclose(y.detach().numpy() / scale, value / scale, rtol=0, atol=1e-13)
    assert (x.grad == 0).all()
    size = np.abs(grads["rounding"]).max() + 1e-300
    np.testing.assert_allclose(
        quantizer.rounding.grad.numpy() / size, grads["rounding"] / size, rtol=1e-10, atol=1e-13
    )


# --- The search (test 1 of the notes on PD-Quant, section 9)


def grid_from_range(low, high, levels):
    s = max((max(high, 0.0) - min(low, 0.0)) / (levels - 1), 1e-8)
    return s, min(max(-round(min(low, 0.0) / s), 0), levels - 1)


def candidates_of(row, levels):
    """Every range to try for a row, in order: one-sided data in one dimension, else in two."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    for i in range(1, 101):
        if low == 0:
            yield 0.0, high * i / 100
        elif high == 0:
            yield low * i / 100, 0.0
        else:
            for k in range(levels):
                width = (high - low) * i / 100
                yield -k * width / (levels - 1), width - k * width / (levels - 1)


def brute_force(row, levels):
    """s and z of the candidate with strictly the smallest mean |x − x̂|^2.4, and their number."""
    best, found, tried = 1e10, None, 0
    for low, high in candidates_of(row, levels):
        s, z = grid_from_range(low, high, levels)
        x_hat = (np.clip(np.round(row / s) + z, 0, levels - 1) - z) * s
        error, tried = np.mean(np.abs(row - x_hat) ** 2.4), tried + 1
        if error < best:
            best, found = error, (s, z)
    return found, tried


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("sign", "two_sided"), [(1, False), (-1, False), (1, True)])
def test_the_grid_of_each_channel_is_that_of_brute_force(bits, sign, two_sided):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3, 40, dtype=torch.float64, generator=generator) ** 3
    x = x if two_sided else sign * x.abs()
    quantizer = AdaRound(bits).double()
    quantizer.init_from(x)
    assert quantizer.step.shape == (3, 1)
    for i, row in enumerate(x.numpy()):
        (s, z), tried = brute_force(row, 2**bits)
        assert tried == (100 * 2**bits if two_sided else 100)
        assert quantizer.step[i].item() == pytest.approx(s, rel=1e-12)
        assert quantizer.zero_point[i].item() == z


def test_the_two_dimensional_search_at_eight_bits():
    # At 8 bits rivals are close: the grid is that of brute force, among all 25,600.
    x = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    (s, z), tried = brute_force(x.numpy(), 256)
    assert tried == 25_600
    quantizer = made(x, 8, find_range=lp_range)
    assert quantizer.step.item() == pytest.approx(s, rel=1e-12)
    assert quantizer.zero_point.item() == z


@pytest.mark.parametrize(("bits", "count"), [(2, 400), (4, 1600), (8, 25_600)])
def test_how_many_candidates_there_are(bits, count):
    x = torch.tensor([-0.7, 0.1, 1.0], dtype=torch.float64)
    bounds = torch.arange(2**bits, dtype=torch.float64)
    low, high = ranges._candidates(x.min(), x.max(), bounds, 2**bits)
    assert low.numel() == high.numel() == count
    wanted = list(candidates_of(x.numpy(), 2**bits))
    np.testing.assert_allclose(
        torch.stack([low.flatten(), high.flatten()], 1), wanted, rtol=1e-9, atol=1e-12
    )


# --- The start (test 2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("signed", [True, False])
def test_the_soft_weight_starts_as_the_clipped_float_weight(bits, axis, dtype, signed):
    x = torch.randn(4, 5, 3).to(dtype)
    x = x if signed else x.abs()
    quantizer = made(x, bits, axis, lambda rows, n: [0.6 * b for b in min_max_range(rows, n)])
    s, z = quantizer.step, quantizer.zero_point
    clipped = torch.maximum(torch.minimum(x, (2**bits - 1 - z) * s), -z * s)
    assert quantizer.rounding.shape == x.shape
    assert (x != clipped).any()
    assert (quantizer(x) - clipped).abs().max() <= 1e-5
    fraction = x / s - (x / s).floor()
    torch.testing.assert_close(quantizer.fraction(), fraction, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_hard_weight_starts_rounded_half_up(dtype):
    quantizer = AdaRound(4, axis=None, find_range=lambda rows, n: (0 * rows[:, 0] - 2, 0 * rows[:, 0] + 1.75)).to(dtype)  # fmt: skip  # noqa: E501
    x = torch.tensor([-2.5, -1.5, -1.375, -0.625, -0.125, 0, 0.1249, 0.125, 0.375, 1.6, 9])
    x = x.to(dtype)
    quantizer.init_from(x)
    assert (quantizer.step.item(), quantizer.zero_point.item()) == (0.25, 8)
    codes = [min(max(math.floor(v / 0.25 + 0.5) + 8, 0), 15) for v in x.tolist()]
    assert quantizer.codes(x).tolist() == codes
    assert quantizer.eval()(x).tolist() == [(q - 8) * 0.25 for q in codes]


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_the_hard_weight_of_random_weights_starts_rounded_half_up(bits, seed):
    x = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    quantizer = made(x, bits)
    ratio = (x / quantizer.step).numpy()
    half_up = np.clip(np.floor(ratio + 0.5) + quantizer.zero_point.item(), 0, 2**bits - 1)
    np.testing.assert_array_equal(quantizer.codes(x).detach().numpy(), half_up)


# --- Soft and hard


def test_training_is_soft_and_evaluation_and_codes_are_hard():
    x = torch.randn(6, 5)
    quantizer = made(x, axis=0)
    levels = quantizer.levels()
    assert levels.shape == (6, 8)
    soft, codes = quantizer(x), quantizer.codes(x)
    assert not any(torch.isin(row, grid).all() for row, grid in zip(soft, levels, strict=True))
    hard = quantizer.eval()(x)
    assert all(torch.isin(row, grid).all() for row, grid in zip(hard, levels, strict=True))
    assert torch.equal(codes, quantizer.codes(x))
    assert torch.equal(codes, codes.round())


def test_decided_weights_are_the_same_in_both_modes():
    x = torch.randn(6, 5)
    quantizer = made(x)
    a = torch.where(torch.rand(6, 5) < 0.5, -3.0, 3.0)  # h reaches its bounds at ±2.4
    quantizer.rounding.data = a
    assert torch.equal(quantizer.fraction(), (a > 0).float())
    assert torch.equal(quantizer(x), quantizer.eval()(x))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-20, 1e6])
def test_constant_weights(value):
    x = torch.full((3, 4), value)
    quantizer = made(x, axis=0)
    assert quantizer.calibrated
    for mode in (True, False):
        torch.testing.assert_close(quantizer.train(mode)(x), x, rtol=1e-5, atol=1e-8)


def test_float64_is_computed_in_float64():
    x = torch.tensor([-2.0, 1.0 - 1e-12, 1.0, 5.0], dtype=torch.float64)
    quantizer = made(x)
    assert quantizer.step.item() == 1
    quantizer.rounding.data.fill_(-1)
    assert (quantizer.codes(x) - quantizer.zero_point).tolist() == [-2, 0, 1, 5]


def test_rounding_can_be_learned():
    # Both of the first two round to 0, but their sum shall be 0.9: one of them must go up.
    x = torch.tensor([0.45, 0.1, 3.0], dtype=torch.float64)
    quantizer = made(x, 2)
    assert quantizer.codes(x).tolist() == [0, 0, 3]
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for step in range(400):
        optimizer.zero_grad()
        error = (quantizer(x)[:2].sum() - 0.9).square()
        (error + rounding_penalty([quantizer], step, 400, weight=0.05)).backward()
        optimizer.step()
    assert quantizer.codes(x).tolist() == [1, 0, 3]
    assert quantizer.penalty(2) < 1e-3
    assert torch.allclose(quantizer(x), quantizer.eval()(x), atol=1e-3)


# --- The penalty and its schedule (test 3)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_the_penalty_is_its_formula(beta):
    x = torch.randn(30, dtype=torch.float64)
    quantizer = made(x)
    quantizer.rounding.data = 3 * torch.randn(30, dtype=torch.float64)
    expected = sum(1 - abs(2 * h(a) - 1) ** beta for a in quantizer.rounding.tolist())
    assert quantizer.penalty(beta).item() == pytest.approx(expected, rel=1e-12)
    quantizer.rounding.data.fill_(0)
    assert quantizer.penalty(beta).item() == 30
    quantizer.penalty(beta).backward()
    assert (quantizer.rounding.grad == 0).all()
    quantizer.rounding.data.fill_(5)
    assert quantizer.penalty(beta).item() == 0


def test_beta_is_20_then_a_line_to_2():
    total = 20_000
    assert all(rounding_beta(t, total) == 20 for t in (0, 1, 2000, 3999, 4000))
    assert rounding_beta(12_000, total) == pytest.approx(11, rel=1e-12)
    assert rounding_beta(total, total) == pytest.approx(2, rel=1e-12)
    betas = [rounding_beta(t, total) for t in range(4000, total + 1, 100)]
    assert all(a - b == pytest.approx(18 / 160, rel=1e-9) for a, b in pairwise(betas))
    assert rounding_beta(75, 100, warm_up=0.5, start=8.0, end=4.0) == pytest.approx(6)


@pytest.mark.parametrize("total", [5, 10, 35, 55, 100, 20_000])
def test_the_penalty_is_off_until_a_fifth_of_the_steps(total):
    x = torch.randn(2, 40)
    several = [made(x[0]), made(x[1], axis=0)]
    first = total // 5
    for step in {0, 1, first - 1} & set(range(first)):
        penalty = rounding_penalty(several, step, total)
        assert penalty.item() == 0
        assert not penalty.requires_grad
    for step, beta in ((first, 20.0), (total, 2.0)):
        expected = 0.01 * sum(quantizer.penalty(beta).item() for quantizer in several)
        assert rounding_penalty(several, step, total).item() == pytest.approx(expected, rel=1e-5)
        assert expected > 0
    ten = rounding_penalty(several, total, total, weight=0.1)
    assert ten.item() == pytest.approx(10 * rounding_penalty(several, total, total).item())
