"""The trace of a Hessian, from products with random vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def hessian_trace(
    loss: Float[Tensor, ""],
    tensors: Sequence[Float[Tensor, "..."]],
    *,
    samples: int = 50,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> list[Float[Tensor, ""]]:
    """Estimate tr(H) for each of several tensors, H its own block of the loss's Hessian.

    Hutchinson's estimator: the mean of vᵀHv over vectors v of random signs. All tensors share
    one product per sample, so a block's vᵀ(Hv) also holds its cross terms with the others,
    whose mean is zero. With m samples the estimate is unbiased, with variance::

        (2·(‖H_kk‖_F² − ∑ H_ii²) + ∑_{j≠k} ‖H_kj‖_F²) / m

    for block k: 2·(‖H‖_F² − ∑ H_ii²)/m where there is one tensor, and exact where H is
    diagonal. Sampling stops early once no running mean moves by more than ``tolerance`` of its
    size. That recognises a mean that stands still, not one that is right, and stopping on it
    biases the estimate a little: ``tolerance=0`` takes all samples. (EWGS's released code
    divides by the signed trace + 10⁻⁶ and so stops after two samples wherever the trace is
    negative; here it is the magnitude.)

    Args:
        loss: A scalar with a graph that reaches ``tensors`` and can be differentiated twice.
        tensors: By what it is differentiated; leaves or not. A tensor that does not take part
            has trace 0. No ``.grad`` is touched.
        samples: The most vectors drawn, at least 1. Default: 50 (EWGS's released code).
        tolerance: Relative change at which sampling stops. Default: 1e-3 (EWGS's released
            code, PyHessian).
        generator: Draws the signs. Default: None: torch's global generator.

    Returns:
        One estimate per tensor.

    Raises:
        ValueError: If ``samples`` is less than 1 or ``tolerance`` is negative.

    Source: Hutchinson 1990; Yao et al. 2020, arXiv 1912.07145 (PyHessian).
    """
    if samples < 1 or not tolerance >= 0:
        raise ValueError(
            f"samples must be at least 1 and tolerance at least 0, got {samples} and {tolerance}"
        )
    tensors = list(tensors)
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
    mean = torch.stack([torch.zeros_like(t.detach().sum()) for t in tensors])
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]
    if not curved:
        return list(mean)
    for count in range(1, samples + 1):
        signs = [_signs(t, generator) for t in tensors]
        products = torch.autograd.grad(
            [gradients[i] for i in curved],
            tensors,
            [signs[i] for i in curved],
            retain_graph=True,
            materialize_grads=True,
        )
        sample = torch.stack([(v * p).sum() for v, p in zip(signs, products, strict=True)])
        before, mean = mean, mean + (sample - mean) / count
        if count > 1 and ((mean - before).abs() < tolerance * mean.abs()).all():
            break
    return list(mean)


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randint(2, like.shape, generator=generator, device=device).to(like) * 2 - 1
