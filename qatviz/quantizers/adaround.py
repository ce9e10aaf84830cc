"""Learned rounding: up or down, decided per weight."""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import hardtanh
from typing_extensions import override

from qatviz.quantizers.affine import Affine
from qatviz.quantizers.ranges import Bounds, Rows, lp_range
from qatviz.quantizers.straight_through import straight_through


class AdaRound(Affine):
    """A fixed grid on which every weight learns whether to round up or down.

    Forward, with step s and zero point z of ``Affine``, n = 2^b levels and a number a per
    weight::

        training:    ŵ = s·(clip(⌊w/s⌋ + h(a) + z, 0, n − 1) − z)
        evaluation:  ŵ = s·(clip(⌊w/s⌋ + 1[a ≥ 0] + z, 0, n − 1) − z)
        h(a) = clip(1.2·σ(a) − 0.1, 0, 1)

    so that training is soft and evaluation lies on the grid; ``codes`` are those of evaluation
    in both modes. h reaches 0 and 1, and a ≥ 0 is h ≥ ½. At the start h(a) is the fraction of
    w/s: the soft weight is the float weight, clipped, and the hard one rounds half up.

    Backward, in both modes: ∂ŵ/∂a = s·h′(a) where the clip is open, else 0. ∂ŵ/∂w = 0, since
    ⌊·⌋ is flat: the weight is frozen, and only its rounding is learned. s and z are fixed.

    Only a tensor of the shape of the weight passes.

    Args:
        bits: Bits per code, 1 to 8.
        signed: See ``Quantizer``. Default: None: z = 0 if nothing is negative.
        axis: See ``Quantizer``. Default: 0: a grid per output channel (PD-Quant's released
            code).
        find_range: As in ``Affine``. Default: ``lp_range`` (PD-Quant's released code).

    Raises:
        ValueError: If the bits are not allowed.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
    arXiv 2004.10568; grid and initial values as in PD-Quant, arXiv 2212.07048 (released code).
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = 0,
        find_range: Callable[[Rows, int], Bounds] = lp_range,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis, find_range=find_range)
        self.rounding = nn.Parameter(torch.tensor(math.nan))

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        hard = self._shifted(x, (self.rounding >= 0).to(self.rounding.dtype))
        return straight_through(hard, self._shifted(x, self.fraction()))

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        if self.training:
            return self.dequantize(self._shifted(x, self.fraction()))
        return self.dequantize(self.codes(x))

    def _shifted(self, x: Tensor, up: Tensor) -> Tensor:
        return hardtanh((x / self.step).floor() + up + self.zero_point, self.low, self.high)

    def fraction(self) -> Float[Tensor, "*shape"]:
        """How far each weight is rounded up: h(a) = clip(1.2·σ(a) − 0.1, 0, 1).

        Returns:
            0 to 1, the shape of the weight.
        """
        return hardtanh(1.2 * self.rounding.sigmoid() - 0.1, 0, 1)

    def penalty(self, beta: float) -> Float[Tensor, ""]:
        """What pulls the fractions to 0 and 1: ∑ 1 − |2h(a) − 1|^β.

        Args:
            beta: β > 1; a large one pulls only near 0 and 1.

        Returns:
            0 (all decided) to the number of weights (all at ½).
        """
        return (1 - (2 * self.fraction() - 1).abs().pow(beta)).sum()

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Choose the grid as ``Affine`` does, and h(a) = w/s − ⌊w/s⌋.

        a = −ln(1.2/(w/s − ⌊w/s⌋ + 0.1) − 1).

        Args:
            x: The weight, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite, or ``axis`` is no axis of it.
        """
        super().init_from(x)
        ratio = x / self.step
        a = -(1.2 / (ratio - ratio.floor() + 0.1) - 1).log()
        self.rounding.data = a.to(self.rounding.dtype)


def rounding_beta(
    step: int, total: int, warm_up: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float:
    """The exponent β of the penalty: ``start`` during the warm-up, then a line to ``end``.

    Args:
        step: t, from 0.
        total: T, the number of steps.
        warm_up: Share of the steps before the line begins, below 1. Default: 0.2 (PD-Quant's
            released code, as BRECQ's).
        start: β until t = warm_up·T. Default: 20 (the same).
        end: β at t = T. Default: 2 (the same).

    Returns:
        β(t).
    """
    # A quotient, not warm_up·T: 7/35 is 0.2, but 0.2·35 is above 7.
    progress = max(step / total, warm_up)
    return start + (end - start) * (progress - warm_up) / (1 - warm_up)


def rounding_penalty(
    quantizers: Iterable[AdaRound],
    step: int,
    total: int,
    *,
    weight: float = 0.01,
    warm_up: float = 0.2,
) -> Float[Tensor, ""]:
    """The scheduled penalty of several weights: weight·∑ penalty(β(t)), off while warming up.

    Args:
        quantizers: What is being rounded together.
        step: t, from 0.
        total: T, the number of steps.
        weight: Factor on the sum. Default: 0.01 (PD-Quant's released code, for ResNets).
        warm_up: Share of the steps during which it is exactly 0; t = warm_up·T is the first
            step that has it. Default: 0.2 (the same).

    Returns:
        A scalar.
    """
    quantizers = list(quantizers)
    if step / total < warm_up:
        return torch.stack([q.rounding.new_zeros(()) for q in quantizers]).sum()
    beta = rounding_beta(step, total, warm_up)
    return weight * torch.stack([q.penalty(beta) for q in quantizers]).sum()
