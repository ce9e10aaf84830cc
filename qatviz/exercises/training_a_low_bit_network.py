"""Checks for notebook 14, and the observer that pulls its plug."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy.stats import t
from torch import nn

from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.schedule import Schedule

PARTS = ("student", "optimizers", "generators", "history")
NEEDED = {"student", "optimizers", "generators"}


class StopAt:
    """An observer that stops a run as Ctrl+C does, after a step.

    Args:
        step: After which one. Default: None: never.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def __call__(self, step: int, student: nn.Module) -> None:
        """Stop, or do nothing.

        Args:
            step: The number of the step.
            student: Not looked at.

        Raises:
            KeyboardInterrupt: If this is the step.
        """
        if step == self.step:
            raise KeyboardInterrupt(f"stopped after step {step}")


def check_rate(function: Callable[..., float | None]) -> Verdict:
    """Exercise 1: the cosine with warm-up, against ``Schedule.rate_at``.

    Args:
        function: ``(progress, highest, warmup) -> rate``.

    Returns:
        A verdict.
    """
    highest, warmup = 0.2, 0.25
    moments = (0.0, 0.1, 0.25, 0.4, 0.625, 0.9, 1.0)
    answers = [function(p, highest, warmup) for p in moments]
    if any(a is None or a is ... for a in answers):
        return UNANSWERED
    falling = [_cosine((p - warmup) / (1 - warmup)) for p in moments]
    rising = [p / warmup for p in moments]
    both = list(zip(moments, rising, falling, strict=True))
    wrong = {
        "no warm-up yet: before it ends the rate rises from zero in a line.": falling,
        "half a cosine over the whole run: no warm-up in it.": [_cosine(p) for p in moments],
        "the cosine begins when the warm-up ends: stretch what is left of the run to 0 … 1.": [
            up if p < warmup else _cosine(p) for p, up, _ in both
        ],
        "it should end at zero: half a cosine, π and not π/2 at the end.": [
            up if p < warmup else 0.5 * (1 + math.cos(math.pi / 2 * (p - warmup) / (1 - warmup)))
            for p, up, _ in both
        ],
        "the cosine goes from 1 to −1: add 1, and take the half.": [
            up if p < warmup else 2 * down - 1 for p, up, down in both
        ],
        "right, but for the highest rate: it multiplies everything.": [
            (up if p < warmup else down) / highest for p, up, down in both
        ],
    }
    right = [Schedule(rate=highest, warmup=warmup).rate_at(p) for p in moments]
    if np.allclose(answers, right, atol=1e-9):
        return Verdict(True, "a line up, half a cosine down: what Schedule.rate_at gives.")
    for hint, shares in wrong.items():
        if np.allclose(answers, [highest * share for share in shares], atol=1e-9):
            return Verdict(False, hint)
    worst = int(np.argmax(np.abs(np.subtract(answers, right))))
    return Verdict(
        False, f"at progress {moments[worst]:g} it is {right[worst]:.4f}, got {answers[worst]:.4f}."
    )


def check_needed(answer: Iterable[str] | None) -> Verdict:
    """Exercise 2: the parts of a checkpoint on which the final weights depend.

    Args:
        answer: Some of "student", "optimizers", "generators", "history".

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    answer = {answer} if isinstance(answer, str) else set(answer)
    hints = {
        "student": "without the student the weights are those of the start.",
        "optimizers": "SGD with momentum remembers: without its state the next steps differ.",
        "generators": "order and flips are drawn: other draws, other batches, other weights.",
    }
    if unknown := sorted(answer - set(PARTS)):
        return Verdict(False, f"there is no {', '.join(unknown)}; choose from {', '.join(PARTS)}.")
    for part, hint in hints.items():
        if part not in answer:
            return Verdict(False, hint)
    if "history" in answer:
        return Verdict(False, "one too many: does any step read the curves of the past?")
    return Verdict(
        True, "weights, momentum and dice. The history is for you, not for the training."
    )


def check_interval(answer: Iterable[float] | None, ours: pd.Series, theirs: pd.Series) -> Verdict:
    """Exercise 3: a paired difference with its 95 % t-interval.

    Args:
        answer: Mean, low and high end of ours − theirs; 0 to 1.
        ours: Accuracies by seed.
        theirs: The same seeds' of the other arm.

    Returns:
        A verdict: right within a hundredth of a percentage point.
    """
    if answer is None:
        return UNANSWERED
    answer = np.asarray(list(answer), float)
    if answer.shape != (3,):
        return Verdict(False, f"three numbers: mean, low, high; got {len(answer)}.")
    x = (ours - theirs).to_numpy(float)
    n, mean, spread = len(x), x.mean(), x.std(ddof=1)
    quantile, error = t.ppf(0.975, n - 1), spread / math.sqrt(n)
    apart = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / n)
    wrong = {
        "1.96 is for many seeds: with n − 1 degrees of freedom take Student's t.": 1.96 * error,
        "t at 95 %: of two sides, each has 2.5 %, so the quantile is 0.975.": (
            t.ppf(0.95, n - 1) * error
        ),
        "the spread of single seeds; the mean of n has √n less.": quantile * spread,
        "the sample deviation divides by n − 1.": quantile * x.std() / math.sqrt(n),
        "n − 1 degrees of freedom, not n.": t.ppf(0.975, n) * error,
        "that is ± one standard error; how many of them does t ask for?": error,
        "unpaired: subtract seed by seed first, then take the deviation.": quantile * apart,
        "unpaired, with the degrees of freedom of both: subtract seed by seed first.": (
            t.ppf(0.975, 2 * n - 2) * apart
        ),
    }
    right = _interval(mean, quantile * error)
    if np.allclose(answer, right, rtol=0, atol=1e-4):
        return Verdict(True, f"{n} differences, t = {quantile:.3f}: {_words(right)}.")
    mistakes = {
        "right in percent; give shares, 0 to 1.": 100 * right,
        "the other way round: ours minus theirs.": _interval(-mean, quantile * error),
        "mean, low, high: in this order.": right[[1, 0, 2]],
        **{hint: _interval(mean, half) for hint, half in wrong.items()},
    }
    for hint, value in mistakes.items():
        if np.allclose(answer, value, rtol=1e-4, atol=1e-4):
            return Verdict(False, hint)
    if not math.isclose(answer[0], mean, abs_tol=1e-4):
        return Verdict(False, f"the mean difference is {mean:.4f}, got {answer[0]:.4f}.")
    return Verdict(False, "the mean is right; the ends are mean ∓ t·s/√n.")


def _interval(mean: float, half: float) -> np.ndarray:
    return np.array([mean, mean - half, mean + half])


def _words(interval: np.ndarray) -> str:
    mean, low, high = 100 * interval
    return f"{mean:.2f}, from {low:.2f} to {high:.2f} points"


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
