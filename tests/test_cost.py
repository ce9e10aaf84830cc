import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from qatviz.cost import bit_penalty, bops_penalty, cost, target_penalty
from qatviz.layers import QuantActivation
from qatviz.models import mobilenet_v2, small_cnn
from qatviz.quantize import quantize, quantizers
from qatviz.quantizers import LSQ, NIPQ, Affine, min_max_range

FIRST, LAST = "features.0.0", "classifier.1"
FIXED = partial(Affine, find_range=min_max_range)


# --- MobileNetV2 at 224²: section 4.3 of the notes


def mobilenet(inputs):
    """MobileNetV2 with learned bits, and its cost at 224²."""
    torch.manual_seed(0)
    student = quantize(mobilenet_v2(), NIPQ, inputs)
    return student, cost(student, (3, 224, 224))


@pytest.fixture(scope="module")
def image_float():
    return mobilenet({"*": NIPQ, FIRST: None})


@pytest.fixture(scope="module")
def image_quantized():
    return mobilenet(NIPQ)


def set_bits(student, bits, **others):
    for name, quantizer in quantizers(student).items():
        layer = name.rsplit(".", 1)[0].replace(".", "_")
        quantizer.bits = others.get(layer, bits)


def test_the_sizes_of_mobilenet_v2(image_float):
    _, measured = image_float
    assert len(measured.layers) == 53
    assert sum(layer.weights for layer in measured.layers) == 3_469_760
    assert measured.quantized("weights")[1] == 3_469_760
    assert measured.macs() == 300_774_272
    assert measured.layers[0].macs == 10_838_016
    assert measured.quantized("inputs")[1] == 6_616_672
    assert sum(layer.inputs for layer in measured.layers) == 6_616_672 + 3 * 224 * 224
    assert [layer.name for layer in measured.layers][:: len(measured.layers) - 1] == [FIRST, LAST]
    assert measured.layers[-1].macs == 1_280_000


GBOPS = [(2, 1.853, 1.333), (3, 3.650, 2.870), (4, 6.026, 4.986), (5, 8.982, 7.682)]
GBOPS += [(8, 21.330, 19.250)]


@pytest.mark.parametrize(("bits", "first_32", "first_8"), GBOPS)
def test_8_bit_operations_of_mobilenet_v2(bits, first_32, first_8, image_float):
    student, _ = image_float
    set_bits(student, bits)
    for image_bits, expected in ((32, first_32), (8, first_8)):
        measured = cost(student, (3, 224, 224), image_bits=image_bits)
        assert measured.bops().item() / 1e9 == pytest.approx(expected, abs=5.01e-4)
        exact = bits**2 * (300_774_272 - 10_838_016) + bits * image_bits * 10_838_016
        assert measured.bops().item() == exact


def test_8_eight_bits_in_the_first_layer_and_in_the_last(image_quantized):
    student, measured = image_quantized
    set_bits(student, 4, features_0_0=8)
    assert measured.bops().item() / 1e9 == pytest.approx(5.33, abs=5e-3)
    set_bits(student, 4, features_0_0=8, classifier_1=8)
    assert measured.bops().item() / 1e9 == pytest.approx(5.39, abs=5e-3)


def test_7_the_penalty_on_average_bits(image_float):
    student, measured = image_float
    set_bits(student, 8)
    student.zero_grad()
    penalty = bit_penalty(measured, 4, inputs=0)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx((4 * 3_469_760 - 0.5) / 2**23, rel=1e-6)
    assert penalty.item() == pytest.approx(1.6545, abs=5e-5)
    penalty.backward()
    per_bit = []
    for layer in measured.layers:
        module = student.get_submodule(layer.name)
        # ∂b/∂β = 12·σ(0)·(1 − σ(0)) = 3 at 8 bits.
        per_bit.append(module.weight_quantizer.bit_logit.grad.item() / 3)
        assert per_bit[-1] == pytest.approx(module.weight.numel() / 2**23, rel=1e-6)
        if layer.name != FIRST:
            assert module.input_quantizer.bit_logit.grad == 0
    assert max(per_bit) == pytest.approx(0.1526, abs=5e-5)
    assert per_bit[0] == pytest.approx(1.0e-4, abs=5e-6)
    assert sum(per_bit) == pytest.approx(0.4136, abs=5e-5)


def test_7_the_penalty_counts_inputs_as_inputs(image_float):
    # The released code counts the weights' bits among them: 13,295,784 numbers, not 6,616,672.
    student, measured = image_float
    set_bits(student, 8)
    student.zero_grad()
    penalty = bit_penalty(measured, 4, weights=0)
    assert penalty.item() == pytest.approx((4 * 6_616_672 - 0.5) / 2**23, rel=1e-6)
    penalty.backward()
    for layer in measured.layers[1:]:
        module = student.get_submodule(layer.name)
        assert module.weight_quantizer.bit_logit.grad == 0
        expected = 3 * layer.inputs / 2**23
        assert module.input_quantizer.bit_logit.grad.item() == pytest.approx(expected, rel=1e-6)


# --- Any convolution and any linear layer


def literal_conv(x, out_channels, kernel, stride, padding, dilation, groups):
    """One multiplication after another: how many, for one image, padding multiplied as zeros."""
    channels, height, width = x
    count, places = 0, []
    for size, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True):
        places.append(len(range(0, size + 2 * p - d * (k - 1), s)))
    for _ in range(places[0]):
        for _ in range(places[1]):
            for _ in range(out_channels):
                for _ in range(channels // groups):
                    count += kernel[0] * kernel[1]
    return count


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 3),
    channels=st.integers(1, 2),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
)
def test_a_convolution_costs_its_multiplications(
    groups, channels, kernel, stride, padding, dilation, bits
):
    shape, out = (channels * groups, 8, 9), 2 * groups
    conv = nn.Conv2d(shape[0], out, kernel, stride, padding, dilation, groups)
    macs = literal_conv(shape, out, kernel, stride, padding, dilation, groups)
    weights = out * channels * kernel[0] * kernel[1]
    weight_bits, input_bits = bits
    student = quantize(nn.Sequential(conv), partial(FIXED, weight_bits), partial(FIXED, input_bits))
    measured = cost(student, shape)
    (layer,) = measured.layers
    assert (layer.macs, layer.weights, layer.inputs) == (macs, weights, math.prod(shape))
    assert measured.bops().item() == macs * weight_bits * input_bits
    assert measured.weight_bits().item() == weights * weight_bits
    assert measured.bytes().item() == weights * weight_bits / 8
    assert measured.input_bits().item() == math.prod(shape) * input_bits
    assert measured.average_bits("weights").item() == weight_bits
    assert measured.average_bits("inputs").item() == input_bits


def test_a_linear_layer_costs_for_each_token():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(12, 5))
    measured = cost(model, (7, 3, 4))
    (layer,) = measured.layers
    assert (layer.macs, layer.weights, layer.inputs) == (7 * 12 * 5, 60, 84)


def small():
    """Three layers by hand: 6·6 images of 2 channels."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),  # 4×4 places: MACs 16·72 = 1152, inputs 72
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),  # 2×2 places: MACs 4·72 = 288, inputs 64
        nn.Flatten(),
        nn.Linear(16, 3),  # MACs 48, inputs 16
    )


SIZES = [(1152, 72, 72), (288, 72, 64), (48, 48, 16)]


def test_the_totals_by_hand():
    student = quantize(small(), {"*": partial(LSQ, 3), "3": partial(LSQ, 5)}, partial(LSQ, 4))
    measured = cost(student, (2, 6, 6))
    assert [(c.macs, c.weights, c.inputs) for c in measured.layers] == SIZES
    assert measured.macs() == 1488
    assert measured.weight_bits().item() == 3 * 72 + 5 * 72 + 3 * 48
    assert measured.bytes().item() == (3 * 72 + 5 * 72 + 3 * 48) / 8
    assert measured.input_bits().item() == 4 * 152
    assert measured.bops().item() == 12 * 1152 + 20 * 288 + 12 * 48
    assert measured.average_bits("weights").item() == (3 * 120 + 5 * 72) / 192
    assert measured.average_bits("inputs").item() == 4


@pytest.mark.parametrize("image_bits", [8, 32, 1])
def test_a_float_model_counts_32_bits_and_its_image_less(image_bits):
    measured = cost(small(), (2, 6, 6), image_bits=image_bits)
    assert measured.weight_bits().item() == 32 * 192
    assert measured.input_bits().item() == image_bits * 72 + 32 * 80
    assert measured.bops().item() == 32 * (image_bits * 1152 + 32 * (288 + 48))
    for of in ("weights", "inputs"):
        with pytest.raises(ValueError, match=f"no quantized {of}"):
            measured.average_bits(of)
    with pytest.raises(ValueError, match="no quantized weights and no quantized inputs"):
        bit_penalty(measured, 4)


def test_images_are_eight_bits_unless_said_otherwise():
    assert cost(small(), (2, 6, 6)).image_bits == 8


def test_averages_are_over_quantized_tensors_only():
    student = quantize(small(), partial(LSQ, 2), None, only=["3"])
    measured = cost(student, (2, 6, 6))
    assert measured.average_bits("weights").item() == 2
    assert measured.weight_bits().item() == 2 * 72 + 32 * 120
    assert bit_penalty(measured, 4).item() == pytest.approx((2 * 72 - 0.5) / 2**23, rel=1e-6)
    with pytest.raises(ValueError, match="of must be 'weights' or 'inputs', got 'biases'"):
        measured.average_bits("biases")


def test_a_view_of_the_image_is_the_image_and_a_copy_is_not():
    view = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(72, 3))
    assert cost(view, (2, 6, 6)).input_bits().item() == 8 * 72
    changed = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    assert cost(changed, (2, 6, 6)).input_bits().item() == 32 * 72


class Twice(nn.Module):
    """One convolution that is reached twice, and a weight that is stored once."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(input=self.conv(x))


def test_a_layer_reached_twice_counts_twice_and_its_weight_once():
    measured = cost(Twice(), (2, 6, 6))
    (layer,) = measured.layers
    assert (layer.macs, layer.weights, layer.inputs) == (2 * 36 * 36, 36, 2 * 72)
    assert measured.weight_bits().item() == 32 * 36
    # The first pass reads the image, the second does not.
    assert measured.input_bits().item() == (8 + 32) * 72
    assert measured.bops().item() == 36 * 36 * 32 * (8 + 32)
    assert measured.table().loc["conv", "input bits"] == 20


class Branch(nn.Module):
    """A rounded tensor that one layer reads, and the tensor before, that the other reads."""

    def __init__(self, quantizer):
        super().__init__()
        self.rounding = QuantActivation(quantizer)
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        x = x.relu()
        return self.left(self.rounding(x).flatten(1)).sum() + self.right(x.flatten(1)).sum()


@pytest.mark.parametrize(("quantizer", "bits"), [(FIXED(5), 5), (None, 32)])
def test_a_quantizer_on_its_own_counts_for_the_layers_that_read_it(quantizer, bits):
    measured = cost(Branch(quantizer), (1, 2, 2))
    left, right = measured.table()["input bits"]
    assert (left, right) == (bits, 32)


def test_the_quantizer_of_a_layer_goes_before_that_of_the_tensor():
    student = quantize(Branch(FIXED(5)), None, partial(FIXED, 3), only=["left"])
    assert cost(student, (1, 2, 2)).table()["input bits"].tolist() == [3, 32]


def test_an_image_rounded_by_a_quantizer_of_its_own():
    model = nn.Sequential(QuantActivation(FIXED(6)), nn.Conv2d(2, 4, 3))
    measured = cost(model, (2, 6, 6))
    assert measured.input_bits().item() == 6 * 72
    assert [read.image for read in measured.layers[0].reads] == [False]
    (layer,) = cost(model[1], (2, 6, 6)).layers
    assert [read.image for read in layer.reads] == [True]


# --- Learned bits


def learned(bits=4):
    torch.manual_seed(0)
    return quantize(small(), partial(NIPQ, bits), partial(NIPQ, bits))


def gradients(student, total):
    """The derivative of a total for each quantizer's bits, by name."""
    student.zero_grad()
    total.backward()
    found = {}
    for name, quantizer in quantizers(student).items():
        sigma = quantizer.bit_logit.detach().double().sigmoid()
        gradient = quantizer.bit_logit.grad
        found[name] = 0.0 if gradient is None else gradient.item() / (12 * sigma * (1 - sigma))
    return [[float(found[f"{n}.{which}"]) for n in (0, 3, 5)] for which in ROLES]


ROLES = ("weight_quantizer", "input_quantizer")


def test_every_total_carries_the_gradient_of_the_bits():
    student = learned()
    measured = cost(student, (2, 6, 6))
    quantizers(student)["3.input_quantizer"].bits = 6
    macs, weights, inputs = (np.array(column) for column in zip(*SIZES, strict=True))
    by_input = np.array([4, 6, 4])
    zero = np.zeros(3)
    for total, of_weights, of_inputs in (
        (measured.weight_bits(), weights, zero),
        (measured.bytes(), weights / 8, zero),
        (measured.input_bits(), zero, inputs),
        (measured.bops(), macs * by_input, macs * 4),
        (measured.average_bits("weights"), weights / 192, zero),
        (measured.average_bits("inputs"), zero, inputs / 152),
        (bops_penalty(measured, 0.0), 0 * zero, 0 * zero),
    ):
        if total.dtype == torch.float32:
            # 3·S(d) with d below one: 3·d·∂d.
            d = measured.bops().item() / 1e9
            of_weights, of_inputs = (3 * d * g / 1e9 for g in (macs * by_input, macs * 4))
        got = gradients(student, total)
        np.testing.assert_allclose(got, [of_weights, of_inputs], rtol=1e-5)


def test_the_penalty_on_bit_operations_far_from_its_target(image_quantized):
    student, measured = image_quantized
    set_bits(student, 8)
    # |d| ≥ 1: 3·(d − 0.5), and for a weight's bits 3·MACs·b_a/10⁹, for an input's 3·MACs·b_w/10⁹.
    exact = 64 * 300_774_272 / 1e9
    penalty = bops_penalty(measured, 5.3)
    assert penalty.item() == pytest.approx(3 * (exact - 5.3 - 0.5), rel=1e-6)
    student.zero_grad()
    penalty.backward()
    for layer in measured.layers:
        module = student.get_submodule(layer.name)
        expected = 3 * layer.macs * 8 / 1e9 * 3
        for role in ROLES:
            got = getattr(module, role).bit_logit.grad.item()
            assert got == pytest.approx(expected, rel=1e-6)
    assert bops_penalty(measured, 25.0, scale=1.0).item() == pytest.approx(25 - exact - 0.5)


@pytest.mark.parametrize(
    ("total", "target", "value", "slope"),
    [(10.0, 4, 5.5, 1), (4.0, 10, 5.5, -1), (4.5, 4, 0.125, 0.5), (4.0, 4, 0, 0)],
)
def test_the_distance_to_a_target(total, target, value, slope):
    total = torch.tensor(total, dtype=torch.float64, requires_grad=True)
    penalty = target_penalty(total, target)
    penalty.backward()
    assert penalty.item() == value
    assert total.grad.item() == slope


def test_the_cost_follows_the_bits_of_the_model():
    student = learned(8)
    measured = cost(student, (2, 6, 6))
    assert measured.bops().item() == 64 * 1488
    set_bits(student, 3)
    assert measured.bops().item() == 9 * 1488
    for quantizer in quantizers(student).values():
        quantizer.bit_logit.data.add_(0.05)
    # 3.06 bits are 3 bits.
    assert measured.bops().item() == 9 * 1488


@pytest.mark.parametrize("target", [3, 6])
def test_the_penalty_leads_the_bits_to_their_target(target):
    student = learned(8 if target == 3 else 3)
    measured = cost(student, (2, 6, 6))
    own = [q.bit_logit for q in quantizers(student).values()]
    optimizer = torch.optim.SGD(own, lr=1000.0)
    for _ in range(300):
        optimizer.zero_grad()
        bit_penalty(measured, target, weights=10, inputs=10).backward()
        optimizer.step()
    for of in ("weights", "inputs"):
        assert measured.average_bits(of).item() == pytest.approx(target, abs=0.6)


def test_frozen_bits_have_no_gradient():
    student = learned()
    measured = cost(student, (2, 6, 6))
    for quantizer in quantizers(student).values():
        quantizer.end_noise()
    assert not measured.bops().requires_grad
    assert measured.bops().item() == 16 * 1488


def test_large_totals_are_exact():
    measured = cost(quantize(nn.Sequential(nn.Linear(4099, 4099)), NIPQ, NIPQ), (1, 1, 4099))
    assert measured.bops().item() == 64 * 4099 * 4099
    assert measured.weight_bits().item() == 8 * 4099 * 4099


# --- The model stays as it was


def test_the_model_is_not_changed():
    model = quantize(small_cnn(), partial(NIPQ, 4), partial(NIPQ, 4))
    model.register_forward_hook(lambda *a: None)
    images = torch.rand(5, 1, 28, 28)
    model.train()
    list(model.modules())[2].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    grads = [p.grad for p in model.parameters()]
    state = torch.random.get_rng_state()
    cost(model, images)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(after[key]))
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [p.grad for p in model.parameters()] == grads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(q.forward.__func__ is type(q).forward for q in quantizers(model).values())


def test_images_and_their_shape_measure_the_same():
    model = small()
    by_shape = cost(model, (2, 6, 6)).layers
    assert cost(model, torch.rand(7, 2, 6, 6)).layers == by_shape
    assert cost(model, torch.Size([2, 6, 6])).layers == by_shape
    assert cost(model.double(), [2, 6, 6]).layers == by_shape


# --- What is refused


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare, self.other = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return F.linear(self.used(x.flatten(1)), self.spare.weight)


def test_a_layer_that_is_not_reached_is_named():
    with pytest.raises(ValueError, match=r"did not reach spare, other$"):
        cost(Unreached(), (1, 2, 2))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        cost(nn.Sequential(nn.ReLU()), (1, 2, 2))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cannot take images of shape \[3, 6, 6\].*2 channels"):
        cost(small(), (3, 6, 6))


# --- What is shown


def test_the_table():
    student = quantize(small(), partial(LSQ, 3), {"3": partial(LSQ, 4)})
    measured = cost(student, (2, 6, 6))
    table = measured.table()
    assert table.index.tolist() == ["0", "3", "5"]
    expected = {
        "MACs": [1152, 288, 48],
        "weights": [72, 72, 48],
        "inputs": [72, 64, 16],
        "weight bits": [3, 3, 3],
        "input bits": [8, 4, 32],
        "bytes": [27, 27, 18],
        "GBOPs": [24 * 1152 / 1e9, 12 * 288 / 1e9, 96 * 48 / 1e9],
    }
    assert {name: table[name].tolist() for name in table} == expected
    assert table["bytes"].sum() == measured.bytes().item()
    assert table["GBOPs"].sum() * 1e9 == pytest.approx(measured.bops().item())


def test_the_words(image_quantized):
    student, measured = image_quantized
    set_bits(student, 4)
    assert repr(measured) == (
        "Cost(53 layers, 300,774,272 MACs, 1,734,880 bytes of weights, 4.812 GBOPs)"
    )
    html = measured._repr_html_()
    assert repr(measured) in html
    assert "<table" in html
    assert LAST in html


class AddsInPlace(nn.Module):
    """A residual sum written over the tensor that was rounded."""

    def __init__(self, adds):
        super().__init__()
        self.adds, self.rounded = adds, QuantActivation(LSQ(4))
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.rounded(self.first(x))
        if self.adds:
            x += 1
        return self.second(x)


@pytest.mark.parametrize(("adds", "bits"), [(False, 4), (True, 32)])
def test_what_is_changed_in_place_after_rounding_is_rounded_no_more(adds, bits):
    model = AddsInPlace(adds)
    assert cost(model, (1, 3, 3)).table().loc["second", "input bits"] == bits
