"""Checks for notebook 20."""

from collections.abc import Callable

import numpy as np

from qatviz.exercises.verdict import UNANSWERED, Verdict

STEPS = 50_000 // 256
WINDOW = 2


def check_gradient(function: Callable[..., np.ndarray | None]) -> Verdict:
    """Exercise 1: the gradient of both terms to one row of logits.

    Args:
        function: ``(p_S, p_T, one-hot label, λ) -> gradient``, NumPy arrays of the classes.

    Returns:
        A verdict.
    """
    generator = np.random.default_rng(0)
    student, teacher = (generator.dirichlet(np.ones(4)) for _ in range(2))
    label, strength = np.eye(4)[1], 2.5
    answer = function(student, teacher, label, strength)
    if answer is None or answer is ...:
        return UNANSWERED
    answer = np.asarray(answer, float)
    labels = student - label
    right = labels + strength * (student - teacher)
    wrong = {
        "that is cross-entropy alone: what does the divergence add?": labels,
        "the two terms are added, not averaged.": right / (1 + strength),
        "mind the sign: the divergence pulls the student towards the teacher.": labels
        - strength * (student - teacher),
        "that is the sign of a step downhill; asked is the gradient.": -right,
        "where is λ?": labels + student - teacher,
    }
    if answer.shape == right.shape and np.allclose(answer, right, atol=1e-9):
        return Verdict(True, "(1 + λ)·p_S − y − λ·p_T: a soft target at 1 + λ times the rate.")
    for hint, values in wrong.items():
        if answer.shape == values.shape and np.allclose(answer, values, atol=1e-9):
            return Verdict(False, hint)
    return Verdict(False, "begin with each term alone: cross-entropy gives p_S − y.")


def check_window(answer: float | None) -> Verdict:
    """Exercise 2: the decay whose window is two epochs.

    Args:
        answer: α.

    Returns:
        A verdict.
    """
    if answer is None or answer is ...:
        return UNANSWERED
    steps = WINDOW * STEPS
    if not 0 <= answer < 1:
        return Verdict(False, "α lies from 0 to 1; at 1 nothing moves.")
    window = 1 / (1 - answer)
    # A last batch of what is left over, or none: 196 or 195 steps.
    if abs(window - steps) <= WINDOW + 0.5:
        return Verdict(True, f"1 − 1/{steps}: the window, 1/(1 − α), is {window:.0f} steps.")
    if abs(window - STEPS) <= 1.5:
        return Verdict(False, "that covers one epoch.")
    if abs(window - WINDOW * 50_000) <= 2:
        return Verdict(False, "count steps, not images: the average moves once per batch.")
    return Verdict(False, f"1/(1 − α) is {window:.0f} steps; two epochs have {steps}.")


def check_cost(function: Callable[..., float | None]) -> Verdict:
    """Exercise 3: the units of work beside LSQ's.

    Args:
        function: ``(unlabelled images for each labelled one, whether the student runs a second
            time) -> times LSQ``.

    Returns:
        A verdict.
    """
    cases = [(0, False), (0, True), (1, False), (7, False), (1, True)]
    answers = [function(*case) for case in cases]
    if any(a is None or a is ... for a in answers):
        return UNANSWERED
    right = [(7 if twice else 4) * (1 + ratio) / 3 for ratio, twice in cases]
    if np.allclose(answers, right):
        return Verdict(True, "4/3 for the teacher's look; seven unlabelled images for each: 10.7.")
    if np.allclose(answers, [3 * a for a in right]):
        return Verdict(False, "those are units; beside LSQ's 3 they are a third.")
    if np.allclose(answers[0], 5 / 3) or np.allclose(answers[0], 2):
        return Verdict(False, "the teacher learns nothing: it has no backward pass.")
    first = next(i for i, (a, b) in enumerate(zip(answers, right, strict=True)) if a != b)
    return Verdict(False, f"{cases[first]} takes {right[first]:.2f} times LSQ.")
