"""Layers that differentiate twice in few passes over memory: the same numbers, sooner."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from qatviz.layers import QuantConv2d
from qatviz.quantizers import Quantizer

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
convolve = torch.ops.aten.convolution
convolve_backward = torch.ops.aten.convolution_backward


def hasten(model: nn.Module) -> None:
    """Replace layers of a private copy by ones whose second derivative is cheap, in place.

    PyTorch takes the second derivative of a convolution by way of transposed images, where
    six plain convolutions do; that of BatchNorm in evaluation mode sums over statistics that do
    not move; that of a quantizer differentiates a clip that is flat. Replaced are convolutions
    with zero padding; BatchNorm in evaluation mode, where its factors ask for no gradient; and
    quantizers of activations that are piecewise linear and ask for no gradient. Everything else
    stays as it is, subclasses and what has hooks among it. A layer that is replaced keeps its
    parameters, buffers and attributes, and is still one of its class. Outputs, and both
    derivatives, are the same but for rounding.

    Args:
        model: The copy.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and _plain(module):
            module.__class__ = _QuantConv2d if isinstance(module, QuantConv2d) else _Conv2d
        for child in module.children():
            hastened = isinstance(child, _Affine | _Sloped)  # it is a child of two
            if hastened or any(p.requires_grad for p in child.parameters()) or _hooked(child):
                continue
            if type(child) in NORMS and not child.training and child.running_var is not None:
                _settle(child)
            elif isinstance(child, Quantizer) and child.batched and piecewise_linear(child):
                child.__class__ = _mixed(_Sloped, type(child))


def piecewise_linear(quantizer: Quantizer) -> bool:
    """Whether the backward pass of a quantizer multiplies by numbers that do not move.

    Args:
        quantizer: Calibrated.

    Returns:
        False where its gradient has a slope of its own somewhere, or depends on the gradient
        that comes in.
    """
    if not quantizer.symmetric_hessian or quantizer.axis is not None:
        return False
    levels = quantizer.levels().double()
    reach = (levels.max() - levels.min()).item() + 1e-6
    x = torch.linspace(levels.min().item() - reach, levels.max().item() + reach, 1001)
    x = x.to(levels.device).view(1, -1).requires_grad_()
    slope = _slope(quantizer, x, twice=True)
    if not slope.requires_grad:
        return True
    (bend,) = torch.autograd.grad(slope.sum(), x, materialize_grads=True)
    return not bend.any()


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _slope(quantizer: nn.Module, x: Tensor, *, twice: bool = False) -> Tensor:
    (slope,) = torch.autograd.grad(
        quantizer(x).sum(), x, create_graph=twice, materialize_grads=True
    )
    return slope


def _plain(layer: nn.Conv2d) -> bool:
    known = (nn.Conv2d, QuantConv2d)
    return type(layer) in known and layer.padding_mode == "zeros" and layer.padding != "same"


class _Conv2d(nn.Conv2d):
    @override
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != 4:
            return nn.Conv2d._conv_forward(self, input, weight, bias)
        padding = (0, 0) if self.padding == "valid" else self.padding
        return _Convolution.apply(
            *(input, weight, bias), self.stride, padding, self.dilation, self.groups
        )


class _QuantConv2d(QuantConv2d):
    _conv_forward = _Conv2d._conv_forward


class _Convolution(torch.autograd.Function):
    """y = x ∗ w + b, whose backward pass is a function with a backward pass of its own."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, *shape: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.shape = shape
        return _convolve(x, w, shape, b)

    @staticmethod
    @override
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        to_x, to_w = _ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.shape, needs[:2])
        to_b = g.sum((0, 2, 3)) if needs[2] else None
        return to_x, to_w, to_b, None, None, None, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, shape: Any, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, w)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return _backward(g, x, w, shape, needs)

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        """From u for the gradient of x and v for that of w, to g, x and w."""
        (g, x, w), shape = ctx.saved_tensors, ctx.shape
        to_g = to_x = to_w = None
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        if u is not None:
            to_g = _convolve(u, w, shape) if needs_g else None
            to_w = _backward(g, u, w, shape, (False, True))[1] if needs_w else None
        if v is not None:
            if needs_g:
                more = _convolve(x, v, shape)
                to_g = more if to_g is None else to_g.add_(more)
            to_x = _backward(g, x, v, shape, (True, False))[0] if needs_x else None
        return to_g, to_x, to_w, None, None


def _convolve(x: Tensor, w: Tensor, shape: Any, b: Tensor | None = None) -> Tensor:
    stride, padding, dilation, groups = shape
    return convolve(x, w, b, stride, padding, dilation, False, [0, 0], groups)


def _backward(
    g: Tensor, x: Tensor, w: Tensor, shape: Any, needs: Any
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = shape
    return convolve_backward(
        *(g, x, w, None, stride, padding, dilation, False, [0, 0], groups, [*needs, False])
    )[:2]


def _mixed(before: type, cls: type) -> type:
    """A class like another, with ``forward`` of a first one."""
    return type(before.__name__, (before, cls), {})


def _settle(norm: nn.Module) -> None:
    """Let BatchNorm multiply and add in one step, in place."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach()
    norm.register_buffer("settled_scale", scale)
    norm.register_buffer("settled_shift", shift)
    norm.__class__ = _mixed(_Affine, type(norm))


class _Affine(nn.Module):
    """BatchNorm that does not move: x·a + b in each channel."""

    @override
    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.settled_shift.view(shape), x, self.settled_scale.view(shape))


class _Sloped(nn.Module):
    """A quantizer as its value and its slope, which does not move: zero or constant."""

    @override
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _Step.apply(x, super().forward)


class _Step(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, quantizer: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            value = quantizer(inner)
            (slope,) = torch.autograd.grad(value.sum(), inner)
        ctx.save_for_backward(slope)
        return value.detach()

    @staticmethod
    @override
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return g * slope, None
