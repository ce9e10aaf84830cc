"""Pull weights to the middle of their bins, so that they stop oscillating."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.methods.base import Method, Wrapper, check_between, cosine_between
from qatviz.quantizers import Quantizer
from qatviz.quantizers.base import widened
from qatviz.tracking import rounds_to_nearest, weight_quantized_layers


class Dampening(Wrapper):
    """Train by another method, with a penalty on the distance of weights from their levels.

    Added to the terms of the method, with ŵ the quantized weight of a layer, l and u the lowest
    and highest of its levels, and t the share of the steps taken::

        L = λ(t) · ∑ over layers ‖ŵ − clip(w, l, u)‖²      λ(t) = λ·(1 − cos(π·(t − t₀)/(1 − t₀)))/2

    λ(t) is 0 until t₀. The norm is summed over the output channels and averaged over the rest
    of each kernel ("kernel_mean" of the released code). ŵ, l and u are constants, so with N the
    weights of one output channel of a layer::

        ∂L/∂w = λ(t) · 2·(w − ŵ)/N   where l < w < u, else 0

    and nothing else has a gradient: the step of the grid, or its range, learns from the method
    alone, and weights outside of the range, which are on an end level already, are not pulled.

    All layers with a weight quantizer count, of any bits. Quantizers whose levels are not the
    nearest to the weights (``rounds_to_nearest``: EWGS, DoReFa, NIPQ with noise, AdaRound) are
    refused. A wrapper, because the penalty belongs to no particular loss.

    Args:
        method: How the student is trained.
        strength: λ at the end, ≥ 0. Default: 0.1 (paper's released code). With 0 nothing is
            computed.
        start: t₀, 0 up to but not including 1. Default: 0.25 (the same).

    Raises:
        ValueError: If a number is outside its range.

    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv
    2203.11086, section 4, and its released code, from which aggregation and schedule are.
    """

    def __init__(self, method: Method, strength: float = 0.1, start: float = 0.25) -> None:
        super().__init__(method)
        check_between("Dampening", "strength", strength, 0, float("inf"), open_above=True)
        check_between("Dampening", "start", start, 0, 1, open_above=True)
        self.strength, self.start = strength, start
        self._prepared, self._progress = (), 0.0

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Prepare the method, and find the quantized weights.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.

        Raises:
            ValueError: If the student has no weight quantizer, or one that does not round to
                the nearest level; names it.
        """
        self.method.prepare(student, data)
        layers = weight_quantized_layers(student)
        check_nearest("Dampening", layers)
        self._prepared, self._progress = tuple(layers.values()), 0.0

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        terms = self.method.loss(forward, images, labels)
        strength = self.strength_at(self._progress)
        if strength == 0:
            penalty = torch.zeros((), device=images.device)
        else:
            penalty = strength * torch.stack([distance(x) for x in self._prepared]).sum()
        return terms | {"dampening": penalty}

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        self.method.after_step(batch, progress)
        self._progress = progress
        if progress >= 1:
            self._prepared = ()

    def strength_at(self, progress: float) -> float:
        """The strength at a moment of the run.

        Args:
            progress: t, 0 to 1.

        Returns:
            λ(t).
        """
        return cosine_between(0.0, self.strength, self.start, progress)

    def get_extra_state(self) -> float:
        """The share of the steps taken, for ``state_dict``.

        Returns:
            0 to 1.
        """
        return self._progress

    def set_extra_state(self, state: float) -> None:
        """Go on from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self._progress = float(state)


def distance(layer: nn.Module) -> Float[Tensor, ""]:
    """‖ŵ − clip(w, l, u)‖² of a layer, summed over output channels, averaged over the rest.

    Args:
        layer: One of ``weight_quantized_layers``.

    Returns:
        A scalar in squared units of the weight, differentiable in the weight alone.
    """
    quantizer, weight = layer.weight_quantizer, widened(layer.weight)
    with torch.no_grad():
        level = quantizer.dequantize(quantizer.codes(weight))
        low, high = _range(quantizer, weight)
    return (level - weight.clamp(low, high)).square().sum(0).mean()


def check_nearest(owner: str, layers: dict[str, nn.Module]) -> None:
    """Refuse layers whose weights do not become their nearest levels, or that there are none.

    Args:
        owner: The method that needs it.
        layers: Layers with a weight quantizer, by name.

    Raises:
        ValueError: Names the layers and their quantizers.
    """
    if not layers:
        raise ValueError(f"{owner}: the student has no weight quantizer")
    bad = [
        f"{name} ({type(layer.weight_quantizer).__name__})"
        for name, layer in layers.items()
        if not rounds_to_nearest(layer)
    ]
    if bad:
        raise ValueError(
            f"{owner} needs weights that are rounded to the nearest level, as by LSQ, LSQPlus, "
            f"Affine or AffineLSQ; these are not: {', '.join(bad)}"
        )


def _range(quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The outermost levels, shaped so that they broadcast against the weight."""
    shape = [1] * weight.ndim
    if quantizer.axis is not None:
        shape[quantizer.axis] = weight.shape[quantizer.axis]
    low, high = (
        quantizer.dequantize(weight.new_full(shape, float(code)))
        for code in (quantizer.low, quantizer.high)
    )
    return low, high
