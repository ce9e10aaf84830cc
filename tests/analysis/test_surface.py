import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis.surface import Surface, as_surface
from qatviz.calibration import calibrate
from qatviz.layers import QuantActivation
from qatviz.quantize import quantize, quantizers
from qatviz.quantizers import LSQ, AdaRound
from tests.analysis.common import unchanged
from tests.analysis.hessians import WEIGHTS, network, quantized, split


@pytest.fixture
def student():
    return quantized("lsq")


IMAGES = split().images


def literal_lsq(weight, quantizer):
    step = quantizer.step.item()
    codes = np.clip(np.rint(weight.detach().numpy() / np.float32(step)), -4, 3)
    return codes * np.float32(step)


def test_dequantized_weights_are_levels_and_the_outputs_those_of_the_student(student):
    with unchanged(student):
        surface = Surface(student)
    assert surface.space == "dequantized"
    assert surface.names == WEIGHTS
    for name, values in surface.split(surface.point).items():
        layer = student.get_submodule(name.removesuffix(".weight"))
        np.testing.assert_array_equal(values, literal_lsq(layer.weight, layer.weight_quantizer))
        assert isinstance(surface.model.get_submodule(name[:1]).weight_quantizer, nn.Identity)
    assert len(quantizers(surface.model)) == 3  # those of the inputs
    assert torch.equal(surface.model(IMAGES), student(IMAGES))


def test_latent_weights_keep_their_quantizers(student):
    surface = Surface(student, "latent")
    assert surface.space == "latent"
    for name, values in surface.split(surface.point).items():
        assert torch.equal(values, student.get_parameter(name))
    assert len(quantizers(surface.model)) == 6
    assert torch.equal(surface.model(IMAGES), student(IMAGES))
    surface.assign(surface.point + 1e-6)  # a staircase: nothing changes
    assert torch.equal(surface.model(IMAGES), student(IMAGES))


def test_float_is_the_float_network_with_the_latent_weights(student):
    surface = Surface(student, "float")
    assert surface.space == "float"
    assert quantizers(surface.model) == {}
    assert not surface.activation_quantizers
    assert torch.equal(surface.model(IMAGES), network()(IMAGES))


@pytest.mark.parametrize("space", ["dequantized", "latent", "float"])
def test_a_float_network_has_one_space(space):
    surface = Surface(network(), space)
    assert surface.space == "float"
    assert torch.equal(surface.model(IMAGES), network()(IMAGES))


def test_activation_quantizers_can_be_off(student):
    on, off = Surface(student), Surface(student, activation_quantizers=False)
    assert (on.activation_quantizers, off.activation_quantizers) == (True, False)
    assert torch.equal(on.point, off.point)
    assert quantizers(off.model) == {}
    assert not torch.equal(on.model(IMAGES), off.model(IMAGES))
    latent = Surface(student, "latent", activation_quantizers=False)
    assert [name.split(".")[1] for name in quantizers(latent.model)] == ["weight_quantizer"] * 3


def test_a_quantizer_that_stands_alone_is_an_activation_quantizer():
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), QuantActivation(LSQ(2)), nn.Flatten(), nn.Linear(32, 5))
    ).eval()
    calibrate(model, [IMAGES])
    assert Surface(model).activation_quantizers
    off = Surface(model, activation_quantizers=False)
    assert not off.activation_quantizers
    assert not torch.equal(off.model(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("layers", "include", "names"),
    [
        (["*"], [], WEIGHTS),
        (["4"], [], ("4.weight",)),
        (["0", "8"], [], ("0.weight", "8.weight")),
        (["4"], ["biases"], ("4.weight", "4.bias", "8.bias")),
        ([], ["biases"], ("4.bias", "8.bias")),
        (["8"], ["batchnorm"], ("1.weight", "1.bias", "5.weight", "5.bias", "8.weight")),
        (["0"], ["steps"], ("0.weight", *(f"{i}.input_quantizer.step" for i in (0, 4, 8)))),
    ],
)
def test_what_moves(student, layers, include, names):
    surface = Surface(student, layers=layers, include=include)
    assert surface.names == names
    assert surface.size == sum(student.get_parameter(n).numel() for n in names)
    assert surface.shapes == tuple(tuple(student.get_parameter(n).shape) for n in names)
    asking = [n for n, p in surface.model.named_parameters() if p.requires_grad]
    assert asking == list(names)


def test_steps_are_those_of_quantizers_that_are_on(student):
    names = Surface(student, "latent", include=["steps"]).names
    assert [n for n in names if n.endswith("step")] == [
        f"{i}.{kind}_quantizer.step" for i in (0, 4, 8) for kind in ("weight", "input")
    ]
    assert Surface(student, "float", include=["steps"]).names == WEIGHTS


def test_batchnorm_of_the_images_is_in_the_mode_of_training_and_nothing_else(student):
    surface = Surface(student, batchnorm="batch")
    training = [name for name, module in surface.model.named_modules() if module.training]
    assert training == ["1", "5"]
    assert not any(module.training for module in Surface(student).model.modules())


def test_a_vector_goes_in_and_out(student):
    surface = Surface(student, include=["biases"])
    vector = torch.randn(surface.size)
    parts = surface.split(vector)
    assert tuple(parts) == surface.names
    start = 0
    for name, shape in zip(surface.names, surface.shapes, strict=True):
        end = start + int(np.prod(shape))
        assert torch.equal(parts[name].flatten(), vector[start:end])
        start = end
    assert torch.equal(surface.flatten(parts.values()), vector)
    with unchanged(student):
        surface.assign(vector)
    for name, part in parts.items():
        assert torch.equal(surface.model.get_parameter(name), part)
    assert not torch.equal(surface.point, vector)  # where the model stands, not the copy
    assert torch.equal(surface.here(), vector)
    surface.assign(surface.point)
    assert torch.equal(surface.here(), surface.point)
    assert torch.equal(surface.model(IMAGES), student(IMAGES))


def test_filter_norms_by_hand(student):
    surface = Surface(student, include=["biases", "steps"])
    expected = []
    for values in surface.split(surface.point).values():
        rows = values if values.ndim > 1 else values.reshape(1, -1)
        for row in rows:
            norm = float(np.sqrt((row.double().numpy() ** 2).sum()))
            expected += [norm] * row.numel()
    norms = surface.filter_norms()
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
    torch.testing.assert_close(surface.filter_norms(3 * surface.point), 3 * norms)
    surface.assign(2 * surface.point)
    torch.testing.assert_close(surface.filter_norms(), 2 * norms)  # where it stands


def test_latent_weights_without_a_gradient_are_refused():
    model = quantize(network(), {"*": partial(LSQ, 3), "4": partial(AdaRound, 3)}, None).eval()
    with pytest.raises(ValueError, match=r"no gradient .* AdaRound of the weight of layer '4'"):
        Surface(model, "latent")
    assert Surface(model, "latent", layers=["0", "8"]).names == ("0.weight", "8.weight")
    assert Surface(model).names == WEIGHTS
    assert Surface(model, "float").names == WEIGHTS


def test_gradients_of_the_model_do_not_come_along(student):
    student(IMAGES).sum().backward()
    copied = Surface(student, layers=["4"])
    assert all(p.grad is None for p in copied.model.parameters())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).tanh()).tanh())


def test_a_weight_of_two_layers_is_one_weight():
    surface = Surface(Tied().eval())
    assert surface.names == ("first.weight", "head.weight")
    assert surface.size == 36 * 36 + 36 * 5
    assert Surface(Tied().eval(), layers=["second"]).names == ("second.weight",)


def test_a_surface_is_taken_as_it_is(student):
    surface = Surface(student, "latent")
    assert as_surface(surface) is surface
    assert as_surface(student).space == "dequantized"


def test_the_representation_says_what_it_is(student):
    assert repr(Surface(student)) == (
        "Surface(dequantized weights, 215 numbers of 3 parameters, activation quantizers on, "
        "running BatchNorm)"
    )
    assert "quantizers off, batch BatchNorm" in repr(Surface(network(), batchnorm="batch"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": "quantized"}, "space: got 'quantized', allowed: dequantized, latent, float"),
        ({"batchnorm": "train"}, "batchnorm: got 'train', allowed: running, batch"),
        ({"include": ["bias"]}, "include: got 'bias', allowed: batchnorm, biases, steps"),
        ({"include": "biases"}, "include must be a sequence of words, got the string 'biases'"),
        ({"layers": "4"}, "layers must be a sequence of words, got the string '4'"),
        ({"layers": ["conv*", "4"]}, r"no layer with a weight matches conv\*; there are: 0, 4, 8"),
        ({"layers": []}, "matches an empty list; there are: 0, 4, 8"),
    ],
)
def test_unknown_words_are_refused(student, arguments, words):
    with unchanged(student), pytest.raises(ValueError, match=words):
        Surface(student, **arguments)


def test_models_that_cannot_be_looked_at_are_refused(student):
    training = copy.deepcopy(student)
    training[1].train()
    with pytest.raises(ValueError, match="its module '1' is in training mode"):
        Surface(training)
    with pytest.raises(ValueError, match="not calibrated"):
        Surface(quantize(network(), partial(LSQ, 3), partial(LSQ, 3)).eval())
