"""Checks for notebook 12."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.quantizers import LSQ

VALUES = (0.3, 0.6, 1.7, -3.0)


def check_by_hand(answer: float | None) -> Verdict:
    """Exercise 1: the gradient that four values give to their step, before the scale g.

    Args:
        answer: ∑ ∂v̂/∂s over v/s = 0.3, 0.6, 1.7 and −3, on a signed 2-bit grid.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    ratio = torch.tensor(VALUES)
    inside = ratio.round() - ratio
    wrong = {
        "two of the four lie outside of the grid: they count −2 and 1.": inside.sum(),
        "inside the grid it is round(v/s) − v/s, not the other way round.": (
            -_gradient(ratio, -2, 1)[:2].sum() + 1 - 2
        ),
        "that is PACT: values inside the grid count too.": torch.tensor(-1.0),
        "a signed 2-bit grid has one code more below zero than above.": (
            _gradient(ratio, -1, 1).sum()
        ),
    }
    if math.isclose(answer, _gradient(ratio, -2, 1).sum().item(), abs_tol=0.01):
        return Verdict(True, "−0.3 + 0.4 from inside, 1 − 2 from the clipped: the clipped decide.")
    for hint, value in wrong.items():
        if math.isclose(answer, value.item(), abs_tol=0.01):
            return Verdict(False, hint)
    return Verdict(False, "round(v/s) − v/s inside the grid, the outermost code outside; add up.")


def check_step_gradient(function: Callable[..., Tensor | None]) -> Verdict:
    """Exercise 2: equation 3 of the paper as a function, against autograd through ``LSQ``.

    Args:
        function: ``(v, s, low, high) -> ∂v̂/∂s``; ``low`` = −Q_N, ``high`` = Q_P.

    Returns:
        A verdict.
    """
    s, (low, high) = 0.5, (-2, 1)
    v = torch.tensor([-5.0, -1.2, -0.9, -0.6, -0.2, 0.0, 0.1, 0.3, 0.45, 0.7, 3.0])
    answer = function(v, s, low, high)
    if answer is None or answer is ...:
        return UNANSWERED
    answer, ratio = torch.as_tensor(answer), v / s
    if answer.shape != v.shape:
        return Verdict(False, f"one number per value: {list(v.shape)}, got {list(answer.shape)}.")
    answer, right = answer.float(), _autograd(v, s)
    outside = (ratio <= low) | (ratio >= high)
    clipped = ratio.clamp(low, high)
    wrong = {
        "values beyond the ends count −Q_N or Q_P, not round(v/s) − v/s.": ratio.round() - ratio,
        "mind the sign: round(v/s) − v/s inside the grid.": right.where(outside, -right),
        "that is PACT: inside the grid the gradient is not zero.": right.where(outside, 0 * right),
        "that is the code; the chain rule through v/s subtracts v/s.": clipped.round(),
        "divide v by s first: the gradient has no unit.": (v.round() - v).where(~outside, right),
        "clip(v/s) is right inside; outside nothing depends on v/s.": clipped.round() - clipped,
    }
    if torch.allclose(answer, right, atol=1e-5):
        return Verdict(True, "what autograd finds through round-with-straight-through.")
    for hint, result in wrong.items():
        if torch.allclose(answer, result, atol=1e-5):
            return Verdict(False, hint)
    return Verdict(
        False, f"for v/s = {ratio[3]:g} it should be {right[3]:.2g}, got {answer[3]:.2g}."
    )


def check_gradient_scale(answer: float | None, quantizer: LSQ, x: Tensor) -> Verdict:
    """Exercise 3: the gradient scale of the input of a layer.

    Args:
        answer: g, to about 1 %.
        quantizer: The quantizer of the input.
        x: What arrives there, ``[batch, ...]``.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    features = x[0].numel()
    wrong = {
        "the batch is counted too; N is the features of one image.": x.numel() * quantizer.high,
        "4 levels, but the highest code Q_P is 3.": features * (quantizer.high + 1),
        "that is Q_P of a signed grid; after the ReLU it is unsigned.": features,
        "N counts the whole image of features, all channels.": x[0, 0].numel() * quantizer.high,
    }
    right = features * quantizer.high
    if math.isclose(answer, 1 / math.sqrt(right), rel_tol=0.01):
        return Verdict(True, f"1/√({features} · {quantizer.high}).")
    if math.isclose(answer, 1 / right, rel_tol=0.01):
        return Verdict(False, "the root is missing: g = 1/√(N · Q_P).")
    for hint, value in wrong.items():
        if math.isclose(answer, 1 / math.sqrt(value), rel_tol=0.01):
            return Verdict(False, hint)
    return Verdict(False, "g = 1/√(N · Q_P), N the features of one image that share the step.")


def _gradient(ratio: Tensor, low: int, high: int) -> Tensor:
    """Equation 3, with code boundaries as they are."""
    inside = (ratio > low) & (ratio < high)
    return torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))


def _autograd(v: Tensor, s: float) -> Tensor:
    """∂v̂/∂s of each value, through ``LSQ``: a step for each, without the scale."""
    quantizer = LSQ(2, signed=True, axis=0)
    quantizer.step.data = torch.full_like(v, s)
    (gradient,) = torch.autograd.grad(quantizer(v).sum(), quantizer.step)
    return gradient / quantizer.gradient_scale(v)
