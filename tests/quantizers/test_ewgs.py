import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.quantizers import EWGS, straight_through
from tests.quantizers.conformance import Case, Config, state_of


def ewgs_oracle(state, x, upstream, config):
    """The formulas of the notes on EWGS, one element after another."""
    low, up, s, delta = (float(state[name]) for name in ("lower", "upper", "scale", "delta"))
    width, scale = max(up - low, 1e-8), max(abs(s), 1e-8)
    n, slope = 2**config.bits - 1, (2 if config.signed else 1) * scale
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    to_low = to_up = to_s = 0.0
    for index in np.ndindex(*x.shape):
        position = (float(x[index]) - low) / width
        x_n = min(max(position, 0.0), 1.0)
        x_q = round(n * x_n) / n
        unit = 2 * x_q - 1 if config.signed else x_q
        value[index] = scale * unit
        to_s += upstream[index] * unit * (-1 if s < 0 else 1)
        g_q = upstream[index] * slope
        g_n = g_q * (1 + delta * np.sign(g_q) * (x_n - x_q))
        if 0 <= position <= 1:
            grad_x[index] = g_n / width
            to_up -= g_n * (x[index] - low) / width**2
            to_low += g_n * (x[index] - low - width) / width**2
    found = {"lower": to_low, "upper": to_up, "scale": to_s}
    return value, grad_x, {name: np.array(gradient) for name, gradient in found.items()}


CASES = {EWGS: Case(EWGS, ewgs_oracle, idempotent=False)}


def with_grid(lower, upper, scale, bits, signed, delta=0.001):
    quantizer = EWGS(bits, signed=signed, delta=delta).double()
    for name, value in (("lower", lower), ("upper", upper), ("scale", scale)):
        getattr(quantizer, name).data = torch.tensor(value, dtype=torch.float64)
    quantizer.delta.fill_(delta)
    return quantizer


def gradients(quantizer, x, upstream):
    x = x.detach().clone().requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    found = {name: p.grad for name, p in quantizer.named_parameters()}
    return y.detach(), x.grad, found


@st.composite
def problems(draw):
    """A quantizer, a tensor of which many elements are on or beyond a bound, a gradient."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
    size = 10.0 ** draw(st.integers(-6, 6))
    lower, width = size * draw(st.floats(-3, 3)), size * draw(st.floats(0.1, 5))
    # One in a few has bounds that an optimizer has crossed.
    width = draw(st.sampled_from([width, width, width, 0.0, -width]))
    scale = draw(st.floats(-5, 5))
    delta = draw(st.sampled_from([0.0, 0.001, 0.5, 3.0]))
    quantizer = with_grid(lower, lower + width, scale, bits, signed, delta)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = lower + width * (0.5 + 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64))
    where = torch.randint(8, shape, generator=generator)
    for i, value in enumerate((lower, lower + width, lower - 1e30, lower + 1e30)):
        x = torch.where(where == i, value, x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    upstream[torch.randint(5, shape, generator=generator) == 0] = 0
    return quantizer, x, upstream, Config(bits, signed, None, False)


@settings(deadline=None, max_examples=200)
@given(problem=problems())
def test_values_and_gradients_are_the_formulas(problem):
    quantizer, x, upstream, config = problem
    y, grad_x, grads = gradients(quantizer, x, upstream)
    value, expected_x, expected = ewgs_oracle(
        state_of(quantizer), x.numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.numpy(), value, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(grad_x.numpy(), expected_x, rtol=1e-9, atol=0)
    size = 1e-10 * (1 + np.abs(expected_x).sum())
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient.numpy(), expected[name], rtol=1e-9, atol=size)


def test_one_number_at_a_time():
    # l = −1, u = 3, two bits: x_n = (x + 1)/4, q = round(3·x_n); δ = 0.6, scale −2.
    for x, g, x_n, code in [
        (0.0, 1.0, 0.25, 1), (0.0, -1.0, 0.25, 1), (1.5, 2.0, 0.625, 2), (-0.6, 1.0, 0.1, 0),
        (2.9, -3.0, 0.975, 3), (-1.0, 1.0, 0.0, 0), (3.0, 1.0, 1.0, 3), (1.5, 0.0, 0.625, 2),
    ]:  # fmt: skip
        for signed in (True, False):
            quantizer = with_grid(-1.0, 3.0, -2.0, 2, signed, 0.6)
            y, grad_x, grads = gradients(quantizer, *torch.tensor([[x], [g]], dtype=torch.float64))
            unit = 2 * code / 3 - 1 if signed else code / 3
            assert quantizer.codes(torch.tensor([x])).item() == code
            assert y.item() == pytest.approx(2 * unit, abs=1e-15)
            sign = (g > 0) - (g < 0)
            g_n = g * 2 * (2 if signed else 1) * (1 + 0.6 * sign * (x_n - code / 3))
            assert grad_x.item() == pytest.approx(g_n / 4, rel=1e-12)
            assert grads["upper"].item() == pytest.approx(-g_n * (x + 1) / 16, rel=1e-12)
            assert grads["lower"].item() == pytest.approx(g_n * (x - 3) / 16, rel=1e-12)
            assert grads["scale"].item() == pytest.approx(-g * unit, rel=1e-12)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("x", [-1.001, 3.001, -50.0, 50.0])
def test_a_clipped_number_teaches_neither_itself_nor_the_bounds(x, signed):
    quantizer = with_grid(-1.0, 3.0, 2.0, 2, signed, 0.6)
    _, grad_x, grads = gradients(quantizer, *torch.tensor([[x], [1.0]], dtype=torch.float64))
    assert (grad_x.item(), grads["lower"].item(), grads["upper"].item()) == (0, 0, 0)
    assert grads["scale"].item() == (1 if x > 0 else -1 if signed else 0)


class Straight(EWGS):
    """The same, through ``straight_through``."""

    def codes(self, x):
        width = self._positive(self.upper - self.lower)
        codes = (x - self.lower) / width
        codes = self.high * torch.where((codes >= 0) & (codes <= 1), codes, (codes > 1).to(x))
        return straight_through(codes.round(), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_delta_zero_is_straight_through_to_the_bit(bits, signed, dtype):
    x, upstream = torch.randn(2, 400).to(dtype)
    found = []
    for cls, delta in ((EWGS, 0.0), (Straight, 0.0), (EWGS, 0.001)):
        quantizer = cls(bits, signed=signed, delta=delta).to(dtype)
        quantizer.init_from(x[:100])
        y, grad_x, grads = gradients(quantizer, x, upstream)
        found.append((y, grad_x, *grads.values()))
    ewgs, straight, other = found
    assert all(torch.equal(a, b) for a, b in zip(ewgs, straight, strict=True))
    assert torch.equal(ewgs[0], other[0])
    assert not torch.equal(ewgs[1], other[1])


def test_a_gradient_that_increases_x_and_one_that_decreases_it_are_scaled_oppositely():
    # x above its level: descent along g > 0 brings x down, towards the level and over it, and
    # along g < 0 up, away from the level.
    quantizer = with_grid(0.0, 1.0, 1.0, 1, False, 0.5)
    x = torch.tensor([0.3, 0.3, 0.8, 0.8], dtype=torch.float64)
    _, grad_x, _ = gradients(quantizer, x, torch.tensor([1.0, -1, 1, -1], dtype=torch.float64))
    assert grad_x.tolist() == pytest.approx([1.15, -0.85, 0.9, -1.1], rel=1e-12)


@pytest.mark.parametrize(
    ("bits", "signed", "levels"),
    [
        (1, True, [-2, 2]),
        (1, False, [0, 2]),
        (2, True, [-2, -2 / 3, 2 / 3, 2]),
        (2, False, [0, 2 / 3, 4 / 3, 2]),
    ],
)
@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_levels(bits, signed, levels, scale):
    assert with_grid(-1.0, 1.0, scale, bits, signed).levels().tolist() == pytest.approx(levels)


def test_ties_go_to_the_even_code():
    quantizer = with_grid(0.0, 3.0, 1.0, 2, False)
    x = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    assert quantizer.codes(x).tolist() == [0, 2, 2]


def test_float64_is_computed_in_float64():
    quantizer = with_grid(0.0, 255.0, 1.0, 8, True)
    x = torch.tensor([100.5 - 1e-10, 100.5 + 1e-10], dtype=torch.float64)
    assert quantizer.codes(x).tolist() == [100, 101]
    assert quantizer.double()(x)[0] == quantizer.levels()[100]


# --- Second derivatives


def test_the_hessian_by_hand():
    # With x_n − x_q constant, ∂g_x/∂x̂ of the loss ∑x̂⁴ is φ″·(∂x̂/∂x): once by the rule with
    # the sign of φ′, once, back through the forward pass, by the rule with the sign of the row.
    quantizer = with_grid(-2.0, 2.0, 1.5, 2, True, 0.5)
    x = torch.tensor([-1.9, -0.8, 0.3, 0.9, 5.0], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: quantizer(x).pow(4).sum(), x)
    for i, number in enumerate(x.tolist()):
        x_n = min((number + 2) / 4, 1)
        x_q = round(3 * x_n) / 3
        y = 1.5 * (2 * x_q - 1)
        slope = 2 * 1.5 / 4 * (number < 2)
        factor = 1 + 0.5 * math.copysign(1, y) * (x_n - x_q)
        back = 1 + 0.5 * (x_n - x_q)  # φ″ > 0
        assert hessian[i, i].item() == pytest.approx(12 * y**2 * slope**2 * factor * back)
    assert torch.equal(hessian, hessian.diag().diag())


@pytest.mark.parametrize(("delta", "symmetric"), [(0.0, True), (1e-6, False), (0.5, False)])
def test_the_hessian_is_symmetric_only_straight_through(delta, symmetric):
    quantizer = with_grid(-2.0, 2.0, 1.5, 3, True, delta)
    x, mix = torch.randn(6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: (mix @ quantizer(x)).sin().sum(), x)
    asymmetry = (hessian - hessian.T).abs().max() / hessian.abs().max()
    assert (asymmetry < 1e-12) == symmetric
    assert asymmetry < 10 * delta + 1e-12


# --- The initial grid


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_initial_bounds_and_scale_of_weights(bits):
    x = torch.randn(4, 5, 6, dtype=torch.float64) + 0.1
    quantizer = EWGS(bits).double()
    quantizer.init_from(x)
    numbers = x.flatten().tolist()
    mean = sum(numbers) / 120
    std = math.sqrt(sum((v - mean) ** 2 for v in numbers) / 119)
    assert quantizer.lower.item() == pytest.approx(-3 * std, rel=1e-12)
    assert quantizer.upper.item() == pytest.approx(3 * std, rel=1e-12)
    check_scale(quantizer, x, Config(bits, True, None, False))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_initial_bounds_and_scale_of_activations(bits):
    x = torch.randn(4, 5, 6, dtype=torch.float64).abs() + 0.05
    quantizer = EWGS(bits).double()
    quantizer.init_from(x)
    numbers = x.flatten().tolist()
    mean = sum(numbers) / 120
    std = math.sqrt(sum((v - mean) ** 2 for v in numbers) / 119)
    assert quantizer.lower.item() == min(numbers)
    assert quantizer.upper.item() == pytest.approx(3 * std / math.sqrt(1 - 2 / math.pi), rel=1e-12)
    check_scale(quantizer, x, Config(bits, False, None, False))


def check_scale(quantizer, x, config):
    """mean|x̂| = mean|x|."""
    value, _, _ = ewgs_oracle(state_of(quantizer), x.numpy(), np.ones(x.shape), config)
    assert np.abs(value).mean() == pytest.approx(x.abs().mean().item(), rel=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("signed", [True, False, None])
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-20, -1e-40, 1e6])
def test_data_without_a_range_give_a_grid(value, size, signed, bits):
    quantizer, x = EWGS(bits, signed=signed), torch.full((size,), value)
    quantizer.init_from(x)
    assert quantizer.calibrated
    assert quantizer.upper - quantizer.lower >= 1e-8 * (1 - 1e-6)
    assert (quantizer.levels().diff() > 0).all()
    if quantizer.signed or value >= 0:
        torch.testing.assert_close(quantizer(x).abs().mean(), x.abs().mean(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("value", [3.0, 0.2])
def test_one_positive_value_is_kept(value):
    quantizer = EWGS(3)
    quantizer.init_from(torch.full((5,), value))
    assert quantizer(torch.full((5,), value)).tolist() == pytest.approx([value] * 5)


def test_data_of_which_every_code_is_zero():
    # Half zeros, half ones: u = 3·0.5/0.603 = 2.5, and one bit rounds 1/2.5 to 0.
    x = torch.cat([torch.zeros(50), torch.ones(50)])
    quantizer = EWGS(1)
    quantizer.init_from(x)
    assert quantizer.codes(x).max() == 0
    assert quantizer.scale.item() == 0.5


def test_activations_far_from_zero_have_a_range():
    # 3·std/0.603 is below the minimum here: the paper's formula is for data that begin at zero.
    x = 100 + torch.rand(50)
    quantizer = EWGS(4)
    quantizer.init_from(x)
    assert quantizer.lower == 0
    assert quantizer.upper == x.max()
    torch.testing.assert_close(quantizer(x), x, rtol=0.02, atol=0)


# --- Parameters where an optimizer may bring them


@pytest.mark.parametrize("upper", [0.3, 0.3 - 1e-12, -2.0])
def test_bounds_that_crossed_are_a_step(upper):
    quantizer = with_grid(0.3, upper, 1.0, 2, True)
    x = torch.tensor([-5.0, 0.2, 0.3, 0.4, 5.0], dtype=torch.float64)
    y, grad_x, grads = gradients(quantizer, x, torch.ones(5, dtype=torch.float64))
    assert y.tolist() == [-1, -1, -1, 1, 1]
    assert grad_x.isfinite().all()
    assert all(g.isfinite() for g in grads.values())


@pytest.mark.parametrize("scale", [0.0, 1e-12, -1e-12])
def test_a_vanished_scale_goes_on_learning(scale):
    quantizer = with_grid(-1.0, 1.0, scale, 2, True)
    _, _, grads = gradients(quantizer, *torch.ones(2, 3, dtype=torch.float64))
    assert (quantizer.levels().diff() > 0).all()
    assert grads["scale"].item() == (-3 if scale < 0 else 3)


def test_the_slope_is_the_derivative_of_the_levels():
    for signed, expected in ((True, 3.0), (False, 1.5)):
        quantizer = with_grid(-1.0, 1.0, -1.5, 3, signed)
        assert quantizer.slope.item() == expected
        rise = quantizer.levels()[1] - quantizer.levels()[0]
        assert (7 * rise).item() == pytest.approx(expected)


def test_matching_an_output_multiplies_the_scale():
    quantizer = with_grid(-1.0, 1.0, 1.5, 3, True)
    parameter = quantizer.scale
    quantizer.match_output(torch.tensor(0.5, dtype=torch.float64))
    assert quantizer.scale is parameter
    assert quantizer.scale.item() == 0.75
    assert parameter.requires_grad


# --- δ


@pytest.mark.parametrize("delta", [-0.1, math.nan, math.inf])
def test_delta_is_finite_and_not_negative(delta):
    with pytest.raises(ValueError, match=f"delta must be a finite number from 0 up, got {delta}"):
        EWGS(2, delta=delta)


def test_delta_is_saved_and_not_trained():
    quantizer = EWGS(2, delta=0.25)
    assert not quantizer.calibrated
    assert "delta=0.25" in repr(quantizer)
    assert "delta" not in dict(quantizer.named_parameters())
    quantizer.init_from(torch.randn(9))
    other = EWGS(2)
    other.load_state_dict(quantizer.state_dict())
    assert other.delta == 0.25
    assert copy.deepcopy(quantizer).delta == 0.25
