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
from qatviz.quantizers import LSQ, PACT
from tests.quantizers.conformance import Case, Config, state_of


def pact_oracle(state, x, upstream, config):
    """Section 3 of Choi et al., one element after another."""
    alpha, n = max(float(state["clip"]), 1e-8), 2**config.bits - 1
    value, grad_x, grad_alpha = np.zeros_like(x), np.zeros_like(x), 0.0
    for index in np.ndindex(*x.shape):
        number = float(x[index])
        y = 0.0 if number < 0 else alpha if number >= alpha else number
        value[index] = round(y / (alpha / n)) * (alpha / n)
        grad_x[index] = upstream[index] * (1.0 if 0 <= number < alpha else 0.0)
        grad_alpha += upstream[index] * (1.0 if number >= alpha else 0.0)
    return value, grad_x, {"clip": np.array(grad_alpha)}


CASES = {PACT: Case(partial(PACT, clip=1.5), pact_oracle, from_data=False)}


def with_clip(clip, bits):
    quantizer = PACT(bits, signed=False).double()
    quantizer.init_from(torch.zeros(1))
    quantizer.clip.data.fill_(clip)
    return quantizer


@settings(deadline=None, max_examples=150)
@given(
    bits=st.integers(1, 8),
    clip=st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.0, -1.0, 1e-30])),
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_paper(bits, clip, shape, seed):
    quantizer = with_clip(clip, bits)
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * max(clip, 1e-8) * torch.randn(shape, generator=generator, dtype=torch.float64)
    # A sixth each: zero, the clip itself, very large, denormal.
    where = torch.randint(6, shape, generator=generator)
    for i, number in enumerate((0.0, max(clip, 1e-8), 1e300, 1e-310)):
        x = torch.where(where == i, number, x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, grads = pact_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), Config(bits, False, None, False)
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-13, atol=0)
    np.testing.assert_array_equal(x.grad.numpy(), grad_x)
    np.testing.assert_allclose(quantizer.clip.grad.numpy(), grads["clip"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("x", "value", "d_x", "d_clip"),
    [(-0.1, 0, 0, 0), (0, 0, 1, 0), (0.9, 1, 1, 0), (2.9, 3, 1, 0), (3, 3, 0, 1), (9, 3, 0, 1)],
)
def test_one_number_at_a_time(x, value, d_x, d_clip):
    # α = 3 and two bits: levels 0, 1, 2, 3. The bounds belong to x at 0, to α at α.
    quantizer = with_clip(3.0, 2)
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    y.backward()
    assert (y.item(), x.grad.item(), quantizer.clip.grad.item()) == (value, d_x, d_clip)


def test_inside_the_grid_the_step_of_lsq_learns_and_the_clip_does_not():
    # x = 0.9 on levels 0, 1, 2, 3: LSQ has round(v) − v = 0.1 times g = 1/√3.
    lsq = LSQ(2, signed=False)
    lsq.step.data = torch.tensor(1.0)
    pact, x = with_clip(3.0, 2).float(), torch.tensor([0.9])
    assert torch.equal(lsq(x), pact(x))
    lsq(x).sum().backward()
    pact(x).sum().backward()
    assert lsq.step.grad.item() == pytest.approx(0.1 / math.sqrt(3), rel=1e-5)
    assert pact.clip.grad.item() == 0


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_levels_span_zero_to_the_clip(bits):
    levels = with_clip(6.0, bits).levels()
    n = 2**bits - 1
    np.testing.assert_allclose(levels.numpy(), [k * 6 / n for k in range(n + 1)], rtol=1e-14)


@pytest.mark.parametrize("data", [[0.0, 0.0], [0.5], [100.0, 3.0]])
def test_the_clip_starts_where_the_constructor_says(data):
    for kwargs, start in (({}, 10.0), ({"clip": 2.5}, 2.5)):
        quantizer = PACT(4, **kwargs)
        assert quantizer.clip.isnan()
        quantizer.init_from(torch.tensor(data))
        assert quantizer.clip.item() == start
        # New data set it back.
        quantizer.clip.data.fill_(1.0)
        quantizer.init_from(torch.tensor(data))
        assert quantizer.clip.item() == start


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_is_no_range_is_refused(clip):
    with pytest.raises(ValueError, match=f"PACT: clip must be positive and finite, got {clip!r}"):
        PACT(4, clip=clip)


def test_negative_data_are_refused_or_clipped():
    with pytest.raises(ValueError, match="PACT has no signed grid"):
        PACT(4, signed=True)
    undecided, x = PACT(4), torch.tensor([-1.0, 5.0])
    with pytest.raises(ValueError, match=r"PACT has no signed grid.*signed=False clips"):
        undecided.init_from(x)
    clipping = PACT(4, signed=False)
    clipping.init_from(x)
    assert clipping(x)[0] == 0


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_clip_driven_below_zero_comes_back(value):
    quantizer = with_clip(value, 3)
    y = quantizer(torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64))
    np.testing.assert_allclose(y.detach().numpy(), [0, 0, 1e-8], rtol=1e-12, atol=0)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        (2 - quantizer(torch.full((1,), 2.0, dtype=torch.float64))).sum().backward()
        optimizer.step()
    assert quantizer.clip.item() == value + 5 if value < -2 else quantizer.clip.item() >= 2


def test_an_infinite_activation_is_clipped_and_pushes_the_clip():
    quantizer = with_clip(3.0, 2)
    x = torch.tensor([math.inf, -math.inf, 1.0], dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.tolist() == [3, 0, 1]
    assert x.grad.tolist() == [0, 0, 1]
    assert quantizer.clip.grad.item() == 1


def test_the_clip_of_a_model_is_trained_and_found_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    student = quantize(model, None, partial(PACT, 4, clip=0.5), only=["2"])
    with pytest.raises(ValueError, match=r"2\.input_quantizer"):
        check_ready(student)
    calibrate(student, [torch.randn(8, 4)])
    check_ready(student)
    clip = student.get_submodule("2").input_quantizer.clip
    student(3 * torch.randn(8, 4)).pow(2).sum().backward()
    assert clip.grad != 0
    clip.data.fill_(math.inf)
    with pytest.raises(ValueError, match=r"2\.input_quantizer"):
        check_ready(student)
