import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qatviz.layers import QUANTIZED, QuantActivation, QuantConv2d, QuantLinear
from qatviz.quantizers import LSQ, Affine, min_max_range


def on_grid(x, step, low, high):
    """x̂ = clip(round(x/s), low, high) · s."""
    return torch.clamp(torch.round(x / step), low, high) * step


def lsq(step, *, bits=3, signed=True):
    quantizer = LSQ(bits, signed=signed)
    quantizer.step.data = torch.tensor(step)
    return quantizer


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "strided, padded": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "grouped": {"kernel_size": 1, "groups": 2},
    "depthwise, dilated, reflecting": {
        "kernel_size": 3,
        "groups": 4,
        "dilation": 2,
        "padding": 2,
        "padding_mode": "reflect",
    },
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
}


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_multiplies_quantized_tensors(arguments):
    layer = nn.Conv2d(4, 8, **arguments)
    weight, bias = layer.weight.detach().clone(), layer.bias
    x = torch.randn(2, 4, 9, 9)
    quantized = QuantConv2d.from_float(layer, lsq(0.1), lsq(0.3, bits=4))
    padded, padding = on_grid(x, 0.3, -8, 7), arguments.get("padding", 0)
    if "padding_mode" in arguments:
        width = 1 if padding == "same" else padding
        padded = F.pad(padded, (width,) * 4, mode=arguments["padding_mode"])
        padding = 0
    expected = F.conv2d(
        padded,
        on_grid(weight, 0.1, -4, 3),
        bias,
        stride=arguments.get("stride", 1),
        padding=padding,
        dilation=arguments.get("dilation", 1),
        groups=arguments.get("groups", 1),
    )
    torch.testing.assert_close(quantized(x), expected, rtol=1e-6, atol=1e-6)


def test_linear_layer_multiplies_quantized_tensors():
    layer = nn.Linear(6, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    quantized = QuantLinear.from_float(layer, lsq(0.07), lsq(0.4, bits=2, signed=False))
    x = torch.randn(5, 6)
    expected = on_grid(x, 0.4, 0, 3) @ on_grid(weight, 0.07, -4, 3).T + bias
    torch.testing.assert_close(quantized(x), expected)


def test_linear_layer_takes_tokens():
    layer = QuantLinear.from_float(nn.Linear(6, 3), lsq(0.07), nn.Identity())
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(layer(x)[1, 4], layer(x[1, 4]))


def test_identities_leave_a_layer_float():
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    expected = layer(x)
    quantized = QuantConv2d.from_float(layer, nn.Identity(), nn.Identity())
    assert torch.equal(quantized(x), expected)


def test_quantized_weight_is_the_weight_on_its_grid_with_the_gradient_of_the_clip():
    layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), lsq(0.05), nn.Identity())
    weight = layer.weight.detach().clone()
    quantized = layer.quantized_weight()
    assert torch.equal(quantized, on_grid(weight, 0.05, -4, 3))
    (gradient,) = torch.autograd.grad(quantized.sum(), layer.weight)
    ratio = weight / 0.05
    assert torch.equal(gradient, ((ratio > -4) & (ratio < 3)).float())
    assert 0 < gradient.mean() < 1


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(QuantConv2d, nn.Conv2d(2, 2, 1)), (QuantLinear, nn.Linear(2, 2))],
)
def test_made_in_place_keeping_parameters(kind, layer):
    layer, weight, bias = copy.deepcopy(layer), layer.weight, layer.bias
    weight, bias = layer.weight, layer.bias
    made = kind.from_float(layer, lsq(0.1), lsq(0.1))
    assert made is layer
    assert type(made) is kind
    assert made.weight is weight
    assert made.bias is bias
    assert (made.weight_quantizer.batched, made.input_quantizer.batched) == (False, True)
    assert [name for name, _ in made.named_parameters()] == [
        "weight",
        "bias",
        "weight_quantizer.step",
        "input_quantizer.step",
    ]


@pytest.mark.parametrize("kind", [QuantConv2d, QuantLinear])
def test_refuses_other_classes(kind):
    class Subclass(nn.Conv2d):
        pass

    for layer in (Subclass(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.Bilinear(1, 1, 1)):
        before = dict(layer.__dict__)
        with pytest.raises(ValueError, match=f"made from .*, got {type(layer).__name__}"):
            kind.from_float(layer, nn.Identity(), nn.Identity())
        assert layer.__dict__ == before


def test_refuses_a_layer_that_is_already_quantized():
    layer = QuantConv2d.from_float(nn.Conv2d(1, 1, 1), lsq(0.1), lsq(0.1))
    with pytest.raises(ValueError, match="made from Conv2d, got QuantConv2d"):
        QuantConv2d.from_float(layer, lsq(0.1), lsq(0.1))


def test_survives_pickle_and_deepcopy():
    layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), lsq(0.1), lsq(0.2))
    x = torch.randn(1, 2, 5, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is QuantConv2d
        assert torch.equal(twin(x), layer(x))
        twin.weight.data.zero_()
        assert layer.weight.any()


def test_the_table_of_classes():
    assert set(QUANTIZED.items()) == {(nn.Conv2d, QuantConv2d), (nn.Linear, QuantLinear)}


def test_activation_passes_through_its_quantizer():
    x = torch.randn(4, 3)
    assert torch.equal(QuantActivation(lsq(0.5, bits=2))(x), on_grid(x, 0.5, -2, 1))
    assert torch.equal(QuantActivation()(x), x)


def test_activation_quantizer_counts_images():
    assert QuantActivation(lsq(0.5)).quantizer.batched


def test_activation_takes_any_quantizer_and_any_type():
    quantizer = partial(Affine, find_range=min_max_range)(2)
    quantizer.init_from(torch.tensor([-1.0, 2.0]))
    seen = QuantActivation(quantizer)(torch.tensor([-3.0, 0.4, 0.6, 9.0], dtype=torch.float16))
    assert seen.dtype == torch.float16
    assert seen.tolist() == [-1.0, 0.0, 1.0, 2.0]
