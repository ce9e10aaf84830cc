"""DoReFa: weights squeezed into [−1, 1] and activations clipped to [0, 1], nothing learned."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardtanh
from typing_extensions import override

from qatviz.quantizers.base import Quantizer, usable
from qatviz.quantizers.straight_through import straight_through


class DoReFa(Quantizer):
    """Grids that need no data: [−1, 1] for weights, [0, 1] for activations.

    Forward, with n = 2^b − 1 and Q(r) = round(n · r)/n::

        signed (weights):        ŵ = 2 · Q( tanh w / (2 · max|tanh w|) + ½ ) − 1
        signed, 1 bit:           ŵ = sign(w) · mean|w|
        unsigned (activations):  x̂ = Q( clip(x, 0, 1) )

    Backward: Q counts as the identity. The gradient of a weight passes through tanh and
    through the maximum, by the chain rule (weights that share the maximum share its gradient);
    ∂ŵ/∂w = 1 with one bit; ∂x̂/∂x = 1 where 0 < x < 1, else 0 (at the bounds: ours).

    The levels of weights are in [−1, 1], not in the unit of the weights: quantizing twice is
    not quantizing once, and the layer must be followed by a normalisation. With one bit they
    are in units of mean|w|, which each forward takes from its tensor: codes 0 and 1 stand for
    −1 and 1, and only ``forward`` multiplies. sign(0) = 1. Weights have an even number of
    levels, so that zero is none of them; codes are 0 to n whatever the sign.

    There is no parameter and no buffer: the quantizer is calibrated once its sign is decided.
    Maximum and mean are of the whole tensor, so one NaN makes all weights NaN, and one infinite
    weight all one-bit levels infinite. An all-zero tensor has no scale and is divided by 1.

    Args:
        bits: Bits per code, 1 to 8.
        signed: True for weights, False for activations, None: see ``Quantizer``.
            Default: None.
        axis: None only: the maximum is that of the layer (paper, section 2.3).

    Raises:
        ValueError: If the bits are not allowed, or ``axis`` is given.

    Source: Zhou et al. 2016, "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks
    with Low Bitwidth Gradients", arXiv 1606.06160, sections 2.3 and 2.4.
    """

    per_channel = False

    @property
    @override
    def low(self) -> int:
        """The lowest code: 0, whatever the sign."""
        return 0

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self._binary:
            # Half of x, because dequantize takes the step from −1 to 1.
            return straight_through((x >= 0).to(x.dtype), x / 2)
        ratio = self._unit(x) * self.high
        return straight_through(ratio.round(), ratio)

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        levels = codes / self.high
        return 2 * levels - 1 if self.signed else levels

    @override
    def _quantize(self, x: Tensor) -> Tensor:
        y = self.dequantize(self.codes(x))
        return straight_through(y * x.abs().mean(), x) if self._binary else y

    @property
    def _binary(self) -> bool:
        return bool(self.signed) and self.bits == 1

    def _unit(self, x: Tensor) -> Tensor:
        """``x`` in [0, 1]."""
        if not self.signed:
            return hardtanh(x, 0, 1)
        squeezed = x.tanh()
        return squeezed / (2 * _largest(squeezed)) + 0.5

    @override
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Decide the sign, if that is open; nothing else depends on data.

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite.
        """
        self._begin(x)


def _largest(x: Tensor) -> Tensor:
    """max|x|, or 1 where nothing is larger than zero."""
    if not x.numel():
        return x.new_ones([])
    return usable(x.abs().amax())
