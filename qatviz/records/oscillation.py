"""Weights that go to and fro between two codes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class BinDistances:
    """Where weights lie between the thresholds of their codes: u = w/s − round(w/s).

    At u = 0 a weight is on a level, at ±½ on a threshold. All weights are counted; none is drawn.

    Args:
        layers: Names of the layers.
        counts: Weights in each of the bins of equal width from −½ to ½, by layer.
        clipped: Weights beyond the outermost codes, which are not in ``counts``, by layer.
        without: Layers whose codes are not what a number is rounded to (see
            ``qatviz.tracking.grid_positions``).
        label: Name of the network.
    """

    layers: tuple[str, ...]
    counts: Int[Array, "layers bins"]
    clipped: Int[Array, "layers"]
    without: tuple[str, ...]
    label: str = ""

    @property
    def edges(self) -> Float[Array, "borders"]:
        """Borders of the bins, in steps of the grid."""
        return np.linspace(-0.5, 0.5, self.counts.shape[1] + 1)

    @property
    def pooled(self) -> Int[Array, "bins"]:
        """Weights of all layers in each bin."""
        return self.counts.sum(0, dtype=np.int64)

    @property
    def folded(self) -> Int[Array, "layers halfbins"]:
        """Weights in each bin of |u|, from 0 to ½, by layer."""
        half = self.counts.shape[1] // 2
        return self.counts[:, half:] + self.counts[:, :half][:, ::-1]

    @property
    def near_threshold(self) -> Float[Array, "layers"]:
        """Share of a layer's unclipped weights with |u| above 0.45; NaN where all are clipped.

        0.1 if they were spread evenly.
        """
        return _share_near(self.counts)

    @property
    def near_threshold_overall(self) -> float:
        """Share of all unclipped weights with |u| above 0.45."""
        return float(_share_near(self.pooled[None])[0])


def _share_near(counts: Array) -> Array:
    margin = counts.shape[1] // 20
    near = counts[:, :margin].sum(1) + counts[:, counts.shape[1] - margin :].sum(1)
    total = counts.sum(1)
    return np.divide(near, total, out=np.full(len(counts), np.nan), where=total > 0)


@dataclass(frozen=True, eq=False)
class Oscillation:
    """What an ``OscillationTracker`` saw, in a few numbers for each layer.

    All tracked weights are counted; none is drawn. A run of another seed has other numbers.

    Args:
        layers: Names of the layers.
        weights: Weights of each layer.
        depthwise: Whether the layer is a depthwise convolution.
        oscillating: Share of a layer's weights with a frequency above ``threshold``, at the end.
        frequency: Mean frequency of a layer's weights at the end, oscillations per step.
        events: Oscillations per weight, in all.
        changes: Changes of code per weight, in all.
        by_weight: Those that the weight's own move made, on the grid as it was.
        by_step: Those that the change of the grid made. With ``by_weight`` it can be more than
            ``changes``: see ``OscillationTracker``.
        windows: Numbers of steps.
        survival: Share of a layer's codes that did not change in the last so many steps.
        moments: The last step of each stretch that the three series are averaged over.
        changed: Share of all weights whose code changed in a step.
        oscillated: Share of all weights that oscillated in a step.
        above: Share of all weights whose frequency was above ``threshold`` after a step.
        frequency_edges: Borders of bins of frequency: 0, then evenly spaced logarithms.
        frequency_counts: Weights in each bin at the end, by layer.
        distances: Where the weights lay between thresholds at the end.
        threshold: The frequency above which a weight counts as oscillating.
        momentum: m of the tracker.
        steps: Steps seen.
    """

    layers: tuple[str, ...]
    weights: Int[Array, "layers"]
    depthwise: Bool[Array, "layers"]
    oscillating: Float[Array, "layers"]
    frequency: Float[Array, "layers"]
    events: Float[Array, "layers"]
    changes: Float[Array, "layers"]
    by_weight: Float[Array, "layers"]
    by_step: Float[Array, "layers"]
    windows: Int[Array, "windows"]
    survival: Float[Array, "layers windows"]
    moments: Int[Array, "moments"]
    changed: Float[Array, "moments"]
    oscillated: Float[Array, "moments"]
    above: Float[Array, "moments"]
    frequency_edges: Float[Array, "borders"]
    frequency_counts: Int[Array, "layers bins"]
    distances: BinDistances
    threshold: float
    momentum: float
    steps: int

    def overall(self, values: Float[Array, "layers"]) -> float:
        """The mean over all weights of what is given as means over layers.

        Args:
            values: Such as ``oscillating``.

        Returns:
            Their mean, each layer counted by its weights.
        """
        return float(np.average(values, weights=self.weights))


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Where some weights of a layer were on its grid, step after step.

    Args:
        layer: Name of the layer.
        indices: Which weights, in the flattened weight tensor.
        steps: Optimizer steps taken at each moment.
        positions: w/s, the latent weights in codes (see ``qatviz.tracking.grid_positions``).
        codes: What they were rounded to.
        low: The lowest code.
        high: The highest code.
        seed: The seed that chose the weights.
    """

    layer: str
    indices: Int[Array, "weights"]
    steps: Int[Array, "moments"]
    positions: Float[Array, "moments weights"]
    codes: Int[Array, "moments weights"]
    low: int
    high: int
    seed: int

    @property
    def changes(self) -> Int[Array, "weights"]:
        """How often the code of each weight was another than at the moment before."""
        return (np.diff(self.codes, axis=0) != 0).sum(0)
