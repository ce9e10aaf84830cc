"""Learned step size quantization."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantizers.base import BITS, Quantizer, usable, widened
from qatviz.quantizers.fused import fusible, lsq_fused
from qatviz.quantizers.straight_through import straight_through

Rows = Float[Tensor, "rows elements"]
End = float | Tensor
FindStep = Callable[[Rows, int], Float[Tensor, "rows"]]


def mean_step(rows: Rows, high: int) -> Float[Tensor, "rows"]:
    """LSQ's initial step, 2·mean|v|/√Q_P.

    Args:
        rows: One row per grid.
        high: Q_P, the highest code.

    Returns:
        One step per row.

    Source: Esser et al. 2020, arXiv 1902.08153, section 2.1.
    """
    return 2 * rows.abs().mean(1) / math.sqrt(high)


def three_sigma_step(rows: Rows, high: int) -> Float[Tensor, "rows"]:
    """LSQ+'s initial step of weights, max(|μ − 3σ|, |μ + 3σ|)/2^(b−1).

    Args:
        rows: One row per grid.
        high: Q_P, the highest code of a signed grid: 2^(b−1) − 1.

    Returns:
        One step per row.

    Source: Bhalgat et al. 2020, arXiv 2004.09576 (LSQ+), section 3.
    """
    mean, deviation = rows.mean(1), rows.std(1, correction=0)
    return (mean.abs() + 3 * deviation) / (high + 1)


class LSQ(Quantizer):
    """Learned step size: the distance between levels is a parameter, trained with the weights.

    Forward, with step s and codes from −Q_N to Q_P::

        v̄ = round(clip(v/s, −Q_N, Q_P))        v̂ = v̄ · s

    Backward::

        ∂v̂/∂v = 1                 where −Q_N < v/s < Q_P, else 0
        ∂v̂/∂s = round(v/s) − v/s  where −Q_N < v/s < Q_P
                −Q_N              where v/s ≤ −Q_N
                Q_P               where v/s ≥ Q_P
        and ∂L/∂s is multiplied by g = 1/√(N · Q_P)

    N counts the weights that share a step, or, for the input of a layer (``batched``), the
    features of one image. Without g the steps outrun the weights and training collapses.
    Signed: Q_N = 2^(b−1), Q_P = 2^(b−1) − 1; unsigned: Q_N = 0, Q_P = 2^b − 1. One signed bit
    has Q_P = 0 and is refused: g and the initial step would divide by zero.

    Plain training takes a fused forward and backward (``fused.py``); second derivatives,
    ``torch.func`` and ``torch.compile`` take the formulas of this class.

    Args:
        bits: Bits per code: 2 to 8 signed, 1 to 8 unsigned.
        signed: See ``Quantizer``. Default: None: signed if the data have negative values
            (the paper: weights signed, activations after ReLU unsigned; section 2).
        axis: See ``Quantizer``. Default: None: one step per layer (paper, section 2).
        find_step: ``(rows, Q_P) -> steps``, the initial step. Default: ``mean_step`` (paper,
            section 2.1); LSQ+ starts its weights from ``three_sigma_step``.

    Raises:
        ValueError: If the bits are not allowed.

    Source: Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153,
    equations 1 to 5 and sections 2.1, 2.2.
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        find_step: FindStep = mean_step,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.find_step = find_step
        self.step = nn.Parameter(torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS[1:] if signed else BITS

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._codes(x, self._scaled(self.step, x), *self._ends())

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return codes * self._scaled(self.step, codes)

    def _codes(self, x: Tensor, step: Tensor, low: End, high: End) -> Tensor:
        low, high = low * step, high * step
        # where, not clamp: on the bounds the gradient is the step's, as in equation 3.
        clipped = torch.where(x <= low, low, torch.where(x >= high, high, x)) / step
        return straight_through(clipped.round(), clipped)

    def _formulas(self, x: Tensor, step: Tensor, low: End, high: End) -> Tensor:
        step = self._scaled(step, x)
        return self._codes(x, step, low, high) * step

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        if self.axis is None and fusible(x, self.step):
            step = widened(self.step)
            return lsq_fused(x, step, *self._ends(), self.gradient_scale(x), self._formulas)
        return self._formulas(x, self.step, *self._ends())

    def _ends(self) -> tuple[End, End]:
        """Where the grid ends, in steps from zero."""
        return self.low, self.high

    def gradient_scale(self, x: Float[Tensor, "*shape"]) -> float:
        """The factor g on the gradient of the step (section 2.2).

        Args:
            x: The tensor being quantized; only its shape counts.

        Returns:
            1/√(N · Q_P), N the elements that share a step, without the batch axis.
        """
        return 1 / math.sqrt(max(self._sharing(x), 1) * self.high)

    def _scaled(self, step: Tensor, x: Tensor) -> Tensor:
        """The step, with g on its gradient."""
        step = self._positive(step)
        return straight_through(step, step * self.gradient_scale(x))

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set the step with ``find_step``, in place.

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite, or negative data meet a single bit.
        """
        self._begin(x)
        step = self._per_grid(self.find_step(self._rows(x), self.high), x)
        self.step.data = usable(step).to(self.step.dtype)
