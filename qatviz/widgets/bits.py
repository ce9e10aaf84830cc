"""How many bits does a tensor need? Bits, signedness and step against a real layer."""

import ipywidgets
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from qatviz import analysis, plots
from qatviz.quantizers import LSQ
from qatviz.quantizers.base import BITS
from qatviz.records import Histogram, TransferCurve
from qatviz.widgets.explorer import Explorer


def bit_explorer(tensor: Float[Tensor, "*shape"], *, label: str, bits: int = 2) -> Explorer:
    """Drag bits, signedness and step; see the staircase, the values under the grid, the error.

    The grid is LSQ's: the step slider multiplies its initial step, 2·mean|v|/√Q_P.

    Args:
        tensor: Weights or activations of a layer.
        label: Name of the tensor, for the title.
        bits: Where the slider starts, 1 to 8. Default: 2 (ours).

    Returns:
        An explorer; ``result`` is the transfer curve and the histogram.

    Raises:
        ValueError: If bits are outside 1 to 8, or the tensor is empty or not finite.
    """
    check_start(tensor, bits, label)
    tensor = tensor.detach().float()
    reach = 1.1 * tensor.abs().max().item()

    def compute(bits: int, signed: bool, step: float) -> tuple[TransferCurve, Histogram]:
        quantizer = LSQ(bits, signed=signed)
        quantizer.init_from(tensor)
        with torch.no_grad():
            quantizer.step *= step
        curve = analysis.transfer_curve(quantizer, low=-reach, high=reach)
        return curve, analysis.histogram(tensor, quantizer, label=label)

    # Negative values need a signed grid; a student may still try without.
    signed = bool((tensor < 0).any())
    return Explorer(
        compute,
        draw_bits,
        bits=ipywidgets.IntSlider(bits, 1, 8, description="bits"),
        signed=ipywidgets.Checkbox(signed, description="signed", indent=False),
        step=ipywidgets.FloatLogSlider(
            1, base=2, min=-2, max=2, step=0.25, description="step ×", readout_format=".2f"
        ),
        frames={"bits": range(2, 9), "step": [0.25, 0.5, 1.0, 2.0]},
    )


def draw_bits(figure: Figure, result: tuple[TransferCurve, Histogram]) -> None:
    """Draw the staircase on the left, the values under the grid on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    curve, histogram = result
    left, right = figure.subplots(1, 2)
    plots.transfer_curve(left, curve)
    plots.histogram(right, histogram)


def check_start(tensor: Float[Tensor, "*shape"], bits: int, label: str) -> None:
    """Refuse what an explorer of one tensor cannot start from.

    Args:
        tensor: Weights or activations.
        bits: Where the slider of bits starts.
        label: Name of the tensor, for the message.

    Raises:
        ValueError: If bits are outside 1 to 8, or the tensor is empty or not finite.
    """
    if bits not in BITS:
        raise ValueError(f"explorer of {label!r}: bits must be from 1 to 8, got {bits}")
    if tensor.numel() == 0 or not tensor.isfinite().all():
        raise ValueError(f"explorer of {label!r}, not all finite: {list(tensor.shape)} values")
