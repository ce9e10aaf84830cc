"""Checks for notebook 31, and its valley of two weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qatviz.analysis.subject import Loss
from qatviz.exercises.verdict import UNANSWERED, Verdict

HESSIAN = np.array([[4.0, 1.0, 2.0], [1.0, 3.0, 1.0], [2.0, 1.0, 4.0]])
"""∇²ℓ(ŵ) of exercise 1."""
WEIGHTS = (0.3, 0.9, -0.2)
FACTOR = 3


def valley(
    curvatures: Sequence[float], degrees: float, minimum: Sequence[float]
) -> tuple[tuple[Tensor, Tensor], Loss]:
    """A loss of two weights that is a quadratic with known curvatures.

    Two "images" of two pixels each, for a linear layer with one output and no bias::

        L(w) = ½·λ₁·(u₁·(w − w*))² + ½·λ₂·(u₂·(w − w*))²

    Args:
        curvatures: λ₁ and λ₂, not below 0.
        degrees: Angle of u₁ with the axis of the first weight; u₂ is at right angles to it.
        minimum: w*.

    Returns:
        The data, ``(images, labels)``, and the loss, ``(outputs, labels) -> mean``.
    """
    angle = math.radians(degrees)
    axes = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    rows = axes * torch.tensor([math.sqrt(2 * c) for c in curvatures])[:, None]
    images, labels = rows.view(2, 1, 1, 2), torch.zeros(2, dtype=torch.int64)
    return (images, labels), partial(half_square, target=rows @ torch.tensor(minimum))


def half_square(
    outputs: Float[Tensor, "images 1"], labels: Tensor, target: Float[Tensor, "images"]
) -> Float[Tensor, ""]:
    """Half of the mean squared distance from a target.

    Args:
        outputs: Of the network.
        labels: Not looked at.
        target: A number for each image.

    Returns:
        The loss.
    """
    return 0.5 * (outputs.squeeze(1) - target).square().mean()


def check_surrogate(answer: float | None) -> Verdict:
    """Exercise 1: λ₁ of the straight-through surrogate where one of three weights is clipped.

    Args:
        answer: To about 1 %.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    kept = [0, 2]
    wrong = {
        "that is the Hessian at ŵ with all three free, space A; a clipped weight hears nothing.": (
            _largest(HESSIAN)
        ),
        "that is the true second derivative of the staircase; what does straight-through claim?": 0,
        "the wrong weight is crossed out; which one lies beyond the last level, 0.5?": (
            _largest(HESSIAN[1:, 1:])
        ),
        "that is the largest entry on the diagonal; weights 1 and 3 are coupled.": 4,
        "that is the clipped weight's own entry.": 3,
        "that is the trace of what is left; its larger eigenvalue is asked for.": (
            np.trace(HESSIAN[np.ix_(kept, kept)])
        ),
    }
    right = _largest(HESSIAN[np.ix_(kept, kept)])
    if math.isclose(answer, right, rel_tol=0.01):
        return Verdict(True, "M·∇²ℓ(ŵ)·M has a row and a column of zeros; 4 and 2 are left: 4 + 2.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, rel_tol=0.01, abs_tol=1e-9):
            return Verdict(False, hint)
    return Verdict(False, "cross out the row and the column of the clipped weight; then λ₁.")


def check_rescaled(answer: float | None, largest: float) -> Verdict:
    """Exercise 2: λ₁ of a layer before BatchNorm, once its weights are multiplied by 3.

    Args:
        answer: To about 1 %.
        largest: λ₁ before.

    Returns:
        A verdict.
    """
    if answer is None:
        return UNANSWERED
    wrong = {
        "the function is the same, but a step of length 1 is now a smaller share of the weights.": (
            largest
        ),
        "half way: the slope falls by the factor; the curvature is a derivative of second order.": (
            largest / FACTOR
        ),
        "the other way round: large weights look flat.": largest * FACTOR**2,
        "the other way round, and squared: large weights look flat.": largest * FACTOR,
    }
    if math.isclose(answer, largest / FACTOR**2, rel_tol=0.01):
        return Verdict(True, "L(3w) = L(w), so ∇²L(3w) = ∇²L(w)/9.")
    for hint, value in wrong.items():
        if math.isclose(answer, value, rel_tol=0.01):
            return Verdict(False, hint)
    return Verdict(False, f"λ₁ = {largest:.4g} before; differentiate L(3w) = L(w) twice.")


def check_hutchinson(function: Callable[..., Any]) -> Verdict:
    """Exercise 3: a trace from products with random signs, and its standard error.

    Args:
        function: ``(product, size, draws, generator) -> (mean, standard error)``.

    Returns:
        A verdict.
    """
    size, draws = 60, 400
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = (matrix + matrix.T) / 2 + torch.diag(torch.linspace(0, 60, size, dtype=torch.float64))
    products: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        products.append(v.double())
        return matrix @ v.double()

    answer = function(product, size, draws, torch.Generator().manual_seed(1))
    if answer is None or answer is ...:
        return UNANSWERED
    try:
        mean, error = (float(number) for number in answer)
    except (TypeError, ValueError):
        return Verdict(False, "two numbers: the mean, and its standard error.")
    true = matrix.trace().item()
    diagonal = matrix.diagonal().square().sum().item()
    # Of one draw: random signs see what is off the diagonal only.
    spread = math.sqrt(2 * (matrix.square().sum().item() - diagonal))
    if hint := _wrong_vectors(products, draws, size):
        return Verdict(False, hint)
    if math.isclose(mean, true / size, rel_tol=0.1):
        return Verdict(False, "that is the mean eigenvalue: the trace is not divided by the size.")
    if abs(mean - true) > 5 * spread / math.sqrt(draws):
        return Verdict(False, f"the trace is {true:.1f}, got {mean:.1f}; the mean of zᵀHz.")
    return _error_verdict(mean, error, true, spread, draws)


def _error_verdict(mean: float, error: float, true: float, spread: float, draws: int) -> Verdict:
    """About the standard error, where the mean is right."""
    right = spread / math.sqrt(draws)
    wrong = {
        "that is the spread of single draws; the mean of n has √n less.": spread,
        "divided by n: the standard error divides by √n.": spread / draws,
        "that is the variance of the draws, neither a root nor divided.": spread**2,
        "that is the square of the standard error: take the root.": right**2,
    }
    if math.isclose(error, right, rel_tol=0.25):
        return Verdict(True, f"{mean:.1f} ± {error:.1f}; the trace is {true:.1f}.")
    for hint, value in wrong.items():
        if math.isclose(error, value, rel_tol=0.25):
            return Verdict(False, f"the mean is right; its error is not: {hint}")
    return Verdict(False, f"the mean is right; its standard error is about {right:.2f}.")


def _wrong_vectors(products: list[Tensor], draws: int, size: int) -> str:
    """What is wrong with vectors that should be random signs; empty if nothing is."""
    if len(products) != draws:
        return f"{draws} draws are {draws} products, there were {len(products)}."
    vectors = torch.stack(products)
    if vectors.shape != (draws, size):
        return f"the vectors have {size} numbers, got {list(vectors.shape[1:])}."
    if (vectors.abs() == 1).all():
        share = (vectors > 0).double().mean().item()
        repeated = len(vectors.unique(dim=0)) < 0.9 * len(vectors)
        if repeated or abs(share - 0.5) > 0.05:
            return "signs should be drawn anew for each product, + as often as −."
        return ""
    if ((vectors == 0) | (vectors == 1)).all():
        return "0 and 1 are drawn; signs are −1 and 1."
    if vectors.norm(dim=1).sub(1).abs().max() < 1e-3:
        return "vectors of length 1 give the mean eigenvalue; take signs, whose length is √P."
    return "take random signs: with normal numbers the diagonal adds a noise of its own."


def _largest(matrix: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(matrix)[-1])
