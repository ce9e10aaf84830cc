"""Noise instead of rounding while training: the range and the bits themselves are learned."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import override

from qatviz.quantizers.base import Quantizer, usable, widened
from qatviz.quantizers.straight_through import straight_through

FEWEST, MOST = 2, 14
LARGEST_LOGIT = 16
BINS = 256

Noise = Callable[[Tensor, Tensor, Tensor], Tensor]
FindRange = Callable[[Tensor, bool, bool], Tensor]


def uniform_noise(
    x: Float[Tensor, "*shape"], step: Float[Tensor, ""], inside: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Rounding errors as they are on a fine grid: uniform on [−0.5, 0.5), whatever ``x`` is.

    Args:
        x: The numbers to be quantized; only the shape counts.
        step: Δ (not used).
        inside: Which numbers are not truncated (not used).

    Returns:
        ε in steps, independent for each number.
    """
    return torch.rand_like(x) - 0.5


def histogram_noise(
    x: Float[Tensor, "*shape"], step: Float[Tensor, ""], inside: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Rounding errors drawn from those that ``x`` really has, whichever number they belong to.

    The errors r = round(x/Δ) − x/Δ of the numbers inside the range fall into 256 bins on
    [−0.5, 0.5]. Each ε is a bin, drawn in proportion to its count, and a uniform place in it.
    Where everything is truncated there is no error to draw, and ε is uniform (ours).

    Args:
        x: The numbers to be quantized.
        step: Δ.
        inside: Which numbers are not truncated.

    Returns:
        ε in steps, independent for each number.
    """
    ratio = (x / step)[inside]
    if not ratio.numel():
        return uniform_noise(x, step, inside)
    bins = ((ratio.round() - ratio + 0.5) * BINS).floor().clamp(0, BINS - 1)
    # To draw a number and take its bin is to draw a bin in proportion to its count.
    drawn = bins[torch.randint_like(x, len(bins), dtype=torch.long)]
    return (drawn + torch.rand_like(x)) / BINS - 0.5


def largest_magnitude(x: Float[Tensor, "*shape"], signed: bool, batched: bool) -> Float[Tensor, ""]:
    """The range that truncates nothing, α = max|x|; unsigned α = max x, at least 0.

    Args:
        x: The numbers to be quantized.
        signed: Whether the grid has negative levels.
        batched: Whether ``x`` is the input of a layer (not used).

    Returns:
        α.
    """
    return x.abs().amax() if signed else x.amax().clamp(min=0)


def released_range(x: Float[Tensor, "*shape"], signed: bool, batched: bool) -> Float[Tensor, ""]:
    """The initial range of the released code: wide, for training to pull in.

    Weights: α = softplus(max W), of the signed maximum, so at least 0.69 where any weight is
    positive. Inputs of layers: α = softplus(3) = 3.05 signed, softplus(6) = 6.00 unsigned.

    Args:
        x: The numbers to be quantized.
        signed: Whether the grid has negative levels.
        batched: Whether ``x`` is the input of a layer, else a weight.

    Returns:
        α.
    """
    return softplus(x.new_tensor(3.0 if signed else 6.0) if batched else x.amax())


class NIPQ(Quantizer):
    """Noise in place of rounding while training, so that no gradient is invented for rounding.

    Range and bits are learned through raw numbers a and β (``range_logit``, ``bit_logit``)::

        α = softplus(a)        b₀ = 2 + 12·σ(β)        Δ = α/n
        n = 2^(b−1) − 1, codes −n to n (signed)        n = 2^b − 1, codes 0 to n (unsigned)

    Zero is always a level: 2 signed bits are three levels, −α, 0, α. ``bits`` is round(b₀).

    Forward in training, with one bit-width drawn per pass and one ε per number::

        b = round(b₀ + u),  u uniform on [−0.5, 0.5):  so that E[b] = b₀
        y = x + Δ·ε   where −α < x < α (unsigned: 0 < x < α)
            α         where x ≥ α
            −α        where x ≤ −α (unsigned: 0 where x ≤ 0)

    Nothing is clipped after the noise. Backward, autograd alone but for ∂b/∂b₀ = 1::

        ∂y/∂x = 1    ∂y/∂α = ε/n                          inside, else 0 and ±1 (or 0)
        ∂y/∂b = −ε·α·ln2·2^(b−1)/n²  (unsigned: 2^b)      inside, else 0

    Forward in evaluation, and in training once the noise has ended (``noise`` is None)::

        v = clip(x/α, −1 or 0, 1)·n        y = round(v)·α/n        b = round(b₀)

    Backward there: ∂y/∂x = 1 inside, else 0; ∂y/∂α = (round(v) − v)/n inside, else ±1 or 0,
    without LSQ's gradient scale; the bits have no gradient. What is on a bound is outside.

    Training has two phases. First noise, with the bits learned under a penalty on cost
    (``qatviz.cost``); then ``end_noise()`` fixes the bits and rounds, for a few epochs more.

    An α below 1e-8 counts as 1e-8. Unlike a step it hardly returns, for ∂α/∂a = σ(a) is as
    small. The same is true of bits at 2 or 14, where β stands at ∓16.

    Args:
        bits: Bits at the start, 2 to 14. Default: 8 (paper's code: β = 0).
        signed: See ``Quantizer``. Default: None.
        axis: None; the paper has one grid per tensor only.
        learn_bits: True: b₀ is a parameter. False: ``bits`` stay, and nothing is drawn; β is
            then a buffer and not part of the state. Default: True (paper).
        noise: ``(x, Δ, inside) -> ε``: ``uniform_noise``, ``histogram_noise``, one of your
            own, or None: no noise phase. Default: ``uniform_noise``: the paper's ablation
            finds it as good as the histogram of the released code, and cheaper.
        find_range: ``(x, signed, batched) -> α``, the initial range. Default:
            ``largest_magnitude`` (ours, what we think was meant); ``released_range`` is that
            of the released code.

    Raises:
        ValueError: If the bits are not allowed or an axis is given.

    Source: Shin et al. 2023, "NIPQ: Noise proxy-based Integrated Pseudo-Quantization", arXiv
    2206.00820, and the released code where we could not read the paper: it gives the formulas,
    the limits 2 and 14 and the initial values.
    """

    per_channel = False

    def __init__(
        self,
        bits: int = 8,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        learn_bits: bool = True,
        noise: Noise | None = uniform_noise,
        find_range: FindRange = largest_magnitude,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        self.learn_bits = learn_bits
        self.noise = noise
        self.find_range = find_range
        self.range_logit = nn.Parameter(torch.tensor(math.nan))
        if learn_bits:
            self.bit_logit = nn.Parameter(_logit_of(bits))
        else:
            self.register_buffer("bit_logit", _logit_of(bits), persistent=False)

    @classmethod
    @override
    def bits_allowed(cls, signed: bool | None) -> range:
        return range(FEWEST, MOST + 1)

    @property
    def bits(self) -> int:
        """round(b₀), the bits of evaluation; 0 where training lost β to NaN.

        Setting them writes β.
        """
        if not hasattr(self, "bit_logit"):
            return self._asked  # while the base class checks what was asked for
        return int(self.bit_width().nan_to_num())

    @bits.setter
    def bits(self, bits: int) -> None:
        if not hasattr(self, "bit_logit"):
            self._asked = bits
        elif bits in self.bits_allowed(self.signed):
            self.bit_logit.data.fill_(_logit_of(bits))
        else:
            raise ValueError(f"NIPQ: bits must be from {FEWEST} to {MOST}, got {bits!r}")

    @property
    @override
    def low(self) -> int:
        """The lowest code: −n signed, 0 unsigned."""
        return -self.high if self.signed else 0

    @property
    @override
    def high(self) -> int:
        """The highest code n: 2^(b−1) − 1 signed, 2^b − 1 unsigned."""
        return 2 ** (self.bits - int(self.signed)) - 1

    @property
    def alpha(self) -> Float[Tensor, ""]:
        """The range α = softplus(a), differentiable, at least 1e-8."""
        return self._positive(softplus(widened(self.range_logit), threshold=40))

    @override
    def bit_width(self) -> Float[Tensor, ""]:
        """Bits for ``cost``: round(b₀), differentiable as if it were b₀.

        Returns:
            A scalar; nothing is drawn, in training neither.
        """
        relaxed = self._relaxed_bits()
        return straight_through(relaxed.round(), relaxed)

    def end_noise(self) -> None:
        """Begin the second phase, in place: round in training too, at fixed bits.

        The bits become round(b₀) exactly, and β has no gradient any more, so that an optimizer
        that holds it passes over it.
        """
        self.noise, self.learn_bits = None, False
        self.bits = self.bits
        self.bit_logit.requires_grad_(False)
        self.bit_logit.grad = None

    @override
    def get_extra_state(self) -> Tensor:
        """Bits, signedness and phase for ``state_dict``: ``[bits, signed, noise has ended]``.

        Returns:
            An int64 tensor of three numbers.
        """
        ended = torch.tensor([int(self.noise is None)])
        return torch.cat([super().get_extra_state(), ended])

    @override
    def set_extra_state(self, state: Tensor) -> None:
        """Take signedness and phase from a ``state_dict``; bits must be the same.

        Args:
            state: What ``get_extra_state`` returned. Of a quantizer whose noise has ended, this
                one's ends too; what noise there was is not in a state.

        Raises:
            ValueError: If the state is that of other bits, or of the other sign.
        """
        super().set_extra_state(state)
        if state[2]:
            self.end_noise()

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        alpha = self.alpha
        scaled = self._clip(x, alpha) / alpha * self._highest(self.bit_width().detach())
        return straight_through(scaled.round(), scaled)

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # Divided first, so that the outermost level is α to the last digit.
        return codes / self._highest(self.bit_width().detach()) * self.alpha

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        if not self.training or self.noise is None:
            return super()._quantize(x)
        alpha = self.alpha
        step = alpha / self._highest(self._drawn_bits())
        with torch.no_grad():
            inside = (x > self._lower(alpha)) & (x < alpha)
            noise = self.noise(x, step, inside)
        return torch.where(inside, x + step * noise, self._clip(x, alpha))

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set the range with ``find_range``, in place; the bits stay.

        Args:
            x: Weights, or a batch of activations, finite, not empty.
        """
        self._begin(x)
        alpha = usable(self.find_range(x, self.signed, self.batched))
        # The inverse of softplus, ln(e^α − 1), without overflow and cancellation.
        logit = alpha + (-torch.expm1(-alpha)).log()
        self.range_logit.data = logit.to(self.range_logit.dtype)

    def _lower(self, alpha: Tensor) -> Tensor:
        return alpha * (-1 if self.signed else 0)

    def _clip(self, x: Tensor, alpha: Tensor) -> Tensor:
        """``x`` between the bounds; on and beyond them the gradient is α's, as in LSQ."""
        low = self._lower(alpha)
        return torch.where(x <= low, low, torch.where(x >= alpha, alpha, x))

    def _relaxed_bits(self) -> Tensor:
        """b₀, between 2 and 14."""
        return FEWEST + (MOST - FEWEST) * widened(self.bit_logit).sigmoid()

    def _drawn_bits(self) -> Tensor:
        """The bits of one training pass: an integer next to b₀, b₀ on average."""
        if not self.learn_bits:
            return self.bit_width()
        relaxed = self._relaxed_bits()
        return straight_through((relaxed + torch.rand_like(relaxed) - 0.5).round(), relaxed)

    def _highest(self, bits: Tensor) -> Tensor:
        """The highest code of a number of bits, an exact integer, differentiable."""
        high = torch.exp2(bits - int(self.signed)) - 1
        return straight_through(high.round(), high)


def _logit_of(bits: int) -> Tensor:
    """β with b₀ = bits; ∓16 stands for ∓∞ at 2 and 14 bits."""
    share = torch.tensor((bits - FEWEST) / (MOST - FEWEST))
    return share.logit().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
