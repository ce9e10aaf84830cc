"""Float layers that quantize what they multiply, and a quantizer standing on its own."""

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override


class _Quantized:
    """What the quantized layers share: a quantizer for the weight, one for the input.

    Mixed into a float layer's class. Either quantizer may be ``nn.Identity``: not quantized.
    """

    weight: nn.Parameter
    weight_quantizer: nn.Module
    input_quantizer: nn.Module

    @classmethod
    def from_float(
        cls, layer: nn.Module, weight_quantizer: nn.Module, input_quantizer: nn.Module
    ) -> nn.Module:
        """Turn a float layer into this class, in place, keeping its parameters and hooks.

        Args:
            layer: A layer of exactly the float class.
            weight_quantizer: What the weight passes through.
            input_quantizer: What the input passes through.

        Returns:
            The same object, now of this class.

        Raises:
            ValueError: If the layer is not of exactly the float class.
        """
        float_class = cls.__mro__[2]
        if type(layer) is not float_class:
            raise ValueError(
                f"{cls.__name__} is made from {float_class.__name__}, got {type(layer).__name__}"
            )
        layer.__class__ = cls
        layer.weight_quantizer = weight_quantizer
        layer.input_quantizer = input_quantizer
        input_quantizer.batched = True
        return layer

    def quantized_weight(self) -> Float[Tensor, "out_channels *rest"]:
        """The weight as the layer multiplies it: on its grid, differentiable.

        Returns:
            The shape of ``weight``.
        """
        return self.weight_quantizer(self.weight)


class QuantConv2d(_Quantized, nn.Conv2d):
    """A 2-D convolution whose input and weight pass through quantizers; the bias does not.

    Source: LSQ's placement: Esser et al. 2020, arXiv 1902.08153, figure 1.
    """

    @override
    def forward(
        self, input: Float[Tensor, "*batch in_channels height width"]
    ) -> Float[Tensor, "*batch out_channels out_height out_width"]:
        return self._conv_forward(self.input_quantizer(input), self.quantized_weight(), self.bias)


class QuantLinear(_Quantized, nn.Linear):
    """A linear layer whose input and weight pass through quantizers; the bias does not.

    Source: LSQ's placement: Esser et al. 2020, arXiv 1902.08153, figure 1.
    """

    @override
    def forward(
        self, input: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        return nn.functional.linear(self.input_quantizer(input), self.quantized_weight(), self.bias)


class QuantActivation(nn.Module):
    """A quantizer standing on its own in a model: after a ReLU, after an addition.

    For papers that put one quantizer where a tensor is made instead of before each layer that
    reads it. ``calibrate`` finds it and chooses its grid.

    Args:
        quantizer: Any quantizer; None leaves the tensor as it is.

    Source: PD-Quant's placement: arXiv 2212.07048 (released code).
    """

    def __init__(self, quantizer: nn.Module | None = None) -> None:
        super().__init__()
        self.quantizer = nn.Identity() if quantizer is None else quantizer
        self.quantizer.batched = True

    @override
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.quantizer(x)


QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}
