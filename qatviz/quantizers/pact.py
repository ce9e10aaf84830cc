"""PACT: a clip for activations that is trained."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantizers.base import BITS, Quantizer
from qatviz.quantizers.straight_through import straight_through


class PACT(Quantizer):
    """Parameterized clipping: the largest activation that counts is a parameter.

    Forward, with clip α and n = 2^b − 1::

        y = clip(x, 0, α)        x̂ = round(y · n/α) · α/n

    Backward::

        ∂x̂/∂x = 1  where 0 ≤ x < α, else 0
        ∂x̂/∂α = 1  where x ≥ α,     else 0

    This is the derivative of y alone: the rounding is left out for α as well as for x, while
    in LSQ the step also learns from round(v) − v inside the grid. At x = 0 the gradient is x's,
    at x = α it is α's. The paper adds an L2 penalty on α to the loss; that belongs to the
    training method (weight decay on ``clip``), not to the quantizer.

    For activations after ReLU only: there is no signed grid. An α below 1e-8, which an
    optimizer may bring about, counts as 1e-8 and goes on learning: everything positive is then
    clipped and pushes α.

    Args:
        bits: Bits per code, 1 to 8.
        signed: False, or None: negative data are refused at ``init_from``. False: negative
            data are clipped at zero. Default: None.
        axis: None only: one clip per layer (paper, section 3).
        clip: α at ``init_from``, whatever the data are. Default: 10 (paper's experiments, as
            we read them).

    Raises:
        ValueError: If the bits are not allowed, ``signed`` is True, ``axis`` is given, or
            ``clip`` is not positive and finite.

    Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural
    Networks", arXiv 1805.06085, section 3.
    """

    per_channel = False

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        clip: float = 10.0,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        if not 0 < clip < math.inf:
            raise ValueError(f"PACT: clip must be positive and finite, got {clip!r}")
        self.start = float(clip)
        self.clip = nn.Parameter(torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS[:0] if signed else BITS

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        ratio = self._clipped(x) / self._step()
        return straight_through(ratio.round(), ratio)

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return codes * self._step()

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        return straight_through(self.dequantize(self.codes(x)), self._clipped(x))

    def _step(self) -> Tensor:
        return self._positive(self.clip) / self.high

    def _clipped(self, x: Tensor) -> Tensor:
        clip = self._positive(self.clip)
        # where, not clamp: the gradient at 0 is that of x, at α that of α.
        return torch.where(x >= clip, clip, torch.where(x < 0, 0, x))

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set α to its start, in place; the data only decide whether there is a grid.

        Args:
            x: A batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite, or negative while ``signed`` is None.
        """
        self._begin(x)
        self.clip.data = torch.full_like(self.clip, self.start)
