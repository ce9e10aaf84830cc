import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from qatviz.quantizers import LSQ
from tests.quantizers.conformance import Case, Config, grid_of, state_of


def lsq_oracle(state, x, upstream, config):
    """Equations 1 to 5 of Esser et al., one element after another."""
    steps = state["step"].reshape(-1)
    q_n = 2 ** (config.bits - 1) if config.signed else 0
    q_p = 2 ** (config.bits - 1) - 1 if config.signed else 2**config.bits - 1
    value, grad_x, grad_step = np.zeros_like(x), np.zeros_like(x), np.zeros_like(steps)
    sharing = [0] * len(steps)
    for index in np.ndindex(*x.shape):
        if not config.batched or index[0] == 0:
            sharing[grid_of(index, config)] += 1
    for index in np.ndindex(*x.shape):
        grid = grid_of(index, config)
        ratio = float(x[index] / steps[grid])
        if x[index] <= -q_n * steps[grid]:
            code, d_x, d_step = -q_n, 0.0, -q_n
        elif x[index] >= q_p * steps[grid]:
            code, d_x, d_step = q_p, 0.0, q_p
        else:
            code = round(ratio)
            d_x, d_step = 1.0, code - ratio
        g = 1 / math.sqrt(sharing[grid] * q_p)
        value[index] = code * steps[grid]
        grad_x[index] = upstream[index] * d_x
        grad_step[grid] += upstream[index] * d_step * g
    return value, grad_x, {"step": grad_step.reshape(state["step"].shape)}


CASES = {LSQ: Case(LSQ, lsq_oracle)}


def with_step(step, bits, signed, axis=None, batched=False):
    quantizer = LSQ(bits, signed=signed, axis=axis)
    quantizer.step.data = torch.as_tensor(step, dtype=torch.float64)
    quantizer.batched = batched
    return quantizer


@st.composite
def problems(draw):
    """A quantizer, a tensor of one to four axes, and an upstream gradient."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    signed = draw(st.booleans())
    bits = draw(st.integers(2 if signed else 1, 8))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    batched = axis != 0 and draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    steps = torch.rand([] if axis is None else [shape[axis]], generator=generator) + 0.05
    broadcast = [1] * len(shape)
    if axis is not None:
        broadcast[axis] = -1
        steps = steps.reshape(broadcast)
    quantizer = with_step(steps.double(), bits, signed, axis, batched)
    # From deep inside the grid to far outside of it, a third of the elements on a bound.
    x = 0.8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * 2**bits * quantizer.step.detach()
    where = torch.randint(6, shape, generator=generator)
    x = torch.where(where == 0, quantizer.step.detach() * quantizer.low, x)
    x = torch.where(where == 1, quantizer.step.detach() * quantizer.high, x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    return quantizer, x, upstream, Config(bits, signed, axis, batched)


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_values_and_gradients_are_equations_1_to_5(problem):
    quantizer, x, upstream, config = problem
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, grads = lsq_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-12, atol=0)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(quantizer.step.grad.numpy(), grads["step"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("bits", "signed", "q_n", "q_p"),
    [(2, True, 2, 1), (3, True, 4, 3), (8, True, 128, 127), (1, False, 0, 1), (4, False, 0, 15)],
)
def test_one_number_at_a_time(bits, signed, q_n, q_p):
    # Equation 3 by hand, step 0.5, one element: g = 1/√Q_P.
    for ratio, code, d_v, d_s in [
        (-q_n, -q_n, 0, -q_n),
        (-q_n - 7.3, -q_n, 0, -q_n),
        (q_p, q_p, 0, q_p),
        (q_p + 7.3, q_p, 0, q_p),
        (q_p - 0.25, q_p, 1, 0.25),
        (q_p - 0.75, q_p - 1, 1, -0.25),
    ]:
        quantizer = with_step(0.5, bits, signed)
        v = torch.tensor([ratio * 0.5], dtype=torch.float64, requires_grad=True)
        out = quantizer(v)
        out.sum().backward()
        assert out.item() == code * 0.5
        assert v.grad.item() == d_v
        assert quantizer.step.grad.item() == pytest.approx(d_s / math.sqrt(q_p), abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "axis", "batched", "n"),
    [
        ((8, 3, 5, 5), None, False, 600),
        ((8, 3, 5, 5), 0, False, 75),
        ((8, 3, 5, 5), 1, False, 200),
        ((8, 3, 5, 5), -1, False, 120),
        ((8, 3, 5, 5), None, True, 75),
        ((8, 3, 5, 5), 1, True, 25),
        ((16, 10), None, True, 10),
        ((10,), None, False, 10),
    ],
)
def test_the_gradient_scale_counts_what_shares_a_step(shape, axis, batched, n):
    for bits, signed, q_p in [(2, True, 1), (4, True, 7), (4, False, 15)]:
        quantizer = with_step(1.0, bits, signed, axis, batched)
        g = quantizer.gradient_scale(torch.zeros(shape))
        assert g == pytest.approx(1 / math.sqrt(n * q_p), rel=1e-14)


def test_a_larger_batch_keeps_its_gradient_scale():
    x = torch.randn(1, 40, dtype=torch.float64)
    grads = []
    for images in (1, 7):
        quantizer = with_step(0.3, 3, True, batched=True)
        quantizer(x.expand(images, -1)).sum().backward()
        grads.append(quantizer.step.grad.item() / images)
    assert grads[0] == pytest.approx(grads[1], rel=1e-12)


@pytest.mark.parametrize("signed", [True, False])
def test_finite_differences_of_the_frozen_rounding(signed):
    # With the rounding residual frozen, x̂(v, s) = (clip(v/s) + residual)·s is smooth away from
    # the bounds, and its derivatives are what the straight-through estimator claims.
    quantizer = with_step(0.37, 3, signed)
    v = torch.randn(200, dtype=torch.float64) * 2
    v, s, h = v.numpy(), 0.37, 1e-6
    low, high = quantizer.low, quantizer.high
    away = (np.abs(v / s - low) > 1e-3) & (np.abs(v / s - high) > 1e-3)
    v = v[away]
    clipped = np.clip(v / s, low, high)
    residual = np.round(clipped) - clipped

    def surrogate(v, s):
        return (np.clip(v / s, low, high) + residual) * s

    x = torch.tensor(v, requires_grad=True)
    quantizer(x).sum().backward()
    by_v = (surrogate(v + h, s) - surrogate(v - h, s)) / (2 * h)
    by_s = ((surrogate(v, s + h) - surrogate(v, s - h)) / (2 * h)).sum()
    np.testing.assert_allclose(x.grad.numpy(), by_v, atol=1e-7)
    g = 1 / math.sqrt(len(v) * high)
    assert quantizer.step.grad.item() == pytest.approx(g * by_s, abs=1e-6)
    # Clipped elements need no surrogate: the true function has this derivative.
    outside = (v / s < low) | (v / s > high)
    assert outside.sum() > 10
    assert (by_v[outside] == 0).all()


def test_the_hessian_by_hand():
    # x̂ is linear in v and s once its rounding is frozen: only φ″ of the loss ∑φ(x̂) remains,
    # H_vv = φ″·1, H_vs = φ″·g·e, H_ss = ∑φ″·(g·e)², with e of equation 3.
    quantizer = with_step(0.4, 3, True)
    v = torch.tensor([-5.0, -1.1, -0.35, 0.1, 0.55, 1.15, 3.0], dtype=torch.float64)

    def loss(vector):
        out = functional_call(quantizer, {"step": vector[-1]}, (vector[:-1],))
        return out.pow(4).sum()

    point = torch.cat([v, quantizer.step.detach().reshape(1)])
    got = torch.autograd.functional.hessian(loss, point).numpy()
    g, s, n = 1 / math.sqrt(7 * 3), 0.4, len(v)
    expected = np.zeros((n + 1, n + 1))
    for i, number in enumerate(v.tolist()):
        ratio = number / s
        inside = -4 < ratio < 3
        code = round(ratio) if inside else (-4 if ratio < 0 else 3)
        e = g * (code - ratio if inside else code)
        curvature = 12 * (code * s) ** 2
        expected[i, i] = curvature * inside
        expected[i, n] = expected[n, i] = curvature * e * inside
        expected[n, n] += curvature * e * e
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


# --- Against torch's own fake quantization, away from ties


def away_from_ties(ratio):
    return (ratio - ratio.floor() - 0.5).abs() > 1e-3


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    step=st.floats(1e-3, 10),
    seed=st.integers(0, 10**6),
)
def test_forward_agrees_with_torch_per_tensor(bits, signed, step, seed):
    quantizer = with_step(step, bits, signed).float()
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * step * 2**bits
    x = torch.cat([x[away_from_ties(x / quantizer.step)], torch.zeros(1)])
    expected = torch.fake_quantize_per_tensor_affine(
        x, quantizer.step.item(), 0, quantizer.low, quantizer.high
    )
    got = quantizer(x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert got[-1] == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_agrees_with_torch_per_channel(axis, bits):
    quantizer = LSQ(bits, axis=axis)
    x = torch.randn(5, 4, 50)
    quantizer.init_from(x)
    x = torch.where(away_from_ties(x / quantizer.step), 2 * x, 0)
    x = torch.where(away_from_ties(x / quantizer.step), x, 0)
    zero_points = torch.zeros(x.shape[axis], dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(
        x, quantizer.step.detach().flatten(), zero_points, axis, quantizer.low, quantizer.high
    )
    assert quantizer.step.numel() == x.shape[axis]
    torch.testing.assert_close(quantizer(x), expected, rtol=1e-6, atol=0)


def test_ties_go_to_the_even_code():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=torch.float64)
    assert with_step(1.0, 4, True)(x).tolist() == [-2, -2, 0, 0, 2, 2]


# --- The initial step


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize(
    ("bits", "signed"), [(2, True), (4, True), (8, True), (1, False), (3, None)]
)
def test_the_initial_step_is_twice_the_mean_over_the_root(bits, signed, axis):
    x = torch.randn(3, 4, 5)
    x = x.abs() if signed is False else x
    quantizer = LSQ(bits, signed=signed, axis=axis)
    quantizer.init_from(x)
    q_p = 2**bits - 1 if signed is False else 2 ** (bits - 1) - 1
    array = x.double().numpy()
    channels = [array] if axis is None else np.moveaxis(array, axis, 0)
    for step, channel in zip(quantizer.step.flatten().tolist(), channels, strict=True):
        total = 0.0
        for number in channel.flatten():
            total += abs(number)
        assert step == pytest.approx(2 * (total / channel.size) / math.sqrt(q_p), rel=1e-6)
    shape = [] if axis is None else [x.shape[i] if i == axis % 3 else 1 for i in range(3)]
    assert list(quantizer.step.shape) == shape


def test_an_all_zero_channel_gets_a_positive_step():
    quantizer = LSQ(3, axis=0, signed=True)
    x = torch.randn(3, 5)
    x[1] = 0
    quantizer.init_from(x)
    assert (quantizer.step > 0).all()
    assert quantizer(x)[1].eq(0).all()


def test_a_constant_and_an_all_zero_tensor():
    for value in (0.0, 3.0):
        quantizer = LSQ(2)
        quantizer.init_from(torch.full((4,), value))
        assert quantizer.calibrated
        assert quantizer.step > 0


def test_one_signed_bit_is_refused():
    with pytest.raises(ValueError, match=r"LSQ.*signed grid.*from 2 to 8, got 1"):
        LSQ(1, signed=True)


def test_one_bit_meets_negative_data_only_at_init():
    quantizer = LSQ(1)
    with pytest.raises(ValueError, match=r"signed grid.*from 2 to 8, got 1"):
        quantizer.init_from(torch.tensor([-1.0, 1.0]))
    assert quantizer.signed is None
    assert not quantizer.calibrated
    quantizer.init_from(torch.tensor([0.5, 1.0]))
    assert quantizer.levels().tolist() == pytest.approx([0, 1.5])


# --- Why the gradient scale is there


class Unscaled(LSQ):
    """LSQ without g."""

    def gradient_scale(self, x):
        return 1.0


class Net(nn.Module):
    """Two linear layers whose 4-bit weights have learned steps."""

    def __init__(self, quantizer):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 4)])
        self.quantizers = nn.ModuleList([quantizer() for _ in self.layers])
        for layer, each in zip(self.layers, self.quantizers, strict=True):
            each.init_from(layer.weight)

    def forward(self, x):
        for i, (layer, each) in enumerate(zip(self.layers, self.quantizers, strict=True)):
            x = nn.functional.linear(x.relu() if i else x, each(layer.weight), layer.bias)
        return x

    def steps(self):
        return torch.stack([each.step.detach() for each in self.quantizers])


def trained(quantizer):
    """Four well separated clouds, 60 steps of SGD: accuracy, and the largest growth of a step."""
    torch.manual_seed(0)
    labels = torch.arange(256) % 4
    x = torch.randn(4, 32)[labels] + 0.5 * torch.randn(256, 32)
    net = Net(quantizer)
    before, largest = net.steps(), 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        largest = max(largest, (net.steps() / before).abs().max().item())
    return (net(x).argmax(1) == labels).float().mean().item(), largest


def test_without_the_gradient_scale_the_steps_run_away():
    accuracy, growth = trained(partial(LSQ, 4))
    assert accuracy > 0.98
    assert growth < 3
    accuracy, growth = trained(partial(Unscaled, 4))
    assert accuracy < 0.5
    assert growth > 20


def test_an_optimizer_built_before_loading_trains_the_loaded_step():
    quantizer = LSQ(3)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    other = LSQ(3)
    other.init_from(torch.randn(50))
    quantizer.load_state_dict(other.state_dict())
    before = quantizer.step.item()
    quantizer(torch.randn(50)).sum().backward()
    optimizer.step()
    assert quantizer.step.item() != before
