"""One view of all: a clip, a rounding, and ∂L/∂x_c = ∂L/∂x_q + μ·(x_c − x_q)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.quantizers import EWGS, LSQ, PACT, Affine, AffineLSQ, DoReFa, LSQPlus
from tests.quantizers.conformance import state_of

DELTA = 0.75  # exact in float32

# Each view: (state, x, bits, signed) -> x_c, vector-Jacobian product of the clip, distance of
# the values of x_q, level as a function of x_q and its slope. All NumPy, float64.


def affine(state, x, bits, signed):
    s, z, n = state["step"], state["zero_point"], 2**bits - 1
    inside = (x > -z * s) & (x < (n - z) * s)
    return np.clip(x / s, -z, n - z), lambda g: g * inside / s, 1, lambda q: q * s, s


def lsq(state, x, bits, signed):
    s = state["step"]
    q_n, q_p = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    inside = (x > -q_n * s) & (x < q_p * s)
    return np.clip(x / s, -q_n, q_p), lambda g: g * inside / s, 1, lambda q: q * s, s


def lsq_plus(state, x, bits, signed):
    s, b, n = state["step"], state["offset"], 2**bits - 1
    inside = (x > b) & (x < n * s + b)
    return np.clip((x - b) / s, 0, n), lambda g: g * inside / s, 1, lambda q: q * s + b, s


def pact(state, x, bits, signed):
    a, n = state["clip"], 2**bits - 1
    return np.clip(x, 0, a), lambda g: g * ((x >= 0) & (x < a)), a / n, lambda q: q, 1


def dorefa(state, x, bits, signed):
    n = 2**bits - 1
    if not signed:
        return np.clip(x, 0, 1), lambda g: g * ((x > 0) & (x < 1)), 1 / n, lambda q: q, 1
    t = np.tanh(x)
    k = np.unravel_index(np.abs(t).argmax(), t.shape)
    largest = abs(t[k])

    def product(g):
        found = g * (1 - t**2) / (2 * largest)
        found[k] -= (g * t).sum() / (2 * largest**2) * np.sign(t[k]) * (1 - t[k] ** 2)
        return found

    return t / (2 * largest) + 0.5, product, 1 / n, lambda q: 2 * q - 1, 2


def ewgs(state, x, bits, signed):
    low, width, scale = state["lower"], state["upper"] - state["lower"], abs(state["scale"])
    y = (x - low) / width
    inside = (y >= 0) & (y <= 1)
    level, slope = (
        (lambda q: scale * (2 * q - 1), 2 * scale)
        if signed
        else (
            lambda q: scale * q,
            scale,
        )
    )
    return np.clip(y, 0, 1), lambda g: g * inside / width, 1 / (2**bits - 1), level, slope


VIEWS = {
    Affine: affine,
    AffineLSQ: affine,
    LSQ: lsq,
    LSQPlus: lsq_plus,
    PACT: pact,
    DoReFa: dorefa,
    EWGS: ewgs,
}


def mu(quantizer, g):
    return DELTA * np.abs(g) if isinstance(quantizer, EWGS) else 0.0


@st.composite
def problems(draw, kind):
    signed = draw(st.booleans()) if kind.bits_allowed(True) else False
    lowest = 2 if signed and kind in (LSQ, DoReFa) else 1  # DoReFa's one signed bit is a sign
    bits = draw(st.integers(lowest, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    size = 2.0 ** draw(st.integers(-6, 3))
    x, upstream = torch.randn([2, *shape], generator=generator, dtype=torch.float64)
    # Calibrated on other numbers, so that some of these are clipped.
    sample = size * torch.randn(64, generator=generator)
    options = {EWGS: {"delta": DELTA}, PACT: {"clip": size}}.get(kind, {})
    quantizer = kind(bits, signed=signed, **options)
    quantizer.init_from(sample if signed else sample.abs())
    return quantizer.double(), 1.5 * size * x, 3 * upstream, bits, signed


def both(problem):
    """Value and gradient of a quantizer, and the same from its view for a given μ."""
    quantizer, x, upstream, bits, signed = problem
    x = x.clone().requires_grad_()
    y = quantizer(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    view = VIEWS[type(quantizer)](state_of(quantizer), x.detach().numpy(), bits, signed)
    return y.detach().numpy(), gradient.numpy(), view


@pytest.mark.parametrize("kind", VIEWS, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_each_is_a_clip_a_rounding_and_a_coefficient(kind, data):
    problem = data.draw(problems(kind))
    value, gradient, (clipped, product, unit, level, slope) = both(problem)
    rounded = np.round(clipped / unit) * unit
    np.testing.assert_allclose(value, level(rounded), rtol=1e-11, atol=1e-12)
    of_rounded = problem[2].numpy() * slope
    of_clipped = of_rounded + mu(problem[0], of_rounded) * (clipped - rounded)
    expected = product(of_clipped)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_without_its_coefficient_ewgs_is_not_in_the_view():
    quantizer = EWGS(2, signed=True, delta=DELTA)
    quantizer.init_from(torch.randn(64))
    problem = (quantizer.double(), torch.randn(50).double(), torch.randn(50).double(), 2, True)
    _, gradient, (_, product, _, _, slope) = both(problem)
    straight = product(problem[2].numpy() * slope)
    inside = straight != 0
    assert np.abs(gradient / np.where(inside, straight, 1) - 1)[inside].max() > 0.05
