"""The curvature of a loss: eigenvalues, traces, densities, and where they were taken."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class Setting:
    """Where derivatives were taken: without it two curvatures cannot be compared.

    Args:
        space: "dequantized", "latent" or "float", see ``analysis.Surface``.
        names: Parameters that moved.
        sizes: How many numbers each has.
        norms: L2 norm of each.
        samples: Images that the loss is the mean over.
        loss: That loss, nats for cross-entropy.
        activation_quantizers: Whether there were any, and on.
        batchnorm: "running" or "batch" statistics.
        relative: Whether every direction is measured in norms of its filter.
        asymmetry: |uᵀHv − vᵀHu| over the usual size of uᵀHv, in float64: 0 for a Hessian.
    """

    space: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    norms: tuple[float, ...]
    samples: int
    loss: float
    activation_quantizers: bool
    batchnorm: str
    relative: bool
    asymmetry: float

    @property
    def size(self) -> int:
        """P, how many numbers moved."""
        return sum(self.sizes)

    @property
    def squared_norm(self) -> float:
        """‖w‖² of all that moved."""
        return float(np.sum(np.square(self.norms)))

    def __str__(self) -> str:
        quantizers = ", activation quantizers on" if self.activation_quantizers else ""
        batchnorm = "" if self.batchnorm == "running" else ", BatchNorm of the batch"
        relative = ", relative to filters" if self.relative else ""
        return (
            f"{self.space} weights ({self.size:,}){relative}{quantizers}{batchnorm}; "
            f"{self.samples:,} images, loss {self.loss:.3g}"
        )


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Some eigenvalues of a Hessian, with their error bars and vectors.

    Args:
        setting: Where.
        which: "magnitude", "largest" or "smallest": what was asked for.
        values: λ, the first that was asked for first; units of the loss over weight squared.
        residuals: ‖Hv − λv‖/|λ₁|, without a unit. Some eigenvalue lies within that distance of
            λ, in units of |λ₁|.
        largest: |λ₁|, the largest magnitude that was met on the way.
        vectors: v, of length 1, one per row.
        tolerance: What every residual should be below.
        products: Products with the Hessian that it took; of PyHessian without those that
            measure its residuals.
        seconds: Duration.
        complete: Whether all that was asked for are within tolerance; of PyHessian, which has
            another one, whether it came to its end.
        backend: What computed them.
    """

    setting: Setting
    which: str
    values: Float[Array, "pairs"]
    residuals: Float[Array, "pairs"]
    largest: float
    vectors: Float[Array, "pairs size"]
    tolerance: float
    products: int
    seconds: float
    complete: bool
    backend: str

    @property
    def errors(self) -> Float[Array, "pairs"]:
        """‖Hv − λv‖, in units of λ: some eigenvalue lies within that distance of each."""
        return self.residuals * (self.largest or 1.0)

    @property
    def scale_free(self) -> Float[Array, "pairs"]:
        """λ·‖w‖²: unlike λ the same for two networks that differ by one factor on all weights."""
        return self.values * self.setting.squared_norm

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{value:.4g} ± {error:.1g}"
            for value, error in list(zip(self.values, self.errors, strict=True))[:5]
        )
        more = ", …" if len(self.values) > 5 else ""
        state = "" if self.complete else "; NOT all within tolerance"
        return f"Eigenvalues({shown}{more}; {self.setting}; {self.products} products{state})"


@dataclass(frozen=True, eq=False)
class Trace:
    """The trace of a Hessian, estimated from random vectors.

    Args:
        setting: Where.
        method: "hutchinson" or "hutch++".
        exact: Trace on the subspace that was treated exactly; 0 for Hutchinson.
        draws: For every random vector its estimate of the rest: a column per parameter for
            Hutchinson, one column for all for Hutch++.
        products: Products with the Hessian that it took.
        seconds: Duration.
        complete: Whether all that was asked for was drawn.
        backend: What computed it.
    """

    setting: Setting
    method: str
    exact: float
    draws: Float[Array, "draws parts"]
    products: int
    seconds: float
    complete: bool
    backend: str

    @property
    def value(self) -> float:
        """The estimate."""
        return self.exact + float(self.draws.sum(1).mean())

    @property
    def standard_error(self) -> float:
        """Of ``value``, from the spread of the draws; NaN for a single one."""
        return _standard_error(self.draws.sum(1))

    @property
    def layers(self) -> dict[str, tuple[float, float]]:
        """Trace of each parameter's own block and its standard error; empty for Hutch++."""
        if self.draws.shape[1] != len(self.setting.names) or self.method == "hutch++":
            return {}
        return {
            name: (float(column.mean()), _standard_error(column))
            for name, column in zip(self.setting.names, self.draws.T, strict=True)
        }

    def __repr__(self) -> str:
        return (
            f"Trace({self.value:.4g} ± {self.standard_error:.1g}; {self.method}, "
            f"{self.products} products; {self.setting})"
        )


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """How the eigenvalues of a Hessian are spread, by stochastic Lanczos quadrature.

    For every random unit vector a few nodes θ with weights ω, which sum to 1: as seen from that
    vector, a share ω of the spectrum lies near θ.

    Args:
        setting: Where.
        nodes: θ, a row per random vector.
        weights: ω, a row per random vector.
        products: Products with the Hessian that it took.
        seconds: Duration.
        complete: Whether all that was asked for was drawn.
        backend: What computed it.
    """

    setting: Setting
    nodes: Float[Array, "draws steps"]
    weights: Float[Array, "draws steps"]
    products: int
    seconds: float
    complete: bool
    backend: str

    @property
    def trace(self) -> tuple[float, float]:
        """P·∑ωθ over the draws, and its standard error: an estimate of the trace."""
        draws = self.setting.size * (self.weights * self.nodes).sum(1)
        return float(draws.mean()), _standard_error(draws)

    def density(
        self, at: Float[Array, "points"], width: float
    ) -> tuple[Float[Array, "points"], Float[Array, "points"]]:
        """The density with every node blurred to a Gaussian.

        Args:
            at: Where, in units of eigenvalues.
            width: Standard deviation of the Gaussian, same units, above 0.

        Returns:
            The density (its integral is 1), and its standard error over the draws (NaN for a
            single one).

        Raises:
            ValueError: If ``width`` is not above 0.
        """
        if not width > 0:
            raise ValueError(f"width is {width}; allowed: above 0")
        scaled = (np.asarray(at)[None, :, None] - self.nodes[:, None, :]) / width
        bells = np.exp(-0.5 * scaled**2) / (width * np.sqrt(2 * np.pi))
        draws = (bells * self.weights[:, None, :]).sum(2)
        return draws.mean(0), _standard_error(draws)

    def __repr__(self) -> str:
        value, error = self.trace
        return (
            f"SpectralDensity({self.nodes.min():.3g} to {self.nodes.max():.3g}, trace "
            f"{value:.4g} ± {error:.1g}; {len(self.nodes)} draws of {self.nodes.shape[1]} steps; "
            f"{self.setting})"
        )


def _standard_error(draws: Array) -> float | Array:
    if len(draws) < 2:
        return np.full(draws.shape[1:], np.nan)[()]
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    return float(error) if np.ndim(error) == 0 else error
