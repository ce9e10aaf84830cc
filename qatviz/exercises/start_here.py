"""Checks for notebook 00."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qatviz.exercises.verdict import UNANSWERED, Verdict
from qatviz.quantizers import LSQ


def check_codes(answer: Iterable[float] | None) -> Verdict:
    """Exercise 1: the codes of a signed 2-bit grid.

    Args:
        answer: All integer codes, in any order.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    codes = sorted(set(answer))
    if codes == [-2, -1, 0, 1]:
        return Verdict(True, "four codes, one more below zero than above: two's complement.")
    if codes == [-2, -1, 1, 2] or codes == [-2, -1, 0, 1, 2]:
        return Verdict(False, "symmetric, but 2 bits count to four, and zero needs one of them.")
    if codes == [0, 1, 2, 3]:
        return Verdict(False, "those are the unsigned ones; weights have both signs.")
    return Verdict(False, "2 bits have 2² = 4 codes; signed, they run from −2^(2−1) upwards.")


def check_best_step(answer: float | None, weights: Tensor, *, bits: int = 2) -> Verdict:
    """Exercise 2: the step, in units of LSQ's first guess, with the best SQNR.

    Args:
        answer: The position of the slider, 0.25 to 4.
        weights: The weights shown by the explorer.
        bits: Bits of the grid. Default: 2 (the exercise).

    Returns:
        A verdict: right within 0.5 dB of the best position of the slider.
    """
    if answer is None:
        return UNANSWERED
    if not (isinstance(answer, int | float) and answer > 0):
        return Verdict(False, f"the slider shows a positive number, got {answer!r}.")
    positions = [2 ** (k / 4) for k in range(-8, 9)]
    best = max(_sqnr(weights, bits, position) for position in positions)
    got = _sqnr(weights, bits, answer)
    if got >= best - 0.5:
        return Verdict(True, f"{got:.1f} dB; the best position of the slider has {best:.1f} dB.")
    too = "small: the tails are clipped" if answer < 1 else "large: everything rounds to zero"
    return Verdict(False, f"{got:.1f} dB, but {best:.1f} dB can be had. This step is too {too}.")


def check_bytes(answer: float | None, model: nn.Module) -> Verdict:
    """Exercise 3: bytes of the weights of all convolutions and linear layers at 2 bits.

    Args:
        answer: Bytes, if every weight of ``model``'s layers took 2 bits (biases left out).
        model: The float network.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    if math.isclose(answer, weights / 4, rel_tol=1e-3):
        return Verdict(True, f"{weights} weights, four to a byte: 16 times smaller than float32.")
    if math.isclose(answer, weights * 2, rel_tol=1e-3):
        return Verdict(False, "those are bits; a byte has eight of them.")
    if math.isclose(answer, weights * 4, rel_tol=1e-3):
        return Verdict(False, "those are the bytes of the float32 weights.")
    if math.isclose(answer, sum(p.numel() for p in model.parameters()) / 4, rel_tol=1e-3):
        return Verdict(False, "BatchNorm and biases are in there too; they stay float.")
    return Verdict(False, "sum layer.weight.numel() over convolutions and linear layers first.")


@torch.no_grad()
def _sqnr(weights: Tensor, bits: int, factor: float) -> float:
    quantizer = LSQ(bits, signed=True)
    quantizer.init_from(weights.detach())
    quantizer.step *= factor
    noise = (quantizer(weights) - weights).square().mean()
    return 10 * math.log10(weights.square().mean() / noise)
