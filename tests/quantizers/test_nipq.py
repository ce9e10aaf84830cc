import copy
import math
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import softplus

from qatviz.calibration import calibrate
from qatviz.quantize import check_ready, quantize, quantizers, summary
from qatviz.quantizers import NIPQ, histogram_noise, released_range, uniform_noise
from tests.quantizers.conformance import Case, Config, state_of


def codes_of(bits, signed):
    """Section 2.3 of the notes: the lowest and the highest code."""
    n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-n if signed else 0), n


def alpha_of(a):
    """softplus, as torch rounds it, so that ties and bounds fall on the same side."""
    return softplus(torch.tensor(float(a), dtype=torch.float64), threshold=40).item()


def nipq_oracle(state, x, upstream, config):
    """True quantization, one element after another: section 2.4 of the notes."""
    low, n = codes_of(config.bits, config.signed)
    a = float(state["range_logit"])
    alpha = alpha_of(a)
    bound = alpha * low / n
    value, grad_x, grad_alpha = np.zeros_like(x), np.zeros_like(x), 0.0
    for index in np.ndindex(*x.shape):
        if x[index] >= alpha:
            value[index], d_x, d_alpha = alpha, 0.0, 1.0
        elif x[index] <= bound:
            value[index], d_x, d_alpha = bound, 0.0, low / n
        else:
            v = float(x[index] / alpha * n)
            value[index] = round(v) / n * alpha
            d_x, d_alpha = 1.0, (round(v) - v) / n
        grad_x[index] = upstream[index] * d_x
        grad_alpha += upstream[index] * d_alpha
    return value, grad_x, {"range_logit": np.array(grad_alpha / (1 + math.exp(-a)))}


def count_levels(bits, signed):
    return 2**bits - 1 if signed else 2**bits


CASES = {
    NIPQ: Case(partial(NIPQ, learn_bits=False), nipq_oracle, levels=count_levels, evaluates=True)
}


# --- Helpers


def logit_of(share):
    return math.log(share / (1 - share))


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def with_range(alpha, bits, signed, **kwargs):
    """A float64 quantizer in training, with a range of ``alpha`` and ``bits``, maybe broken."""
    quantizer = NIPQ(8, signed=signed, **kwargs).double()
    quantizer.range_logit.data.fill_(alpha + math.log(-math.expm1(-alpha)))
    quantizer.bit_logit.data.fill_(logit_of((min(max(bits, 2 + 1e-6), 14 - 1e-6) - 2) / 12))
    return quantizer


def drawn(quantizer, times):
    """That many draws of the bits at once: one logit, repeated."""
    quantizer.bit_logit.data = quantizer.bit_logit.data.repeat(times)
    return quantizer._drawn_bits().detach()


# --- Acceptance 1: how many levels


@pytest.mark.parametrize(
    ("bits", "signed", "count"),
    [(2, True, 3), (3, True, 7), (4, True, 15), (2, False, 4), (3, False, 8), (4, False, 16)],
)
def test_1_level_counts_and_zero_is_a_level(bits, signed, count):
    quantizer = NIPQ(bits)
    quantizer.init_from(torch.tensor([-0.6 if signed else 0.1, 0.6]))
    levels = quantizer.levels()
    assert len(levels) == count
    assert (levels == 0).sum() == 1
    alpha = quantizer.alpha.item()
    assert alpha == pytest.approx(0.6, rel=1e-6)
    assert levels[-1].item() == alpha
    assert levels[0].item() == (-alpha if signed else 0)
    torch.testing.assert_close(
        levels.diff(), torch.full((count - 1,), alpha / (count // 2 if signed else count - 1))
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [10, 14])
def test_many_bits_have_as_many_levels(bits, signed):
    quantizer = NIPQ(bits, signed=signed).eval()
    quantizer.init_from(torch.tensor([-3.0, 3.0]))
    levels = quantizer.levels()
    assert len(levels) == count_levels(bits, signed)
    assert (levels.diff() > 0).all()
    assert torch.equal(quantizer(levels), levels)


# --- Acceptance 2: the bits of one pass


def test_2_the_drawn_bits_are_the_learned_bits_on_average():
    bits = drawn(with_range(1.0, 5.3, True), 100_000)
    assert bits.unique().tolist() == [5, 6]
    assert bits.mean().item() == pytest.approx(5.3, abs=0.005)


@pytest.mark.parametrize(
    ("start", "support"), [(2, [2]), (2.2, [2, 3]), (7.5, [7, 8]), (13.9, [13, 14]), (14, [14])]
)
def test_drawn_bits_stay_between_2_and_14(start, support):
    bits = drawn(with_range(1.0, start, True), 10_000)
    assert set(bits.unique().tolist()) == set(support)
    assert bits.mean().item() == pytest.approx(start, abs=0.02)


@pytest.mark.parametrize("bits", range(2, 15))
def test_fixed_bits_are_never_drawn(bits):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        quantizer = NIPQ(bits, learn_bits=False).to(dtype)
        before = torch.random.get_rng_state()
        assert quantizer._drawn_bits().item() == bits
        assert torch.equal(torch.random.get_rng_state(), before)


def test_the_drawn_bits_set_the_step_of_the_noise():
    steps = []

    def noise(x, step, inside):
        steps.append(step.item())
        return torch.zeros_like(x)

    quantizer = with_range(0.8, 4.5, False, noise=noise)
    for _ in range(50):
        quantizer(torch.rand(3, dtype=torch.float64))
    expected = {round(0.8 / 15, 12), round(0.8 / 31, 12)}
    assert {round(step, 12) for step in steps} == expected


# --- Acceptance 3: the gradients of the noise phase


def noise_oracle(a, beta, bits, epsilon, x, upstream, signed):
    """Section 2.5 of the notes, one element after another."""
    alpha = alpha_of(a)
    power = 2 ** (bits - 1) if signed else 2**bits
    n = power - 1
    value, grad_x, grad_alpha, grad_bits = np.zeros_like(x), np.zeros_like(x), 0.0, 0.0
    for i in np.ndindex(*x.shape):
        d_x, d_bits = 0.0, 0.0
        if x[i] >= alpha:
            value[i], d_alpha = alpha, 1.0
        elif signed and x[i] <= -alpha:
            value[i], d_alpha = -alpha, -1.0
        elif not signed and x[i] <= 0:
            value[i], d_alpha = 0.0, 0.0
        else:
            value[i], d_x, d_alpha = x[i] + alpha / n * epsilon[i], 1.0, epsilon[i] / n
            d_bits = -epsilon[i] * alpha * math.log(2) * power / n**2
        grad_x[i] = upstream[i] * d_x
        grad_alpha += upstream[i] * d_alpha
        grad_bits += upstream[i] * d_bits
    grad_beta = grad_bits * 12 * sigmoid(beta) * (1 - sigmoid(beta))
    return value, grad_x, grad_alpha * sigmoid(a), grad_beta


@settings(deadline=None, max_examples=80)
@given(
    shape=st.lists(st.integers(1, 5), max_size=4).map(tuple),
    signed=st.booleans(),
    bits=st.floats(2, 14),
    alpha=st.sampled_from([1e-6, 1e-3, 0.6, 5.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_3_values_and_gradients_of_the_noise_phase_are_the_table(shape, signed, bits, alpha, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    epsilon, seen = normal() / 4, []

    def noise(x, step, inside):
        seen.append((step, inside))
        assert not torch.is_grad_enabled()
        return epsilon

    quantizer = with_range(alpha, bits, signed, noise=noise)
    exact = quantizer.alpha.item()
    where = torch.randint(5, shape, generator=generator)
    x = normal() * exact
    for number, place in enumerate((exact, -exact, 0.0)):
        x = torch.where(where == number, place, x)
    x.requires_grad_()
    upstream = normal()
    y = quantizer(x)
    y.backward(upstream)
    step, inside = seen[0]
    n = exact / step.item()
    used = round(math.log2(n + 1)) + signed
    assert abs(used - bits) < 1
    a, beta = quantizer.range_logit.item(), quantizer.bit_logit.item()
    value, *grads = noise_oracle(
        a, beta, used, epsilon.numpy(), x.detach().numpy(), upstream.numpy(), signed
    )
    got = [x.grad.numpy(), quantizer.range_logit.grad.item(), quantizer.bit_logit.grad.item()]
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-10, atol=1e-12)
    for mine, expected in zip(got, grads, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-10, atol=1e-10)
    assert np.array_equal(inside.numpy(), grads[0] != 0)


@settings(deadline=None, max_examples=80)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    signed=st.booleans(),
    bits=st.integers(2, 14),
    alpha=st.sampled_from([1e-6, 1e-3, 0.6, 5.0, 1e3]),
    training=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_of_true_quantization(shape, signed, bits, alpha, training, seed):
    generator = torch.Generator().manual_seed(seed)
    quantizer = with_range(alpha, bits, signed, noise=None).train(training)
    exact = quantizer.alpha.item()
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * exact
    where = torch.randint(6, shape, generator=generator)
    for number, place in enumerate((exact, -exact, 0.0, 1e300)):
        x = torch.where(where == number, place, x)
    x.requires_grad_()
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, grads = nipq_oracle(
        state_of(quantizer),
        x.detach().numpy(),
        upstream.numpy(),
        Config(bits, signed, None, False),
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-12, atol=0)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-10, atol=1e-12)
    got = quantizer.range_logit.grad.item()
    np.testing.assert_allclose(got, grads["range_logit"], rtol=1e-9, atol=1e-10)
    assert quantizer.bit_logit.grad is None


def test_one_number_at_a_time_by_hand():
    # α = 3, 3 signed bits: n = 3, Δ = 1; x = 1.3 rounds to 1 and e = −0.3.
    quantizer = with_range(3.0, 3, True).eval()
    sigma = 1 - math.exp(-3.0)  # σ(a) = 1 − e^−α
    for number, level, d_x, d_alpha in [
        (1.3, 1, 1, -0.3 / 3),
        (-1.6, -2, 1, -0.4 / 3),
        (4, 3, 0, 1),
        (-4, -3, 0, -1),
    ]:
        quantizer.range_logit.grad = None
        x = torch.tensor(float(number), dtype=torch.float64, requires_grad=True)
        y = quantizer(x)
        y.backward()
        assert y.item() == pytest.approx(level, rel=1e-12)
        assert x.grad.item() == pytest.approx(d_x, rel=1e-12)
        assert quantizer.range_logit.grad.item() == pytest.approx(d_alpha * sigma, rel=1e-10)


def test_the_width_for_cost_is_rounded_and_differentiable():
    for bits in (2.4, 5.3, 5.7, 13.2):
        quantizer = with_range(1.0, bits, True)
        width = quantizer.bit_width()
        width.backward()
        assert width.item() == round(bits) == quantizer.bits
        share = (bits - 2) / 12
        assert quantizer.bit_logit.grad.item() == pytest.approx(12 * share * (1 - share), rel=1e-9)


# --- Acceptance 4: the noise


def gaussian(size=1_000_000, scale=1.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(7)) * scale


@pytest.mark.parametrize("noise", [uniform_noise, histogram_noise])
def test_4_the_noise_has_the_moments_of_rounding_and_no_correlation(noise):
    # Steps that are small against the data: the residuals are then uniform too.
    x = gaussian()
    epsilon = noise(x, torch.tensor(0.1), x.abs() < 3)
    assert epsilon.min() >= -0.5
    assert epsilon.max() <= 0.5
    assert abs(epsilon.mean().item()) < 1e-3
    assert epsilon.square().mean().item() == pytest.approx(1 / 12, rel=0.02)
    assert abs(np.corrcoef(epsilon, x)[0, 1]) < 5e-3
    assert abs(np.corrcoef(epsilon[1:], epsilon[:-1])[0, 1]) < 5e-3


@pytest.mark.parametrize(("bits", "moment"), [(2, 0.0844), (3, 0.0837), (4, 0.0835)])
def test_the_second_moment_of_the_histogram(bits, moment):
    # Section 2.6 of the notes, with the weights of its section 2.5: N(0, 0.3²), α = 0.6.
    x = gaussian(scale=0.3)
    n = 2 ** (bits - 1) - 1
    epsilon = histogram_noise(x, torch.tensor(0.6 / n), x.abs() < 0.6)
    assert epsilon.square().mean().item() == pytest.approx(moment, abs=5e-4)


def leaving(bits):
    """P(|x| < α, |x + Δε| > α) for uniform ε and x of the normal distribution, α = 2σ."""
    n = 2 ** (bits - 1) - 1
    z = [2 - 1 / n, 2]
    mass = [math.erf(v / math.sqrt(2)) / 2 for v in z]
    density = [math.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in z]
    return (1 - 2 * n) * (mass[1] - mass[0]) + n * (density[0] - density[1])


@pytest.mark.parametrize(
    ("bits", "noise", "share"),
    [
        *((bits, uniform_noise, leaving(bits)) for bits in (2, 3, 4)),
        *((2, histogram_noise, 0.053), (3, histogram_noise, 0.011), (4, histogram_noise, 0.004)),
    ],
)
def test_noise_may_leave_the_range_by_half_a_step(bits, noise, share):
    quantizer = NIPQ(bits, signed=True, learn_bits=False, noise=noise)
    quantizer.init_from(torch.tensor([-0.6, 0.6]))
    y = quantizer(gaussian(scale=0.3)).detach()
    alpha = quantizer.alpha.item()
    assert (y.abs() > alpha).double().mean().item() == pytest.approx(share, abs=7e-4)
    assert y.abs().max() <= alpha * (1 + 0.5 / (2 ** (bits - 1) - 1)) * (1 + 1e-6)


def test_the_histogram_is_the_histogram():
    x = gaussian(200_000).double().abs() ** 3
    step, inside = torch.tensor(1.0, dtype=torch.float64), x < 2
    counts = [0] * 256
    for number in x[inside].tolist():
        counts[min(int((round(number) - number + 0.5) * 256), 255)] += 1
    epsilon = histogram_noise(x, step, inside)
    got, _ = np.histogram(epsilon.numpy(), bins=256, range=(-0.5, 0.5))
    expected = np.array(counts) / sum(counts) * len(x)
    assert expected.max() > 5 * expected.min()
    # Multinomial counts: six standard deviations.
    assert (np.abs(got - expected) < 6 * np.sqrt(expected) + 1).all()
    # Inside a bin the place is uniform.
    place = (epsilon.numpy() + 0.5) * 256 % 1
    assert place.mean() == pytest.approx(0.5, abs=0.005)
    assert place.var() == pytest.approx(1 / 12, rel=0.02)


def test_truncated_numbers_do_not_count_in_the_histogram():
    x = torch.cat([torch.full((100,), 0.25), torch.full((900,), 7.4)])
    epsilon = histogram_noise(x, torch.tensor(1.0), x < 1)
    assert (epsilon >= -0.25).all()
    assert (epsilon <= -0.25 + 1 / 256).all()


@pytest.mark.parametrize("shape", [(0,), (1000,)])
def test_where_everything_is_truncated_the_noise_is_uniform(shape):
    x = torch.full(shape, 9.0)
    epsilon = histogram_noise(x, torch.tensor(1.0), x < 1)
    assert epsilon.shape == shape
    if len(x):
        assert epsilon.square().mean().item() == pytest.approx(1 / 12, rel=0.1)
        assert epsilon.min() < -0.45
        assert epsilon.max() > 0.45


# --- Acceptance 5: the range that is learned


def stationary_range(bits):
    """Section 6.1: (2α/(12n²))·P(|x| < α) = 2·E[(|x| − α)⁺] of a normal x, by bisection."""
    n = 2 ** (bits - 1) - 1
    low, high = 0.5, 5.0
    for _ in range(60):
        alpha = (low + high) / 2
        tail = math.erfc(alpha / math.sqrt(2))  # of both sides
        density = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
        overload = 2 * density - alpha * tail
        granular = alpha / (12 * n**2) * (1 - tail)
        low, high = (alpha, high) if granular < overload else (low, alpha)
    return alpha


@pytest.mark.parametrize(("bits", "alpha"), [(2, 1.312), (3, 1.987), (4, 2.488)])
def test_5_the_learned_range_balances_noise_and_truncation(bits, alpha):
    assert stationary_range(bits) == pytest.approx(alpha, abs=2e-3)
    quantizer = NIPQ(bits, signed=True, learn_bits=False)
    quantizer.range_logit.data.fill_(3.0)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    # The normal distribution in 20,000 equal parts.
    x = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()
    path = []
    for _ in range(800):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
        path.append(quantizer.alpha.item())
    assert np.mean(path[400:]) == pytest.approx(alpha, rel=0.01)


def test_bits_grow_where_nothing_holds_them():
    quantizer = NIPQ(4, signed=True)
    quantizer.init_from(torch.tensor([-3.0, 3.0]))
    x = gaussian(5000)
    for _ in range(5):
        (quantizer(x) - x).square().mean().backward()
    assert quantizer.bit_logit.grad < 0


# --- Acceptance 6: what is random


@pytest.mark.parametrize("noise", [uniform_noise, histogram_noise, None])
def test_6_evaluation_is_not_random_and_the_noise_phase_is(noise):
    quantizer = NIPQ(4, noise=noise)
    quantizer.init_from(gaussian(100))
    x = gaussian(100)
    assert torch.equal(quantizer(x), quantizer(x)) == (noise is None)
    quantizer.eval()
    state = torch.random.get_rng_state()
    first = quantizer(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(quantizer(x), first)
    assert torch.isin(first, quantizer.levels()).all()


def test_the_noise_phase_draws_from_the_global_seed():
    quantizer = NIPQ(4)
    quantizer.init_from(gaussian(100))
    got = []
    for _ in range(2):
        torch.manual_seed(5)
        got.append(quantizer(gaussian(100)))
    assert torch.equal(*got)


# --- Acceptance 9: the second phase


def test_9_after_the_noise_training_is_evaluation_and_the_bits_stay():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    student = quantize(model, partial(NIPQ, 4), partial(NIPQ, 5))
    images = gaussian(8 * 2 * 36).reshape(8, 2, 6, 6)
    calibrate(student, [images])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    student.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss = student(images).square().mean()
        (loss + sum(q.bit_width() for q in quantizers(student).values())).backward()
        optimizer.step()
    own = quantizers(student).values()
    rounded = [round(2 + 12 * sigmoid(q.bit_logit.item())) for q in own]
    assert rounded != [4, 5, 4, 5]
    for quantizer in own:
        quantizer.end_noise()
    assert [q.bits for q in own] == rounded
    assert [2 + 12 * sigmoid(q.bit_logit.item()) for q in own] == pytest.approx(rounded, abs=1e-5)
    before = [q.bit_logit.clone() for q in own]
    assert torch.equal(student(images), student.eval()(images))
    student.train()
    ranges = [q.range_logit.item() for q in own]
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        student(images).square().mean().backward()
        assert all(q.bit_logit.grad is None for q in own)
        optimizer.step()
    assert all(torch.equal(q.bit_logit, b) for q, b in zip(own, before, strict=True))
    assert all(q.range_logit.item() != a for q, a in zip(own, ranges, strict=True))
    assert not any(q.bit_width().requires_grad for q in own)


def test_without_noise_training_rounds_and_the_bits_still_learn_from_cost():
    quantizer = NIPQ(4, noise=None)
    quantizer.init_from(gaussian(100))
    x = gaussian(100)
    y = quantizer(x)
    assert torch.equal(y, quantizer.eval()(x))
    y.sum().backward()
    assert quantizer.bit_logit.grad is None
    quantizer.bit_width().backward()
    assert quantizer.bit_logit.grad.item() == pytest.approx(12 * (1 / 6) * (5 / 6), rel=1e-6)


# --- Acceptance 10: one weight


def one_weight(noise):
    """½(y − w*)² by gradient descent, in steps; 20 weights for each target; the second half."""
    quantizer = with_range(7.0, 4, True, noise=noise, learn_bits=True)
    quantizer.bits = 4
    quantizer.learn_bits = False
    quantizer.requires_grad_(False)
    assert quantizer.alpha.item() == pytest.approx(7, rel=1e-12)
    targets = torch.tensor([[0.3], [0.45]], dtype=torch.float64).expand(2, 20)
    # Off the lattice that contains the threshold.
    w = (targets + 0.0123456789 * torch.randn(2, 20, dtype=torch.float64)).requires_grad_()
    path = []
    for _ in range(2000):
        (gradient,) = torch.autograd.grad((quantizer(w) - targets).square().sum() / 2, w)
        w.data -= 0.05 * gradient
        path.append(w.detach().clone())
    path = torch.stack(path[1000:])
    flips = (path.round().diff(dim=0) != 0).double().sum(0)
    return path.mean((0, 2)), path.std(0).mean(1), flips.mean(1)


def test_10_rounding_draws_a_weight_to_the_threshold():
    mean, deviation, flips = one_weight(None)
    assert mean.tolist() == pytest.approx([0.488, 0.499], abs=0.01)
    assert deviation.tolist() == pytest.approx([0.014, 0.014], abs=0.003)
    # 2d/Δ flips per step, d the distance of w* to its level.
    assert flips.tolist() == pytest.approx([600, 900], abs=4)


def test_10_noise_draws_a_weight_to_its_target():
    mean, deviation, flips = one_weight(uniform_noise)
    assert mean.tolist() == pytest.approx([0.3, 0.45], abs=0.01)
    assert deviation.tolist() == pytest.approx([0.046, 0.046], abs=0.004)
    assert flips[0] <= 1
    assert 15 < flips[1] < 150


# --- The initial range


@pytest.mark.parametrize(
    ("largest", "alpha"), [(0.05, 0.718), (0.1, 0.744), (0.3, 0.854), (0.5, 0.974), (1.0, 1.313)]
)
def test_the_released_range_of_weights(largest, alpha):
    # The signed maximum counts, whatever lies below zero.
    quantizer = NIPQ(4, find_range=released_range)
    quantizer.init_from(torch.tensor([-7.0, 0.01, largest]))
    assert quantizer.range_logit.item() == pytest.approx(largest, rel=1e-5)
    assert quantizer.alpha.item() == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize(
    ("data", "a", "alpha"), [([0.0, 1.0], 6, 6.0025), ([-1.0, 1.0], 3, 3.0486)]
)
def test_the_released_range_of_inputs(data, a, alpha):
    quantizer = NIPQ(4, find_range=released_range)
    quantizer.batched = True
    quantizer.init_from(torch.tensor(data))
    assert quantizer.range_logit.item() == pytest.approx(a, rel=1e-6)
    assert quantizer.alpha.item() == pytest.approx(alpha, abs=5e-5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("largest", [1e-7, 1e-3, 0.05, 0.69, 1.0, 19.0, 25.0, 1e4, 1e30])
def test_the_range_starts_at_the_largest_magnitude(largest, signed):
    quantizer = NIPQ(4)
    quantizer.init_from(torch.tensor([-largest if signed else 0.0, largest / 3]))
    expected = largest if signed else largest / 3
    assert quantizer.alpha.item() == pytest.approx(expected, rel=1e-5)
    assert quantizer.bits == 4


def test_an_unsigned_range_does_not_reach_for_negative_data():
    quantizer = NIPQ(4, signed=False)
    quantizer.init_from(torch.tensor([-5.0, 2.0]))
    assert quantizer.alpha.item() == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("data", [[0.0, 0.0], [-3.0, -1.0]])
def test_data_without_a_range_have_a_range_of_one(data):
    quantizer = NIPQ(4, signed=False).eval()
    quantizer.init_from(torch.tensor(data))
    assert quantizer.alpha.item() == pytest.approx(1, rel=1e-6)
    assert quantizer(torch.tensor(data)).tolist() == [0, 0]


def test_a_constant_tensor_and_one_number():
    for data in (torch.full((4,), 3.0), torch.full((4,), -3.0), torch.tensor(3.0)):
        quantizer = NIPQ(4).eval()
        quantizer.init_from(data)
        torch.testing.assert_close(quantizer(data).detach(), data, rtol=1e-6, atol=0)


# --- Bits that are learned


def test_the_default_starts_at_eight_bits():
    quantizer = NIPQ()
    assert quantizer.bits == 8
    assert quantizer.bit_logit.item() == 0
    assert quantizer.learn_bits


@pytest.mark.parametrize("bits", range(2, 15))
def test_the_logit_of_the_bits_is_finite_and_close(bits):
    quantizer = NIPQ(bits)
    assert abs(quantizer.bit_logit.item()) <= 16
    relaxed = 2 + 12 * sigmoid(quantizer.bit_logit.item())
    assert relaxed == pytest.approx(bits, abs=1e-5)
    assert quantizer.bits == bits
    assert type(quantizer.bits) is int


def test_bits_follow_their_logit():
    quantizer = NIPQ(8, signed=True)
    quantizer.bit_logit.data.fill_(logit_of((3.4 - 2) / 12))
    assert (quantizer.bits, quantizer.low, quantizer.high) == (3, -3, 3)
    quantizer.bits = 6
    assert 2 + 12 * sigmoid(quantizer.bit_logit.item()) == pytest.approx(6, abs=1e-5)
    assert "bits=6" in repr(quantizer)
    for bad in (1, 15):
        with pytest.raises(ValueError, match=f"from 2 to 14, got {bad}"):
            quantizer.bits = bad
    assert quantizer.bits == 6


def test_learned_bits_travel_in_the_state():
    quantizer = NIPQ(8)
    quantizer.init_from(gaussian(50))
    quantizer.bit_logit.data.fill_(logit_of((3.4 - 2) / 12))
    other = NIPQ(8)
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert other.bits == 3
    assert torch.equal(other.bit_logit, quantizer.bit_logit)
    assert torch.equal(other.eval()(gaussian(50)), quantizer.eval()(gaussian(50)))
    quantizer.end_noise()
    other = NIPQ(8)
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert other.bits == 3


def test_fixed_bits_are_not_trained_and_not_loaded():
    quantizer = NIPQ(8, learn_bits=False)
    assert [name for name, _ in quantizer.named_parameters()] == ["range_logit"]
    assert not quantizer.bit_logit.requires_grad
    assert not quantizer.bit_width().requires_grad
    with pytest.raises(ValueError, match=r"4 bits.*has 8"):
        quantizer.load_state_dict(NIPQ(4).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bit_logit"):
        quantizer.load_state_dict(NIPQ(8).state_dict())


def test_learned_and_fixed_bits_evaluate_alike():
    x = gaussian(100)
    for bits in (2, 3, 8):
        pair = [NIPQ(bits).eval(), NIPQ(bits, learn_bits=False).eval()]
        for quantizer in pair:
            quantizer.init_from(x)
            quantizer(1.5 * x).square().sum().backward()
        assert torch.equal(pair[0](1.5 * x), pair[1](1.5 * x))
        assert torch.equal(pair[0].range_logit.grad, pair[1].range_logit.grad)


# --- At the edges


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("a", [-18.0, -30.0, -104.0, -1000.0, -1e30])
def test_a_range_driven_to_nothing_counts_as_1e_8(a, training):
    quantizer = NIPQ(4, signed=True).train(training)
    quantizer.range_logit.data.fill_(a)
    expected = max(math.log1p(math.exp(a)), 1e-8)
    assert quantizer.alpha.item() == pytest.approx(expected, rel=1e-5)
    x = torch.tensor([-1.0, 0.0, 1e-12, 1.0], requires_grad=True)
    y = quantizer(x)
    assert y[[0, 3]].tolist() == pytest.approx([-expected, expected], rel=1e-5)
    assert y.abs().max() <= expected * 1.1
    y.sum().backward()
    assert x.grad[[0, 3]].tolist() == [0, 0]
    for tensor in (x.grad, quantizer.range_logit.grad):
        assert tensor.isfinite().all()
    assert quantizer.calibrated


@pytest.mark.parametrize("noise", [uniform_noise, histogram_noise])
def test_extreme_numbers_in_the_noise_phase(noise):
    quantizer = NIPQ(4, signed=True, noise=noise)
    quantizer.init_from(torch.tensor([-2.0, 2.0]))
    numbers = [math.inf, -math.inf, 1e38, -1e38, 1e-45, math.nan, 0.5]
    x = torch.tensor(numbers, requires_grad=True)
    y = quantizer(x)
    alpha = quantizer.alpha.item()
    assert y[:4].tolist() == [alpha, -alpha, alpha, -alpha]
    assert abs(y[4].item()) <= alpha
    assert y.isnan().tolist() == [False] * 5 + [True, False]
    y.nan_to_num().sum().backward()
    assert x.grad[:4].tolist() == [0, 0, 0, 0]
    for parameter in quantizer.parameters():
        assert parameter.grad.isfinite()


@pytest.mark.parametrize("noise", [uniform_noise, histogram_noise])
@pytest.mark.parametrize("shape", [(0, 5), (), (1,), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_the_noise_phase_keeps_shape_and_type(noise, shape, dtype):
    quantizer = NIPQ(4, signed=True, noise=noise)
    quantizer.init_from(torch.tensor([-2.0, 2.0]))
    x = torch.randn(shape).to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = quantizer(x)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    y.sum().backward()
    assert x.grad.shape == x.shape
    for parameter in quantizer.parameters():
        assert parameter.grad.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_of_half_types_compute_in_float32(dtype):
    # 2^13 − 1 is a number of neither half type.
    quantizer = NIPQ(14, signed=True).eval()
    quantizer.init_from(torch.tensor([-3.0, 3.0]))
    quantizer.to(dtype)
    levels = quantizer.levels()
    assert levels.dtype == torch.float32
    assert len(levels.unique()) == 2**14 - 1
    assert torch.equal(quantizer(levels), levels)
    assert quantizer.bit_width().dtype == torch.float32


def test_zeros_of_a_rectified_input_get_no_noise():
    quantizer = NIPQ(2, signed=False)
    quantizer.init_from(torch.tensor([0.0, 3.0]))
    y = quantizer(torch.tensor([0.0, -1.0, 0.0, 1.5]))
    assert y[:3].tolist() == [0, 0, 0]
    assert y[3] != 1.5


@pytest.mark.parametrize("name", ["range_logit", "bit_logit"])
def test_a_lost_parameter_is_found_by_name(name):
    student = quantize(nn.Sequential(nn.Linear(4, 3)), partial(NIPQ, 4), None)
    check_ready(student)
    getattr(student[0].weight_quantizer, name).data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"not finite.*0.weight_quantizer"):
        check_ready(student)
    assert "not calibrated" in repr(student)
    assert "not calibrated" in summary(student)["weights"].iloc[0]
    student.state_dict()


def test_a_copy_learns_on_its_own():
    quantizer = NIPQ(4)
    quantizer.init_from(gaussian(50))
    twin = copy.deepcopy(quantizer)
    twin.end_noise()
    twin.bits = 3
    assert (quantizer.bits, quantizer.learn_bits, quantizer.noise) == (4, True, uniform_noise)
    assert quantizer.bit_logit.requires_grad


def test_the_noise_phase_compiles_whole(monkeypatch):
    # Dynamo cannot trace the shape checks that the test run adds to every function.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    quantizer = NIPQ(4)
    quantizer.init_from(gaussian(50))
    torch.compiler.reset()
    x = gaussian(1000).requires_grad_()
    y = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(x)
    y.square().sum().backward()
    inside = x.detach().abs() < quantizer.alpha.detach()
    error = (y - x).detach()[inside] / quantizer.alpha.item()
    assert error.abs().max() <= 0.5 / 3 + 1e-6
    assert error.std() > 0.01
    assert quantizer.bit_logit.grad != 0


def test_the_end_of_the_noise_is_in_the_state():
    ended, other = NIPQ(8), NIPQ(8)
    ended.init_from(torch.randn(20))
    assert other.noise is not None
    other.load_state_dict({**ended.state_dict()})
    assert other.noise is not None
    ended.end_noise()
    other.load_state_dict(ended.state_dict())
    assert other.noise is None
    assert not other.bit_logit.requires_grad
    x = torch.randn(20)
    assert torch.equal(other.train()(x), ended.eval()(x))
