"""The converse of proposition 3: a change of the input that does what one of the weight does."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear
from torch.nn.grad import conv2d_input

from qatviz.records import InputChange

# No shapes in the types of public functions: they are checked always, and said in one sentence.


@torch.no_grad()
def equivalent_input_change(
    weight: Tensor,
    change: Tensor,
    x: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    iterations: int = 1000,
    tolerance: float = 1e-8,
    label: str = "",
) -> InputChange:
    """Find the change of each input of a layer that comes closest to a change of its weight.

    W(x + δ) = (W + ΔW)x asks for W·δ = ΔW·x: as many equations as the output has numbers, as
    many unknowns as the output reads (a stride may skip some of the input). With no more
    equations than unknowns it can be done, if W has full rank; the δ of least norm may still be
    much larger than ΔW, where W has small singular values. With more equations a residual is
    left. Every input has a δ of its own.

    By conjugate gradients on the least squares, from δ = 0: they tend to the δ of least norm.

    Args:
        weight: W of a fully connected layer, (out, features), or of a convolution without groups
            and dilation, (out, channels, height, width).
        change: ΔW, the same shape; for instance ŵ − w, what rounding does.
        x: Inputs, (batch, features) or (batch, channels, height, width).
        stride: Of the convolution. Default: 1.
        padding: Of the convolution, with zeros. Default: 0.
        iterations: The most steps, at least 1. Default: 1000 (ours).
        tolerance: An input has settled once the gradient of its squares is below this share of
            what it was at δ = 0; above 0. Default: 1e-8 (ours).
        label: Name of the change. Default: none (ours).

    Returns:
        A `records.InputChange`: δ, in float64 and computed on the CPU, and what it leaves undone;
        it has no plot of its own.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, there is no input, the
            weight is zero, or ``iterations`` or ``tolerance`` is not as said.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 3 by its title; that it has a
    converse, and the check, are ours.
    """
    if iterations < 1 or not 0 < tolerance < math.inf:
        raise ValueError(
            f"iterations is {iterations}, tolerance {tolerance}; allowed: 1 or more, above 0"
        )
    _check(weight, change, x)
    weight, change, x = (t.detach().cpu().double() for t in (weight, change, x))
    strides = {"stride": stride, "padding": padding}

    def forward(w: Tensor, inputs: Tensor) -> Tensor:
        return linear(inputs, w) if w.ndim == 2 else conv2d(inputs, w, **strides)

    def back(w: Tensor, outputs: Tensor) -> Tensor:
        if w.ndim == 2:
            return outputs @ w
        return conv2d_input(x.shape, w, outputs, **strides)

    wanted = forward(change, x)
    delta, left = torch.zeros_like(x), wanted.clone()
    slope = back(weight, left)
    way, steep = slope.clone(), _squares(slope)
    end, taken = tolerance**2 * steep, 0
    while taken < iterations and (steep > end).any():
        moving = steep > end
        ahead = forward(weight, way)
        step = _ratio(steep, _squares(ahead), moving)
        delta += step * way
        left -= step * ahead
        slope = back(weight, left)
        before, steep = steep, torch.where(moving, _squares(slope), steep)
        way = slope + _ratio(steep, before, moving) * way
        taken += 1
    return InputChange(
        label=label,
        unknowns=int((back(weight.abs(), torch.ones_like(wanted))[0] > 0).sum()),
        equations=wanted[0].numel(),
        change=delta.numpy(),
        residual=_relative(wanted - forward(weight, delta), wanted),
        size=_relative(delta, x),
        weight_size=(change.norm() / weight.norm()).item(),
        settled=(steep <= end).flatten().numpy(),
        iterations=taken,
    )


def _squares(rows: Tensor) -> Tensor:
    """Squared norm of each row, to be multiplied with rows."""
    return rows.square().sum(tuple(range(1, rows.ndim)), keepdim=True)


def _ratio(numerator: Tensor, denominator: Tensor, moving: Tensor) -> Tensor:
    """Zero for rows that have settled."""
    return torch.where(moving, numerator / denominator.clamp_min(1e-300), 0.0)


def _relative(rows: Tensor, whole: Tensor) -> np.ndarray:
    parts, norms = rows.flatten(1).norm(dim=1), whole.flatten(1).norm(dim=1)
    return torch.where(norms > 0, parts / norms.clamp_min(1e-300), 0.0).numpy()


def _check(weight: Tensor, change: Tensor, x: Tensor) -> None:
    fits = weight.ndim in (2, 4) and change.shape == weight.shape and x.ndim == weight.ndim
    if not fits or x.shape[1] != weight.shape[1] or not len(x):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, change {tuple(change.shape)}, x "
            f"{tuple(x.shape)}; allowed: (out, features), the same, (batch, features), and with "
            f"two more axes"
        )
    for name, tensor in (("weight", weight), ("change", change), ("x", x)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    if not weight.any():
        raise ValueError("weight is zero: no change of the input changes the output")
