import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qatviz.calibration import calibrate
from qatviz.quantize import check_ready, quantize
from qatviz.quantizers import (
    LSQ,
    LSQPlus,
    lp_range,
    mean_step,
    min_max_range,
    three_sigma_step,
)
from tests.quantizers.conformance import Case, Config, grid_of, state_of


def lsq_plus_oracle(state, x, upstream, config):
    """x̂ = s·round(clip((x − β)/s, 0, n)) + β and section 3's gradients, number by number."""
    steps = np.maximum(state["step"].reshape(-1), 1e-8)
    offsets = state["offset"].reshape(-1)
    n = 2**config.bits - 1
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    grad_step, grad_offset = np.zeros_like(steps), np.zeros_like(steps)
    sharing = [0] * len(steps)
    for index in np.ndindex(*x.shape):
        if not config.batched or index[0] == 0:
            sharing[grid_of(index, config)] += 1
    for index in np.ndindex(*x.shape):
        grid = grid_of(index, config)
        s, beta = steps[grid], offsets[grid]
        if x[index] - beta <= 0:
            code, d_x, d_step, d_offset = 0, 0.0, 0, 1.0
        elif x[index] - beta >= n * s:
            code, d_x, d_step, d_offset = n, 0.0, n, 1.0
        else:
            v = float((x[index] - beta) / s)
            code = round(v)
            d_x, d_step, d_offset = 1.0, code - v, 0.0
        g = 1 / math.sqrt(sharing[grid] * n)
        value[index] = code * s + beta
        grad_x[index] = upstream[index] * d_x
        grad_step[grid] += upstream[index] * d_step * g
        grad_offset[grid] += upstream[index] * d_offset * g
    shape = state["step"].shape
    return value, grad_x, {"step": grad_step.reshape(shape), "offset": grad_offset.reshape(shape)}


CASES = {LSQPlus: Case(partial(LSQPlus, find_range=min_max_range), lsq_plus_oracle)}


def with_grid(step, offset, bits, axis=None, batched=False):
    quantizer = LSQPlus(bits, signed=True, axis=axis)
    quantizer.step.data = torch.as_tensor(step, dtype=torch.float64)
    quantizer.offset.data = torch.as_tensor(offset, dtype=torch.float64)
    quantizer.batched = batched
    return quantizer


@st.composite
def problems(draw):
    """A quantizer, a tensor of one to four axes, and an upstream gradient."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    bits = draw(st.integers(1, 8))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    batched = axis != 0 and draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    grids = [1] * len(shape) if axis is not None else []
    if axis is not None:
        grids[axis] = shape[axis]
    steps = torch.rand(grids, generator=generator, dtype=torch.float64) + 0.05
    offsets = 3 * torch.randn(grids, generator=generator, dtype=torch.float64)
    steps = steps * draw(st.sampled_from([1e-3, 1.0, 1e4]))
    low, high = offsets, (2**bits - 1) * steps + offsets
    x = low + (high - low) * 2 * (torch.rand(shape, generator=generator).double() - 0.25)
    where = torch.randint(8, shape, generator=generator)
    for i, number in enumerate((low, high, torch.tensor(1e30), torch.tensor(-1e30))):
        x = torch.where(where == i, number.double(), x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    quantizer = with_grid(steps, offsets, bits, axis, batched)
    return quantizer, x, upstream, Config(bits, True, axis, batched)


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_values_and_gradients_are_those_of_the_paper(problem):
    quantizer, x, upstream, config = problem
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, grads = lsq_plus_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-10, atol=1e-13)
    # v is (x − β)/s, and β may be 10⁵ steps from zero.
    for name, parameter in quantizer.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), grads[name], rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(
    ("x", "code", "d_x", "d_step", "d_offset"),
    [
        (-1, 0, 0, 0, 1),
        (-0.25, 0, 0, 0, 1),
        (0, 0, 1, -0.5, 0),
        (0.125, 1, 1, 0.25, 0),
        (1.0, 2, 1, -0.5, 0),
        (1.25, 3, 0, 3, 1),
        (7, 3, 0, 3, 1),
    ],
)
def test_one_number_at_a_time(x, code, d_x, d_step, d_offset):
    # s = 0.5, β = −0.25, two bits, one element: g = 1/√3; ties (v = 0.5, 2.5) to even codes.
    quantizer = with_grid(0.5, -0.25, 2)
    x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.item() == code * 0.5 - 0.25
    assert x.grad.item() == d_x
    assert quantizer.step.grad.item() == pytest.approx(d_step / math.sqrt(3), abs=1e-15)
    assert quantizer.offset.grad.item() == pytest.approx(d_offset / math.sqrt(3), abs=1e-15)


def test_with_the_offset_at_zero_it_is_unsigned_lsq():
    lsq, plus = LSQ(3, signed=False), with_grid(0.3, 0.0, 3)
    lsq.step.data = torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(200, dtype=torch.float64)
    for quantizer in (lsq, plus):
        quantizer(x).pow(2).sum().backward()
    assert torch.equal(lsq(x), plus(x))
    assert lsq.step.grad.item() == pytest.approx(plus.step.grad.item(), rel=1e-10)


@pytest.mark.parametrize(
    ("axis", "batched", "n"), [(None, False, 600), (None, True, 75), (1, True, 25), (0, False, 75)]
)
def test_the_gradient_scale_counts_what_shares_a_grid(axis, batched, n):
    quantizer = with_grid(1.0, 0.0, 4, axis, batched)
    g = quantizer.gradient_scale(torch.zeros(8, 3, 5, 5))
    assert g == pytest.approx(1 / math.sqrt(n * 15), rel=1e-14)


def test_finite_differences_of_the_frozen_rounding():
    s, beta, h = 0.37, -0.6, 1e-6
    quantizer = with_grid(s, beta, 3)
    x = 2 * np.random.default_rng(0).standard_normal(200)
    v = (x - beta) / s
    x = x[(np.abs(v) > 1e-3) & (np.abs(v - 7) > 1e-3)]
    clipped = np.clip((x - beta) / s, 0, 7)
    residual = np.round(clipped) - clipped

    def surrogate(s, beta):
        return ((np.clip((x - beta) / s, 0, 7) + residual) * s + beta).sum()

    quantizer(torch.tensor(x)).sum().backward()
    g = 1 / math.sqrt(len(x) * 7)
    by_step = (surrogate(s + h, beta) - surrogate(s - h, beta)) / (2 * h)
    by_offset = (surrogate(s, beta + h) - surrogate(s, beta - h)) / (2 * h)
    assert quantizer.step.grad.item() == pytest.approx(g * by_step, abs=1e-6)
    assert quantizer.offset.grad.item() == pytest.approx(g * by_offset, abs=1e-6)
    assert by_offset > 10


# --- The first grid


@pytest.mark.parametrize("axis", [None, 0])
def test_the_first_grid_has_the_smallest_squared_error(axis):
    x = torch.randn(2, 60, dtype=torch.float64) ** 3 + 0.2
    quantizer = LSQPlus(3, axis=axis).double()
    quantizer.init_from(x)
    for i, row in enumerate([x.flatten()] if axis is None else list(x)):
        # Every width in hundredths of the spread, every position of zero: brute force.
        errors = {}
        for share in range(1, 101):
            step = (row.max() - row.min()).item() * share / 100 / 7
            for zero in range(8):
                codes = np.clip(np.round(row.numpy() / step), -zero, 7 - zero)
                errors[step, -zero * step] = np.mean((row.numpy() - codes * step) ** 2)
        step, offset = min(errors, key=errors.get)
        assert quantizer.step.flatten()[i].item() == pytest.approx(step, rel=1e-12)
        assert quantizer.offset.flatten()[i].item() == pytest.approx(offset, rel=1e-12)


def test_a_range_of_ones_own_need_not_hold_zero():
    def shifted(rows, levels):
        return rows.amin(1), rows.amax(1)

    quantizer = LSQPlus(2, signed=True, find_range=shifted)
    quantizer.init_from(torch.tensor([2.0, 5.0]))
    assert (quantizer.step.item(), quantizer.offset.item()) == (1, 2)
    assert quantizer.levels().tolist() == [2, 3, 4, 5]


def test_an_unsigned_grid_begins_at_zero_and_may_leave_it():
    quantizer = LSQPlus(3, signed=False)
    quantizer.init_from(torch.randn(100))
    assert quantizer.offset == 0
    assert quantizer.low == 0
    quantizer(torch.randn(100)).sum().backward()
    assert quantizer.offset.grad > 0


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40, 1e6])
@pytest.mark.parametrize("bits", [1, 4])
def test_data_without_a_range(value, bits):
    quantizer = LSQPlus(bits)
    x = torch.full((5,), value)
    quantizer.init_from(x)
    assert quantizer.calibrated
    assert quantizer.step > 0
    torch.testing.assert_close(quantizer(x), x, rtol=1e-5, atol=1e-8)


def test_a_channel_of_zeros_gets_a_step():
    x = torch.randn(3, 20)
    x[1] = 0
    quantizer = LSQPlus(3, axis=0, find_range=min_max_range)
    quantizer.init_from(x)
    assert quantizer.step[1] == 1
    assert (quantizer(x)[1] == 0).all()


# --- Edges


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_a_step_driven_below_zero_counts_as_the_smallest_and_learns(value):
    quantizer = with_grid(value, 0.5, 2)
    x = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    y = quantizer(x)
    np.testing.assert_allclose(y.detach().numpy(), [0.5, 0.5, 0.5 + 3e-8], rtol=1e-12)
    y.sum().backward()
    assert quantizer.step.grad.item() == pytest.approx(3 / 3, rel=1e-12)  # n · g, g = 1/√(3·3)


def test_infinite_values_are_clipped():
    quantizer = with_grid(0.5, -0.25, 2)
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    assert y[:2].tolist() == [1.25, -0.25]
    assert y[2].isnan()
    y[:2].sum().backward()
    assert x.grad.tolist() == [0, 0, 0]
    assert quantizer.offset.grad.item() == pytest.approx(2 / 3, rel=1e-12)


def test_codes_stay_in_the_grid_where_the_offset_hides_the_step():
    quantizer = with_grid(1e-3, 1e5, 2).float()
    codes = quantizer.codes(torch.linspace(1e5 - 1, 1e5 + 1, 101))
    assert codes.min() == 0
    assert codes.max() == 3


def test_a_model_with_negative_activations():
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    weights = partial(LSQ, 4, find_step=three_sigma_step)
    inputs = partial(LSQPlus, 4, find_range=partial(lp_range, p=2.0))
    student = quantize(model, weights, inputs)
    with pytest.raises(ValueError, match=r"0\.input_quantizer, 2\.input_quantizer"):
        check_ready(student)
    calibrate(student, [torch.randn(64, 4)])
    quantizer = student.get_submodule("2").input_quantizer
    assert -0.3 < quantizer.offset < 0
    student(torch.randn(64, 4)).pow(2).sum().backward()
    assert quantizer.offset.grad != 0
    for name in ("step", "offset"):
        before = getattr(quantizer, name).detach().clone()
        getattr(quantizer, name).data.fill_(math.nan)
        with pytest.raises(ValueError, match=r"2\.input_quantizer"):
            check_ready(student)
        getattr(quantizer, name).data = before
    check_ready(student)


# --- The weights of LSQ+


def test_the_two_first_steps_of_weights_by_hand():
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-6.0, -2.0, -2.0, 2.0]], dtype=torch.float64)
    # μ = 2.5, σ² = 1.25 and μ = −2, σ² = 8; signed codes of four bits: Q_P = 7.
    three_sigma = [
        max(abs(mean - 3 * sigma), abs(mean + 3 * sigma)) / 8
        for mean, sigma in ((2.5, math.sqrt(1.25)), (-2.0, math.sqrt(8)))
    ]
    assert three_sigma_step(rows, 7).tolist() == pytest.approx(three_sigma, rel=1e-14)
    assert mean_step(rows, 7).tolist() == pytest.approx(
        [2 * 2.5 / math.sqrt(7), 2 * 3 / math.sqrt(7)], rel=1e-14
    )


def test_the_first_step_of_weights_can_be_chosen_per_channel():
    x = torch.randn(3, 50)
    quantizer = LSQ(4, axis=0, find_step=three_sigma_step)
    quantizer.init_from(x)
    for step, row in zip(quantizer.step.flatten().tolist(), x.double().numpy(), strict=True):
        assert step == pytest.approx((abs(row.mean()) + 3 * row.std()) / 8, rel=1e-6)
