"""Checks for notebook 25."""

import math
from typing import Any

from scipy.stats import norm, t

from qatviz.exercises.verdict import UNANSWERED, Verdict

NEITHER, CONSISTENCY, DISTILLATION, BOTH = 86.0, 87.0, 88.0, 87.4
"""Of exercise 1: accuracies in percent."""
DEVIATION, HALF = 0.9, 0.5
"""Of exercise 2: of differences over seeds, and the half width, in points."""
STEPS, DECAY = 312, 0.99936
"""Of exercise 3."""


def check_interaction(interaction: float | None, word: str | None) -> Verdict:
    """Exercise 1: the interaction of two by two, and what it is called.

    Args:
        interaction: In points.
        word: "synergistic", "additive" or "redundant".

    Returns:
        A verdict.
    """
    if interaction is None or word is None or interaction is ... or word is ...:
        return UNANSWERED
    right = BOTH - CONSISTENCY - DISTILLATION + NEITHER
    wrong = {
        "the sign is turned round: begin with both.": -right,
        "that is both minus neither: what would the two have given if they added?": BOTH - NEITHER,
        "that is both minus distillation: it is not what is missing to their sum.": (
            BOTH - DISTILLATION
        ),
        "neither is taken off twice with the other two: add it again.": right - NEITHER,
    }
    for hint, value in wrong.items():
        if math.isclose(interaction, value, abs_tol=0.01):
            return Verdict(False, hint)
    if not math.isclose(interaction, right, abs_tol=0.01):
        return Verdict(False, "(both) − (consistency) − (distillation) + (neither).")
    if word.strip().lower() != "redundant":
        return Verdict(False, f"{right:+.1f}, yes; and what is it called below zero?")
    return Verdict(
        True,
        f"{right:+.1f}: each helps alone, and together they give less than distillation does.",
    )


def check_seeds(answer: Any) -> Verdict:
    """Exercise 2: how many paired seeds an interval takes.

    Args:
        answer: A whole number.

    Returns:
        A verdict.
    """
    if answer is None or answer is ...:
        return UNANSWERED
    right = next(n for n in range(2, 100) if half_width(n) <= HALF)
    normal = math.ceil((norm.ppf(0.975) * DEVIATION / HALF) ** 2)
    if answer == right:
        return Verdict(True, f"{right} seeds: ± {half_width(right):.2f}. Five give ± 1.1.")
    if answer == normal:
        return Verdict(False, "so many if the deviation were known; it is estimated: take t.")
    if answer == math.ceil((DEVIATION / HALF) ** 2):
        return Verdict(False, "that makes the standard error so small; the interval is wider.")
    if not isinstance(answer, int) or answer < 2:
        return Verdict(False, "a whole number, at least 2.")
    return Verdict(False, f"with {answer} seeds it is ± {half_width(answer):.2f}.")


def half_width(seeds: int) -> float:
    """Half the 95 % t-interval of exercise 2.

    Args:
        seeds: n, at least 2.

    Returns:
        Points.
    """
    return float(t.ppf(0.975, seeds - 1)) * DEVIATION / math.sqrt(seeds)


def check_window(answer: float | None) -> Verdict:
    """Exercise 3: how much of the beginning is left in an average.

    Args:
        answer: A share, 0 to 1.

    Returns:
        A verdict.
    """
    if answer is None or answer is ...:
        return UNANSWERED
    right = DECAY**STEPS
    if math.isclose(answer, right, abs_tol=0.006):
        return Verdict(True, f"{right:.2f}: such a teacher has hardly begun to learn.")
    if math.isclose(answer, 1 - right, abs_tol=0.006):
        return Verdict(False, "that is the share of everything after the start.")
    if math.isclose(answer, DECAY, abs_tol=1e-9):
        return Verdict(False, "that is left after one step.")
    if not 0 <= answer <= 1:
        return Verdict(False, "a share, 0 to 1.")
    return Verdict(False, "each step multiplies what is left of it by α.")
