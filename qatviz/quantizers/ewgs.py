"""Element-wise gradient scaling."""

import math
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantizers.base import SMALLEST_STEP, Quantizer, usable

HALF_NORMAL = math.sqrt(1 - 2 / math.pi)  # the standard deviation of |z|, z standard normal


class EWGS(Quantizer):
    """Bounds and an output scale that are learned, with a gradient scaled element by element.

    Forward, with bounds l and u, output scale s and n = 2^b − 1::

        x_n = clip((x − l)/(u − l), 0, 1)      q = round(n·x_n)      x_q = q/n
        x̂ = |s|·(2x_q − 1) signed (weights),   |s|·x_q unsigned (activations)

    One bit: ±|s| signed, 0 and |s| unsigned. The levels need not lie where the numbers lie: s is
    learned beside l and u. Backward: through the rounding, with g_q = ∂L/∂x_q::

        g_n = g_q·(1 + δ·sign(g_q)·(x_n − x_q))

    a larger step for a number that descent carries towards its level (it has further to go to
    the next threshold), a smaller one for a number carried away from it; δ = 0 is
    straight-through. Then, with m = 1 where
    0 ≤ (x − l)/(u − l) ≤ 1 and 0 elsewhere (clipped numbers teach the bounds nothing, unlike in
    LSQ)::

        ∂L/∂x = m·g_n/(u − l)
        ∂L/∂u = −∑ m·g_n·(x − l)/(u − l)²      ∂L/∂l = ∑ m·g_n·(x − u)/(u − l)²

    Because g_n depends on the sign of g_q it is no derivative of any function, and second
    derivatives are not symmetric for δ > 0; they hold x_n − x_q constant.

    So bounds that have crossed, u ≤ l, stay where they are: everything is clipped. The released
    scripts train bounds and scale at a hundredth of the weights' rate; at one shared rate they
    can run away.

    In the paper a layer has one scale, which multiplies its output with the bias inside. Here
    the weight and the input of a layer each have their own, so that each tensor can be looked
    at alone: the paper's is their product, and the bias is outside (ours). ``init_from`` takes
    mean|x|/mean|x̂ at s = 1| (ours); the paper's start, from the output of the layer, is
    ``match_output``, which ``qatviz.methods.ewgs.match_outputs`` calls layer by layer.

    The released code of SQAKD never changes its δ from 0: its "EWGS" is ``delta=0.0``.
    ``qatviz.methods.HessianScaling`` sets δ from curvature.

    Args:
        bits: Bits per code, 1 to 8.
        signed: See ``Quantizer``. Default: None: signed if the data have negative values (the
            paper: weights signed, activations after ReLU unsigned).
        axis: None; the paper has one grid per tensor only.
        delta: δ ≥ 0, a buffer. Default: 0.001 (the fixed value of the released scripts).

    Raises:
        ValueError: If the bits are not allowed, an axis is given, or δ is negative or not finite.

    Source: Lee, Kim, Ham 2021, "Network Quantization with Element-wise Gradient Scaling",
    arXiv 2104.00903; bounds and initial values as in its released code.
    """

    symmetric_hessian = False
    per_channel = False

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        delta: float = 0.001,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis)
        if not (delta >= 0 and math.isfinite(delta)):
            raise ValueError(f"EWGS: delta must be a finite number from 0 up, got {delta!r}")
        self.lower = nn.Parameter(torch.tensor(math.nan))
        self.upper = nn.Parameter(torch.tensor(math.nan))
        self.scale = nn.Parameter(torch.tensor(math.nan))
        self.register_buffer("delta", torch.tensor(float(delta)))

    @property
    @override
    def low(self) -> int:
        """The lowest code: 0, whatever the sign."""
        return 0

    @override
    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        width = self._positive(self.upper - self.lower)
        position = (x - self.lower) / width
        inside = (position >= 0) & (position <= 1)
        normalised = torch.where(inside, position, position.detach().clamp(0, 1))
        # g_q = n·∂L/∂q, and x_n − x_q is the error of a code over n.
        return _Round.apply(self.high * normalised, self.delta / self.high)

    @override
    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # where, not abs: a scale of exactly zero goes on learning.
        scale = self._positive(torch.where(self.scale < 0, -self.scale, self.scale))
        return self._unit_levels(codes) * scale

    def _unit_levels(self, codes: Tensor) -> Tensor:
        return (2 * codes - self.high if self.signed else codes) / self.high

    @property
    def slope(self) -> Float[Tensor, ""]:
        """∂x̂/∂x_q: 2|s| signed, |s| unsigned; what turns a derivative by x̂ into one by x_q."""
        scale = self.scale.abs().clamp(min=SMALLEST_STEP)
        return 2 * scale if self.signed else scale

    @override
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Set the bounds from the spread of the data, and the scale from its mean magnitude.

        Signed: l, u = ∓3·std(x). Unsigned: l = min(x), u = 3·std(x)/√(1 − 2/π), which is
        three standard deviations of the normal numbers of which ``x`` is the magnitude
        (paper's released code). Where that is no range: ∓max|x| and [0, max|x|]; for all-zero
        data ∓1 and [0, 1] (ours).

        Args:
            x: Weights, or a batch of activations, finite, not empty.

        Raises:
            ValueError: If ``x`` is empty or not finite.
        """
        self._begin(x)
        lower, upper = self._bounds(x)
        self.lower.data = lower.to(self.lower.dtype)
        self.upper.data = upper.to(self.upper.dtype)
        size, unit = x.abs().mean(), self._unit_levels(self.codes(x)).abs().mean()
        # Every code may be zero: of all-zero data; of half zeros, half ones, at one bit.
        scale = (size if self.signed else _or_one(size)) / _or_one(unit)
        self.scale.data = scale.clamp(min=SMALLEST_STEP).to(self.scale.dtype)

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        largest = usable(x.abs().max())
        reach = 3 * x.std(correction=min(1, x.numel() - 1))
        if self.signed:
            reach = torch.where(reach > SMALLEST_STEP, reach, largest)
            return -reach, reach
        lower, upper = x.min(), reach / HALF_NORMAL
        valid = upper - lower > SMALLEST_STEP
        return torch.where(valid, lower, 0), torch.where(valid, upper, largest)

    @torch.no_grad()
    def match_output(self, ratio: Float[Tensor, ""]) -> None:
        """Multiply the scale, in place, so that a layer's output keeps its float magnitude.

        Args:
            ratio: mean|float output| / mean|quantized output| of the layer, positive.
        """
        self.scale.mul_(ratio)


def _or_one(value: Tensor) -> Tensor:
    return torch.where(value == 0, torch.ones_like(value), value)


# The compiler cannot trace through the shape checks of the tests here.
@no_type_check
class _Round(torch.autograd.Function):
    """Rounding whose gradient depends on the sign of the gradient that comes in."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(numbers: Tensor, delta: Tensor) -> Tensor:
        return numbers.round()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    @override
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        numbers, delta, codes = ctx.saved_tensors
        error = (numbers - codes).detach()
        return upstream * (1 + delta * upstream.sign() * error), None
