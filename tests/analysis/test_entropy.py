import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis.entropy import activation_entropy, code_entropy, gaussian_entropy
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.layers import QuantActivation
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import (
    EWGS,
    LSQ,
    NIPQ,
    AdaRound,
    Affine,
    AffineLSQ,
    DoReFa,
    LSQPlus,
    ReleasedDoReFa,
    min_max_range,
)
from tests.analysis.common import unchanged

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(23, 1, 8, 8, generator=GENERATOR)
DATA = Split(IMAGES, torch.arange(23) % 10, (0.5,), (0.3,))
TWO, THREE = partial(LSQ, bits=2), partial(LSQ, bits=3)
EVERY = [
    (LSQ, 8),
    (partial(LSQ, axis=0), 8),
    (Affine, 8),
    (partial(AffineLSQ, axis=0), 8),
    (LSQPlus, 8),
    (AdaRound, 8),
    (EWGS, 8),
    (DoReFa, 8),
    (ReleasedDoReFa, 8),
    (NIPQ, 7),  # −3 to 3
]


def student(weights=THREE, inputs=TWO):
    torch.manual_seed(3)
    model = quantize(small_cnn(width=2), weights, inputs).eval()
    if inputs is not None:
        calibrate(model, DATA.batches(23))
    return model


def entropy_of(codes):
    """−∑ p·log₂ p, one code at a time."""
    found = {}
    for code in codes:
        found[code] = found.get(code, 0) + 1
    return -sum(n / len(codes) * math.log2(n / len(codes)) for n in found.values())


def one_layer(weight, quantizer):
    """A linear layer of given weights, through a quantizer that is as it should be."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight))).eval()
    model[1].weight.data = weight
    model = quantize(model, lambda: quantizer, None)
    return model


def fixed_lsq(step, bits=2):
    class Fixed(LSQ):
        def init_from(self, x):
            super().init_from(x)
            self.step.data.fill_(step)

    return Fixed(bits, signed=True)


def test_occupancies_known_beforehand():
    weight = torch.tensor([[-2.0, -1.1, 0.1, 0.2], [0.0, 0.0, 0.1, -0.4], [1.0, 5.0, 0.3, 0.0]])
    found = code_entropy(one_layer(weight, fixed_lsq(1.0)), label="net")
    # Codes: −2 −1 0 0 / 0 0 0 0 / 1 1 0 0.
    assert (found.label, found.of, found.layers, found.samples) == ("net", "weights", ("1",), 0)
    assert found.low.tolist() == [-2]
    assert found.counts[0].tolist() == [1, 1, 8, 2]
    assert found.nonzero[0].tolist() == [1, 1, 0, 2]
    assert found.channels[0].tolist() == [[1, 1, 2, 0], [0, 0, 4, 0], [0, 0, 2, 2]]
    assert (found.filters.tolist(), found.dead.tolist()) == ([3], [1])
    assert found.zero[0] == pytest.approx(8 / 12)
    assert found.ends[0] == pytest.approx(3 / 12)
    shares = [1 / 12, 1 / 12, 8 / 12, 2 / 12]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert found.entropy[0] == pytest.approx(entropy)
    squares = sum(p * math.log2(p) ** 2 for p in shares)
    assert found.error[0] == pytest.approx(math.sqrt((squares - entropy**2) / 12))
    assert found.channel_entropy[0] == pytest.approx((1.5 + 0 + 1) / 3)


def test_the_density_of_weights_is_measured_in_steps():
    weight = torch.rand(8, 4000, generator=GENERATOR) - 0.5
    by_step = [
        code_entropy(one_layer(weight, fixed_lsq(step))).differential[0] for step in (1.0, 0.125)
    ]
    # Uniform numbers of width w/s have log₂(w/s) bits.
    np.testing.assert_allclose(by_step, [0, 3], atol=0.02)
    normal = torch.randn(8, 4000, generator=GENERATOR)
    found = code_entropy(one_layer(normal, fixed_lsq(1.0))).differential[0]
    assert found == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=0.02)
    assert math.isnan(code_entropy(one_layer(normal, DoReFa(2, signed=True))).differential[0])
    assert math.isnan(code_entropy(one_layer(0 * normal, fixed_lsq(1.0))).differential[0])


def test_compression_needs_at_least_the_entropy_of_independent_codes_and_less_of_ordered_ones():
    normal = torch.randn(50, 1000, generator=GENERATOR)
    found = code_entropy(one_layer(normal, fixed_lsq(1.0, bits=3)))
    assert found.entropy[0] < found.compressed[0] < 1.25 * found.entropy[0]
    ordered = normal.flatten().sort().values.view(50, 1000)
    found = code_entropy(one_layer(ordered, fixed_lsq(1.0, bits=3)))
    assert found.compressed[0] < 0.1 * found.entropy[0]


@pytest.mark.parametrize(("make", "levels"), EVERY)
def test_every_quantizer_against_a_loop(make, levels):
    model = student(partial(make, bits=3), None)
    with unchanged(model):
        found = code_entropy(model)
    assert found.layers == ("conv1", "conv2", "conv3", "fc")
    assert found.levels.tolist() == [levels] * 4
    assert found.bits.tolist() == [3] * 4
    for index, name in enumerate(found.layers):
        layer = model.get_submodule(name)
        with torch.no_grad():
            codes = layer.weight_quantizer.codes(layer.weight)
            level = layer.quantized_weight()
        flat = codes.flatten().round().int().tolist()
        assert found.counts[index].tolist() == [
            flat.count(found.low[index] + k) for k in range(levels)
        ]
        assert found.entropy[index] == pytest.approx(entropy_of(flat), abs=1e-12)
        rows = [entropy_of(row.flatten().round().int().tolist()) for row in codes]
        assert found.channel_entropy[index] == pytest.approx(sum(rows) / len(rows), abs=1e-12)
        assert found.zero[index] == pytest.approx((level == 0).double().mean().item())
        assert found.dead[index] == sum(bool((row == 0).all()) for row in level)


def test_a_quantizer_with_its_own_unit_has_a_step():
    for make in (NIPQ, EWGS):
        found = code_entropy(student(partial(make, bits=3), None))
        assert np.isfinite(found.differential).all()
    nipq = NIPQ(3)
    nipq.init_from(torch.tensor([-3.0, 1.0]))
    weight = 6 * torch.rand(8, 4000, generator=GENERATOR) - 3
    model = one_layer(weight, nipq)
    # The grid was chosen anew, from −3 to 3: six steps of 1, and numbers of width 6.
    assert code_entropy(model).differential[0] == pytest.approx(math.log2(6), abs=0.02)


def test_a_model_without_quantized_weights_or_grids_is_refused():
    with pytest.raises(ValueError, match="no quantized weight"):
        code_entropy(small_cnn(width=2))
    raw = quantize(small_cnn(width=2), partial(LSQ, 2), partial(LSQ, 2))
    with pytest.raises(ValueError, match="not calibrated"):
        code_entropy(raw)
    with pytest.raises(ValueError, match="bins is 0"):
        code_entropy(student(), bins=0)


# Normal weights


def normal_below(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(("bits", "stated"), [(2, 1.459), (3, 2.212), (4, 2.798)])
def test_the_entropy_of_normal_weights_under_the_first_step_of_lsq(bits, stated):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = 2 * math.sqrt(2 / math.pi) / math.sqrt(high)
    shares = []
    for code in range(low, high + 1):
        below = 0 if code == low else normal_below((code - 0.5) * step)
        above = 1 if code == high else normal_below((code + 0.5) * step)
        shares.append(above - below)
    exact = -sum(p * math.log2(p) for p in shares)
    found = gaussian_entropy(bits)
    np.testing.assert_allclose(found.shares, shares, atol=1e-5)
    assert found.entropy == pytest.approx(exact, abs=1e-4)
    assert exact == pytest.approx(stated, abs=1.1e-3)  # 2.2110 at three bits
    assert (found.low, found.bits) == (low, bits)


def test_the_shares_of_two_bits():
    assert (1000 * gaussian_entropy(2).shares).round().tolist() == [8, 204, 575, 212]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_entropy_of_a_sample_of_normal_weights_is_that_of_the_distribution(bits):
    weight = torch.randn(100, 4000, generator=GENERATOR)
    found = code_entropy(one_layer(weight, LSQ(bits)))
    assert abs(found.entropy[0] - gaussian_entropy(bits).entropy) < 4 * found.error[0]
    assert found.error[0] < 0.003


@pytest.mark.parametrize(("make", "levels"), EVERY)
def test_every_quantizer_has_a_normal_entropy(make, levels):
    found = gaussian_entropy(3, make, points=2**12)
    assert len(found.shares) == levels
    assert found.shares.sum() == pytest.approx(1)
    assert 0 < found.utilisation < 1


def test_a_grid_that_reaches_the_largest_number_is_that_of_so_many_weights():
    wide = gaussian_entropy(2, partial(Affine, find_range=min_max_range), points=2**12)
    wider = gaussian_entropy(2, partial(Affine, find_range=min_max_range))
    assert wider.entropy < wide.entropy
    with pytest.raises(ValueError, match="points is 1"):
        gaussian_entropy(2, points=1)


# Inputs


class Watch(nn.Module):
    """A quantizer's codes as they pass, one list."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen, self.levels = inner, [], []

    def forward(self, x):
        self.seen += self.inner.codes(x).flatten().round().int().tolist()
        self.levels += self.inner(x).flatten().tolist()
        return self.inner(x)


def test_activations_against_codes_collected_as_they_pass():
    model = student()
    model.relu1 = nn.Sequential(nn.ReLU(), QuantActivation(LSQ(3, signed=True))).eval()
    calibrate(model, DATA.batches(23))
    with unchanged(model):
        found = activation_entropy(model, DATA, label="net")
    assert found.layers == ("conv1", "relu1.1", "conv2", "conv3", "fc")
    assert (found.of, found.samples) == ("inputs", 23)
    assert found.levels.tolist() == [4, 8, 4, 4, 4]
    for index, name in enumerate(found.layers):
        layer = model.get_submodule(name)
        which = "quantizer" if isinstance(layer, QuantActivation) else "input_quantizer"
        watch = Watch(getattr(layer, which))
        setattr(layer, which, watch)
        for images, _ in DATA.batches(5):
            model(images)
        setattr(layer, which, watch.inner)
        low = watch.inner.low
        assert found.counts[index].tolist() == [
            watch.seen.count(low + k) for k in range(found.levels[index])
        ]
        kept = [c for c, value in zip(watch.seen, watch.levels, strict=True) if value != 0]
        assert found.entropy[index] == pytest.approx(entropy_of(watch.seen))
        assert found.without_zeros[index] == pytest.approx(entropy_of(kept))
    assert found.ends[1] > 0  # code −4 never occurs, code 3 does
    assert found.used[1] < 8  # half of a signed grid after a ReLU
    assert np.isnan(found.compressed).all()


def test_the_error_of_inputs_is_that_of_leaving_out_tenths_of_the_images():
    model = student()
    found = activation_entropy(model, DATA)
    parts = torch.arange(23).tensor_split(10)
    for index in range(4):
        left = []
        for part in parts:
            keep = torch.ones(23, dtype=torch.bool)
            keep[part] = False
            left.append(activation_entropy(model, DATA.subset(keep)).entropy[index])
        mean = sum(left) / 10
        expected = math.sqrt(9 / 10 * sum((h - mean) ** 2 for h in left))
        assert found.error[index] == pytest.approx(expected)
    assert np.isnan(activation_entropy(model, DATA, samples=1).error).all()


def test_inputs_that_cannot_be_counted_are_refused_and_nothing_is_left_behind():
    with pytest.raises(ValueError, match="no quantized activation"):
        activation_entropy(student(inputs=None), DATA)
    model = student().train()
    with unchanged(model), pytest.raises(ValueError, match="training mode"):
        activation_entropy(model, DATA)
    model = student()
    model.register_module("aside", QuantActivation(model.conv2.input_quantizer.__class__(2)))
    model.aside.quantizer.init_from(torch.ones(3))
    model = Detour(model).eval()
    with unchanged(model), pytest.raises(ValueError, match=r"did not reach inner\.aside\.quant"):
        activation_entropy(model, DATA)


class Detour(nn.Module):
    """A sequence without its last module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        for name, module in self.inner.named_children():
            if name != "aside":
                x = module(x)
        return x


def test_an_exception_in_the_middle_leaves_no_hook():
    model = student()
    calls = 0

    def fail(*args):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt

    handle = model.fc.register_forward_pre_hook(fail)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        activation_entropy(model, DATA)
    handle.remove()
