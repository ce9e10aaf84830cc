"""Small networks in float64, in which rounding is no part of what is compared."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.calibration import calibrate
from qatviz.models import small_cnn
from qatviz.quantize import quantize, quantized_layers
from qatviz.quantizers import LSQ


class Wide(nn.Module):
    """Images come in float32."""

    def forward(self, x):
        return x.double()


def tanh_net(inputs=6, hidden=5, classes=3, seed=0):
    """Smooth, without BatchNorm."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), Wide(), nn.Linear(inputs, hidden), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes)).double().eval()


def tanh_data(count=23, inputs=6, classes=3):
    images = torch.randn(count, 1, 2, inputs // 2, generator=torch.Generator().manual_seed(5))
    return images, torch.arange(count) % classes


def cnn(seed=0):
    """Convolutions and BatchNorm whose statistics are not those of the start."""
    torch.manual_seed(seed)
    model = nn.Sequential(Wide(), small_cnn(width=2)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def cnn_data(count=23, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 12, 12, generator=generator), torch.arange(count) % 10


def low_bit(model, bits=2):
    student = quantize(model, partial(LSQ, bits=bits), partial(LSQ, bits=bits)).double().eval()
    calibrate(student, [cnn_data()[0]])
    return student


def standing_in(model, space):
    """A copy whose ``weight`` parameters are what moves in a space, made by hand."""
    import copy

    twin = copy.deepcopy(model)
    for layer in quantized_layers(twin).values():
        if space == "dequantized":
            layer.weight.data = layer.quantized_weight().detach().clone()
        if space != "latent":
            layer.weight_quantizer = nn.Identity()
        if space == "float":
            layer.input_quantizer = nn.Identity()
    return twin


@torch.no_grad()
def plainly(model, images, labels):
    """Mean loss over the images, one at a time, and accuracy."""
    losses, right = [], 0
    for image, label in zip(images, labels, strict=True):
        logits = model(image[None])
        losses.append(cross_entropy(logits, label[None]).item())
        right += int(logits[0].argmax() == label)
    return sum(losses) / len(losses), right / len(losses)
