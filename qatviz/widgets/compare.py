"""Which quantizer does what? Any two of them, over the same weights or activations."""

import ipywidgets
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from qatviz import analysis, plots
from qatviz.records import Histogram, ZooCurve, ZooErrors
from qatviz.widgets.bits import check_start
from qatviz.widgets.explorer import Explorer

Result = tuple[tuple[ZooCurve, ZooCurve], Histogram, tuple[ZooErrors, ZooErrors]]
KINDS = ("weights", "activations")


def compare_explorer(
    weights: Float[Tensor, "*shape"],
    activations: Float[Tensor, "*more"],
    *,
    first: str = "LSQ",
    second: str = "EWGS",
    bits: int = 2,
    label: str = "",
) -> Explorer:
    """Choose two quantizers, bits and a tensor; see both staircases, gradients and errors.

    Each quantizer is as it begins, before any training. Weights have signed grids, activations
    unsigned ones; where a quantizer has no such grid, the picture says so. δ of EWGS is 1, for
    the eye.

    Args:
        weights: Weights of a layer, some negative.
        activations: What arrives there after a ReLU, none negative.
        first: One of ``analysis.zoo_names()``. Default: "LSQ" (ours).
        second: Another. Default: "EWGS" (ours).
        bits: Where the slider starts, 1 to 8. Default: 2 (ours).
        label: Name of the layer, for the title.

    Returns:
        An explorer; ``result`` is both curves, the histogram, and both errors.

    Raises:
        ValueError: If bits are outside 1 to 8, a name is unknown, or a tensor is empty or not
            finite or has the wrong signs.
    """
    names, tensors = analysis.zoo_names(), dict(zip(KINDS, (weights, activations), strict=True))
    for name in (first, second):
        if name not in names:
            raise ValueError(f"compare_explorer: no quantizer {name!r}, there are {names}")
    for kind, tensor in tensors.items():
        check_start(tensor, bits, kind)
        if bool((tensor < 0).any()) != (kind == "weights"):
            raise ValueError("compare_explorer: only weights are negative, activations never")

    def compute(first: str, second: str, bits: int, tensor: str) -> Result:
        signed, x = tensor == "weights", tensors[tensor].detach().float()
        both = [analysis.zoo_curve(n, x, bits=bits, signed=signed) for n in (first, second)]
        errors = [
            analysis.zoo_errors(x, bits=[bits], names=[n], label=tensor) for n in (first, second)
        ]
        title = f"{label} {tensor}, {bits} bit".strip()
        return tuple(both), analysis.histogram(x, label=title), tuple(errors)

    def dropdown(options: tuple[str, ...], value: str, description: str) -> ipywidgets.Dropdown:
        return ipywidgets.Dropdown(options=options, value=value, description=description)

    return Explorer(
        compute,
        draw_comparison,
        first=dropdown(names, first, "first"),
        second=dropdown(names, second, "second"),
        bits=ipywidgets.IntSlider(bits, 1, 8, description="bits"),
        tensor=dropdown(KINDS, KINDS[0], "tensor"),
        frames={"second": names, "bits": [2, 4], "tensor": KINDS},
    )


def draw_comparison(figure: Figure, result: Result) -> None:
    """Draw both staircases over the values on the left, both gradients on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    curves, histogram, errors = result
    left, right = figure.subplots(1, 2)
    plots.compared(left, right, curves, histogram)
    told = "; ".join(f"{e.names[0]} {e.best[0, 0]:.1f} dB" for e in errors)
    figure.suptitle(f"SQNR after the best scalar, before training: {told}", fontsize="medium")
