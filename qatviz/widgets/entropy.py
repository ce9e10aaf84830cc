"""How many bits do the codes of a layer say? Drag the step of its grid."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import nn

from qatviz import analysis, plots
from qatviz.quantize import check_ready
from qatviz.records import CodeEntropy, Histogram
from qatviz.tracking import weight_quantized_layers
from qatviz.widgets.explorer import Explorer

Result = tuple[Histogram, CodeEntropy]


def entropy_explorer(models: Mapping[str, nn.Module], *, layer: str | None = None) -> Explorer:
    """Drag the step of a trained layer; see its weights under the grid, and what the codes say.

    Args:
        models: Calibrated networks by name, of the same layers. They do not change.
        layer: The layer that is shown first. Default: None: the one with most weights (ours).

    Returns:
        An explorer; ``result`` is the histogram of the layer and its ``CodeEntropy``.

    Raises:
        ValueError: If there is no network, one is not calibrated, has other quantized layers than
            the first, or a weight quantizer that does not train a step, or there is no such layer.
    """
    if not models:
        raise ValueError("entropy_explorer: no network to show")
    layers = {name: _stepped(name, model) for name, model in models.items()}
    names = list(next(iter(layers.values())))
    if different := [name for name, found in layers.items() if list(found) != names]:
        raise ValueError(f"entropy_explorer: {different[0]!r} has other layers than the first")
    first = max(names, key=lambda n: next(iter(layers.values()))[n].weight.numel())
    if (layer or first) not in names:
        raise ValueError(f"entropy_explorer: layer is {layer!r}; allowed: {', '.join(names)}")

    def compute(network: str, layer: str, step: float) -> Result:
        moved = deepcopy(layers[network][layer])
        with torch.no_grad():
            moved.weight_quantizer.step *= step
        histogram = analysis.histogram(moved.weight, moved.weight_quantizer, label="weights")
        record = analysis.code_entropy(nn.Sequential(moved), label=network)
        return histogram, replace(record, layers=(layer,))

    step = ipywidgets.FloatLogSlider(
        1, base=2, min=-2, max=2, step=0.25, description="step ×", readout_format=".2f"
    )
    return Explorer(
        compute,
        draw_entropy,
        network=ipywidgets.Dropdown(options=list(models), description="network"),
        layer=ipywidgets.Dropdown(options=names, value=layer or first, description="layer"),
        step=step,
        frames={"network": list(models), "step": [0.25, 0.35, 0.5, 0.6, 0.7, 0.85, 1.0, 1.4, 2.0]},
    )


def draw_entropy(figure: Figure, result: Result) -> None:
    """Draw the weights under the grid on the left, the share of each code on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    histogram, record = result
    left, right = figure.subplots(1, 2)
    plots.histogram(left, histogram)
    plots.code_occupancy(right, record, record.layers[0])


def _stepped(name: str, model: nn.Module) -> dict[str, nn.Module]:
    """The layers with a quantized weight, if all of them have a step."""
    check_ready(model)
    found = weight_quantized_layers(model)
    grids = [layer.weight_quantizer for layer in found.values()]
    if not grids or not all(isinstance(getattr(q, "step", None), nn.Parameter) for q in grids):
        raise ValueError(f"entropy_explorer: {name!r} needs weights whose quantizers train a step")
    return found
