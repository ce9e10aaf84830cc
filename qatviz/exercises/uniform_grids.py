"""Checks for notebook 11."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.quantizers import Affine, min_max_range


def check_min_max_grid(
    answer: Sequence[float] | float | None, weights: Tensor, *, bits: int = 3
) -> Verdict:
    """Exercise 1: step and zero point of a min-max grid, by hand.

    Args:
        answer: Step (in the units of the weights) and zero point.
        weights: The weights that the grid spans.
        bits: Bits of the grid. Default: 3 (the exercise).

    Returns:
        A verdict: right within 1 % of the step.
    """
    if answer is None:
        return UNANSWERED
    if not isinstance(answer, Sequence) or len(answer) != 2:
        return Verdict(False, f"two numbers are needed, (step, zero point), got {answer!r}.")
    grid = Affine(bits, find_range=min_max_range)
    grid.init_from(weights)
    step, zero_point, intervals = grid.step.item(), grid.zero_point.item(), 2**bits - 1
    if math.isclose(answer[0], step * intervals / (intervals + 1), rel_tol=0.01):
        return Verdict(False, f"{intervals + 1} levels have {intervals} steps between them.")
    largest = weights.abs().max().item()
    if math.isclose(answer[0], 2 * largest / intervals, rel_tol=1e-3):
        return Verdict(False, "that range is symmetric; min-max goes from smallest to largest.")
    if not math.isclose(answer[0], step, rel_tol=0.01):
        return Verdict(False, "the step is (largest − smallest) / (number of levels − 1).")
    if answer[1] == -zero_point:
        return Verdict(False, "the step is right; mind the sign of z = round(−smallest / s).")
    if answer[1] != zero_point:
        return Verdict(False, "the step is right; the zero point is a whole number: the code of 0.")
    return Verdict(True, f"code {zero_point:.0f} stands for zero; the levels are steps from there.")


def check_round_to_grid(function: Callable[..., Tensor | None]) -> Verdict:
    """Exercise 2: a function that rounds a tensor to a grid.

    Args:
        function: ``(x, step, zero_point, bits) -> x̂``.

    Returns:
        A verdict.
    """
    step, zero_point, bits = 0.5, 1, 2
    x = torch.tensor([-3.0, -0.7, -0.2, 0.0, 0.1, 0.4, 0.8, 1.3, 5.0])
    answer = function(x, step, zero_point, bits)
    if answer is None or answer is ...:
        return UNANSWERED
    ratio, top = x / step, 2**bits - 1
    right = ((ratio.round() + zero_point).clamp(0, top) - zero_point) * step
    wrong = {
        "nothing is clipped: codes must lie from 0 to 2^bits − 1.": ratio.round() * step,
        "these are codes; subtract the zero point and multiply by the step.": (
            ratio.round() + zero_point
        ).clamp(0, top),
        "subtract the zero point before you multiply by the step.": (
            ratio.round() + zero_point
        ).clamp(0, top)
        * step,
        "add the zero point before you clip: codes start at 0.": ratio.round().clamp(0, top) * step,
        "this rounds down; the nearest level is wanted.": (
            (ratio.floor() + zero_point).clamp(0, top) - zero_point
        )
        * step,
    }
    answer = torch.as_tensor(answer)
    if answer.shape != x.shape:
        return Verdict(False, f"the shape changed: {list(x.shape)} in, {list(answer.shape)} out.")
    if torch.allclose(answer.float(), right, atol=1e-5):
        return Verdict(True, "the nearest level, clipped at both ends: what Affine does.")
    for hint, result in wrong.items():
        if torch.allclose(answer.float(), result, atol=1e-5):
            return Verdict(False, hint)
    return Verdict(False, f"for x = {x.tolist()}, s = 0.5, z = 1 and 2 bits: {right.tolist()}.")


def check_enough_bits(answer: float | None, weights: Tensor, *, decibels: float = 20.0) -> Verdict:
    """Exercise 3: the fewest bits of one L2.4 grid that reach an SQNR.

    Args:
        answer: Bits, 1 to 8.
        weights: The weights of a layer.
        decibels: The SQNR wanted. Default: 20 (the exercise).

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    if answer not in range(1, 9):
        return Verdict(False, f"bits are a whole number from 1 to 8, got {answer!r}.")
    enough = next(bits for bits in range(1, 9) if _sqnr(weights, bits) >= decibels)
    if answer == enough:
        got, below = _sqnr(weights, enough), _sqnr(weights, enough - 1)
        return Verdict(True, f"{got:.1f} dB; with one bit less it is {below:.1f} dB.")
    if answer > enough:
        return Verdict(False, "that is enough, but fewer bits are enough too.")
    short = f"{answer} bits give {_sqnr(weights, answer):.1f} dB."
    if answer == math.ceil(decibels / 6.02):
        return Verdict(False, f"{short} The 6 dB rule is a slope: the line need not start at 0.")
    return Verdict(False, short)


def _sqnr(weights: Tensor, bits: int) -> float:
    grid = Affine(bits)
    grid.init_from(weights.detach())
    noise = (grid(weights) - weights).square().mean()
    return 10 * math.log10(weights.square().mean() / noise)
