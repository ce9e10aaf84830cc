"""Several quantizers beside each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from qatviz.records.grids import TransferCurve


@dataclass(frozen=True, eq=False)
class ZooCurve:
    """The staircase of one of several quantizers, all calibrated on the same tensor.

    Args:
        name: Name of the quantizer.
        curve: Output and gradient, as ``analysis.transfer_curve`` returns them, times ``scale``.
        opposed: (∂L/∂x)/(∂L/∂x̂) for ∂L/∂x̂ = −1, times ``scale``; ``curve.gradient`` is that
            for +1.
        band: Lowest and highest output that training may make of each input; two empty arrays
            where training computes the staircase.
        band_label: What the band is; "" where there is none.
        scale: What levels were multiplied by: 1, or for a quantizer whose levels have units of
            their own the factor that makes the error on the tensor least.
        signed: Whether the grid is that of weights.
    """

    name: str
    curve: TransferCurve
    opposed: Float[Array, "points"]
    band: tuple[Float[Array, "..."], Float[Array, "..."]]
    band_label: str
    scale: float
    signed: bool

    @property
    def asymmetric(self) -> bool:
        """Whether the gradient depends on the sign of the gradient that comes in."""
        return not np.allclose(self.opposed, self.curve.gradient, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True, eq=False)
class LearnedGrid:
    """What a quantizer's own parameters became when only they were trained, on one layer.

    Args:
        name: Name of the quantizer.
        part: "weight" or "input": what is quantized.
        bits: Bits of the grid.
        loss: ‖ŷ − y‖²/‖y‖² of the layer's output y (without bias) as training saw it, before
            each step; empty where there is nothing to learn.
        before: The same before training, in evaluation.
        after: The same after training, in evaluation.
        levels_before: Levels before training.
        levels_after: Levels after training.
        parameters_before: Parameters by name; empty where there is nothing to learn.
        parameters_after: The same after training.
        scale: What levels were multiplied by before and after; 1 unless they have units of
            their own.
        moved: Share of the values that were rounded to another code after than before.
    """

    name: str
    part: str
    bits: int
    loss: Float[Array, "steps"]
    before: float
    after: float
    levels_before: Float[Array, "levels"]
    levels_after: Float[Array, "levels"]
    parameters_before: dict[str, Float[Array, "..."]]
    parameters_after: dict[str, Float[Array, "..."]]
    scale: tuple[float, float]
    moved: float

    @property
    def learned(self) -> int:
        """How many numbers were learned."""
        return sum(values.size for values in self.parameters_after.values())


@dataclass(frozen=True, eq=False)
class ZooErrors:
    """The error of several quantizers on one tensor, against bits.

    Args:
        label: Name of the tensor.
        bits: Bit-widths.
        names: Quantizers.
        best: 10·log10(‖x‖²/min_c ‖x − c·x̂‖²) in decibels, a row per quantizer; NaN where a
            quantizer does not exist.
        plain: 10·log10(‖x‖²/‖x − x̂‖²); NaN also where levels have units of their own.
        values: Values of the tensor that were rounded.
    """

    label: str
    bits: Int[Array, "widths"]
    names: tuple[str, ...]
    best: Float[Array, "quantizers widths"]
    plain: Float[Array, "quantizers widths"]
    values: int


@dataclass(frozen=True, eq=False)
class Released:
    """A quantizer as its paper intends it, beside what released code computes.

    Args:
        title: What differs.
        label: Name of the tensor that errors were measured on.
        intended: The curve as intended.
        released: The curve as released.
        used: Share of the levels that take any value of the tensor: intended, released.
        sqnr: 10·log10(‖x‖²/‖x − x̂‖²) in decibels: intended, released.
        best: The same after the best scalar, 10·log10(‖x‖²/min_c ‖x − c·x̂‖²).
        gradient: Whether what differs is the gradient, not the output.
    """

    title: str
    label: str
    intended: TransferCurve
    released: TransferCurve
    used: tuple[float, float]
    sqnr: tuple[float, float]
    best: tuple[float, float]
    gradient: bool
