"""Checks for notebook 13."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from qatviz.analysis import decibels
from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.quantizers import LSQ, NIPQ, PACT, DoReFa, LSQPlus, Quantizer

POSITION, BITS, DELTA = 0.62, 2, 0.5
CLOSE = 0.1  # decibels


def check_scaled_gradient(answer: float | None) -> Verdict:
    """Exercise 1: what EWGS makes of one gradient.

    Args:
        answer: g_n for x_n = 0.62, 2 bits, g_q = −1, δ = 0.5, to three decimals.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    highest = 2**BITS - 1
    error = POSITION - round(POSITION * highest) / highest
    coarse = POSITION - round(POSITION * 2**BITS) / 2**BITS
    right = -(1 - DELTA * error)
    wrong = {
        "the error has the other sign, or the sign of the gradient is missing.": -(
            1 + DELTA * error
        ),
        "that is straight-through: δ is not 0 here.": -1.0,
        "four levels from 0 to 1 have three steps between them.": -(1 - DELTA * coarse),
        "x_n and x_q are both numbers from 0 to 1, not codes.": -(1 - DELTA * error * highest),
        "a scaled gradient keeps its sign.": -right,
    }
    if math.isclose(answer, right, abs_tol=0.002):
        return Verdict(True, "longer by 2 %: the way up to the next threshold is the longer one.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, abs_tol=0.002):
            return Verdict(False, hint)
    return Verdict(False, "first x_q, the nearest of 0, 1/3, 2/3, 1; then put it into g_n.")


def check_clip_and_round(function: Callable[..., Tensor | None]) -> Verdict:
    """Exercise 2: one function for the forward pass of five quantizers.

    Args:
        function: ``(x, lower, upper, bits) -> x̂``.

    Returns:
        A verdict.
    """
    x = torch.tensor([-1.3, -0.2, 0.0, 0.17, 0.38, 0.71, 1.13, 1.92, 2.6, 3.2, 8.0])
    for bits in (3, 2):
        for quantizer, lower, upper in _five(x, bits):
            answer = function(x, lower, upper, bits)
            if answer is None or answer is ...:
                return UNANSWERED
            with torch.no_grad():
                right = quantizer(x)
            name = f"{type(quantizer).__name__}, {bits} bit"
            if message := _compare(torch.as_tensor(answer), right, x, lower, upper, bits):
                return Verdict(False, f"{name}, from {lower:g} to {upper:g}: {message}")
    return Verdict(True, "PACT, DoReFa, LSQ, LSQ+ and NIPQ go forward alike; they learn otherwise.")


def check_best_clip(answer: float | None, activations: Float[Tensor, "*shape"]) -> Verdict:
    """Exercise 3: the clip with which PACT loses least.

    Args:
        answer: α.
        activations: What it quantizes, to 2 bits.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    largest = activations.max().item()
    if not 0 < answer < math.inf:
        return Verdict(False, f"a clip is a positive number, got {answer:g}.")
    candidates = [largest * share / 100 for share in range(1, 101)]
    best = max(candidates, key=lambda clip: _sqnr(clip, activations))
    found, most = _sqnr(answer, activations), _sqnr(best, activations)
    if most - found <= CLOSE:
        return Verdict(
            True, f"{found:.1f} dB; the start, α = 10, has {_sqnr(10, activations):.1f}."
        )
    if answer > largest:
        return Verdict(False, f"the largest activation is {largest:.2f}: levels beyond are wasted.")
    if math.isclose(answer, largest, rel_tol=0.02):
        return Verdict(False, "nothing is clipped then: all of the error is rounding.")
    which = "smaller: nearly all error is rounding" if answer > best else "larger: it clips much"
    return Verdict(False, f"{found:.1f} dB, and {most:.1f} dB is possible. Try {which}.")


def _five(x: Tensor, bits: int) -> list[tuple[Quantizer, float, float]]:
    """Calibrated quantizers with their bounds, all for activations."""
    highest = 2**bits - 1
    pact, dorefa, lsq = PACT(bits, clip=2.5), DoReFa(bits), LSQ(bits)
    plus, nipq = LSQPlus(bits), NIPQ(bits, learn_bits=False)
    made = [pact, dorefa, lsq, plus, nipq]
    for quantizer in made:
        quantizer.batched = True
        quantizer.init_from(x.clamp(min=0))
        quantizer.eval()
    lsq.step.data.fill_(0.7)
    plus.step.data.fill_(0.6)
    plus.offset.data.fill_(-0.45)
    alpha = nipq.alpha.item()
    ends = [(0.0, 2.5), (0.0, 1.0), (0.0, 0.7 * highest), (-0.45, 0.6 * highest - 0.45)]
    ends += [(0.0, alpha)]
    return [(q, low, high) for q, (low, high) in zip(made, ends, strict=True)]


def _compare(
    answer: Tensor, right: Tensor, x: Tensor, lower: float, upper: float, bits: int
) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer.shape != x.shape:
        return f"one number per value: {list(x.shape)}, got {list(answer.shape)}."
    answer, clipped = answer.float(), x.clamp(lower, upper)
    if torch.allclose(answer, right, atol=1e-5):
        return ""
    highest = 2**bits - 1
    step, coarse = (upper - lower) / highest, (upper - lower) / 2**bits
    codes = ((clipped - lower) / step).round()
    wrong = {
        "that is the clip; the rounding is missing.": clipped,
        "numbers beyond the bounds must become the bounds: clip.": (
            ((x - lower) / step).round() * step + lower
        ),
        f"{2**bits} levels have {highest} steps between them.": (
            ((clipped - lower) / coarse).round() * coarse + lower
        ),
        "these are codes; multiply by the step again.": codes,
        "add the lower bound again: code 0 stands for it.": codes * step,
        "the codes count from the lower bound: subtract it first.": (clipped / step).round() * step,
    }
    for hint, value in wrong.items():
        if torch.allclose(answer, value, atol=1e-5):
            return hint
    i = int((answer - right).abs().argmax())
    return f"{x[i]:g} should become {right[i]:.3g}, got {answer[i]:.3g}."


@torch.no_grad()
def _sqnr(clip: float, activations: Tensor) -> float:
    quantizer = PACT(BITS, clip=clip)
    quantizer.init_from(activations)
    return decibels(activations, quantizer(activations))
