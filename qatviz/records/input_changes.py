"""A change of a layer's inputs that does what a change of its weight does, in numbers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class InputChange:
    """The change of each input that comes closest to a change of the weight.

    Args:
        label: Name of the change.
        unknowns: Numbers of one input that the output reads.
        equations: Numbers of one output, which have to come out.
        change: δ of each input.
        residual: ‖W·δ − ΔW·x‖/‖ΔW·x‖ of each input: 0 where δ does all of it, 1 where it does
            nothing; 0 where ΔW does nothing.
        size: ‖δ‖/‖x‖ of each input; 0 where there is no δ.
        weight_size: ‖ΔW‖/‖W‖, Frobenius norms.
        settled: Whether the steps of an input came to their end; where not, its residual is an
            upper limit and its size a lower one.
        iterations: Steps that were taken.
    """

    label: str
    unknowns: int
    equations: int
    change: Float[Array, "inputs *shape"]
    residual: Float[Array, "inputs"]
    size: Float[Array, "inputs"]
    weight_size: float
    settled: Bool[Array, "inputs"]
    iterations: int

    @property
    def samples(self) -> int:
        """Inputs."""
        return len(self.residual)

    @property
    def mean_residual(self) -> float:
        """Mean over inputs."""
        return float(self.residual.mean())

    @property
    def residual_error(self) -> float:
        """Its standard error over inputs; NaN of a single one."""
        return _error(self.residual)

    @property
    def mean_size(self) -> float:
        """Mean over inputs of ‖δ‖/‖x‖."""
        return float(self.size.mean())

    @property
    def size_error(self) -> float:
        """Its standard error over inputs; NaN of a single one."""
        return _error(self.size)

    @property
    def white(self) -> float:
        """√(1 − unknowns/equations), or 0: to expect of an output that knows nothing of W.

        A subspace of so many dimensions holds that share of a random direction.
        """
        return float(np.sqrt(max(0.0, 1 - self.unknowns / self.equations)))


def _error(values: Array) -> float:
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))
