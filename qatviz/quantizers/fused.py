"""LSQ in few passes over memory: the same numbers as the class, for plain training."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from qatviz.quantizers.base import SMALLEST_STEP

Formulas = Callable[[Tensor, Tensor, float, float], Tensor]


def fusible(*tensors: Tensor) -> bool:
    """Whether reverse-mode training is all that is asked of these tensors.

    Not inside ``torch.func`` transforms and not with forward-mode tangents: those take the
    formulas of the class. Second derivatives are noticed in the backward pass.

    Args:
        tensors: What is about to be computed with.

    Returns:
        True if ``lsq_fused`` may be used.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return True
    return all(torch.autograd.forward_ad.unpack_dual(t).tangent is None for t in tensors)


def lsq_fused(
    x: Float[Tensor, "*shape"],
    step: Float[Tensor, ""],
    low: int | Float[Tensor, ""],
    high: int | Float[Tensor, ""],
    scale: float,
    formulas: Formulas,
) -> Float[Tensor, "*shape"]:
    """LSQ's forward and backward, written for the bytes they move.

    Forward: one new tensor, then three passes in place. Backward: because x̂ = s·code inside
    the grid and outside, with m = 1 inside and 0 outside::

        ∂L/∂x = g·m        ∂L/∂s = scale · ⟨g, x̂ − x·m⟩/s

    from tensors that the layers around keep anyway: four passes, where differentiating the
    formula takes a dozen. Each difference is rounded before it is summed, so that nothing
    cancels (⟨g, x̂⟩ − ⟨g·m, x⟩ would be a pass less, and wrong wherever g has a mean). Where
    second derivatives are asked for, and under ``torch.func``, the formulas are differentiated
    instead. As before a convolution, x̂ must not be changed in place before the backward pass.

    Args:
        x: What is quantized, float32 or float64.
        step: s, one for the whole tensor.
        low: −Q_N, where the grid begins, in steps.
        high: Q_P, where it ends.
        scale: The factor on the gradient of the step.
        formulas: ``(x, step, low, high) -> x̂``, the same, differentiable any number of times.

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
        formulas: Formulas | None,
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
        # torch.func is at work, too, where several upstream gradients come at once.
        elif torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            to_x, to_step = _by_formulas(upstream, x, step, ctx)
        else:
            to_x, to_step = _by_hand(upstream, x, step, y, *ctx.grid)
        return to_x, to_step, None, None, None, None


def _by_hand(
    upstream: Tensor, x: Tensor, step: Tensor, y: Tensor, low: float, high: float, scale: float
) -> tuple[Tensor, Tensor]:
    positive = max(step.item(), SMALLEST_STEP)
    low, high = low * positive, high * positive
    # hardtanh_backward keeps its first argument where its second is inside.
    keep_inside = torch.ops.aten.hardtanh_backward
    local = keep_inside(x, x, low, high)
    torch.sub(y, local, out=local)
    to_step = _dot(upstream, local) * (scale / positive)
    return keep_inside(upstream, x, low, high), to_step


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """∑ a·b without an intermediate tensor: both are read in the order in which ``b`` lies."""
    order = sorted(range(b.ndim), key=b.stride, reverse=True)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def _traced(
    upstream: Tensor, x: Tensor, step: Tensor, y: Tensor, low: float, high: float, scale: float
) -> tuple[Tensor, Tensor]:
    """The same as one expression, which the compiler turns into one loop."""
    positive = step.clamp(min=SMALLEST_STEP)
    inside = (x > low * positive) & (x < high * positive)
    local = y - torch.where(inside, x, 0)
    return torch.where(inside, upstream, 0), (upstream * local).sum() * (scale / positive)


def _by_formulas(upstream: Tensor, x: Tensor, step: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
    twice = torch.is_grad_enabled()
    low, high, _ = ctx.grid
    with torch.enable_grad():
        # Views, because the hooks of x and step are for the gradients that we return.
        x, step = (
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (x, step)
        )
        y = ctx.formulas(x, step, low, high)
        return torch.autograd.grad(y, (x, step), upstream, create_graph=twice)
