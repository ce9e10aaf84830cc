import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qatviz.calibration import calibrate
from qatviz.quantize import check_ready, quantize
from qatviz.quantizers import Affine, AffineLSQ, lp_range, min_max_range
from tests.quantizers.conformance import Case, Config, grid_of, state_of


def affine_lsq_oracle(state, x, upstream, config):
    """q = clip(round(x/s) + z, 0, n), x̂ = (q − z)·s; g = 1/√(N·n), N with the batch."""
    steps = np.maximum(state["step"].reshape(-1), 1e-8)
    zero_points = state["zero_point"].reshape(-1)
    n = 2**config.bits - 1
    value, grad_x, grad_step = np.zeros_like(x), np.zeros_like(x), np.zeros_like(steps)
    sharing = [0] * len(steps)
    for index in np.ndindex(*x.shape):
        sharing[grid_of(index, config)] += 1
    for index in np.ndindex(*x.shape):
        grid = grid_of(index, config)
        s, z = steps[grid], zero_points[grid]
        ratio = float(x[index] / s)
        code = min(max(round(ratio) + z, 0), n)
        inside = -z * s < x[index] < (n - z) * s
        g = 1 / math.sqrt(sharing[grid] * n)
        value[index] = (code - z) * s
        grad_x[index] = upstream[index] * inside
        grad_step[grid] += upstream[index] * ((code - z) - ratio * inside) * g
    return value, grad_x, {"step": grad_step.reshape(state["step"].shape)}


CASES = {AffineLSQ: Case(AffineLSQ, affine_lsq_oracle)}


def with_grid(step, zero_point, bits, axis=None, batched=False):
    quantizer = AffineLSQ(bits, signed=True, axis=axis)
    quantizer.step.data = torch.as_tensor(step, dtype=torch.float64)
    quantizer.zero_point.data = torch.as_tensor(zero_point, dtype=torch.float64)
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
    steps = steps * draw(st.sampled_from([1e-6, 1.0, 1e6]))
    zero_points = torch.randint(2**bits, grids, generator=generator).double()
    ratio = 2**bits * 1.5 * (torch.rand(shape, generator=generator).double() - 0.3)
    where = torch.randint(8, shape, generator=generator)
    bounds = (-zero_points, 2**bits - 1 - zero_points, 0 * zero_points + 1e20)
    for i, number in enumerate(bounds):
        ratio = torch.where(where == i, number, ratio)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    quantizer = with_grid(steps, zero_points, bits, axis, batched)
    return quantizer, ratio * steps, upstream, Config(bits, True, axis, batched)


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_values_and_gradients_are_those_of_the_notes(problem):
    quantizer, x, upstream, config = problem
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, grads = affine_lsq_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-12, atol=0)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(quantizer.step.grad.numpy(), grads["step"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("x", "code", "d_x", "d_step"),
    [
        (-2, 0, 0, -1),
        (-0.5, 0, 0, -1),
        (-0.375, 0, 1, -0.25),
        (0, 1, 1, 0),
        (0.375, 2, 1, 0.25),
        (1, 3, 0, 2),
        (5, 3, 0, 2),
    ],
)
def test_one_number_at_a_time(x, code, d_x, d_step):
    # s = 0.5, z = 1, two bits: levels −0.5, 0, 0.5, 1; one element: g = 1/√3.
    quantizer = with_grid(0.5, 1, 2)
    x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.item() == (code - 1) * 0.5
    assert x.grad.item() == d_x
    assert quantizer.step.grad.item() == pytest.approx(d_step / math.sqrt(3), abs=1e-15)


def test_only_the_step_is_trained():
    quantizer = AffineLSQ(3)
    assert [name for name, _ in quantizer.named_parameters()] == ["step"]
    assert [name for name, _ in quantizer.named_buffers()] == ["zero_point"]


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("find_range", [min_max_range, lp_range])
def test_the_first_grid_is_that_of_affine(axis, find_range):
    x = torch.randn(3, 40) + 0.3
    fixed, learned = (cls(4, axis=axis, find_range=find_range) for cls in (Affine, AffineLSQ))
    for quantizer in (fixed, learned):
        quantizer.init_from(x[:, :5] if axis == 1 else x)
    x = x[:, :5] if axis == 1 else x
    assert torch.equal(fixed.step, learned.step)
    assert torch.equal(fixed.zero_point, learned.zero_point)
    assert torch.equal(fixed(2 * x), learned(2 * x))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_default_range_is_that_of_the_rig(bits):
    # s = (max − min)/(2^b − 1), z = round(n − max/s).
    quantizer = AffineLSQ(bits)
    quantizer.init_from(torch.tensor([-0.7, 0.4, 1.9]))
    n = 2**bits - 1
    assert quantizer.step.item() == pytest.approx(2.6 / n, rel=1e-6)
    assert quantizer.zero_point.item() == round(n - 1.9 / (2.6 / n))


@pytest.mark.parametrize(
    ("axis", "batched", "n"),
    [(None, False, 600), (None, True, 600), (1, True, 200), (0, False, 75)],
)
def test_the_gradient_scale_counts_the_images_too(axis, batched, n):
    quantizer = with_grid(1.0, 0, 4, axis, batched)
    g = quantizer.gradient_scale(torch.zeros(8, 3, 5, 5))
    assert g == pytest.approx(1 / math.sqrt(n * 15), rel=1e-14)


def test_the_factor_can_be_left_out():
    class Unscaled(AffineLSQ):
        def gradient_scale(self, x):
            return 1.0

    x, grads = torch.randn(50), []
    for cls in (AffineLSQ, Unscaled):
        quantizer = cls(3)
        quantizer.init_from(x)
        quantizer(1.5 * x).pow(2).sum().backward()
        grads.append(quantizer.step.grad.item())
    assert grads[0] == pytest.approx(grads[1] / math.sqrt(50 * 7), rel=1e-5)


def test_finite_differences_of_the_frozen_rounding():
    s, z, h = 0.37, 3, 1e-6
    quantizer = with_grid(s, z, 3)
    x = 2 * np.random.default_rng(0).standard_normal(200)
    x = x[(np.abs(x / s + z) > 1e-3) & (np.abs(x / s + z - 7) > 1e-3)]
    clipped = np.clip(x / s + z, 0, 7)
    residual = np.clip(np.round(x / s) + z, 0, 7) - clipped

    def surrogate(s):
        return ((np.clip(x / s + z, 0, 7) + residual - z) * s).sum()

    quantizer(torch.tensor(x)).sum().backward()
    by_step = (surrogate(s + h) - surrogate(s - h)) / (2 * h)
    g = 1 / math.sqrt(len(x) * 7)
    assert quantizer.step.grad.item() == pytest.approx(g * by_step, abs=1e-6)


# --- Edges


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_step_driven_below_zero_counts_as_the_smallest_and_learns(value):
    quantizer = with_grid(value, 1, 2)
    y = quantizer(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64))
    np.testing.assert_allclose(y.detach().numpy(), [-1e-8, 0, 2e-8], rtol=1e-12)
    y.sum().backward()
    assert quantizer.step.grad.item() == pytest.approx((-1 + 0 + 2) / 3, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40])
def test_data_without_a_range(value):
    quantizer = AffineLSQ(3)
    x = torch.full((5,), value)
    quantizer.init_from(x)
    assert quantizer.calibrated
    torch.testing.assert_close(quantizer(x), x, rtol=1e-5, atol=1e-8)


def test_infinite_values_are_clipped():
    quantizer = with_grid(0.5, 1, 2)
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    y = quantizer(x)
    assert y[:2].tolist() == [1, -0.5]
    assert y[2].isnan()


def test_an_empty_tensor_gives_the_step_a_gradient_of_zero():
    quantizer = with_grid(0.5, 1, 2)
    quantizer(torch.zeros(0, 4, dtype=torch.float64)).sum().backward()
    assert quantizer.step.grad == 0


def test_a_model_trains_and_names_a_broken_step():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    student = quantize(model, lambda: AffineLSQ(4, axis=0), lambda: AffineLSQ(4))
    calibrate(student, [torch.randn(64, 4)])
    check_ready(student)
    student(torch.randn(64, 4)).pow(2).sum().backward()
    layer = student.get_submodule("1")
    assert (layer.weight_quantizer.step.grad != 0).all()
    assert layer.input_quantizer.step.grad != 0
    layer.weight_quantizer.step.data[1] = math.nan
    with pytest.raises(ValueError, match=r"1\.weight_quantizer"):
        check_ready(student)
