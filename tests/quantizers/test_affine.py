from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.quantizers import Affine, lp_range, min_max_range
from tests.quantizers.conformance import Case, Config, grid_of, state_of


def affine_oracle(state, x, upstream, config):
    """q = clip(round(x/s) + z, 0, n − 1), x̂ = (q − z)·s, one element after another."""
    steps, zero_points = state["step"].reshape(-1), state["zero_point"].reshape(-1)
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    last = 2**config.bits - 1
    for index in np.ndindex(*x.shape):
        s, z = steps[grid_of(index, config)], zero_points[grid_of(index, config)]
        ratio = float(x[index] / s)
        value[index] = (min(max(round(ratio) + z, 0), last) - z) * s
        grad_x[index] = upstream[index] * (1.0 if 0 < ratio + z < last else 0.0)
    return value, grad_x, {}


# The searched range costs seconds at 8 bits; its own tests are below.
CASES = {Affine: Case(partial(Affine, find_range=min_max_range), affine_oracle)}


def affine_from(x, bits, **kwargs):
    quantizer = Affine(bits, **kwargs).double()
    quantizer.init_from(x.double())
    return quantizer


# --- Difficult data

RANGES = pytest.mark.parametrize("find_range", [lp_range, min_max_range])


@RANGES
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-20, 1e6])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("bits", [1, 3])
def test_constant_tensors_and_single_elements(find_range, value, size, bits):
    x = torch.full((size,), value)
    quantizer = Affine(bits, find_range=find_range)
    quantizer.init_from(x)
    assert quantizer.calibrated
    assert quantizer.step >= 1e-8 * (1 - 1e-6)
    torch.testing.assert_close(quantizer(x), x, rtol=1e-5, atol=1e-8)
    assert (quantizer(torch.zeros(3)) == 0).all()


@RANGES
def test_negative_data_have_their_zero_at_the_top(find_range):
    x = -torch.rand(50)
    quantizer = Affine(3, find_range=find_range)
    quantizer.init_from(x)
    assert quantizer.signed
    assert quantizer.zero_point == 7
    assert quantizer.levels()[-1] == 0
    assert (quantizer.levels()[:-1] < 0).all()
    assert quantizer(torch.tensor(5.0)) == 0


@RANGES
def test_positive_data_have_their_zero_at_the_bottom(find_range):
    quantizer = Affine(3, find_range=find_range)
    quantizer.init_from(torch.rand(50))
    assert quantizer.signed is False
    assert quantizer.zero_point == 0
    assert not quantizer.zero_point.signbit()
    assert quantizer.levels()[0] == 0
    assert (quantizer.levels()[1:] > 0).all()


@RANGES
def test_an_unsigned_grid_ignores_negative_data(find_range):
    x = torch.randn(50)
    one, other = (Affine(3, signed=False, find_range=find_range) for _ in range(2))
    one.init_from(x)
    other.init_from(x.clamp(min=0))
    assert one.step == other.step
    assert one.zero_point == 0
    assert (one(x)[x < 0] == 0).all()


def test_nothing_but_negative_data_on_an_unsigned_grid():
    quantizer = Affine(3, signed=False)
    quantizer.init_from(-torch.rand(9) - 1)
    assert quantizer.calibrated
    assert (quantizer(-torch.rand(9)) == 0).all()


# --- Forward and backward


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8),
    shift=st.floats(-2, 2),
    scale=st.floats(1e-3, 100),
    seed=st.integers(0, 10**6),
)
def test_forward_agrees_with_torch_per_tensor(bits, shift, scale, seed):
    x = scale * (torch.randn(300, generator=torch.Generator().manual_seed(seed)) + shift)
    quantizer = Affine(bits, find_range=min_max_range)
    quantizer.init_from(x)
    x = 1.5 * x
    ratio = x / quantizer.step
    x = torch.cat([x[(ratio - ratio.floor() - 0.5).abs() > 1e-3], torch.zeros(1)])
    expected = torch.fake_quantize_per_tensor_affine(
        x, quantizer.step.item(), int(quantizer.zero_point), 0, 2**bits - 1
    )
    got = quantizer(x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert got[-1] == 0
    assert (quantizer.levels() == 0).sum() == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_forward_agrees_with_torch_per_channel(axis):
    x = torch.randn(5, 4, 50) + torch.linspace(-1, 1, 5)[:, None, None]
    quantizer = Affine(4, axis=axis, find_range=min_max_range)
    quantizer.init_from(x)
    ratio = x / quantizer.step
    x = torch.where((ratio - ratio.floor() - 0.5).abs() > 1e-3, x, 0)
    expected = torch.fake_quantize_per_channel_affine(
        x, quantizer.step.flatten(), quantizer.zero_point.flatten().int(), axis, 0, 15
    )
    torch.testing.assert_close(quantizer(x), expected, rtol=1e-6, atol=0)
    zeros = quantizer(torch.zeros(5, 4, 1))
    assert (zeros == 0).all()


def test_the_gradient_stops_at_the_bounds():
    quantizer = affine_from(torch.tensor([-1.0, 2.0]), 2, find_range=min_max_range)
    assert (quantizer.step.item(), quantizer.zero_point.item()) == (1, 1)
    x = torch.tensor([-3, -1, -0.999, 0, 1.5, 1.999, 2, 9], dtype=torch.float64)
    x.requires_grad_()
    y = quantizer(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, -1, 0, 2, 2, 2, 2]
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_ties_go_to_the_even_multiple_of_the_step():
    quantizer = affine_from(torch.tensor([-3.0, 4.0]), 3, find_range=min_max_range)
    assert (quantizer.step.item(), quantizer.zero_point.item()) == (1, 3)
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=torch.float64)
    assert quantizer(x).tolist() == [-2, -2, 0, 0, 2, 2]


def test_nothing_is_trained():
    quantizer = affine_from(torch.randn(20), 3)
    assert list(quantizer.parameters()) == []
    assert [name for name, _ in quantizer.named_buffers()] == ["step", "zero_point"]


def test_a_range_of_ones_own():
    def unit(rows, levels):
        return -torch.ones(len(rows)), torch.ones(len(rows))

    quantizer = Affine(2, find_range=unit)
    quantizer.init_from(torch.randn(9))
    assert quantizer.step.item() == pytest.approx(2 / 3)


# --- The oracle, on any shape


@st.composite
def problems(draw):
    """A grid, a tensor of one to four axes with extreme values, and an upstream gradient."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    bits = draw(st.integers(1, 8))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    grids = [] if axis is None else [n if i == axis else 1 for i, n in enumerate(shape)]
    quantizer = Affine(bits, signed=True, axis=axis)
    steps = torch.rand(grids, generator=generator, dtype=torch.float64) + 0.05
    quantizer.step.data = steps * 10.0 ** draw(st.integers(-6, 6))
    quantizer.zero_point.data = torch.randint(0, 2**bits, grids, generator=generator).double()
    codes = 2**bits * torch.randn(shape, generator=generator, dtype=torch.float64)
    # Some on ties and levels, some far away, some denormal.
    codes = torch.where(
        torch.rand(shape, generator=generator) < 0.3, (2 * codes).round() / 2, codes
    )
    scale = draw(st.sampled_from([1.0, 1.0, 1e12, 1e-300]))
    x = codes * quantizer.step * scale
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    return quantizer, x, upstream, Config(bits, True, axis, False)


@settings(deadline=None, max_examples=100)
@given(problems())
def test_value_and_gradient_of_any_tensor_equal_the_oracle(problem):
    quantizer, x, upstream, config = problem
    x.requires_grad_()
    y = quantizer(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    value, expected, _ = affine_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-13)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)
