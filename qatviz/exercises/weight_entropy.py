"""Checks for notebook 33."""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.records import CodeEntropy
from qatviz.records.entropy import plug_in_entropy

COUNTS = ((8, 4, 2, 2), (30, 0, 10, 0), (5, 5, 5, 5, 5, 5, 5, 5), (0, 7, 0, 0), (1, 2, 3, 1))
MEAN = math.sqrt(2 / math.pi)  # E|w| of normal weights, in standard deviations


def check_entropy(function: Callable[..., float | None]) -> Verdict:
    """Exercise 1: the entropy of counted codes, against the library's.

    Args:
        function: ``counts -> bits``; counts as a NumPy array, some of them zero.

    Returns:
        A verdict.
    """
    with np.errstate(all="ignore"):
        answers = [function(np.array(counts)) for counts in COUNTS]
    if any(a is None or a is ... for a in answers):
        return UNANSWERED
    answers = np.array(answers, float)
    right = np.array([plug_in_entropy(np.array(counts)) for counts in COUNTS])
    levels = np.log2([len(counts) for counts in COUNTS])
    used = np.log2([np.count_nonzero(counts) for counts in COUNTS])
    totals = np.array([sum(counts) for counts in COUNTS])
    wrong = {
        "that is in nats: bits take the logarithm to base 2.": right * math.log(2),
        "mind the sign: logarithms of shares are negative, an entropy is not.": -right,
        "that is the utilisation, H divided by the bits available.": right / levels,
        "that counts the codes; do they all occur equally often?": levels,
        "that counts the codes in use; do they occur equally often?": used,
        "bits of all numbers together; H is per number.": right * totals,
        "divide the counts by their sum first: the p in −∑ p·log₂ p are shares.": np.array(
            [-sum(c * math.log2(c) for c in counts if c) for counts in COUNTS]
        ),
    }
    if np.allclose(answers, right, atol=1e-9):
        return Verdict(True, "what the library counts, codes that never occur included.")
    if np.isnan(answers[1]):
        return Verdict(False, "a code that never occurs: 0·log₂ 0 counts as 0, not as NaN.")
    for hint, values in wrong.items():
        if np.allclose(answers, values, atol=1e-9):
            return Verdict(False, hint)
    first = int(np.argmax(~np.isclose(answers, right, atol=1e-9)))
    return Verdict(
        False,
        f"counts {list(COUNTS[first])} have {right[first]:.4f} bits, got {answers[first]:.4f}.",
    )


def check_initial(answer: float | None) -> Verdict:
    """Exercise 2: the entropy of normal weights on LSQ's first 3-bit grid.

    Args:
        answer: H in bits.

    Returns:
        A verdict: right within a thousandth of a bit.
    """
    if answer is None:
        return UNANSWERED
    step = 2 * MEAN / math.sqrt(3)
    right = plug_in_entropy(_shares(step, -4, 3))
    wrong = {
        "that is in nats.": right * math.log(2),
        "3 bits are what is available: the eight codes are not equally likely.": 3.0,
        "that is the utilisation: H, not H/3.": right / 3,
        "Q_P is the highest code, 3, not the number of codes above zero or below, 4.": (
            plug_in_entropy(_shares(2 * MEAN / math.sqrt(4), -4, 3))
        ),
        "the root is missing: s = 2·E|w|/√Q_P.": plug_in_entropy(_shares(2 * MEAN / 3, -4, 3)),
        "E|w| of a normal distribution is √(2/π) standard deviations, not one.": (
            plug_in_entropy(_shares(2 / math.sqrt(3), -4, 3))
        ),
        "a factor of 2 is missing: s = 2·E|w|/√Q_P.": plug_in_entropy(_shares(step / 2, -4, 3)),
        "that is the 2-bit grid of the text above.": plug_in_entropy(_shares(2 * MEAN, -2, 1)),
        "thresholds lie half-way between levels: at (k ± ½)·s.": plug_in_entropy(
            np.diff(norm.cdf(np.array([-np.inf, -3, -2, -1, 0, 1, 2, 3, np.inf]) * step))
        ),
    }
    if math.isclose(answer, right, abs_tol=1e-3):
        return Verdict(True, f"{right:.3f} of 3 bits, before anything was learned.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, abs_tol=1e-3):
            return Verdict(False, hint)
    return Verdict(False, "first s, then eight shares from the normal CDF, then −∑ p·log₂ p.")


def check_bytes(answer: float | None, record: CodeEntropy) -> Verdict:
    """Exercise 3: how small the codes of a network can get, each layer with a code of its own.

    Args:
        answer: Bytes.
        record: What ``analysis.code_entropy`` returned for the network.

    Returns:
        A verdict: right within a byte.
    """
    if answer is None:
        return UNANSWERED
    right, total = record.bits_used.sum() / 8, record.sizes.sum()
    wrong = {
        "those are bits; a byte has eight.": 8 * right,
        "that is what is stored without compression.": record.bits_available.sum() / 8,
        "layers are of different sizes: add n·H, do not average H.": (
            total * record.entropy.mean() / 8
        ),
        "pooled over layers a code means another thing in each: count each layer by itself.": (
            total * _pooled(record) / 8
        ),
        "that is per weight: H times the number of weights, layer by layer.": record.mean / 8,
        "kilobytes; give bytes.": right / 1000,
        "that is what LZMA makes of them, not the bound.": total * record.mean_compressed / 8,
    }
    if math.isclose(answer, right, abs_tol=1):
        share = 8 * right / record.bits_available.sum()
        return Verdict(True, f"{right:.0f} bytes, {share:.0%} of what is stored.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, rel_tol=1e-4, abs_tol=1e-3):
            return Verdict(False, hint)
    return Verdict(False, "∑ n·H over the layers, from record.counts, in bytes.")


def _shares(step: float, low: int, high: int) -> np.ndarray:
    """How a standard normal distribution is rounded to the codes from low to high."""
    inner = (np.arange(low, high) + 0.5) * step
    return np.diff(norm.cdf(np.concatenate([[-np.inf], inner, [np.inf]])))


def _pooled(record: CodeEntropy) -> float:
    """The entropy of all codes thrown together, by their whole numbers."""
    lowest = int(record.low.min())
    pool = np.zeros(int((record.low + record.levels).max()) - lowest)
    for low, counts in zip(record.low, record.counts, strict=True):
        pool[low - lowest :][: len(counts)] += counts
    return float(plug_in_entropy(pool))
