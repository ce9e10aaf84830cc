"""Checks for notebook 30."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from qatviz.exercises.verdict import UNANSWERED, Verdict

PATHS = (
    (0, 1, 0, 1),
    (0, 0, 1, 1, 1, 0, 0),
    (-2, -1, 0, 1),
    (0, 1, 2, 1, 1, 2, 2, 0),
    (1, -1, 1),
    (0, 1, 3, 1, 0),
    (1, 1, 1),
)
UPDATES, STEP, TARGET, RATE = 2000, 0.2, 0.37, 0.01
MOMENTUM, THRESHOLD = 0.03, 0.005


def check_events(function: Callable[..., int | None]) -> Verdict:
    """Exercise 1: count oscillations, against the definition.

    Args:
        function: ``codes -> how many``, for a list of the codes of one weight.

    Returns:
        A verdict.
    """
    answers = [function(list(path)) for path in PATHS]
    if any(a is None or a is ... for a in answers):
        return UNANSWERED
    right = [_events(path) for path in PATHS]
    wrong = {
        "that counts every change; one in the direction of the last is a drift.": _changes,
        "the first change has no direction before it: it is no oscillation.": (
            lambda path: _events(path) + (_changes(path) > 0)
        ),
        "compare with the last change, even if the code stood still in between.": _adjacent,
        "a change over several codes is one change.": _jumps,
        "a return to the same code is not needed: the direction decides.": _returns,
    }
    if list(answers) == right:
        return Verdict(True, "reversals of direction, pauses and jumps included.")
    for hint, count in wrong.items():
        if list(answers) == [count(path) for path in PATHS]:
            return Verdict(False, hint)
    first = next(i for i, (a, b) in enumerate(zip(answers, right, strict=True)) if a != b)
    return Verdict(
        False, f"codes {list(PATHS[first])} turn back {right[first]} times, got {answers[first]}."
    )


def check_toy(answer: float | None) -> Verdict:
    """Exercise 2: changes of code in 2,000 updates of the toy; s = 0.2, w* = 0.37.

    Args:
        answer: How many.

    Returns:
        A verdict: right within 1 %.
    """
    if answer is None:
        return UNANSWERED
    lower = math.floor(TARGET / STEP) * STEP
    distance = min(TARGET - lower, lower + STEP - TARGET)
    right = 2 * distance / STEP * UPDATES
    wrong = {
        "that is per update; there are 2,000.": right / UPDATES,
        "each visit to the rarer level is two changes, up and down.": right / 2,
        "d is the distance from the nearest level, 0.4, not from the one below.": (
            2 * (TARGET - lower) / STEP * UPDATES
        ),
        "divide d by the step of the grid: thresholds are s apart.": 2 * distance * UPDATES,
        "the rate has no part in how often.": right * RATE,
        "that is the number of updates at the level 0.4, not of changes.": (
            (TARGET - lower) / STEP * UPDATES
        ),
    }
    if math.isclose(answer, right, rel_tol=0.01):
        return Verdict(True, f"2d/s = {right / UPDATES:.2g} an update, whatever the rate.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, rel_tol=0.01):
            return Verdict(False, hint)
    return Verdict(False, "2d/s an update: what is the level nearest to 0.37?")


def check_memory(answer: float | None) -> Verdict:
    """Exercise 3: steps that a single event stays above 0.005, with m = 0.03.

    Args:
        answer: How many, the step of the event included.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    f, right = MOMENTUM, 0
    while f > THRESHOLD:
        f, right = (1 - MOMENTUM) * f, right + 1
    if answer == right:
        return Verdict(True, f"m·(1 − m)^k > 0.005 for k = 0 to {right - 1}: {right} steps.")
    if answer == 0:
        return Verdict(False, "right after the event f = m = 0.03, which is above.")
    wrong = {
        "the step of the event counts too: there k = 0.": (right - 1, 1e-9),
        "one too many: there f is below 0.005 already.": (right + 1, 1e-9),
        "f begins at m, not at 1.": (math.log(THRESHOLD) / math.log(1 - MOMENTUM), 0.01),
        "f falls by a share of itself, not by the same amount each step.": (
            (1 - THRESHOLD / MOMENTUM) / MOMENTUM,
            0.02,
        ),
        "nearly: a whole number of steps, with (1 − m)^k itself.": (right, 0.02),
    }
    for hint, (value, tolerance) in wrong.items():
        if math.isclose(answer, value, rel_tol=tolerance):
            return Verdict(False, hint)
    return Verdict(False, "f = m at the event, m·(1 − m)^k after k steps more.")


def _directions(path: Sequence[int]) -> list[int]:
    """−1, 0 or 1 for each step."""
    return [(b > a) - (b < a) for a, b in pairwise(path)]


def _events(path: Sequence[int]) -> int:
    moves = [d for d in _directions(path) if d]
    return sum(a == -b for a, b in pairwise(moves))


def _changes(path: Sequence[int]) -> int:
    return sum(d != 0 for d in _directions(path))


def _adjacent(path: Sequence[int]) -> int:
    """Only where the step just before was a change."""
    return sum(a * b < 0 for a, b in pairwise(_directions(path)))


def _jumps(path: Sequence[int]) -> int:
    """Each code that is passed on the way back counts."""
    count, last = 0, 0
    for (a, b), d in zip(pairwise(path), _directions(path), strict=True):
        count += abs(b - a) if d * last < 0 else 0
        last = d or last
    return count


def _returns(path: Sequence[int]) -> int:
    """Only back to the very code that it came from."""
    kept = [path[0], *(b for a, b in pairwise(path) if a != b)]
    return sum(a == c for a, c in zip(kept, kept[2:], strict=False))
