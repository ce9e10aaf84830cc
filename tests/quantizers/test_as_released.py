import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qatviz.calibration import calibrate
from qatviz.quantize import check_ready, quantize
from qatviz.quantizers import LSQ, Affine, DoReFa, ReleasedDoReFa, released_lsq, released_pact
from tests.quantizers.conformance import Case, Config, state_of


def released_oracle(state, x, upstream, config):
    """z = tanh x/(max|tanh x| + 1e-5), x̂ = s·clip(round(z/s), −Q_N, Q_P), number by number."""
    s, q_n, q_p = float(state["step"]), 2 ** (config.bits - 1), 2 ** (config.bits - 1) - 1
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    indices = list(np.ndindex(*x.shape))
    t = np.tanh(x)
    m = max((abs(float(t[i])) for i in indices), default=0.0)
    through_m = 0.0
    for i in indices:
        code = round(float(t[i]) / (m + 1e-5) / s)
        value[i] = min(max(code, -q_n), q_p) * s
        inside = -q_n <= code <= q_p
        grad_x[i] = upstream[i] * inside / (m + 1e-5)
        through_m -= upstream[i] * inside * float(t[i]) / (m + 1e-5) ** 2
    largest = [i for i in indices if abs(t[i]) == m and m > 0]
    for i in largest:
        grad_x[i] += through_m / len(largest) * np.sign(t[i])
    return value, grad_x * (1 - t**2), {}


CASES = {
    ReleasedDoReFa: Case(
        ReleasedDoReFa, released_oracle, idempotent=False, from_data=False, unreached=1
    )
}


def ready(bits, x):
    quantizer = ReleasedDoReFa(bits).to(x.dtype)
    quantizer.init_from(x)
    return quantizer


# --- DoReFa


@settings(deadline=None, max_examples=150)
@given(
    bits=st.integers(2, 8),
    scale=st.sampled_from([1e-3, 0.3, 1.0, 3.0, 100.0]),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_code(bits, scale, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    quantizer = ready(bits, torch.randn(50, generator=generator, dtype=torch.float64))
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.where(torch.randint(8, shape, generator=generator) == 0, 0.0, x)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    value, grad_x, _ = released_oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), Config(bits, True, None, False)
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-12, atol=1e-15)
    largest = np.abs(grad_x).max(initial=0)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-9, atol=1e-12 * max(largest, 1))


def test_the_frozen_step():
    # Four bits and a large value: 2·(1/(1 + 1e-5))/15 = 0.1333.
    quantizer = ready(4, torch.tensor([-1.0, 20.0], dtype=torch.float64))
    assert quantizer.step.item() == pytest.approx(2 / 1.00001 / 15, rel=1e-12)
    assert quantizer.step.item() == pytest.approx(0.1333, abs=1e-4)
    assert (quantizer.low, quantizer.high) == (-8, 7)
    # Small data leave it where it is, but for ε.
    small = ready(4, torch.tensor([-0.01, 0.02], dtype=torch.float64))
    t = math.tanh(0.02)
    assert small.step.item() == pytest.approx(2 * t / (t + 1e-5) / 15, rel=1e-12)


def test_after_a_relu_half_of_the_levels_are_left():
    for bits in range(2, 9):
        quantizer = ready(bits, torch.rand(50))
        assert quantizer.signed is False
        codes = quantizer.codes(torch.linspace(0, 5, 4001))
        assert codes.unique().tolist() == list(range(2 ** (bits - 1)))
        paper = DoReFa(bits, signed=False).codes(torch.linspace(0, 5, 4001))
        assert len(paper.unique()) == 2**bits


def test_an_image_depends_on_the_others_of_its_batch():
    quantizer = ready(4, torch.rand(50))
    image = torch.linspace(0, 0.3, 10)
    alone, beside = quantizer(image), quantizer(torch.stack([image, image + 3]))[0]
    assert not torch.equal(alone, beside)
    paper = DoReFa(4, signed=False)
    assert torch.equal(paper(image), paper(torch.stack([image, image + 3]))[0])


def test_zero_is_a_level_and_data_without_a_scale_are_zero():
    for x in (torch.zeros(5), torch.full((5,), 1e-40)):
        quantizer = ready(3, x)
        assert quantizer.calibrated
        assert quantizer.step > 0
        assert (quantizer(torch.zeros(5)) == 0).all()
    assert quantizer(torch.zeros(0, 2)).shape == (0, 2)


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match=r"ReleasedDoReFa.*from 2 to 8, got 1"):
        ReleasedDoReFa(1)


def test_infinite_values_are_the_largest():
    quantizer = ready(3, torch.randn(50))
    y = quantizer(torch.tensor([math.inf, -math.inf, 0.0]))
    assert y.isfinite().all()
    assert y[0] == quantizer.levels()[-1]
    assert quantizer(torch.tensor([math.nan, 1.0])).isnan().all()


def test_a_broken_step_is_found_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    student = quantize(model, lambda: ReleasedDoReFa(4), lambda: ReleasedDoReFa(4))
    calibrate(student, [torch.randn(8, 4)])
    check_ready(student)
    student.get_submodule("1").input_quantizer.step.fill_(math.nan)
    with pytest.raises(ValueError, match=r"1\.input_quantizer"):
        check_ready(student)


# --- PACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("bits", "step", "largest", "count"),
    [(8, 0.04706, 5.976, 128), (4, 0.8, 5.6, 8), (3, 1.714, 5.143, 4)],
)
def test_the_step_table_of_the_fixed_clip(bits, step, largest, count, dtype):
    quantizer = released_pact(bits).to(dtype)
    quantizer.init_from(torch.rand(9, dtype=dtype))
    assert quantizer.step.item() == pytest.approx(12 / (2**bits - 1), rel=1e-6)
    assert quantizer.step.item() == pytest.approx(step, abs=5e-4)
    levels = quantizer.levels()
    assert levels.max().item() == pytest.approx(largest, abs=5e-4)
    assert (levels >= 0).sum() == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_fixed_clip_has_the_signed_grid_at_every_width(bits, dtype):
    # Zero is halfway between two positions; it must be that of a signed grid, 2^(b−1).
    quantizer = released_pact(bits).to(dtype)
    quantizer.init_from(torch.randn(9, dtype=dtype))
    assert quantizer.zero_point.item() == 2 ** (bits - 1)


def test_the_fixed_clip_is_not_trained():
    quantizer = released_pact(4)
    assert isinstance(quantizer, Affine)
    assert list(quantizer.parameters()) == []
    before = []
    for x in (torch.rand(9), 100 * torch.randn(9)):
        quantizer.init_from(x)
        before.append(quantizer.step.item())
    assert before[0] == before[1]
    # ReLU outputs beyond 5.6 are clipped, and nothing moves the clip.
    assert quantizer(torch.tensor([9.0])).item() == pytest.approx(5.6, rel=1e-6)


# --- LSQ


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_signed_grid_after_a_relu_wastes_half_of_its_levels(bits):
    x = torch.linspace(0, 50, 5001)
    signed, unsigned = released_lsq(bits), LSQ(bits)
    for quantizer in (signed, unsigned):
        quantizer.init_from(torch.rand(100))
    assert signed.signed is True
    assert unsigned.signed is False
    assert len(signed(x).unique()) == 2 ** (bits - 1)
    assert len(unsigned(x).unique()) == 2**bits
