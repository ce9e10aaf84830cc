"""Quantizers as their papers intend them, beside what official code computes."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from qatviz.analysis.curves import transfer_curve
from qatviz.analysis.errors import decibels
from qatviz.analysis.zoo import (
    VISIBLE_DELTA,
    check_tensor,
)
from qatviz.quantizers import (
    EWGS,
    LSQ,
    NIPQ,
    PACT,
    DoReFa,
    Quantizer,
    ReleasedDoReFa,
    lp_range,
    released_lsq,
    released_pact,
    released_range,
)
from qatviz.records import Released


def released(
    weights: Float[Tensor, "*shape"],
    activations: Float[Tensor, "*more"],
    *,
    bits: int = 3,
    delta: float = VISIBLE_DELTA,
) -> list[Released]:
    """Five quantizers as their papers intend them, beside what released code computes.

    The clip with the least squared error stands for the one that PACT would learn.

    Args:
        weights: Weights of a layer, finite, some negative.
        activations: What arrives there after a ReLU, finite, none negative.
        bits: Bits of the grids, 2 to 8. Default: 3 (ours).
        delta: δ of EWGS as intended. Default: 1 (ours, see ``zoo_curves``).

    Returns:
        PACT's clip, LSQ's sign and DoReFa's squeeze for activations; NIPQ's initial range and
        EWGS's δ for weights. ``records.Released``. Draw with ``plots.released``.

    Raises:
        ValueError: If a tensor is not as described, or the bits are not allowed.
    """
    weights, two_sided = check_tensor(weights, "released, weights")
    activations, negative = check_tensor(activations, "released, activations")
    if not two_sided or negative:
        raise ValueError("released: weights need both signs, activations none below zero")
    clip = lp_range(activations.reshape(1, -1), 2**bits, p=2.0)[1].item()
    nipq = partial(NIPQ, bits, signed=True, learn_bits=False)
    after_relu = partial(_pair, activations)
    return [
        after_relu("PACT: learned clip; fixed ±6", PACT(bits, clip=clip), released_pact(bits)),
        after_relu("LSQ after a ReLU: unsigned; signed", LSQ(bits), released_lsq(bits)),
        after_relu("DoReFa after a ReLU: clip; tanh", DoReFa(bits), ReleasedDoReFa(bits)),
        _pair(
            weights,
            "NIPQ, first range: max|w|; softplus(max w)",
            nipq(),
            nipq(find_range=released_range),
        ),
        _pair(
            weights,
            f"EWGS, gradient: δ = {delta:g}; δ = 0",
            EWGS(bits, delta=delta),
            EWGS(bits, delta=0.0),
            gradient=True,
        ),
    ]


def _pair(
    x: Tensor, title: str, intended: Quantizer, as_released: Quantizer, *, gradient: bool = False
) -> Released:
    signed, reach = bool((x < 0).any()), x.abs().max().item()
    curves, used, sqnr, best = [], [], [], []
    for quantizer, label in ((intended, "as intended"), (as_released, "as released")):
        quantizer.batched = not signed
        quantizer.init_from(x)
        low = -reach if signed else -reach / 10
        curves.append(transfer_curve(quantizer.eval(), low=low, high=reach, label=label))
        with torch.no_grad():
            quantized, codes = quantizer(x), quantizer.codes(x)
        used.append(len(codes.unique()) / quantizer.levels().numel())
        sqnr.append(decibels(x, quantized))
        best.append(decibels(x, quantized, best=True))
    label = "weights" if signed else "activations"
    return Released(title, label, *curves, tuple(used), tuple(sqnr), tuple(best), gradient)
