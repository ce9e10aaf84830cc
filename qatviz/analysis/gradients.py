"""What the gradient of a quantized network says, and whether it points downhill."""

import copy

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from qatviz.calibration import check_images
from qatviz.quantize import check_ready, quantizable_layers, quantizers
from qatviz.quantizers import Quantizer, straight_through
from qatviz.records import Descent, GradientAgreement

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, "batch"]


class TrueGradient(nn.Module):
    """A quantizer with the gradient that rounding really has: zero.

    Forward:  x̂ = quantizer(x)
    Backward: ∂x̂/∂x = 0

    Args:
        quantizer: A calibrated quantizer.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    @override
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return straight_through(self.quantizer(x), 0 * x)


def without_surrogate(student: nn.Module) -> nn.Module:
    """Copy a quantized network and give every quantizer its true gradient, zero.

    Args:
        student: A quantized model. It is not modified.

    Returns:
        A copy whose outputs are the same.
    """
    twin = copy.deepcopy(student)
    for name, quantizer in quantizers(twin).items():
        twin.set_submodule(name, TrueGradient(quantizer))
    return twin


def gradient_agreement(
    model: nn.Module, student: nn.Module, images: Images, labels: Labels, *, label: str = ""
) -> GradientAgreement:
    """Compare the weight gradients of a quantized network with those of the float network.

    Both are gradients of the mean cross-entropy on the same images, in evaluation mode.

    Args:
        model: The float network.
        student: A calibrated quantized copy of it (or ``without_surrogate`` of one).
        images: Normalised images.
        labels: Class numbers.
        label: Name of the quantized network. Default: none (ours).

    Returns:
        The agreement, layer by layer. ``records.GradientAgreement``. Draw with
        ``plots.gradient_agreement``.

    Raises:
        ValueError: If the student is not calibrated, the images do not fit, or the two
            networks have no layer in common.
    """
    check_ready(student)
    check_images(model, images)
    layers = [name for name in quantizable_layers(model) if name in quantizable_layers(student)]
    if not layers:
        raise ValueError("gradient_agreement: the two networks have no layer in common")
    reference, got = (_gradients(m, images, labels) for m in (model, student))
    pairs = [(reference[f"{name}.weight"], got[f"{name}.weight"]) for name in layers]
    return GradientAgreement(
        layers=tuple(layers),
        cosine=np.array([_cosine(a, b) for a, b in pairs]),
        zeros=np.array([(b == 0).double().mean().item() for _, b in pairs]),
        parameters=sum(g.numel() for g in got.values()),
        reached=sum(int((g != 0).sum()) for g in got.values()),
        label=label,
    )


def descent(
    student: nn.Module,
    images: Images,
    labels: Labels,
    *,
    lengths: tuple[float, ...] = (0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003),
    draws: int = 5,
    seed: int = 0,
    label: str = "",
) -> Descent:
    """Move all latent weights against their gradient, and along shuffles of it.

    A shuffled gradient has the same numbers in each layer, in a random order: the same
    length, and no knowledge of the images.

    Args:
        student: A calibrated quantized network, or a float one. Its state does not change.
        images: Normalised images: those of the gradient and of the losses.
        labels: Class numbers.
        lengths: Distances, as shares of the norm of all weights. Default: up to 0.3 % (ours).
        draws: Shuffles. Default: 5 (ours).
        seed: Seed of the shuffles. Default: 0.
        label: Name of the network. Default: none (ours).

    Returns:
        The mean cross-entropy at every distance. ``records.Descent``. Draw with ``plots.descent``.

    Raises:
        ValueError: If the student is not calibrated, the images do not fit, or all gradients
            are zero.
    """
    check_ready(student)
    check_images(student, images)
    names = [f"{name}.weight" for name in quantizable_layers(student)]
    found = _gradients(student, images, labels)
    gradient = [found[name] for name in names]
    if not any(g.any() for g in gradient):
        raise ValueError("descent: every weight gradient is zero, there is no direction to go")
    twin = copy.deepcopy(student).eval()
    generator = torch.Generator().manual_seed(seed)

    def losses(direction: list[Tensor]) -> list[float]:
        scale = _norm([student.get_parameter(n) for n in names]) / _norm(direction)
        found = []
        for length in lengths:
            with torch.no_grad():
                for name, d in zip(names, direction, strict=True):
                    twin.get_parameter(name).copy_(student.get_parameter(name) - length * scale * d)
                found.append(cross_entropy(twin(images), labels).item())
        return found

    shuffles = [[_shuffle(g, generator) for g in gradient] for _ in range(draws)]
    return Descent(
        length=np.array(lengths),
        along=np.array(losses(gradient)),
        shuffled=np.array([losses(shuffle) for shuffle in shuffles]).reshape(draws, len(lengths)),
        label=label,
    )


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of the parameters outside quantizers, by name, on a copy in evaluation mode."""
    twin = copy.deepcopy(model).eval()
    inside = {id(p) for q in quantizers(twin).values() for p in q.parameters()}
    named = {name: p for name, p in twin.named_parameters() if id(p) not in inside}
    loss = cross_entropy(twin(images), labels)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    norms = (a.norm() * b.norm()).item()
    return (a @ b).item() / norms if norms > 0 else float("nan")


def _norm(tensors: list[Tensor]) -> float:
    return torch.cat([t.detach().flatten() for t in tensors]).norm().item()


def _shuffle(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.flatten()[order].reshape(tensor.shape)
