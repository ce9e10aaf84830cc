"""The curve of a quantizer: output and surrogate gradient against input."""

import numpy as np
import torch

from qatviz.quantizers import Quantizer
from qatviz.records import TransferCurve


def transfer_curve(
    quantizer: Quantizer,
    *,
    low: float,
    high: float,
    points: int = 1001,
    label: str | None = None,
) -> TransferCurve:
    """Trace what a quantizer returns, and what its backward pass claims, over a range.

    Args:
        quantizer: A calibrated quantizer with one grid.
        low: Smallest input, in the units of the quantized tensor.
        high: Largest input.
        points: Inputs, evenly spaced, ≥ 2. Default: 1001 (ours).
        label: Name for a legend. Default: class and bits.

    Returns:
        The curve. ``records.TransferCurve``. Draw with ``plots.transfer_curve`` or
        ``plots.surrogate_gradient``.

    Raises:
        ValueError: If the quantizer is not calibrated or has a grid per channel, or the range
            or the number of points is empty.
    """
    if not quantizer.calibrated:
        raise ValueError("transfer_curve: the quantizer is not calibrated; call init_from(x)")
    if quantizer.axis is not None:
        raise ValueError(f"transfer_curve: one grid is needed, got one per axis {quantizer.axis}")
    if not low < high or points < 2:
        raise ValueError(f"transfer_curve: low < high and points ≥ 2, got {low}, {high}, {points}")
    like = next((t for t in (*quantizer.parameters(), *quantizer.buffers())), torch.empty(0))
    x = torch.linspace(low, high, points, device=like.device, requires_grad=True)
    y = quantizer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return TransferCurve(
        x=_array(x),
        y=_array(y),
        gradient=_array(gradient),
        levels=_array(quantizer.levels()),
        label=label or f"{type(quantizer).__name__}, {quantizer.bits} bit",
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
