import math
from functools import partial

import pytest
import torch
from torch import nn

from qatviz.finite import first_not_finite
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ

IMAGES = torch.linspace(-1, 1, 2 * 16).view(2, 1, 4, 4)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


def first(model, images=IMAGES):
    return first_not_finite(model, lambda: model(images))


def test_all_finite_is_no_name():
    assert first(net()) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (lambda m: m[0].weight, "0 (its weight)"),
        (lambda m: m[0].bias, "0 (its bias)"),
        (lambda m: m[1].running_var, "1 (its running_var)"),
        (lambda m: m[4].weight, "4 (its weight)"),
    ],
)
def test_the_layer_that_holds_it_is_named(tensor, name, value):
    model = net()
    tensor(model).data.view(-1)[0] = value
    assert first(model) == name


def test_the_first_of_several_is_named():
    model = net()
    for layer in (model[4], model[0]):
        layer.weight.data[0] = math.nan
    assert first(model) == "0 (its weight)"


def test_an_image_that_is_not_finite_is_an_input():
    images = IMAGES.clone()
    images[1, 0, 0, 0] = math.nan
    assert first(net(), images) == "0 (its input)"


def test_a_finite_layer_that_overflows_is_an_output():
    model = net()
    model[4].weight.data.fill_(3e38)
    model[4].bias.data.fill_(3e38)
    model[1].bias.data.fill_(1e3)
    assert first(model) == "4 (its output)"


def test_inside_a_block_the_innermost_is_named():
    model = nn.Sequential(nn.Identity(), nn.Sequential(net(), nn.Identity()))
    model[1][0][4].bias.data[0] = math.inf
    assert first(model) == "1.0.4 (its bias)"


def test_a_quantizer_is_named_rather_than_its_layer():
    model = quantize(net(), partial(LSQ, bits=3), partial(LSQ, bits=3))
    model[0].input_quantizer.init_from(IMAGES)
    model[4].input_quantizer.init_from(IMAGES.abs())
    assert first(model) == ""
    model[4].weight_quantizer.step.data.fill_(math.nan)
    assert first(model) == "4.weight_quantizer (its step)"


def test_the_model_is_left_as_it_was():
    model = net().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_go_when_the_run_fails():
    model = net()
    with pytest.raises(RuntimeError):
        first(model, torch.zeros(1, 5, 5, 5))
    assert not any(m._forward_hooks for m in model.modules())


def test_several_outputs_are_all_looked_at():
    class Two(nn.Module):
        def forward(self, x):
            return x, [x / 0]

    assert first_not_finite(model := nn.Sequential(Two()), lambda: model(torch.ones(1))) == (
        "0 (its output)"
    )
