import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, jvp, vmap

from qatviz.quantizers import straight_through

BITS_OF = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
TYPES = pytest.mark.parametrize("dtype", list(BITS_OF), ids=str)


def rounded(x):
    """The textbook use: round forward, the identity backward."""
    return straight_through(x.round(), x)


def sines(x):
    """Forward round, backward the derivatives of the sine."""
    return straight_through(x.round(), x.sin())


@TYPES
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-8, 4))
def test_the_value_is_exact_to_the_bit(dtype, seed, exponent):
    generator = torch.Generator().manual_seed(seed)
    value, surrogate = torch.randn(2, 500, generator=generator, dtype=torch.float64)
    # Values and surrogates of very different sizes: where y = s + (v − s) loses digits.
    value, surrogate = value.to(dtype), (surrogate * 10.0**exponent).to(dtype)
    y = straight_through(value, surrogate)
    assert y.dtype == dtype
    assert torch.equal(y.view(BITS_OF[dtype]), value.view(BITS_OF[dtype]))


def test_the_usual_form_is_not_exact():
    # Why the surrogate is subtracted from itself first.
    x = torch.randn(1000)
    value = (x.clamp(-0.3, 0.3) / 0.1).round() * 0.1
    usual = (value - x).detach() + x
    assert (usual != value).float().mean() > 0.1
    assert torch.equal(straight_through(value, x), value)


def test_minus_zero_comes_back_as_zero():
    y = straight_through(torch.tensor(-0.0), torch.tensor(1.0))
    assert y == 0
    assert not y.signbit()


@pytest.mark.parametrize("extreme", ["max", "tiny", "smallest_normal"])
@TYPES
def test_exact_at_the_ends_of_the_type(dtype, extreme):
    value = torch.tensor(getattr(torch.finfo(dtype), extreme), dtype=dtype)
    surrogate = torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    assert torch.equal(straight_through(value, surrogate), value)


@TYPES
def test_the_gradient_is_that_of_the_surrogate_alone(dtype):
    value = torch.randn(20, dtype=dtype, requires_grad=True)
    surrogate = torch.randn(20, dtype=dtype, requires_grad=True)
    upstream = torch.randn(20, dtype=dtype)
    got = torch.autograd.grad(
        straight_through(value, surrogate), (value, surrogate), upstream, allow_unused=True
    )
    assert got[0] is None
    assert torch.equal(got[1], upstream)


def test_the_chain_rule_goes_through_the_surrogate():
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    sines(x).pow(2).sum().backward()
    expected = 2 * x.detach().round() * x.detach().cos()
    torch.testing.assert_close(x.grad, expected, rtol=1e-14, atol=1e-15)


def test_second_derivatives_are_those_of_the_surrogate():
    x = torch.randn(6, dtype=torch.float64)
    got = hessian(lambda x: sines(x).pow(2).sum())(x)
    # d²/dx² of y² where y is rounded, y′ = cos x and y″ = −sin x.
    expected = 2 * x.cos() ** 2 + 2 * x.round() * -x.sin()
    torch.testing.assert_close(got, expected.diag(), rtol=1e-12, atol=1e-14)


def test_double_backward():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(sines(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, -x.detach().sin(), rtol=1e-14, atol=0)


def test_grad_vmap_and_jvp_agree_with_plain_calls():
    x, direction = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.equal(vmap(rounded)(x), x.round())
    assert torch.equal(vmap(grad(lambda x: sines(x).sum()))(x), x.cos())
    value, tangent = jvp(sines, (x,), (direction,))
    assert torch.equal(value, x.round())
    assert torch.equal(tangent, x.cos() * direction)


def test_compiles_whole(monkeypatch):
    # Dynamo cannot trace the shape checks that the test run adds to every function.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch.compiler.reset()
    x = torch.randn(20, requires_grad=True)
    y = torch.compile(sines, backend="aot_eager", fullgraph=True)(x)
    y.sum().backward()
    assert torch.equal(y, x.round())
    torch.testing.assert_close(x.grad, x.detach().cos())
