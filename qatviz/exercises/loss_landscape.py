"""Checks for notebook 32, and the hand that stops a computation."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qatviz.exercises.verdict import UNANSWERED, Verdict


def interrupted_after(model: nn.Module, passes: int) -> nn.Module:
    """A copy of a network that stops whatever runs it, as Ctrl+C does.

    Args:
        model: Any module.
        passes: How many forward passes it makes before that.

    Returns:
        The copy; its numbers are those of the model.
    """
    left = [passes]

    def count(_module: nn.Module, _inputs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    stopping = copy.deepcopy(model)
    stopping.register_forward_pre_hook(count)
    return stopping


def check_levels(answer: float | None) -> Verdict:
    """Exercise 1: how many different losses two 2-bit weights can have.

    Args:
        answer: The number, if no two of them are equal by accident.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    hints = {
        4: "that many levels has one weight; there are two.",
        8: "each level of one weight goes with every level of the other.",
        9: "that is the number of crossings of thresholds, three by three.",
        3: "that is the number of thresholds of one weight.",
        6: "that is the number of thresholds; how many fields do they cut the plane into?",
        2: "2 bits are 4 levels.",
    }
    if answer == 16:
        return Verdict(True, "4 × 4 terraces, however finely you look: 2 bits and 2 bits.")
    if answer in hints:
        return Verdict(False, hints[answer])
    return Verdict(False, "count the pairs of levels that the two weights can have.")


def check_normalised(function: Callable[..., Tensor | None]) -> Verdict:
    """Exercise 2: a direction with the norms of the filters of a weight.

    Args:
        function: ``(direction, weight) -> direction``; both ``[filters, channels, 3, 3]``.

    Returns:
        A verdict.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 3, 3, generator=generator) * torch.arange(5).view(5, 1, 1, 1)
    direction = torch.randn(5, 3, 3, 3, generator=generator)
    answer = function(direction.clone(), weight.clone())
    if answer is None or answer is ...:
        return UNANSWERED
    answer = torch.as_tensor(answer)
    if answer.shape != direction.shape:
        return Verdict(False, f"a direction of {list(direction.shape)}, got {list(answer.shape)}.")
    sizes, lengths = (t.flatten(1).norm(dim=1).view(5, 1, 1, 1) for t in (weight, direction))
    along = weight.norm(dim=0, keepdim=True) / direction.norm(dim=0, keepdim=True)
    rows = weight.flatten(2).norm(dim=2).view(5, 3, 1, 1)
    rows = rows / direction.flatten(2).norm(dim=2).view(5, 3, 1, 1)
    wrong = {
        "that is one factor for the whole layer; each filter has its own.": (
            direction * weight.norm() / direction.norm()
        ),
        "length 1 each; now the norm of the filter of the weight.": direction / lengths,
        "divide by the direction's own norm first: its filters are not of length 1.": (
            direction * sizes
        ),
        "the other way round: the direction is to get the norms of the weight.": (
            direction * lengths / sizes.clamp_min(1e-10)
        ),
        "a filter is a slice along the first axis: norms over all the other axes.": (
            direction * along
        ),
        "a filter is all that makes one output: 3 × 3 of every input channel together.": (
            direction * rows
        ),
        "right for weights, but that changed nothing: return the direction.": weight,
    }
    right = direction * sizes / lengths
    if not answer.isfinite().all():
        return Verdict(False, "a filter of zeros gives 0, not NaN: divide by the direction's norm.")
    if torch.allclose(answer, right, atol=1e-4):
        return Verdict(True, "every filter has the norm of its weight; a filter of zeros stays.")
    for hint, value in wrong.items():
        if torch.allclose(answer, value, atol=1e-4):
            return Verdict(False, hint)
    return Verdict(False, "d_f ← d_f · ‖w_f‖ / ‖d_f‖ for each filter f.")


def check_barrier(function: Callable[..., float | None]) -> Verdict:
    """Exercise 3: the barrier on the way from one network to another.

    Args:
        function: ``(t, loss) -> barrier``; arrays, t from 0 to 1.

    Returns:
        A verdict.
    """
    t = np.linspace(0, 1, 6)
    ways = [
        np.array([0.2, 0.5, 1.3, 1.4, 1.1, 0.9]),
        np.array([0.2, 0.25, 0.3, 0.5, 0.6, 0.9]),
    ]
    answers = [function(t.copy(), way.copy()) for way in ways]
    if any(answer is None or answer is ... for answer in answers):
        return UNANSWERED
    chords = [(1 - t) * way[0] + t * way[-1] for way in ways]
    mistakes = {
        "that is the highest loss; above what line does it rise?": [way.max() for way in ways],
        "above the first network only; the chord goes from one to the other.": [
            (way - way[0]).max() for way in ways
        ],
        "above the worse of the two; the chord goes from one to the other.": [
            way.max() - max(way[0], way[-1]) for way in ways
        ],
        "above the mean of the two: right in the middle only.": [
            way.max() - (way[0] + way[-1]) / 2 for way in ways
        ],
        "where the loss is highest is not where it is highest above the chord.": [
            float((way - chord)[way.argmax()]) for way, chord in zip(ways, chords, strict=True)
        ],
        "that is the other way: t = 0 is the first network.": [
            (way - chord[::-1]).max() for way, chord in zip(ways, chords, strict=True)
        ],
        "the largest difference, of either sign; a valley is no barrier.": [
            np.abs(way - chord).max() for way, chord in zip(ways, chords, strict=True)
        ],
    }
    right = [(way - chord).max() for way, chord in zip(ways, chords, strict=True)]
    answers = [float(answer) for answer in answers]
    if np.allclose(answers, right, atol=1e-6):
        return Verdict(True, "max over t of L(t) − (1 − t)·L(0) − t·L(1); at the ends it is 0.")
    for hint, values in mistakes.items():
        if np.allclose(answers, values, atol=1e-6):
            return Verdict(False, hint)
    index = 0 if not math.isclose(answers[0], right[0], abs_tol=1e-6) else 1
    return Verdict(
        False, f"for losses {ways[index].tolist()} it is {right[index]:.3f}, got {answers[index]}."
    )
