"""Where levels should lie: the error of a uniform grid against its range and its bits."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from qatviz.calibration import Batches, calibrate
from qatviz.datasets import Split
from qatviz.evaluation import evaluate
from qatviz.quantize import quantize
from qatviz.quantizers import Affine, lp_range, min_max_range
from qatviz.quantizers.ranges import Bounds, Rows
from qatviz.records import BitsCurve, ChannelSQNR, RangeSweep

FindRange = Callable[[Rows, int], Bounds]


def scaled_range(rows: Rows, levels: int, *, share: float) -> Bounds:
    """A share of the range of the data: both ends pulled towards zero.

    Args:
        rows: One row per grid.
        levels: Levels of the grid (not used).
        share: 0 to 1; 1 is min-max, less clips the ends of the data.

    Returns:
        Lower and upper bound per row, each with zero between them.
    """
    lower, upper = min_max_range(rows, levels)
    return share * lower, share * upper


def symmetric_range(rows: Rows, levels: int) -> Bounds:
    """A range as wide below zero as above it: ±max|x|.

    Args:
        rows: One row per grid.
        levels: Levels of the grid (not used).

    Returns:
        Lower and upper bound per row.
    """
    largest = rows.abs().amax(1)
    return -largest, largest


def range_sweep(
    x: Float[Tensor, "*shape"], *, bits: int, points: int = 100, label: str = ""
) -> RangeSweep:
    """The error of a grid while its range shrinks from min-max to nothing.

    A value beyond the outermost levels is clipped; its whole error counts as clipping, all
    other error as rounding.

    Args:
        x: Weights or activations, finite, not all zero.
        bits: Bits of the grid, 1 to 8.
        points: Ranges, evenly spaced in (0, 1] of the range of the data. Default: 100 (as many
            as ``lp_range`` tries).
        label: Name of the tensor.

    Returns:
        Mean squared clipping and rounding error at each range. ``records.RangeSweep``. Draw with
        ``plots.range_sweep`` or ``plots.range_minima``.

    Raises:
        ValueError: If ``x`` is all zero, or ``points`` is below 2.
    """
    if points < 2:
        raise ValueError(f"range_sweep: points must be 2 or more, got {points}")
    x = x.detach().float()
    signal = x.double().square().mean().item()
    if signal == 0:
        raise ValueError(f"range_sweep of {label!r}: all {x.numel()} values are zero")
    shares = np.linspace(1 / points, 1, points)
    clipping, rounding = np.empty(points), np.empty(points)
    for index, share in enumerate(shares):
        grid = Affine(bits, find_range=partial(scaled_range, share=float(share)))
        grid.init_from(x)
        error, levels = (grid(x) - x).double().square(), grid.levels()
        clipped = (x < levels[0]) | (x > levels[-1])
        clipping[index] = error[clipped].sum().item() / x.numel()
        rounding[index] = error[~clipped].sum().item() / x.numel()
    return RangeSweep(label, bits, shares, clipping, rounding, signal)


def channel_sqnr(
    weight: Float[Tensor, "channels *rest"],
    *,
    bits: int,
    find_range: FindRange = lp_range,
    label: str = "",
) -> ChannelSQNR:
    """The SQNR of each output channel: one grid for the whole layer, or one for each channel.

    Args:
        weight: Weight of a convolution or linear layer.
        bits: Bits of the grids, 1 to 8.
        find_range: See ``Affine``. Default: ``lp_range``, as there.
        label: Name of the layer.

    Returns:
        Decibels per channel; NaN for a channel that is all zero. ``records.ChannelSQNR``. Draw with
        ``plots.channel_sqnr``.
    """
    weight = weight.detach().float()
    found = []
    for axis in (None, 0):
        grid = Affine(bits, axis=axis, find_range=find_range)
        grid.init_from(weight)
        found.append((weight, grid(weight)))
    tensor, channel = (_decibels(*pair, per_channel=True) for pair in found)
    overall = tuple(float(_decibels(*pair, per_channel=False)[0]) for pair in found)
    largest = weight.abs().flatten(1).amax(1).double().cpu().numpy()
    return ChannelSQNR(label, bits, largest, tensor, channel, *overall)


def sqnr_by_bits(
    x: Float[Tensor, "*shape"],
    *,
    bits: Iterable[int] = range(2, 9),
    find_range: FindRange = lp_range,
    label: str = "",
) -> BitsCurve:
    """The SQNR of one grid for a tensor, at several bit-widths.

    Args:
        x: Weights or activations, finite, not all zero.
        bits: Bits of the grids, each 1 to 8. Default: 2 to 8 (ours).
        find_range: See ``Affine``. Default: ``lp_range``, as there.
        label: Name of the curve, for a legend.

    Returns:
        Decibels against bits. ``records.BitsCurve``. Draw with ``plots.bits_curve`` and
        ``plots.six_decibels``.
    """
    x, bits = x.detach().float(), list(bits)
    values = np.empty(len(bits))
    for index, b in enumerate(bits):
        grid = Affine(b, find_range=find_range)
        grid.init_from(x)
        values[index] = _decibels(x, grid(x), per_channel=False)[0]
    return BitsCurve(label, np.array(bits), values, "SQNR (dB)")


def accuracy_by_bits(
    model: nn.Module,
    data: Split,
    photos: Batches,
    *,
    bits: Iterable[int] = range(2, 9),
    find_range: FindRange = lp_range,
    inputs: bool = True,
    ends: Iterable[str] = ("conv1", "fc"),
    label: str = "",
) -> BitsCurve:
    """The accuracy of a float network rounded to nearest, without training, against its bits.

    Weights have a grid per output channel, inputs one per layer. First and last layer have
    8 bits and min-max ranges throughout.

    Args:
        model: The float network. It is not modified.
        data: The images to classify.
        photos: Batches that the grids of the inputs are chosen from (see ``calibrate``).
        bits: Bits of all other layers, each 1 to 8. Default: 2 to 8 (ours).
        find_range: See ``Affine``. Default: ``lp_range``, as there.
        inputs: Whether the inputs of the layers are rounded too. Default: True (ours).
        ends: Patterns of the layers that keep 8 bits. Default: first and last layer (LSQ,
            arXiv 1902.08153, section 2.3, and most papers since).
        label: Name of the curve, for a legend.

    Returns:
        Accuracy, 0 to 1, against bits. ``records.BitsCurve``. Draw with ``plots.bits_curve``.
    """
    ends, bits, photos = tuple(ends), list(bits), list(photos)
    eight = partial(Affine, 8, find_range=min_max_range)
    values = np.empty(len(bits))
    for index, b in enumerate(bits):
        grid = partial(Affine, b, find_range=find_range)
        student = quantize(model, partial(grid, axis=0), grid if inputs else None, keep=ends)
        student = quantize(student, eight, eight if inputs else None, only=ends)
        if inputs:
            calibrate(student, photos)
        values[index] = evaluate(student, data)
    return BitsCurve(label, np.array(bits), values, "accuracy")


def _decibels(x: Tensor, quantized: Tensor, *, per_channel: bool) -> np.ndarray:
    """10·log10(E[x²]/E[(x̂−x)²]) for each channel, or for all values together."""
    rows = x.double().flatten(1) if per_channel else x.double().reshape(1, -1)
    error = quantized.double().reshape(rows.shape) - rows
    ratio = rows.square().sum(1) / error.square().sum(1)
    return 10 * ratio.log10().cpu().numpy()
