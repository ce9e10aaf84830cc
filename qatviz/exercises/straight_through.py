"""Checks for notebook 10."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qatviz.exercises.verdict import UNANSWERED, Verdict


def check_sign(answer: Callable[[Tensor], Tensor] | None) -> Verdict:
    """Exercise 1: the sign, trained through a clipped surrogate.

    Args:
        answer: A function: +1 where x ≥ 0, else −1; the gradient of clip(x, −1, 1).

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    x = torch.tensor([-3.0, -1.5, -0.9, -0.1, 0.0, 0.1, 0.9, 1.5], requires_grad=True)
    y = answer(x)
    if y is None or y is ...:
        return UNANSWERED
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return Verdict(False, "return a tensor of the shape of x.")
    values = torch.where(x >= 0, 1.0, -1.0)
    if not torch.equal(y, values):
        if torch.equal(y, x.sign()):
            return Verdict(False, "zero is still zero: two levels have no room for a third.")
        return Verdict(False, "the forward value should be +1 where x ≥ 0, and −1 elsewhere.")
    if not y.requires_grad:
        return Verdict(False, "right forward, but nothing joins y to x. Which tensor carries it?")
    return _judge_gradient(*torch.autograd.grad(y.sum(), x), x)


def check_share(answer: float | None) -> Verdict:
    """Exercise 2: the share of updates at level 1 when |ŵ − 0.3| is minimised.

    Args:
        answer: 0 to 1.

    Returns:
        A verdict: right within 0.02.
    """
    if answer is None:
        return UNANSWERED
    if math.isclose(answer, 0.5, abs_tol=0.02):
        return Verdict(True, "pushes of equal size up and down: half the time on either level.")
    if math.isclose(answer, 0.3, abs_tol=0.02):
        return Verdict(False, "so it is for the square. How large are the two gradients here?")
    if answer in (0, 1):
        return Verdict(False, "it never settles: at either level the gradient is not zero.")
    if answer > 1:
        return Verdict(False, f"a share lies between 0 and 1, got {answer}.")
    return Verdict(False, "over time the pushes cancel: time × size is the same up and down.")


def check_interval(answer: object) -> Verdict:
    """Exercise 3: where the straight-through gradient points the wrong way, for t = 0.8.

    Args:
        answer: Both ends, low and high, in steps, as a sequence; None: unanswered.

    Returns:
        A verdict: right within 0.02.
    """
    if answer is None:
        return UNANSWERED
    if not isinstance(answer, Sequence) or len(answer) != 2 or not answer[0] < answer[1]:
        return Verdict(False, f"give two numbers, the lower one first, got {answer!r}.")
    if _close(answer, (0.5, 1)):
        return Verdict(True, "there ŵ = 1 is already the best level, and the weight is pushed off.")
    if _close(answer, (0, 0.5)):
        return Verdict(False, "that is the place for t = 0.3. Which level is nearest to 0.8?")
    if _close(answer, (0, 1)):
        return Verdict(False, "only on one side of the threshold do the two disagree.")
    return Verdict(False, "draw it: staircase_loss(0.8), then look where the signs differ.")


def _judge_gradient(gradient: Tensor, x: Tensor) -> Verdict:
    inside = (x.abs() < 1).float()
    if torch.equal(gradient, inside):
        return Verdict(True, "±1 forward, the slope of the clip backward: a binary network.")
    if not gradient.any():
        return Verdict(False, "the gradient is zero everywhere: the sign's own slope got through.")
    if torch.equal(gradient, torch.ones_like(x)):
        return Verdict(False, "the gradient is 1 everywhere: far outside, the weight can run away.")
    return Verdict(False, "the gradient should be 1 where |x| < 1 and 0 beyond.")


def _close(answer: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, w, abs_tol=0.02) for a, w in zip(answer, wanted, strict=True))
