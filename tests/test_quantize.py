import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torchvision.models import resnet18

from qatviz.calibration import calibrate
from qatviz.layers import QuantActivation, QuantConv2d, QuantLinear
from qatviz.models import small_cnn, small_resnet
from qatviz.quantize import (
    check_ready,
    float_state,
    load_float,
    quantizable_layers,
    quantize,
    quantized_layers,
    quantizers,
    summary,
)
from qatviz.quantizers import LSQ, Affine, min_max_range
from qatviz.runs import load_weights, save_weights

W2, A2, W8, A8 = (partial(LSQ, bits=bits) for bits in (2, 2, 8, 8))
FAST_AFFINE = partial(Affine, bits=4, axis=0, find_range=min_max_range)


class Doubled(nn.Conv2d):
    """Computes something else than its parent."""

    def forward(self, x):
        return 2 * super().forward(x)


class Own(nn.Module):
    """A user's own network with everything that surgery must not trip over."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(
            8, 8, 3, padding=2, dilation=2, groups=8, padding_mode="reflect", bias=False
        )
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.shared = nn.Conv2d(8, 8, 1)
        self.again = self.shared
        self.odd = Doubled(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.mixing = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.embed = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.embed.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.grouped(self.depthwise(x))
        x = self.odd(self.again(self.shared(x)))
        x = F.conv2d(self.up(x), self.mixing).mean((2, 3))
        return self.head(F.relu(self.tied(x + self.embed.weight.sum(0))))


def same_state(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def calibrated(model, *shape):
    calibrate(model, [torch.randn(4, *shape)])
    return model.eval()


def small_student(**arguments):
    return quantize(small_resnet(width=4), W2, A2, **arguments)


# What surgery keeps


@pytest.mark.parametrize("make", [Own, small_resnet, partial(resnet18, weights=None)])
def test_float_parameters_keep_names_and_values_and_the_model_is_not_modified(make):
    model = make()
    model.train()
    before = copy.deepcopy(model.state_dict())
    classes = {name: type(m) for name, m in model.named_modules()}
    student = quantize(model, W2, A2)
    same_state(model.state_dict(), before)
    assert {name: type(m) for name, m in model.named_modules()} == classes
    own = student.state_dict()
    same_state({key: own[key] for key in before}, before)
    extra = set(own) - set(before)
    assert extra
    assert all("_quantizer." in key for key in extra)
    memory = {p.data_ptr() for p in model.parameters()}
    assert not memory & {p.data_ptr() for p in student.parameters()}


def test_which_layers_of_a_user_s_own_module_are_quantized():
    student = quantize(Own(), W2, A2)
    assert {name: type(layer) for name, layer in quantized_layers(student).items()} == {
        "stem": QuantConv2d,
        "depthwise": QuantConv2d,
        "grouped": QuantConv2d,
        "head": QuantLinear,
    }
    assert student.again is student.shared
    assert student.tied.weight is student.embed.weight


def test_summary_lists_what_stays_float_and_why():
    table = summary(quantize(Own(), W2, A2, keep=["head"]))
    assert table["left float"].to_dict() == {
        "": "Own is not supported",
        "stem": "",
        "depthwise": "",
        "grouped": "",
        "shared": "the module is shared",
        "again": "the module is shared",
        "odd": "Doubled is not supported",
        "up": "ConvTranspose2d is not supported",
        "embed": "Embedding is not supported",
        "tied": "the weight is shared",
        "head": "not quantized",
    }


def test_summary_says_how_each_layer_is_quantized():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), QuantActivation(LSQ(4)), nn.Linear(4, 3))
    student = quantize(model, {"*": FAST_AFFINE, "2": W2}, {"2": A2})
    columns = ["class", "weight shape", "weights", "inputs", "left float"]
    assert summary(student)[columns].to_numpy().tolist() == [
        ["QuantConv2d", "2×1×3×3", "Affine 4 bit signed per channel", "float", ""],
        ["QuantActivation", "", "float", "LSQ 4 bit not calibrated", ""],
        ["QuantLinear", "3×4", "LSQ 2 bit signed", "LSQ 2 bit not calibrated", ""],
    ]
    student[2].input_quantizer.init_from(torch.ones(4))
    assert summary(student).loc["2", "inputs"] == "LSQ 2 bit unsigned"


def test_an_unmodified_torchvision_network():
    model = resnet18(weights=None)
    student = quantize(model, W2, A2)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    expected = {"conv1", "fc"}
    expected |= {f"{block}.conv{i}" for block in blocks for i in (1, 2)}
    expected |= {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)}
    assert len(expected) == 21
    assert set(quantized_layers(student)) == expected
    assert set(summary(student).index) == expected
    assert set(summary(student)["left float"]) == {""}
    calibrated(student, 3, 64, 64)
    logits = student(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1000)
    assert bool(logits.isfinite().all())


def test_weight_grids_are_chosen_at_once_and_input_grids_are_not():
    student = quantize(small_cnn(width=2), partial(LSQ, bits=3), A2)
    for layer in quantized_layers(student).values():
        expected = 2 * layer.weight.abs().mean() / 3**0.5
        torch.testing.assert_close(layer.weight_quantizer.step.detach(), expected.detach())
        assert not layer.input_quantizer.calibrated


def test_none_keeps_weights_or_inputs_float():
    student = quantize(small_cnn(width=2), W2, None)
    assert set(quantizers(student)) == {
        f"{name}.weight_quantizer" for name in ("conv1", "conv2", "conv3", "fc")
    }
    student = quantize(small_cnn(width=2), None, A2)
    assert set(quantizers(student)) == {
        f"{name}.input_quantizer" for name in ("conv1", "conv2", "conv3", "fc")
    }


def test_modes_are_kept_even_when_mixed():
    model = small_cnn(width=2).train()
    model.bn2.eval()
    model.conv3.eval()
    student = quantize(model, W2, A2)
    modes = {name: m.training for name, m in student.named_modules()}
    assert {name for name, training in modes.items() if not training} == {
        *("bn2", "conv3", "conv3.weight_quantizer", "conv3.input_quantizer")
    }
    assert not any(m.training for m in quantize(model.eval(), W2, A2).modules())


def test_hooks_on_the_float_model_survive():
    model, calls = small_cnn(width=2), []
    model.conv2.register_forward_hook(lambda module, args, output: calls.append(type(module)))
    model.conv2.weight.requires_grad_(False)
    student = quantize(model, W2, None)
    student(torch.randn(1, 1, 8, 8))
    assert calls == [QuantConv2d]
    assert not student.conv2.weight.requires_grad


# Patterns


def test_only_and_keep_choose_layers():
    names = partial(lambda **a: set(quantized_layers(small_student(**a))))
    assert names(only=["layer1.*"]) == {"layer1.0.conv1", "layer1.0.conv2"}
    assert names(only=["*conv1"], keep=["conv1", "layer3*"]) == {
        "layer1.0.conv1",
        "layer2.0.conv1",
    }
    assert names(keep=("layer*",)) == {"conv1", "fc"}


def test_a_later_pattern_overrides_an_earlier_one():
    student = quantize(
        small_cnn(width=2), {"*": W2, "conv*": partial(LSQ, bits=4), "conv3": W8}, {"conv?": A8}
    )
    bits = {name: q.bits for name, q in quantizers(student).items()}
    assert bits == {
        "conv1.weight_quantizer": 4,
        "conv1.input_quantizer": 8,
        "conv2.weight_quantizer": 4,
        "conv2.input_quantizer": 8,
        "conv3.weight_quantizer": 8,
        "conv3.input_quantizer": 8,
        "fc.weight_quantizer": 2,
    }


def test_first_and_last_layer_at_eight_bits_by_two_calls():
    ends = ["conv1", "fc"]
    student = quantize(quantize(small_cnn(width=2), W2, A2, keep=ends), W8, A8, only=ends)
    bits = {name: layer.weight_quantizer.bits for name, layer in quantized_layers(student).items()}
    assert bits == {"conv1": 8, "conv2": 2, "conv3": 2, "fc": 8}
    assert student.conv2.input_quantizer.bits == 2
    assert student.fc.input_quantizer.bits == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"only": ["conv9"]},
        {"keep": ["conv9"]},
        {"weights": {"conv9": W2}},
        {"inputs": {"*": A2, "conv9": A2}},
    ],
)
def test_refuses_a_pattern_that_matches_nothing_and_names_the_layers(arguments):
    model = small_cnn(width=2)
    with pytest.raises(ValueError, match=r"'conv9' matches no layer.*conv1, conv2, conv3, fc"):
        quantize(model, **({"weights": W2, "inputs": A2} | arguments))


def test_a_layer_that_cannot_be_quantized_is_not_among_the_names():
    with pytest.raises(ValueError, match=r"'odd'.*: stem, depthwise, grouped, head$"):
        quantize(Own(), W2, A2, only=["odd"])


@pytest.mark.parametrize("argument", ["only", "keep"])
def test_refuses_a_string_in_place_of_a_sequence(argument):
    with pytest.raises(ValueError, match=f"{argument} must be a sequence.*the string 'conv1'"):
        quantize(small_cnn(width=2), W2, A2, **{argument: "conv1"})


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_refuses_bits_outside_the_range(bits):
    with pytest.raises(ValueError, match=f"from 1 to 8, got {bits}"):
        quantize(small_cnn(width=2), partial(LSQ, bits=bits), A2)


def test_refuses_one_bit_for_weights_of_both_signs():
    with pytest.raises(ValueError, match="signed grid must be an integer from 2 to 8, got 1"):
        quantize(small_cnn(width=2), partial(LSQ, bits=1), A2)


def test_refuses_to_quantize_twice():
    student = quantize(small_cnn(width=2), W2, A2)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"'conv1' is already quantized \(LSQ\(bits=2"):
        quantize(student, W8, A8)
    after = student.state_dict()
    assert list(after) == list(before)


def test_a_quantized_activation_does_not_hinder_the_rest():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), QuantActivation(LSQ(4)), nn.Conv2d(2, 2, 3)
    )
    assert list(quantizable_layers(model)) == ["0", "3"]
    student = quantize(model, W2, None)
    assert list(quantized_layers(student)) == ["0", "2", "3"]
    calibrated(student, 1, 8, 8)
    seen = student[:3](torch.randn(2, 1, 8, 8))
    codes = seen / student[2].quantizer.step
    torch.testing.assert_close(codes, codes.round().clamp(0, 15))


# Checkpoints


@pytest.mark.parametrize(
    ("make", "shape"),
    [(partial(small_resnet, width=4), (1, 16, 16)), (partial(resnet18, weights=None), (3, 64, 64))],
)
def test_float_checkpoints_go_in_and_come_out_without_renaming(make, shape):
    trained = make()
    for p in trained.parameters():
        p.data.mul_(1.5).add_(0.01)
    student = calibrated(quantize(make(), W2, A2), *shape)
    inputs = {name: q.step.item() for name, q in quantizers(student).items() if q.batched}
    load_float(student, trained.state_dict())
    same_state(float_state(student), trained.state_dict())
    make().load_state_dict(float_state(student), strict=True)
    for name, layer in quantized_layers(student).items():
        expected = 2 * trained.get_submodule(name).weight.abs().mean()
        torch.testing.assert_close(layer.weight_quantizer.step.detach(), expected.detach())
        assert layer.input_quantizer.step.item() == inputs[f"{name}.input_quantizer"]


def test_load_float_works_on_a_float_model_and_on_a_user_s_own():
    for make in (Own, lambda: quantize(Own(), W2, A2)):
        model, state = make(), Own().state_dict()
        load_float(model, state)
        same_state(float_state(model), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.bn1.running_mean"), "missing layer1.0.bn1.running_mean"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected extra"),
        (
            lambda s: s.update({"conv1.weight": torch.ones(4, 3, 3, 3)}),
            r"conv1.weight has shape \[4, 3, 3, 3\], the model's is \[4, 1, 3, 3\]",
        ),
        (
            lambda s: s.update({"conv1.weight_quantizer.step": torch.tensor(1.0)}),
            "unexpected conv1.weight_quantizer.step",
        ),
        (lambda s: s["fc.weight"].fill_(float("nan")), "fc.weight is not finite"),
    ],
)
def test_load_float_refuses_other_checkpoints_and_changes_nothing(change, message):
    student = calibrated(small_student(), 1, 16, 16)
    before = copy.deepcopy(student.state_dict())
    state = small_resnet(width=4).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_float(student, state)
    same_state(student.state_dict(), before)


def test_load_float_names_every_problem():
    state = small_resnet(width=4).state_dict()
    del state["conv1.weight"], state["fc.bias"]
    with pytest.raises(ValueError, match=r"missing conv1\.weight; missing fc\.bias"):
        load_float(small_student(), state)


@pytest.mark.parametrize("weights", [W2, FAST_AFFINE])
def test_quantized_checkpoints_load_strictly_into_a_model_that_is_not_calibrated(weights):
    student = calibrated(quantize(small_resnet(width=4), weights, A2), 1, 16, 16)
    fresh = quantize(small_resnet(width=4), weights, A2).eval()
    fresh.load_state_dict(student.state_dict(), strict=True)
    check_ready(fresh)
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(fresh(x), student(x))


def test_quantized_checkpoints_of_other_bits_are_refused():
    student = calibrated(small_student(), 1, 16, 16)
    with pytest.raises(ValueError, match="grid of 2 bits, this quantizer has 8"):
        quantize(small_resnet(width=4), W8, A8).load_state_dict(student.state_dict())


def test_a_strict_load_misses_the_grids_in_a_float_checkpoint():
    with pytest.raises(RuntimeError, match=r"weight_quantizer\.step"):
        small_student().load_state_dict(small_resnet(width=4).state_dict(), strict=True)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Own, (1, 8, 8)), (partial(small_resnet, width=4), (1, 16, 16))],
)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict", "safetensors"])
def test_whole_quantized_models_survive(make, shape, way, tmp_path):
    student = calibrated(quantize(make(), W2, A2), *shape)
    if way == "deepcopy":
        twin = copy.deepcopy(student)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(student))
    else:
        state = student.state_dict()
        if way == "safetensors":
            save_weights(state, tmp_path / "student.safetensors")
            state = load_weights(tmp_path / "student.safetensors")
        twin = quantize(make(), W2, A2).eval()
        twin.load_state_dict(state, strict=True)
    same_state(twin.state_dict(), student.state_dict())
    x = torch.randn(2, *shape)
    assert torch.equal(twin(x), student(x))
    assert [q.batched for q in quantizers(twin).values()] == [
        q.batched for q in quantizers(student).values()
    ]


def test_an_activation_under_two_names_is_no_part_of_the_float_state():
    act = QuantActivation(LSQ(4))
    model = nn.ModuleDict({"act": act, "block": nn.Sequential(nn.Linear(2, 2), act)})
    assert list(float_state(model)) == ["block.0.weight", "block.0.bias"]
    load_float(model, {"block.0.weight": torch.ones(2, 2), "block.0.bias": torch.ones(2)})
    assert model["block"][0].weight.tolist() == [[1, 1], [1, 1]]
    assert set(summary(model)["left float"]) == {"", "not quantized"}


# Differentiation, and readiness


def test_functional_call_and_grad_agree_with_backward():
    student = calibrated(small_student(), 1, 16, 16)
    x, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 2])
    parameters = {name: p.detach() for name, p in student.named_parameters()}
    gradients = grad(lambda p: F.cross_entropy(functional_call(student, p, x), labels))(parameters)
    F.cross_entropy(student(x), labels).backward()
    assert set(gradients) == {name for name, _ in student.named_parameters()}
    for name, p in student.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)
    assert student.conv1.weight_quantizer.step.grad != 0


def test_check_ready_names_what_is_not_calibrated():
    student = quantize(small_cnn(width=2), W2, A2, only=["conv*"])
    names = "conv1.input_quantizer, conv2.input_quantizer, conv3.input_quantizer;"
    with pytest.raises(ValueError, match=names):
        check_ready(student)
    calibrated(student, 1, 8, 8)
    check_ready(student)
    student.conv2.weight_quantizer.step.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"finite\): conv2.weight_quantizer; call calibrate"):
        check_ready(student)
    check_ready(small_cnn(width=2))


@pytest.mark.parametrize(
    "choice", [LSQ(2), {"*": LSQ(2)}, LSQ], ids=["made", "in a map", "bits open"]
)
def test_refuses_what_is_no_factory(choice):
    with pytest.raises(ValueError, match="weights must be a factory"):
        quantize(nn.Sequential(nn.Linear(2, 2)), choice, None)


def test_an_uncalibrated_model_refuses_to_infer():
    student = quantize(nn.Sequential(nn.Linear(2, 2)), partial(LSQ, 2), partial(LSQ, 2)).eval()
    with pytest.raises(ValueError, match="not calibrated, so there is no grid"):
        student(torch.rand(3, 2))


def test_load_float_refuses_weights_without_a_grid_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.abs_()
    student = quantize(model, partial(LSQ, 1, signed=False), None)
    student[0].weight_quantizer = LSQ(1)
    student[0].weight_quantizer.init_from(model[0].weight.detach())
    before = copy.deepcopy(student.state_dict())
    state = {"0.weight": -model[0].weight.detach(), "0.bias": model[0].bias.detach() + 1}
    with pytest.raises(ValueError, match=r"0\.weight: LSQ: bits of a signed grid"):
        load_float(student, state)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
