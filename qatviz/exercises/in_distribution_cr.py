"""Checks for notebook 21."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qatviz.exercises.verdict import UNANSWERED, Verdict

ERROR, DISTANCE, SIGMA, CONFIDENCE = 0.2, 7.0, 0.02, 0.05
"""Of exercise 3: training error with the noise, ‖w − w₀‖, σ, and ξ."""


def check_soft_target(function: Callable[..., Any]) -> Verdict:
    """Exercise 1: the target and the factor that CE and λ·KL on one view amount to.

    Args:
        function: ``(label, teacher, strength) -> (target, factor)``; the first two are
            probabilities of the classes.

    Returns:
        A verdict.
    """
    label, teacher = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 0.3, 0.2])
    strength = 3.0
    answer = function(label, teacher, strength)
    if answer is None or answer is ...:
        return UNANSWERED
    try:
        target, factor = torch.as_tensor(answer[0]).float(), float(answer[1])
    except (TypeError, ValueError, IndexError):
        return Verdict(False, "two things: the target, and the factor before p_S − target.")
    if target.shape != label.shape:
        return Verdict(False, f"the target has {len(label)} probabilities, one for each class.")
    right = (label + strength * teacher) / (1 + strength)
    wrong = {
        "it does not add up to 1: divide by the factor.": label + strength * teacher,
        "the other way round: λ belongs to the teacher.": (
            (strength * label + teacher) / (1 + strength)
        ),
        "that is the label; the teacher has a part in it, too.": label,
        "that is the teacher; the label has a part in it, too.": teacher,
        "half and half is the answer for λ = 1 only.": (label + teacher) / 2,
    }
    if torch.allclose(target, right, atol=1e-4):
        return _factor_verdict(factor, strength)
    for hint, values in wrong.items():
        if torch.allclose(target, values, atol=1e-4):
            return Verdict(False, hint)
    return Verdict(False, "write (1 + λ)p_S − y − λp_T as c·(p_S − q), and read q off.")


def _factor_verdict(factor: float, strength: float) -> Verdict:
    """About the factor, where the target is right."""
    if math.isclose(factor, 1 + strength, rel_tol=1e-4):
        return Verdict(True, "q = (y + λp_T)/(1 + λ), and 1 + λ times the gradient.")
    return Verdict(False, f"the target is right; what multiplies p_S is 1 + λ, not {factor:.3g}.")


def check_weight_change(function: Callable[..., Any]) -> Verdict:
    """Exercise 2: the smallest change of a weight that does what a change of one input does.

    Args:
        function: ``(weight, x, delta) -> change``, of a fully connected layer.

    Returns:
        A verdict.
    """
    weight = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
    x, delta = torch.tensor([1.0, 2.0, -2.0]), torch.tensor([0.5, -0.2, 0.4])
    answer = function(weight, x, delta)
    if answer is None or answer is ...:
        return UNANSWERED
    change = torch.as_tensor(answer)
    if change.shape != weight.shape:
        return Verdict(
            False, f"ΔW is as large as W, {list(weight.shape)}; got {list(change.shape)}."
        )
    wanted = weight @ delta
    right = torch.outer(wanted, x) / x.square().sum()
    wrong = {
        "divide by ‖x‖², not by ‖x‖.": torch.outer(wanted, x) / x.norm(),
        "ΔW·x has to be W·δ: now it is ‖x‖² times as much.": torch.outer(wanted, x),
        "that divides by ‖δ‖²; it is x that ΔW is multiplied with.": (
            torch.outer(wanted, x) / delta.square().sum()
        ),
        "x and δ are mixed up: ΔW·x should be W·δ.": (
            torch.outer(weight @ x, delta) / x.square().sum()
        ),
    }
    if torch.allclose(change.float(), right, atol=1e-4):
        return Verdict(True, "W·δ·xᵀ/‖x‖²: exact for this x, and of rank one.")
    if torch.allclose(change.float() @ x, wanted, atol=1e-4):
        return Verdict(
            False,
            f"it does what it should, but ‖ΔW‖ is {change.norm():.3g}, and {right.norm():.3g} "
            "will do: what is at right angles to x only makes it longer.",
        )
    for hint, value in wrong.items():
        if torch.allclose(change.float(), value, atol=1e-4):
            return Verdict(False, hint)
    return Verdict(False, f"ΔW·x should be {_shown(wanted)}, it is {_shown(change.float() @ x)}.")


def check_images(answer: float | None) -> Verdict:
    """Exercise 3: from how many training images on the bound says anything.

    Args:
        answer: Images, to 2 %.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    divergence = DISTANCE**2 / (2 * SIGMA**2)
    right = _images(divergence, (1 - ERROR) ** 2)
    wrong = {
        "the training error counts, too: the root may be 0.8 at most.": _images(divergence, 1.0),
        "twice too many: KL is ‖w − w₀‖²/(2σ²), and below the root it says 2n.": 2 * right,
        "square it: the root is 0.8 at most, what stands below it 0.64.": (
            _images(divergence, 1 - ERROR)
        ),
    }
    if math.isclose(answer, right, rel_tol=0.02):
        return Verdict(True, "about five times as many as there are; and 1 is not yet useful.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, rel_tol=0.02):
            return Verdict(False, hint)
    return Verdict(
        False, f"KL = {divergence:,.0f}; solve 0.2 + √((KL + ln(2√n/ξ))/(2n)) = 1 for n."
    )


def _images(divergence: float, square: float) -> float:
    """The n with (KL + ln(2√n/ξ))/(2n) = square, found by repeating."""
    n = divergence
    for _ in range(50):
        n = (divergence + math.log(2 * math.sqrt(n) / CONFIDENCE)) / (2 * square)
    return n


def _shown(vector: Tensor) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in vector.tolist()) + ")"
