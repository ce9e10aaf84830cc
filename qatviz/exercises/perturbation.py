"""Checks for notebook 34."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal

from qatviz.exercises.verdict import UNANSWERED, Verdict

FIRST, SECOND, DISAGREE = 0.90, 0.89, 0.05
"""Accuracies of two networks, and the share of images that exactly one of them gets right."""

_phi = Normal(0.0, 1.0).cdf


def check_output_variance(function: Callable[..., float | Tensor | None]) -> Verdict:
    """Exercise 1: V of a linear layer of several outputs, under noise on its input.

    Args:
        function: ``(weight, sigma) -> V``, the variance of each output, averaged over outputs;
            ``weight`` is ``[outputs, inputs]``.

    Returns:
        A verdict.
    """
    weight = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, 2.0]])
    sigma = 0.1
    answer = function(weight, sigma)
    if answer is None or answer is ...:
        return UNANSWERED
    answer = torch.as_tensor(answer, dtype=torch.float32)
    if answer.numel() != 1:
        return Verdict(
            False, f"one number: the mean over outputs; got {answer.numel()} (one per output?)."
        )
    squares = weight.square()
    wrong = {
        "that is the sum over outputs; V is the mean.": sigma**2 * squares.sum(),
        "a standard deviation; the variance has σ².": sigma * squares.sum(1).mean(),
        "the mean of lengths; a variance needs their squares.": (
            sigma**2 * squares.sum(1).sqrt().mean()
        ),
        "each output adds up all of its inputs: sum along these, mean over outputs only.": (
            sigma**2 * squares.mean()
        ),
        "the noise of the inputs is independent: squares are added up, not weights.": (
            sigma**2 * weight.sum(1).square().mean()
        ),
    }
    right = sigma**2 * squares.sum(1).mean()
    if math.isclose(answer.item(), right.item(), rel_tol=1e-4):
        return Verdict(True, "σ² times the mean squared length of the rows.")
    for hint, value in wrong.items():
        if math.isclose(answer.item(), value.item(), rel_tol=1e-4):
            return Verdict(False, hint)
    return Verdict(
        False, f"for rows of length 5 and 3 and σ = 0.1 it is {right:.2f}, got {answer:.3g}."
    )


def check_noticed(function: Callable[..., float | Tensor | None]) -> Verdict:
    """Exercise 2: the chance that rounding notices Gaussian noise on a weight.

    Args:
        function: ``(u, sigma) -> chance``: the weight lies u from its level, −½ to ½, and the
            noise has the standard deviation ``sigma``, both in steps; a grid without ends.

    Returns:
        A verdict.
    """
    cases = [(0.0, 0.2), (0.3, 0.2), (-0.3, 0.2), (0.45, 0.1), (0.1, 1.0), (-0.25, 0.4)]
    answers = [function(u, sigma) for u, sigma in cases]
    if any(a is None or a is ... for a in answers):
        return UNANSWERED
    answers = torch.tensor([float(a) for a in answers])
    u, sigma = torch.tensor(cases).T
    above, below = 1 - _phi((0.5 - u) / sigma), _phi((-0.5 - u) / sigma)
    centred = 1 - _phi(0.5 / sigma)
    wrong = {
        "there is a threshold on either side of the level.": above,
        "that is the lower threshold only; there is one above, too.": below,
        "the chance that nothing changes; the other one is asked for.": 1 - above - below,
        "where the weight lies matters: the thresholds are ½ − u above and ½ + u below.": (
            2 * centred
        ),
        "thresholds are half a step from the level, not a whole one.": (
            1 - _phi((1 - u) / sigma) + _phi((-1 - u) / sigma)
        ),
        "the noise is as wide as σ: divide the distances by it.": 1
        - _phi(0.5 - u)
        + _phi(-0.5 - u),
        "divide by σ, the standard deviation, not by the variance.": (
            1 - _phi((0.5 - u) / sigma**2) + _phi((-0.5 - u) / sigma**2)
        ),
    }
    right = above + below
    if torch.allclose(answers, right, atol=1e-3):
        return Verdict(True, "one tail beyond each threshold.")
    for hint, values in wrong.items():
        if torch.allclose(answers, values, atol=1e-3):
            return Verdict(False, hint)
    worst = int((answers - right).abs().argmax())
    where = f"u = {cases[worst][0]:g} and σ = {cases[worst][1]:g}"
    return Verdict(False, f"for {where} it is {right[worst]:.3f}, got {answers[worst]:.3f}.")


def check_images(answer: float | None) -> Verdict:
    """Exercise 3: how many test images tell two networks apart by two standard errors, paired.

    Args:
        answer: The number of images, to 1 %.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    gain = FIRST - SECOND
    paired, unpaired = DISAGREE - gain**2, FIRST * (1 - FIRST) + SECOND * (1 - SECOND)
    wrong = {
        "that is for two separate tests; both networks saw the same images.": 4 * unpaired,
        "two standard errors are asked for: 2·√(variance/n) = 0.01.": paired,
        "one standard error, and of separate tests; both saw the same images.": unpaired,
        "square it: 0.01 = 2·√(variance/n).": 2 * paired * gain,
        "that is for a single accuracy; the gain by image is 1, 0 or −1.": (
            4 * FIRST * (1 - FIRST)
        ),
    }
    if math.isclose(answer, 4 * paired / gain**2, rel_tol=0.01):
        return Verdict(
            True, "4·(0.05 − 0.01²)/0.01²; separate tests would need nearly four times as many."
        )
    for hint, value in wrong.items():
        if math.isclose(answer, value / gain**2, rel_tol=0.01):
            return Verdict(False, hint)
    return Verdict(
        False, "the gain is ±1 for 5 % of the images, else 0: its variance is 0.05 − 0.01²."
    )
