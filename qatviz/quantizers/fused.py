"""LSQ in few passes over memory: the same numbers as the class, for plain training."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from qatviz.quantizers.base import SMALLEST_STEP


def fusible(*tensors: Tensor) -> bool:
    """Whether reverse-mode training is all that is asked of these tensors.

    Not inside ``torch.func`` transforms and not with forward-mode tangents: those take the
    formulas of the class. Second derivatives are noticed in the backward pass.

    Args:
        tensors: What is about to be computed with.

    Returns:
        True if ``lsq_fused`` may be used.
    """
    if torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active():
        return False
    return all(torch.autograd.forward_ad.unpack_dual(t).tangent is None for t in tensors)


def lsq_fused(
    x: Float[Tensor, "*shape"],
    step: Float[Tensor, ""],
    low: int | Float[Tensor, ""],
    high: int | Float[Tensor, ""],
    scale: float,
    formulas: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "*shape"]:
    """LSQ's forward and backward, written for the bytes they move.

    Forward: one new tensor, then three passes in place. Backward: with the mask folded into
    g_x = ∂L/∂x, and because x̂ = s·code inside the grid and outside::

        ∂L/∂s = scale · (⟨g, x̂⟩ − ⟨g_x, x⟩)/s

    which is two dot products over tensors that the layers around keep anyway, where the formula
    would make a tensor of round(x/s) − x/s. In float32 the difference of the two sums is exact
    to about 4·10⁻⁵ of ‖g·∂x̂/∂s‖. Where second derivatives are asked for, or a sum is not finite
    (0·∞), the formulas are differentiated instead.

    Args:
        x: What is quantized, float32 or float64.
        step: s, one for the whole tensor.
        low: −Q_N, where the grid begins, in steps.
        high: Q_P, where it ends.
        scale: The factor g on the gradient of the step.
        formulas: ``(x, step) -> x̂``, the same, differentiable any number of times.

    Returns:
        round(clip(x/s, low, high))·s, the shape, type and memory format of ``x``.
    """
    # The compiler's graph has no second backward, and cannot hold a function.
    formulas = None if torch.compiler.is_compiling() else formulas
    low, high = (end.item() if isinstance(end, Tensor) else end for end in (low, high))
    return _LSQ.apply(x, step, low, high, scale, formulas)


class _LSQ(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        low: float,
        high: float,
        scale: float,
        formulas: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        positive = step.clamp(min=SMALLEST_STEP)
        y = torch.div(x, positive).clamp_(low, high).round_().mul_(positive)
        ctx.save_for_backward(x, step, y)
        ctx.grid, ctx.formulas = (low, high, scale), formulas
        return y

    @staticmethod
    @override
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, step, y = ctx.saved_tensors
        if ctx.formulas is None:
            to_x, to_step = _traced(upstream, x, step, y, *ctx.grid)
        elif torch.is_grad_enabled():
            to_x, to_step = _by_formulas(upstream, x, step, ctx.formulas)
        else:
            to_x, to_step = _by_hand(upstream, x, step, y, *ctx.grid)
            if not to_step.isfinite():
                to_x, to_step = _by_formulas(upstream, x, step, ctx.formulas)
        return to_x, to_step, None, None, None, None


def _by_hand(
    upstream: Tensor, x: Tensor, step: Tensor, y: Tensor, low: float, high: float, scale: float
) -> tuple[Tensor, Tensor]:
    positive = max(step.item(), SMALLEST_STEP)
    to_x = torch.ops.aten.hardtanh_backward(upstream, x, low * positive, high * positive)
    return to_x, (_dot(upstream, y) - _dot(to_x, x)) * (scale / positive)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """∑ a·b without an intermediate tensor: both are read in the order in which ``a`` lies."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def _traced(
    upstream: Tensor, x: Tensor, step: Tensor, y: Tensor, low: float, high: float, scale: float
) -> tuple[Tensor, Tensor]:
    """The same sums as one expression, which the compiler turns into one loop."""
    positive = step.clamp(min=SMALLEST_STEP)
    inside = (x > low * positive) & (x < high * positive)
    to_x = torch.where(inside, upstream, 0)
    return to_x, (upstream * y - to_x * x).sum() * (scale / positive)


def _by_formulas(
    upstream: Tensor, x: Tensor, step: Tensor, formulas: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        x, step = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, step))
        return torch.autograd.grad(formulas(x, step), (x, step), upstream, create_graph=twice)
