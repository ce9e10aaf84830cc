"""Where should the ends of a grid lie? Bits and clip range against a real tensor."""

import ipywidgets
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from qatviz import analysis, plots
from qatviz.analysis.grids import scaled_range
from qatviz.quantizers import Affine
from qatviz.records import Histogram, RangeSweep
from qatviz.widgets.bits import check_start
from qatviz.widgets.explorer import Explorer

Result = tuple[Histogram, RangeSweep, float]


def range_explorer(tensor: Float[Tensor, "*shape"], *, label: str, bits: int = 3) -> Explorer:
    """Drag the range of a grid; see which values it clips, and the error of both kinds.

    Args:
        tensor: Weights or activations of a layer.
        label: Name of the tensor, for the title.
        bits: Where the slider starts, 1 to 8. Default: 3 (ours).

    Returns:
        An explorer; ``result`` is the histogram, the sweep over all ranges, and the share of
        the min-max range that was chosen.

    Raises:
        ValueError: If bits are outside 1 to 8, or the tensor is empty or not finite.
    """
    check_start(tensor, bits, label)
    tensor = tensor.detach().float()
    sweeps: dict[int, RangeSweep] = {}

    def compute(bits: int, share: float) -> Result:
        if bits not in sweeps:
            sweeps[bits] = analysis.range_sweep(tensor, bits=bits, label=label)
        grid = Affine(bits, find_range=lambda rows, n: scaled_range(rows, n, share=share / 100))
        grid.init_from(tensor)
        return analysis.histogram(tensor, grid, label=label), sweeps[bits], share

    return Explorer(
        compute,
        draw_ranges,
        bits=ipywidgets.IntSlider(bits, 1, 8, description="bits"),
        share=ipywidgets.FloatSlider(
            100, min=5, max=100, step=5, description="range (%)", readout_format=".0f"
        ),
        frames={"bits": [2, 3, 4], "share": [100.0, 85.0, 70.0, 55.0, 40.0, 30.0, 20.0, 10.0]},
    )


def draw_ranges(figure: Figure, result: Result) -> None:
    """Draw the values under the grid on the left, the error against the range on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    histogram, sweep, share = result
    left, right = figure.subplots(1, 2)
    plots.histogram(left, histogram)
    plots.range_sweep(right, sweep)
    right.axvline(share, color=plots.COLOURS["levels"], lw=1)
