"""Small measures for a study: of other images than the training ones, and single numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from qatviz.analysis.curvature import eigenvalues
from qatviz.analysis.entropy import code_entropy
from qatviz.datasets import DATA, Dataset, Split
from qatviz.quantize import quantizable_layers


def on_test_images(
    model: nn.Module, data: Dataset, *, analysis: Callable[..., Any], samples: int | None = None
) -> Any:
    """Another analysis, of test images instead of training images.

    For a study: an analysis that is given a ``Dataset`` looks at the training images.

    Args:
        model: A classifier in evaluation mode.
        data: The data set.
        analysis: Called with the model and a ``Split``.
        samples: How many of the images, the first; all if there are fewer, as in a dry run.
            Default: None: all.

    Returns:
        What the analysis returns.
    """
    return analysis(model, _first(data.test, samples))


def on_training_images(
    model: nn.Module, data: Dataset, *, analysis: Callable[..., Any], samples: int | None = None
) -> Any:
    """Another analysis, of some of the training images.

    Args:
        model: A classifier in evaluation mode.
        data: The data set.
        analysis: Called with the model and a ``Split``.
        samples: As ``on_test_images``.

    Returns:
        What the analysis returns.
    """
    return analysis(model, _first(data.train, samples))


def largest_eigenvalue(model: nn.Module, data: Any) -> dict[str, float]:
    """The largest eigenvalue of the Hessian, without its vector, which is as large as the model.

    Args:
        model: As ``eigenvalues``.
        data: As ``eigenvalues``.

    Returns:
        ``value``, in nats over weight squared, and its ``error``.
    """
    found = eigenvalues(model, data, 1, which="largest", progress=False)
    return {"value": float(found.values[0]), "error": float(found.errors[0])}


def weight_entropy(model: nn.Module, *, bits: int = 4) -> dict[str, float]:
    """The entropy of weight codes and of latent weights, averaged over a network's weights.

    Args:
        model: A quantized model.
        bits: Layers of at most so many bits count, so that the ends of a low-bit network do
            not. Default: 4 (as the oscillation tracker).

    Returns:
        ``codes``: mean of H over the weights, in bits (all channels of a layer pooled);
        ``channels``: the same with each output channel on its own; ``utilisation``: mean of H
        over the bits available, 0 to 1; ``latent``: mean differential entropy of w/s, in bits.

    Raises:
        ValueError: If no layer has so few bits.
    """
    record = code_entropy(model)
    chosen = record.bits <= bits
    if not chosen.any():
        raise ValueError(f"no layer has a weight quantizer of at most {bits} bits")
    by_name = {
        "codes": record.entropy,
        "channels": record.channel_entropy,
        "utilisation": record.utilisation,
        "latent": record.differential,
    }
    sizes = record.sizes[chosen]
    return {k: float(np.average(v[chosen], weights=sizes)) for k, v in by_name.items()}


def weight_distance(model: nn.Module, *, origin: str) -> float:
    """How far the weights of convolutions and linear layers are from those of a checkpoint.

    Args:
        model: Float or quantized; of the second the latent weights count.
        origin: Name of a checkpoint in ``data/runs``, such as "float_small_resnet".

    Returns:
        ‖w − w₀‖.

    Raises:
        ValueError: If the checkpoint lacks a layer or has it in another shape.
    """
    state = load_file(DATA / "runs" / f"{origin}.safetensors")
    total = 0.0
    for name, layer in quantizable_layers(model).items():
        weight, before = layer.weight.detach().cpu(), state.get(f"{name}.weight")
        if before is None or before.shape != weight.shape:
            raise ValueError(
                f"{origin} has no weight of {name} of shape {list(weight.shape)}: "
                f"the model was not made from it"
            )
        total += torch.sum((weight.double() - before.double()) ** 2).item()
    return total**0.5


def _first(split: Split, samples: int | None) -> Split:
    return split if samples is None else split.subset(min(samples, len(split)))
