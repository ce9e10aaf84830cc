"""Toy problems whose truth is known: one weight, rounded to integers, and a target."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardtanh

from qatviz.quantizers import straight_through
from qatviz.records import OneWeight, StaircaseLoss

LOW, HIGH = -2, 1
"""The codes of a signed 2-bit grid; with a step of 1 they are also the levels."""

SURROGATES = ("none", "identity", "clipped")


def round_weight(w: Float[Tensor, "*shape"], *, surrogate: str) -> Float[Tensor, "*shape"]:
    """Round to the levels −2, −1, 0, 1, with a choice of what the backward pass believes.

    Forward::

        ŵ = clip(round(w), −2, 1)

    Backward::

        none      ∂ŵ/∂w = 0                      what rounding really has
        identity  ∂ŵ/∂w = 1                      neither rounding nor clipping was there
        clipped   ∂ŵ/∂w = 1 where −2 < w < 1, else 0     only rounding was not there

    Args:
        w: Weights in units of the step.
        surrogate: One of ``SURROGATES``.

    Returns:
        The levels, the shape of ``w``.

    Raises:
        ValueError: If the surrogate is unknown.
    """
    level = w.round().clamp(LOW, HIGH)
    if surrogate == "none":
        return level
    if surrogate == "identity":
        return straight_through(level, w)
    if surrogate == "clipped":
        return straight_through(level, hardtanh(w, LOW, HIGH))
    raise ValueError(f"surrogate must be one of {SURROGATES}, got {surrogate!r}")


def train_weight(
    target: float | Sequence[float],
    *,
    surrogate: str = "clipped",
    start: float = -1.37,
    rate: float = 0.05,
    updates: int = 100,
    power: float = 2,
    decay: float = 0.0,
) -> OneWeight:
    """Minimise |ŵ − t|^p over one weight by gradient descent through ``round_weight``.

    Args:
        target: The number t, in steps; a sequence: each holds for an equal share of the updates.
        surrogate: One of ``SURROGATES``. Default: clipped, as in LSQ and PACT.
        start: The weight before the first update, in steps. Default: −1.37 (ours).
        rate: Learning rate. Default: 0.05 (ours).
        updates: Updates of plain gradient descent. Default: 100 (ours).
        power: Exponent p of the loss, ≥ 1. Default: 2, squared error (ours).
        decay: Weight decay λ: λ·w is added to the gradient. Default: 0 (ours).

    Returns:
        The path of the weight. ``records.OneWeight``. Draw with ``plots.one_weight``.

    Raises:
        ValueError: If the surrogate is unknown, there is no target, fewer than one update, or
            the power is below 1.
    """
    targets = np.atleast_1d(np.asarray(target, dtype=float))
    if not targets.size or updates < 1 or power < 1:
        raise ValueError(
            f"a target, updates ≥ 1 and power ≥ 1 are needed, got {target}, {updates}, {power}"
        )
    schedule = targets[np.arange(updates) * targets.size // updates]
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    path = []
    for t in schedule:
        level = round_weight(w, surrogate=surrogate)
        (gradient,) = torch.autograd.grad((level - t).abs().pow(power), w)
        path.append((w.item(), level.item(), gradient.item()))
        with torch.no_grad():
            w -= rate * (gradient + decay * w)
    path.append((w.item(), round_weight(w, surrogate=surrogate).item(), np.nan))
    weight, level, gradient = np.array(path).T
    thresholds = np.arange(LOW, HIGH) + 0.5
    return OneWeight(weight, level, schedule, gradient[:-1], thresholds, surrogate)


def staircase_loss(
    target: float, *, noise: float = 1.0, low: float = -3.0, high: float = 2.0, points: int = 1000
) -> StaircaseLoss:
    """The loss (ŵ − t)² of one rounded weight, blurred, and the gradients claimed for it.

    With ε uniform between −a/2 and a/2 the blurred loss has an exact derivative, although the
    loss has none: a finite difference over the width of the noise::

        d/dw E[L(w + ε)] = (L(w + a/2) − L(w − a/2)) / a

    Args:
        target: The number t, in steps.
        noise: Width a of the noise, in steps, > 0. Default: 1, one step: dithering (ours).
        low: Smallest weight, in steps. Default: −3 (ours).
        high: Largest weight. Default: 2 (ours).
        points: Weights, evenly spaced, ≥ 2. Default: 1000: no point lies on a threshold (ours).

    Returns:
        Losses and gradients. ``records.StaircaseLoss``. Draw with ``plots.staircase_loss`` or
        ``plots.loss_gradients``.

    Raises:
        ValueError: If there is no noise, or the range or the number of points is empty.
    """
    if not (noise > 0 and low < high and points >= 2):
        raise ValueError(
            f"noise > 0, low < high and points ≥ 2 are needed, got {noise}, {low}, {high}, {points}"
        )
    w = torch.linspace(low, high, points, dtype=torch.float64, requires_grad=True)
    gradients = {}
    for surrogate in SURROGATES:
        loss = (round_weight(w, surrogate=surrogate) - target).square()
        gradients[surrogate] = torch.autograd.grad(loss.sum(), w)[0].numpy()
    x = w.detach().numpy()
    slope = (_loss(x + noise / 2, target) - _loss(x - noise / 2, target)) / noise
    return StaircaseLoss(
        x, _loss(x, target), _smoothed(x, target, noise), slope, gradients, target, noise
    )


def _loss(w: np.ndarray, target: float) -> np.ndarray:
    return (np.clip(np.round(w), LOW, HIGH) - target) ** 2


def _smoothed(w: np.ndarray, target: float, noise: float) -> np.ndarray:
    """E[L(w + ε)], exactly: the loss of each level times the share of the noise it catches."""
    inner = np.arange(LOW, HIGH) + 0.5
    edges = np.array([-np.inf, *inner, np.inf])
    below = np.clip((edges[:, None] - w) / noise + 0.5, 0, 1)
    return (np.arange(LOW, HIGH + 1) - target) ** 2 @ np.diff(below, axis=0)


class ClosedForm(torch.autograd.Function):
    """LSQ's two gradients written down by hand, without a clip: right once, wrong twice.

    Forward::

        v̂ = round(v/s) · s

    Backward, the same numbers as the straight-through form gives::

        ∂L/∂v = ∂L/∂v̂        ∂L/∂s = ∂L/∂v̂ · (round(v/s) − v/s)

    To differentiate again, autograd takes the derivative of these two lines. It finds that
    ∂L/∂v does not depend on s, and that ∂L/∂s does depend on v: the Hessian has two different
    mixed entries, as no function has.

    Source: a counter-example (ours), with the gradients of LSQ, arXiv 1902.08153, equation 3.
    """

    @staticmethod
    def forward(ctx, v: Tensor, s: Tensor) -> Tensor:
        """Round to the grid.

        Args:
            ctx: Where autograd keeps what the backward pass needs.
            v: Values, scalar.
            s: Step, scalar.

        Returns:
            The levels.
        """
        ctx.save_for_backward(v, s)
        return (v / s).round() * s

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two gradients.

        Args:
            ctx: What the forward pass kept.
            gradient: ∂L/∂v̂.

        Returns:
            ∂L/∂v and ∂L/∂s.
        """
        v, s = ctx.saved_tensors
        return gradient, gradient * ((v / s).round() - v / s)


def closed_form_loss(v: Float[Tensor, ""], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The loss v̂², with the gradients of ``ClosedForm``.

    Args:
        v: A value.
        s: The step.

    Returns:
        The loss.
    """
    return ClosedForm.apply(v, s).square()


def surrogate_loss(v: Float[Tensor, ""], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The loss v̂², with ``straight_through``: first gradients as in ``closed_form_loss``.

    Args:
        v: A value.
        s: The step.

    Returns:
        The loss.
    """
    ratio = v / s
    return (straight_through(ratio.round(), ratio) * s).square()
