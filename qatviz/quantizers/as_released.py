"""What official codes do instead of what their papers say: for comparison, not for use."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from qatviz.quantizers.affine import Affine
from qatviz.quantizers.base import BITS, SMALLEST_STEP, Quantizer
from qatviz.quantizers.lsq import LSQ
from qatviz.quantizers.ranges import fixed_range
from qatviz.quantizers.straight_through import straight_through

EPSILON = 1e-5


class ReleasedDoReFa(Quantizer):
    """DoReFa as MQBench has it and SQAKD ran it: one formula for weights and activations.

    Forward, with Q_N = 2^(b−1), Q_P = 2^(b−1) − 1 and ε = 1e-5::

        z = tanh x / (max|tanh x| + ε)      x̂ = s · clip(round(z/s), −Q_N, Q_P)

    Backward: through tanh and the maximum by the chain rule; ∂x̂/∂z = 1 where
    −Q_N ≤ round(z/s) ≤ Q_P, else 0. s = 2·max|z|/(2^b − 1) is chosen once from data.

    Where it differs from the paper (``DoReFa``):

    - Activations are squeezed by tanh too, and divided by the largest of the batch, also at
      test time: what one image gives depends on the others.
    - The grid is signed even for data without negative values, of which it then has 2^(b−1)
      levels. Zero is a level. The largest z is half a step beyond the last level: it is a tie,
      and at the positive end its gradient may be zero; code −Q_N is hardly ever reached.
    - s is frozen, at about 2/(2^b − 1) whatever the data.

    As in the paper, x̂ is not scaled back to the unit of x. One NaN makes everything NaN.

    Args:
        bits: Bits per code, 2 to 8: with one, every number is rounded to zero.
        signed: Recorded from the data, without effect on the grid. Default: None.
        axis: None only.

    Raises:
        ValueError: If the bits are not allowed, or ``axis`` is given.

    Source: SQAKD (arXiv 2403.11106), released code with MQBench inside, ``dorefa.py``.
    """

    per_channel = False

    def __init__(self, bits: int, *, signed: bool | None = None, axis: int | None = None) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.register_buffer("step", torch.tensor(math.nan))

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return BITS[1:]

    @property
    @override
    def low(self) -> int:
        """The lowest code: −2^(b−1), whatever the sign."""
        return -(2 ** (self.bits - 1))

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        ratio = _squeezed(x) / self.step
        rounded = ratio.round()
        inside = (rounded >= self.low) & (rounded <= self.high)
        return straight_through(rounded.clamp(self.low, self.high), torch.where(inside, ratio, 0))

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return codes * self.step

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Freeze the step, in place.

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite.
        """
        self._begin(x)
        step = 2 * _squeezed(x).abs().amax() / (2**self.bits - 1)
        self.step.data = step.clamp(min=SMALLEST_STEP).to(self.step.dtype)


def _squeezed(x: Tensor) -> Tensor:
    squeezed = x.tanh()
    return squeezed / (squeezed.abs().amax() + EPSILON) if x.numel() else squeezed


def released_pact(bits: int) -> Affine:
    """PACT as MQBench has it and SQAKD ran it: a fixed clip at 6, on a signed grid.

    The clip is a parameter there too, but it is used only while the observer is on, for one
    batch; afterwards it gets no gradient. s = 12/(2^b − 1), and after a ReLU only 2^(b−1) of the
    levels are used. The paper (``PACT``) trains the clip, on an unsigned grid.

    The gradient here stops at the last level, as in ``Affine``; there, half a step beyond.

    Args:
        bits: Bits per code, 1 to 8.

    Returns:
        A quantizer from −6 to 6, whatever the data; it still waits for ``init_from``.

    Source: SQAKD (arXiv 2403.11106), released code with MQBench inside, ``pact.py``;
    ModelTC/MQBench issue 72.
    """
    return Affine(bits, signed=True, find_range=fixed_range(-6.0, 6.0))


def released_lsq(bits: int) -> LSQ:
    """LSQ as SQAKD ran it: a signed grid for activations after ReLU too.

    Half of the levels, the 2^(b−1) negative ones, are never used. The paper (``LSQ``) has
    unsigned grids there. The code also counts the images of the batch in N, and lets the
    gradient pass half a step beyond the last level; both are not repeated here.

    Args:
        bits: Bits per code, 2 to 8.

    Returns:
        A signed quantizer; it still waits for ``init_from``.

    Source: SQAKD (arXiv 2403.11106), released configuration ``get_config.py``.
    """
    return LSQ(bits, signed=True)
