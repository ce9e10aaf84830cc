"""How much the integer codes of a quantized network say: their entropy in bits."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array


def plug_in_entropy(counts: Shaped[Array, "*rows codes"]) -> Float[Array, "*rows"] | float:
    """The entropy of the shares themselves, H = −∑ p·log₂ p.

    Args:
        counts: How often each code occurs, one distribution per row.

    Returns:
        Bits; NaN for a row without any.
    """
    shares = _shares(counts)
    return 0.0 - (shares * _log2(shares)).sum(-1)  # not −0


def corrected_entropy(counts: Shaped[Array, "*rows codes"]) -> Float[Array, "*rows"] | float:
    """The entropy with the correction of Miller and Madow, H + (K − 1)/(2N·ln 2).

    N numbers, K codes that occur. Shares measured on few numbers look more uneven than they
    are, so that H is too low by about this much.

    Args:
        counts: How often each code occurs, one distribution per row.

    Returns:
        Bits; NaN for a row without any.

    Source: Miller 1955, "Note on the bias of information estimates".
    """
    total = counts.sum(-1)
    occurring = (counts > 0).sum(-1)
    missing = (occurring - 1) / (2 * np.maximum(total, 1) * np.log(2))
    return plug_in_entropy(counts) + missing


def entropy_error(counts: Shaped[Array, "*rows codes"]) -> Float[Array, "*rows"] | float:
    """The standard error of the plug-in entropy, √((∑ p·log₂² p − H²)/N).

    By the delta method, for N independent draws; zero for a uniform distribution, of which the
    first derivative vanishes.

    Args:
        counts: How often each code occurs, one distribution per row.

    Returns:
        Bits; NaN for a row without any.
    """
    shares, total = _shares(counts), counts.sum(-1)
    squares = (shares * _log2(shares) ** 2).sum(-1)
    variance = np.maximum(squares - plug_in_entropy(counts) ** 2, 0)
    return np.sqrt(variance / np.maximum(total, 1))


def _shares(counts: Array) -> Array:
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def _log2(shares: Array) -> Array:
    """log₂ p, and 0 where p is 0."""
    return np.log2(np.where(shares == 0, 1, shares))


@dataclass(frozen=True, eq=False)
class CodeEntropy:
    """The integer codes of every quantized tensor of a network, counted.

    Args:
        label: Name of the network.
        of: "weights" or "inputs".
        layers: Names of the layers.
        bits: Bits per code.
        low: The lowest code of each grid.
        counts: By layer, how many numbers have each code that the grid has, from the lowest up.
        nonzero: The same, of the numbers that are not rounded to exactly zero.
        channels: By layer, the counts of each output channel; no rows for inputs.
        error: Standard error of the entropy of each layer, in bits. Of weights by the delta
            method, as if they were independent draws; of inputs by leaving out one tenth of the
            images at a time, because pixels of one image are not.
        differential: Entropy of the unrounded numbers in units of the step, log₂, from a
            histogram; NaN where there is none.
        compressed: Bits per number that a general compressor (LZMA) needs for the codes in their
            order; NaN where not tried.
        filters: How many output channels each layer has; 0 for inputs.
        dead: How many of them are rounded to zero as a whole.
        samples: Images that were looked at; 0 for weights.
    """

    label: str
    of: str
    layers: tuple[str, ...]
    bits: Int[Array, "layers"]
    low: Int[Array, "layers"]
    counts: tuple[Int[Array, "_"], ...]
    nonzero: tuple[Int[Array, "_"], ...]
    channels: tuple[Int[Array, "_ _"], ...]
    error: Float[Array, "layers"]
    differential: Float[Array, "layers"]
    compressed: Float[Array, "layers"]
    filters: Int[Array, "layers"]
    dead: Int[Array, "layers"]
    samples: int

    @property
    def sizes(self) -> Int[Array, "layers"]:
        """Numbers in each layer, n."""
        return np.array([c.sum() for c in self.counts])

    @property
    def levels(self) -> Int[Array, "layers"]:
        """Codes that each grid has: 2^bits, or fewer where its quantizer has fewer."""
        return np.array([len(c) for c in self.counts])

    @property
    def entropy(self) -> Float[Array, "layers"]:
        """H of each layer in bits per number, plug-in."""
        return np.array([plug_in_entropy(c) for c in self.counts])

    @property
    def corrected(self) -> Float[Array, "layers"]:
        """H of each layer in bits per number, with the correction of Miller and Madow."""
        return np.array([corrected_entropy(c) for c in self.counts])

    @property
    def without_zeros(self) -> Float[Array, "layers"]:
        """H of the numbers that are not rounded to zero, in bits; NaN where there are none."""
        return np.array([plug_in_entropy(c) for c in self.nonzero])

    @property
    def utilisation(self) -> Float[Array, "layers"]:
        """η = H/log₂(levels), 0 to 1."""
        return self.entropy / np.log2(self.levels)

    @property
    def channel_entropy(self) -> Float[Array, "layers"]:
        """Mean over output channels of the entropy within each, in bits, plug-in."""
        return np.array([_mean(plug_in_entropy(c)) for c in self.channels])

    @property
    def channel_corrected(self) -> Float[Array, "layers"]:
        """The same with the correction of Miller and Madow, large where filters are small."""
        return np.array([_mean(corrected_entropy(c)) for c in self.channels])

    @property
    def channel_error(self) -> Float[Array, "layers"]:
        """Standard error of ``channel_entropy`` over the channels; NaN of fewer than two."""
        return np.array([
            np.nan if len(c) < 2 else plug_in_entropy(c).std(ddof=1) / np.sqrt(len(c))
            for c in self.channels
        ])  # fmt: skip

    @property
    def used(self) -> Int[Array, "layers"]:
        """How many codes occur at all."""
        return np.array([(c > 0).sum() for c in self.counts])

    @property
    def common(self) -> Int[Array, "layers"]:
        """How many codes take more than 0.1 % of the numbers."""
        return np.array([(c > 0.001 * c.sum()).sum() for c in self.counts])

    @property
    def zero(self) -> Float[Array, "layers"]:
        """Share of the numbers that are rounded to exactly zero, 0 to 1."""
        return 1 - np.array([c.sum() for c in self.nonzero]) / self.sizes

    @property
    def ends(self) -> Float[Array, "layers"]:
        """Share of the numbers at the lowest or highest code, 0 to 1."""
        return np.array([(c[0] + c[-1]) / c.sum() for c in self.counts])

    @property
    def bits_used(self) -> Float[Array, "layers"]:
        """n·H of each layer: no code of one number at a time can be shorter."""
        return self.sizes * self.entropy

    @property
    def bits_available(self) -> Float[Array, "layers"]:
        """n·bits of each layer: what is stored without compression."""
        return (self.sizes * self.bits).astype(float)

    @property
    def mean(self) -> float:
        """∑ n·H/∑ n: bits per number of the whole network, each layer with a code of its own.

        Not the entropy of all codes pooled, which mixes grids.
        """
        return float(self.bits_used.sum() / self.sizes.sum())

    @property
    def mean_corrected(self) -> float:
        """The same with the correction of Miller and Madow."""
        return float((self.sizes * self.corrected).sum() / self.sizes.sum())

    @property
    def mean_error(self) -> float:
        """Standard error of ``mean`` in bits, the layers taken as independent."""
        return float(np.sqrt(((self.sizes * self.error) ** 2).sum()) / self.sizes.sum())

    @property
    def mean_utilisation(self) -> float:
        """∑ n·H/∑ n·log₂(levels), 0 to 1."""
        return float(self.bits_used.sum() / (self.sizes * np.log2(self.levels)).sum())

    @property
    def mean_compressed(self) -> float:
        """Bits per number of the whole network after compression; NaN where not tried."""
        return float((self.sizes * self.compressed).sum() / self.sizes.sum())


@dataclass(frozen=True, eq=False)
class GaussianCodes:
    """How a quantizer, just initialised, spreads a normal distribution over its codes.

    Args:
        label: Name of the quantizer.
        bits: Bits per code.
        low: The lowest code.
        shares: Probability of each code, from the lowest up.
        points: Points of the numerical integration; a share is exact to about 1/points.
    """

    label: str
    bits: int
    low: int
    shares: Float[Array, "codes"]
    points: int

    @property
    def entropy(self) -> float:
        """H = −∑ p·log₂ p in bits."""
        return float(-(self.shares * _log2(self.shares)).sum())

    @property
    def utilisation(self) -> float:
        """H/log₂(levels), 0 to 1."""
        return self.entropy / float(np.log2(len(self.shares)))


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
