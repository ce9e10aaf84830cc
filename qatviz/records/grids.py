"""Grids: what they do to a number and to a tensor, and how large their errors are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class Histogram:
    """How the values of one tensor are spread, and the grid they are rounded to.

    Args:
        label: Name of the tensor.
        counts: Values in each bin.
        edges: Borders of the bins, ascending, one more than counts.
        levels: All levels of the grid; empty where there is no quantizer.
        used: Values rounded to each level.
        mean_squared_error: Mean of (x̂ − x)²; zero where there is no quantizer.
        signal: Mean of x².
    """

    label: str
    counts: Int[Array, "bins"]
    edges: Float[Array, "borders"]
    levels: Float[Array, "levels"]
    used: Int[Array, "levels"]
    mean_squared_error: float
    signal: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in decibels, 10·log10(E[x²]/E[(x̂−x)²])."""
        if self.mean_squared_error == 0:
            return float("inf")
        return 10 * float(np.log10(self.signal / self.mean_squared_error))


@dataclass(frozen=True, eq=False)
class RangeSweep:
    """The error of one uniform grid while its range shrinks.

    Args:
        label: Name of the tensor.
        bits: Bits of the grid.
        shares: Ranges tried, as shares of the range of the data, ascending, up to 1.
        clipping: Mean squared error of the values beyond the outermost levels, over all values.
        rounding: Mean squared error of the others, over all values.
        signal: Mean of x².
    """

    label: str
    bits: int
    shares: Float[Array, "points"]
    clipping: Float[Array, "points"]
    rounding: Float[Array, "points"]
    signal: float

    @property
    def total(self) -> Float[Array, "points"]:
        """Mean squared error at each range."""
        return self.clipping + self.rounding

    @property
    def best(self) -> int:
        """Index of the range whose mean squared error is smallest."""
        return int(self.total.argmin())


@dataclass(frozen=True, eq=False)
class ChannelSQNR:
    """What each channel of a weight gets from a shared grid, and from a grid of its own.

    Args:
        label: Name of the layer.
        bits: Bits of the grids.
        largest: Largest magnitude in each channel.
        per_tensor: SQNR in decibels of each channel, one grid for all.
        per_channel: SQNR in decibels of each channel, one grid each.
        tensor_overall: SQNR in decibels of the whole layer, one grid for all.
        channel_overall: SQNR in decibels of the whole layer, one grid each.
    """

    label: str
    bits: int
    largest: Float[Array, "channels"]
    per_tensor: Float[Array, "channels"]
    per_channel: Float[Array, "channels"]
    tensor_overall: float
    channel_overall: float


@dataclass(frozen=True, eq=False)
class BitsCurve:
    """A number against bits.

    Args:
        label: Name of the curve, for a legend.
        bits: Bit-widths.
        values: The number at each.
        quantity: What the number is, with its unit.
    """

    label: str
    bits: Int[Array, "widths"]
    values: Float[Array, "widths"]
    quantity: str


@dataclass(frozen=True, eq=False)
class TransferCurve:
    """What a quantizer does to one number, and what its backward pass claims it does.

    Args:
        x: Inputs, ascending.
        y: Outputs, in the units of ``x``.
        gradient: ∂y/∂x as the backward pass returns it.
        levels: All levels of the grid.
        label: Name of the quantizer, for a legend.
    """

    x: Float[Array, "points"]
    y: Float[Array, "points"]
    gradient: Float[Array, "points"]
    levels: Float[Array, "levels"]
    label: str

    @property
    def error(self) -> Float[Array, "points"]:
        """Rounding and clipping error y − x."""
        return self.y - self.x
