"""The error of every quantizer on one tensor, against bits."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qatviz.analysis.zoo import (
    ZOO,
    best_scalar,
    calibrated_on,
    check_tensor,
    existing,
)
from qatviz.records import ZooErrors


def zoo_errors(
    tensor: Float[Tensor, "*shape"],
    *,
    bits: Iterable[int] = range(1, 9),
    names: Iterable[str] | None = None,
    most: int = 20_000,
    seed: int = 0,
    label: str = "",
) -> ZooErrors:
    """The error of every quantizer on one tensor, against bits, before any training.

    Levels may have units of their own (DoReFa, EWGS), which a layer's scale or BatchNorm takes
    out again. So the error is what the best scalar leaves, min_c ‖x − c·x̂‖²/‖x‖², which is
    1 − cos²(x, x̂); the plain error is there as well.

    Of a tensor with more values than ``most``, that many are drawn without replacement, for
    the search of ``lp_range`` is long at 8 bits; the largest magnitude is always among them.

    Args:
        tensor: Weights (signed grids) or activations, finite, not all zero.
        bits: Bits of the grids. Default: 1 to 8 (ours).
        names: Which, of ``zoo_names()``. Default: None: all but those that equal another
            before they are trained (AdaRound: Affine).
        most: Values to round, at most. Default: 20,000 (ours).
        seed: Of the draw. Default: 0.
        label: Name of the tensor.

    Returns:
        Decibels, a row per quantizer. ``records.ZooErrors``. Draw with ``plots.zoo_errors``.

    Raises:
        ValueError: If the tensor is empty, not finite or all zero, or a name is unknown.
    """
    x, signed = check_tensor(tensor, f"zoo_errors of {label!r}")
    x, bits = _drawn(x, most, seed), list(bits)
    names = [n for n in ZOO if not ZOO[n].like] if names is None else list(names)
    best, plain = np.full((2, len(names), len(bits)), np.nan)
    for column, b in enumerate(bits):
        for name in existing(names, b, signed):
            with torch.no_grad():
                quantized = calibrated_on(name, x, b, signed)(x)
            found, after = decibels(x, quantized), decibels(x, quantized, best=True)
            best[names.index(name), column] = after
            if not ZOO[name].own_units:
                plain[names.index(name), column] = found
    return ZooErrors(label, np.array(bits), tuple(names), best, plain, x.numel())


def _drawn(x: Tensor, most: int, seed: int) -> Tensor:
    x = x.flatten()
    if len(x) <= most:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most]
    order[0] = x.abs().argmax()
    return x[order]


def decibels(
    x: Float[Tensor, "*shape"], quantized: Float[Tensor, "*shape"], *, best: bool = False
) -> float:
    """The SQNR of a quantized tensor, as it is or after the best scalar.

    Args:
        x: The tensor.
        quantized: x̂.
        best: True: 10·log10(‖x‖²/min_c ‖x − c·x̂‖²). Default: False: 10·log10(‖x‖²/‖x − x̂‖²).

    Returns:
        Decibels; infinite where nothing is lost.
    """
    x, quantized = x.detach().double().flatten(), quantized.detach().double().flatten()
    scale = best_scalar(x, quantized) if best else 1.0
    noise = (scale * quantized - x).square().sum().item()
    return 10 * math.log10(x.square().sum().item() / noise) if noise else math.inf
