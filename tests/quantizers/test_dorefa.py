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
from qatviz.quantizers import DoReFa
from tests.quantizers.conformance import Case, Config


def q(r, bits):
    """Q_b(r) = round((2^b − 1)·r)/(2^b − 1)."""
    n = 2**bits - 1
    return round(n * r) / n


def dorefa_oracle(state, x, upstream, config):
    """Sections 2.3 and 2.4 of Zhou et al., one element after another."""
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    indices = list(np.ndindex(*x.shape))
    if not config.signed:
        for i in indices:
            value[i] = q(min(max(float(x[i]), 0.0), 1.0), config.bits)
            grad_x[i] = upstream[i] * (1.0 if 0 < x[i] < 1 else 0.0)
    elif config.bits == 1:
        mean = sum(abs(float(x[i])) for i in indices) / max(len(indices), 1)
        for i in indices:
            value[i] = mean if x[i] >= 0 else -mean
            grad_x[i] = upstream[i]
    elif indices:
        # ŵ = 2·Q(t/(2m) + ½) − 1 with t = tanh w, m = max|t|; Q counts as the identity:
        # ∂ŵᵢ/∂tᵢ = 1/m, ∂ŵᵢ/∂m = −tᵢ/m², m's gradient in equal parts to where |t| = m.
        t = np.tanh(x)
        m = max(abs(float(t[i])) for i in indices)
        scale = max(m, 1e-8) if m else 1.0
        through_m = 0.0
        for i in indices:
            value[i] = 2 * q(float(t[i]) / (2 * scale) + 0.5, config.bits) - 1
            grad_x[i] = upstream[i] / scale
            through_m -= upstream[i] * float(t[i]) / scale**2
        largest = [i for i in indices if abs(t[i]) == m and m >= 1e-8]
        for i in largest:
            grad_x[i] += through_m / len(largest) * np.sign(t[i])
        grad_x = grad_x * (1 - t**2)
    return value, grad_x, {}


def mean_magnitude(x, config):
    """One-bit weights are in units of mean|w|."""
    return x.abs().mean() if config.signed and config.bits == 1 else 1.0


CASES = {
    DoReFa: Case(DoReFa, dorefa_oracle, idempotent=False, from_data=False, scale=mean_magnitude)
}


def weights(bits):
    return DoReFa(bits, signed=True)


def activations(bits):
    return DoReFa(bits, signed=False)


@settings(deadline=None, max_examples=200)
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.sampled_from([1e-30, 1e-3, 0.3, 1.0, 3.0, 100.0]),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_paper(bits, signed, scale, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    where = torch.randint(8, shape, generator=generator)
    for i, number in enumerate((0.0, 1.0, -1.0)):
        x = torch.where(where == i, number, x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y = DoReFa(bits, signed=signed)(x)
    y.backward(upstream)
    value, grad_x, _ = dorefa_oracle(
        {}, x.detach().numpy(), upstream.numpy(), Config(bits, signed, None, False)
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-12, atol=1e-15)
    largest = np.abs(grad_x).max(initial=0)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-9, atol=1e-12 * max(largest, 1))


# --- Weights


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_weights_are_even_and_leave_out_zero(bits):
    n = 2**bits - 1
    levels = weights(bits).levels().tolist()
    assert levels == pytest.approx([2 * k / n - 1 for k in range(n + 1)], abs=1e-6)
    assert 0 not in levels
    assert (weights(bits).low, weights(bits).high) == (0, n)


def test_two_bits_by_hand():
    # tanh w/(2 max) + ½ of w = −atanh(0.5), atanh(0.1), atanh(0.5): 0, 0.6, 1; times 3: 0, 2, 3.
    w = torch.tensor([-math.atanh(0.5), math.atanh(0.1), math.atanh(0.5)])
    assert weights(2).codes(w).tolist() == [0, 2, 3]
    assert weights(2)(w).tolist() == pytest.approx([-1, 1 / 3, 1], abs=1e-6)


def test_finite_differences_of_the_frozen_rounding():
    w = torch.randn(30, dtype=torch.float64)
    upstream = torch.randn(30, dtype=torch.float64)
    w.requires_grad_()
    (weights(3)(w) * upstream).sum().backward()

    def unrounded(w):
        t = np.tanh(w)
        return 2 * (t / (2 * np.abs(t).max()) + 0.5) - 1

    h = 1e-6
    for i in range(30):
        shift = h * np.eye(30)[i]
        at = w.detach().numpy()
        difference = (unrounded(at + shift) - unrounded(at - shift)) / (2 * h)
        assert w.grad[i].item() == pytest.approx(float(upstream.numpy() @ difference), abs=1e-7)


def test_weights_that_share_the_maximum_share_its_gradient():
    # t = (0.5, −0.5, 0.25), m = 0.5; upstream on the third alone: ∂/∂m = −0.25/0.25 = −1, half
    # of it to either, with the sign of t, times tanh′ = 0.75.
    w = torch.tensor([0.5, -0.5, 0.25], dtype=torch.float64).atanh().requires_grad_()
    weights(4)(w)[2].backward()
    assert w.grad.tolist() == pytest.approx([-0.375, 0.375, 2 * (1 - 0.25**2)], rel=1e-12)


def test_one_bit_by_hand():
    w = torch.tensor([-3.0, 0.0, 1.0, 2.0], requires_grad=True)
    y = weights(1)(w)
    assert y.tolist() == [-1.5, 1.5, 1.5, 1.5]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert w.grad.tolist() == [1, 2, 3, 4]
    assert weights(1).levels().tolist() == [-1, 1]
    # The mean is taken anew each time.
    quantizer = weights(1)
    quantizer.init_from(w)
    assert quantizer(10 * w.detach()).abs().tolist() == [15] * 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-30, 1e-9])
def test_weights_without_a_scale_give_finite_numbers(bits, scale):
    w = (scale * torch.tensor([-1.0, 0.0, 1.0])).requires_grad_()
    y = weights(bits)(w)
    y.sum().backward()
    assert y.isfinite().all()
    assert y.abs().max() <= 1
    assert w.grad.isfinite().all()
    if scale == 0 and bits > 1:
        # Divided by 1: ∂ŵ/∂w = 1; the two levels next to zero are equally near.
        assert w.grad.tolist() == [1, 1, 1]
        assert y.abs().tolist() == pytest.approx([1 / (2**bits - 1)] * 3, abs=1e-6)


def test_infinite_and_missing_weights():
    w = torch.tensor([math.inf, -math.inf, 0.5])
    assert weights(2)(w)[:2].tolist() == [1, -1]
    assert not weights(1)(w).isfinite().any()
    for bits in (1, 2):
        assert weights(bits)(torch.tensor([math.nan, 1.0])).isnan().all()
        assert weights(bits)(torch.zeros(0, 3)).shape == (0, 3)


def test_float64_weights_are_computed_in_float64():
    # 15·(t/(2m) + ½) = 8.5 at t = m·2/15: between codes 8 and 9, a nudge of 1e-12 decides.
    for nudge, code in ((-1e-12, 8), (1e-12, 9)):
        t = torch.tensor([0.75, 0.1 + nudge], dtype=torch.float64)
        assert weights(4).codes(t.atanh())[1] == code
        assert weights(4)(t.atanh()).dtype == torch.float64


# --- Activations


@pytest.mark.parametrize(
    ("x", "code", "d_x"),
    [(-1, 0, 0), (0, 0, 0), (0.1, 0, 1), (0.2, 1, 1), (0.99, 3, 1), (1, 3, 0), (7, 3, 0)],
)
def test_one_activation_at_a_time(x, code, d_x):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = activations(2)(x)
    y.backward()
    assert y.item() == code / 3
    assert x.grad.item() == d_x


@pytest.mark.parametrize("bits", range(1, 9))
def test_activations_are_quantized_only_once(bits):
    x = activations(bits)(torch.linspace(0, 1, 2001))
    assert torch.equal(activations(bits)(x), x)
    assert torch.equal(x.unique(), activations(bits).levels())


def test_activations_at_the_edges():
    x = torch.tensor([math.inf, -math.inf, 1e-40, math.nan])
    y = activations(2)(x)
    assert y[:3].tolist() == [1, 0, 0]
    assert y[3].isnan()


# --- Nothing of its own


def test_calibrated_once_the_sign_is_decided():
    assert weights(2).calibrated
    assert activations(2).calibrated
    assert list(weights(2).state_dict()) == ["_extra_state"]
    undecided = DoReFa(2)
    assert not undecided.calibrated
    assert repr(undecided) == "DoReFa(bits=2, signed=undecided)"
    undecided.init_from(torch.randn(9))
    assert repr(undecided) == "DoReFa(bits=2, signed=True)"


def test_a_model_needs_data_only_for_the_signs():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    student = quantize(model, partial(DoReFa, 2), partial(DoReFa, 2))
    with pytest.raises(ValueError, match=r"0\.input_quantizer, 2\.input_quantizer"):
        check_ready(student)
    calibrate(student, [torch.randn(8, 4)])
    check_ready(student)
    assert student.get_submodule("0").input_quantizer.signed
    assert student.get_submodule("2").input_quantizer.signed is False
    assert student.get_submodule("2").weight_quantizer.signed
    check_ready(quantize(model, partial(DoReFa, 2), partial(DoReFa, 2, signed=False)))
