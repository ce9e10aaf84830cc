"""The peers' fake-quantizers, each as its users build it, on the grids that ours has."""

import warnings
from functools import partial

import torch
from torch import Tensor, nn

from qatviz.layers import QuantConv2d, QuantLinear
from qatviz.quantize import quantized_layers, quantizers
from qatviz.quantizers import LSQ

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.nn as qnn
    from brevitas.inject.enum import RestrictValueType, ScalingImplType
    from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

COMMON = {
    "restrict_scaling_type": RestrictValueType.FP,
    "scaling_impl_type": ScalingImplType.PARAMETER,
}


class TorchFused(nn.Module):
    """PyTorch's fused fake-quantization with a learned scale, and LSQ's factor on its gradient."""

    def __init__(self, like: LSQ) -> None:
        super().__init__()
        self.scale = nn.Parameter(like.step.detach().clone().reshape(1))
        self.register_buffer("zero_point", torch.zeros(1))
        self.low, self.high, self.factor = like.low, like.high, like.gradient_scale

    def forward(self, x: Tensor) -> Tensor:
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self.zero_point, self.low, self.high, self.factor(x)
        )


class TorchAO(nn.Module):
    """torchao's fake-quantizer with range learning; one row, so one scale for the tensor."""

    def __init__(self, like: LSQ) -> None:
        super().__init__()
        config = IntxFakeQuantizeConfig(
            getattr(torch, f"{'int' if like.signed else 'uint'}{like.bits}"),
            "per_channel",
            is_symmetric=True,
            is_dynamic=False,
            range_learning=True,
        )
        self.inner = IntxFakeQuantizer(config)
        self.inner.scale = nn.Parameter(like.step.detach().clone().reshape(1, 1))
        self.inner.zero_point = torch.zeros(1, 1, dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        # It wants two axes: the numbers in the order in which they lie, so nothing is copied.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        laid = x.permute(order)
        back = [order.index(axis) for axis in range(x.ndim)]
        return self.inner(laid.reshape(1, -1)).reshape(laid.shape).permute(back)


def fake_quantizer_twin(student: nn.Module, make: type[nn.Module]) -> nn.Module:
    """A network quantized with LSQ, its quantizers exchanged for a peer's on the same grids."""
    for name in quantizers(student):
        layer, _, attribute = name.rpartition(".")
        layer = student.get_submodule(layer)
        setattr(layer, attribute, make(getattr(layer, attribute)))
    return student


def brevitas_inputs(like: LSQ) -> type:
    """Brevitas' quantizer of unsigned inputs, with a learned floating scale, on LSQ's grid."""
    if like.signed:
        raise ValueError("the input of a Brevitas twin must be unsigned")
    # Brevitas learns the largest value: the step times 2^b − 1.
    settings = COMMON | {"bit_width": like.bits, "scaling_init": (like.step * like.high).item()}
    return type("Inputs", (Uint8ActPerTensorFloat,), settings)


def brevitas_weights(like: LSQ) -> type:
    """Brevitas' quantizer of signed weights, with a learned floating scale, on LSQ's grid."""
    largest = (like.step * -like.low).item()
    settings = COMMON | {"bit_width": like.bits, "scaling_init": largest, "narrow_range": False}
    return type("Weights", (Int8WeightPerTensorFloat,), settings)


def brevitas_twin(student: nn.Module) -> nn.Module:
    """A network quantized with LSQ, its layers exchanged for Brevitas' on the same grids."""
    for name, layer in quantized_layers(student).items():
        grids = {"weight_quant": brevitas_weights(layer.weight_quantizer)}
        if isinstance(layer.input_quantizer, LSQ):
            grids["input_quant"] = brevitas_inputs(layer.input_quantizer)
        if isinstance(layer, QuantConv2d):
            make = partial(
                qnn.QuantConv2d,
                *(layer.in_channels, layer.out_channels, layer.kernel_size),
                stride=layer.stride,
                padding=layer.padding,
            )
        elif isinstance(layer, QuantLinear):
            make = partial(qnn.QuantLinear, layer.in_features, layer.out_features)
        twin = make(bias=layer.bias is not None, **grids)
        twin.weight.data = layer.weight.data.clone()
        if layer.bias is not None:
            twin.bias.data = layer.bias.data.clone()
        parent, _, attribute = name.rpartition(".")
        setattr(student.get_submodule(parent), attribute, twin)
    return student
