"""The one primitive under every quantizer: go forward as one function, backward as another."""

from jaxtyping import Float
from torch import Tensor


def straight_through(
    value: Float[Tensor, "*shape"], surrogate: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Take the value of one tensor and the gradient of another.

    Forward:  y = value
    Backward: ∂L/∂surrogate = ∂L/∂y,  ∂L/∂value = 0

    The surrogate is subtracted from itself before anything else touches it, so the forward
    value is exact in every floating type (where the surrogate is finite). Ordinary autograd
    does the rest, which is why gradients of gradients, ``torch.func`` and ``torch.compile``
    work through it.

    Args:
        value: What the forward pass returns, any shape.
        surrogate: What the backward pass differentiates, the same shape, finite.

    Returns:
        ``value``, with the derivatives of ``surrogate``.

    Source: Bengio, Léonard, Courville 2013, arXiv 1308.3432, section 2.
    """
    return value.detach() + (surrogate - surrogate.detach())
