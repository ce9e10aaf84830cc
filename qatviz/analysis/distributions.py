"""How weights and activations are spread, against the grid they are rounded to."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qatviz.calibration import check_images
from qatviz.evaluation import evaluating
from qatviz.quantize import check_ready, quantizable_layers, quantized_layers
from qatviz.quantizers import Quantizer
from qatviz.records import Histogram


def histogram(
    x: Float[Tensor, "*shape"],
    quantizer: nn.Module | None = None,
    *,
    label: str = "",
    bins: int = 100,
) -> Histogram:
    """Count the values of a tensor, and how its quantizer rounds them.

    Args:
        x: Any tensor, finite, not empty.
        quantizer: A calibrated quantizer; None or ``nn.Identity``: no grid.
        label: Name of the tensor.
        bins: Bins between the smallest and the largest value. Default: 100 (ours).

    Returns:
        The histogram. With a grid per channel there are no common levels: ``levels`` and ``used``
        are those of the codes, in units of each channel's own step. ``records.Histogram``. Draw
        with ``plots.histogram``.

    Raises:
        ValueError: If ``x`` is empty or not finite, or the quantizer is not calibrated.
    """
    if x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"histogram of {label!r}: {list(x.shape)} values, not all finite")
    x = x.detach().float()
    error, levels, used = 0.0, np.empty(0), np.empty(0, int)
    if isinstance(quantizer, Quantizer):
        if not quantizer.calibrated:
            raise ValueError(f"histogram of {label!r}: its quantizer is not calibrated")
        with torch.no_grad():
            error = (quantizer(x) - x).double().square().mean().item()
            levels, used = _occupancy(x, quantizer)
    counts, edges = np.histogram(x.cpu().numpy(), bins)
    signal = x.double().square().mean().item()
    return Histogram(label, counts, edges.astype(float), levels, used, error, signal)


def weight_histograms(model: nn.Module, *, bins: int = 100) -> dict[str, Histogram]:
    """Histograms of the latent weights of every convolution and linear layer.

    Args:
        model: Float, or quantized.
        bins: See ``histogram``.

    Returns:
        Histograms by layer name, with the grid where there is one. ``records.Histogram``. Draw with
        ``plots.histogram``.
    """
    return {
        name: histogram(
            layer.weight, getattr(layer, "weight_quantizer", None), label=name, bins=bins
        )
        for name, layer in quantizable_layers(model).items()
        if isinstance(getattr(layer, "weight", None), Tensor)
    }


@torch.no_grad()
def activation_histograms(
    model: nn.Module, images: Float[Tensor, "batch channels height width"], *, bins: int = 100
) -> dict[str, Histogram]:
    """Histograms of what arrives at every convolution, linear layer and ``QuantActivation``.

    Args:
        model: Float, or quantized and calibrated. Its state and mode do not change.
        images: Normalised images.
        bins: See ``histogram``.

    Returns:
        Histograms by layer name, in forward order, with the grid where there is one.
        ``records.Histogram``. Draw with ``plots.histogram``.

    Raises:
        ValueError: If a quantizer is not calibrated or the images do not fit the model.
    """
    check_ready(model)
    check_images(model, images)
    found: dict[str, Histogram] = {}
    layers = quantizable_layers(model) | quantized_layers(model)

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        grid = getattr(layer, "input_quantizer", getattr(layer, "quantizer", None))

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = histogram(args[0], grid, label=name, bins=bins)

        return layer.register_forward_pre_hook(hook)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    try:
        with evaluating(model):
            model(images.to(next(model.parameters(), images).device))
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _occupancy(x: Tensor, quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray]:
    """The levels, and how many values are rounded to each."""
    codes = (quantizer.codes(x) - quantizer.low).long().flatten()
    used = torch.bincount(codes, minlength=2**quantizer.bits).cpu().numpy()
    if quantizer.axis is not None:
        return np.arange(quantizer.low, quantizer.high + 1, dtype=float), used
    return quantizer.levels().double().cpu().numpy(), used
