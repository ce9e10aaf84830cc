"""Learned steps: their gradient, how fast they move, and where they end."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from qatviz.quantize import check_ready, quantized_layers
from qatviz.quantizers import LSQ
from qatviz.records import StepErrors, StepGradient, StepRatios, StepTrace

CANDIDATES = 200

Batch = tuple[
    Float[Tensor, "batch channels height width"],
    Int[Tensor, "batch"],
]


class LSQWithoutScale(LSQ):
    """LSQ without its gradient scale, to see what the scale is for. Do not train with it."""

    @override
    def gradient_scale(self, x: Float[Tensor, "*shape"]) -> float:
        return 1.0


def step_gradient(
    *, bits: int, signed: bool, low: float, high: float, points: int = 1001
) -> StepGradient:
    """Trace what LSQ's backward pass tells the step, against where a value lies on the grid.

    Args:
        bits: Bits of the grid.
        signed: Whether the grid has negative codes.
        low: Smallest v/s.
        high: Largest v/s.
        points: Values, evenly spaced. Default: 1001 (ours).

    Returns:
        ∂v̂/∂s of each value, without the gradient scale, from autograd; and that of PACT, which is
        a step's gradient Q_P where v is clipped and zero elsewhere (arXiv 1805.06085, equation 3,
        for its bound α = s·Q_P). ``records.StepGradient``. Draw with ``plots.step_gradient``.
    """
    ratio = torch.linspace(low, high, points)
    # One step per value, all equal to 1, so that each value's gradient stays its own.
    quantizer = LSQ(bits, signed=signed, axis=0)
    quantizer.step.data = torch.ones(points)
    (gradient,) = torch.autograd.grad(quantizer(ratio).sum(), quantizer.step)
    gradient = gradient / quantizer.gradient_scale(ratio)
    x = ratio.double().numpy()
    inside = (x > quantizer.low) & (x < quantizer.high)
    clipped = np.where(inside, 0.0, np.clip(x, quantizer.low, quantizer.high))
    return StepGradient(x, gradient.double().numpy(), clipped, quantizer.low, quantizer.high)


def step_ratios(student: nn.Module, batches: Iterable[Batch]) -> StepRatios:
    """Measure how large steps' updates are beside those of the weights, relative to each.

    R = (|∂L/∂s|/s) / (‖∂L/∂w‖/‖w‖), with the cross-entropy of each batch, averaged over the
    batches. BatchNorm is in training mode, as it is when updates are made.

    Args:
        student: A network quantized with ``LSQ``. A copy is used; it does not change.
        batches: Normalised images and labels.

    Returns:
        R for each quantizer, with the gradient scale and (divided by it) without.
        ``records.StepRatios``. Draw with ``plots.step_ratios``.

    Raises:
        ValueError: If a quantizer is not calibrated, or there is no batch.
    """
    check_ready(student)
    student = copy.deepcopy(student).train()
    found, grids = [], _steps(student)
    shapes = _watch_shapes(grids)
    for images, labels in batches:
        student.zero_grad()
        cross_entropy(student(images), labels).backward()
        found.append([_ratio(*grid) for grid in grids.values()])
    if not found:
        raise ValueError("step_ratios: batches is empty, at least one batch is needed")
    ratios = np.mean(found, 0)
    scale = np.array(
        [q.gradient_scale(shapes[name]) for name, (q, _) in grids.items()], dtype=float
    )
    return StepRatios(tuple(grids), _are_inputs(grids), ratios, ratios / scale, scale, len(found))


class StepRecorder:
    """An observer that writes down every learned step of a network.

    Args:
        every: Optimizer steps between two records, ≥ 1. Default: 5 (ours).
        label: Name of the run.
    """

    def __init__(self, *, every: int = 5, label: str = "") -> None:
        if every < 1:
            raise ValueError(f"StepRecorder: every must be 1 or more, got {every}")
        self.every, self.label = every, label
        self.names, self.is_input = (), np.empty(0, bool)
        self.steps, self.sizes = [], []

    def __call__(self, step: int, model: nn.Module) -> None:
        """Record the steps, if it is time.

        Args:
            step: Optimizer steps taken.
            model: A network quantized with ``LSQ``.
        """
        if step != 1 and step % self.every:
            return
        grids = _steps(model)
        self.names, self.is_input = tuple(grids), _are_inputs(grids)
        self.steps.append(step)
        self.sizes.append([q.step.detach().double().mean().item() for q, _ in grids.values()])

    @property
    def record(self) -> StepTrace:
        """What was recorded so far."""
        sizes = np.array(self.sizes, dtype=float).reshape(len(self.steps), len(self.names))
        return StepTrace(self.label, np.array(self.steps, int), sizes, self.names, self.is_input)


@torch.no_grad()
def step_errors(
    student: nn.Module, images: Float[Tensor, "batch channels height width"], *, p: float = 2.4
) -> StepErrors:
    """Compare each learned step with the one whose rounding error would be smallest.

    The error is that of the latent weights, or of what arrives at the layer for these images,
    on the codes that the quantizer has. 200 steps are tried, from 1/16 to 16 times the
    learned one, evenly on a logarithmic scale (2.8 % apart).

    Args:
        student: A network quantized with ``LSQ``, one step per layer. It does not change.
        images: Normalised images.
        p: Exponent of the error. Default: 2.4, as in ``lp_range``.

    Returns:
        Ratio of the steps and of the errors, for each quantizer. ``records.StepErrors``. Draw with
        ``plots.step_errors``.

    Raises:
        ValueError: If a quantizer is not calibrated.
    """
    check_ready(student)
    student = copy.deepcopy(student).eval()
    grids, seen = _steps(student), {}
    for name, (quantizer, _) in grids.items():
        quantizer.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0])
        )
    student(images)
    factors = np.geomspace(1 / 16, 16, CANDIDATES)
    ratio, excess = [], []
    for name, (quantizer, _) in grids.items():
        errors = _errors(seen[name], quantizer, factors, p)
        ratio.append(1 / factors[errors.argmin()])
        # The learned step itself lies between two candidates, and may be the best of all.
        excess.append(_errors(seen[name], quantizer, np.ones(1), p)[0] / errors.min())
    return StepErrors(tuple(grids), _are_inputs(grids), np.array(ratio), np.array(excess), p)


def _steps(model: nn.Module) -> dict[str, tuple[LSQ, nn.Module]]:
    """The learned quantizers and the layers they belong to, by name."""
    return {
        f"{name}.{kind}": (quantizer, layer)
        for name, layer in quantized_layers(model).items()
        for kind in ("weight", "input")
        if isinstance(quantizer := getattr(layer, f"{kind}_quantizer", None), LSQ)
    }


def _are_inputs(grids: dict[str, tuple[LSQ, nn.Module]]) -> np.ndarray:
    return np.array([quantizer.batched for quantizer, _ in grids.values()], dtype=bool)


def _ratio(quantizer: LSQ, layer: nn.Module) -> float:
    step, weight = quantizer.step, layer.weight
    of_step = step.grad.norm() / step.norm()
    return (of_step / (weight.grad.norm() / weight.norm())).item()


def _watch_shapes(grids: dict[str, tuple[LSQ, nn.Module]]) -> dict[str, Tensor]:
    """What passes through each quantizer, filled in by hooks, as tensors without memory."""
    seen = {}
    for name, (quantizer, _) in grids.items():
        quantizer.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach().to("meta"))
        )
    return seen


def _errors(x: Tensor, quantizer: LSQ, factors: np.ndarray, p: float) -> np.ndarray:
    """Mean |x̂ − x|^p at each multiple of the learned step."""
    step, errors = quantizer.step.item(), np.empty(len(factors))
    for index, factor in enumerate(factors):
        s = step * float(factor)
        rounded = (x / s).clamp(quantizer.low, quantizer.high).round() * s
        errors[index] = (rounded - x).abs().pow(p).double().mean().item()
    return errors
