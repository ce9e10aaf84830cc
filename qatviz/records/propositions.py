"""Four statements about consistency and perturbation, in numbers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from qatviz.records.perturbation import error_of_draws, mean_of_draws


def _error(values: Array) -> Array:
    """Standard error of the mean over the last axis; NaN of a single value."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.std(-1, ddof=1) / np.sqrt(values.shape[-1]))


@dataclass(frozen=True, eq=False)
class DivergenceAsSharpness:
    """How far a displaced network's answers are from its own, and how much its loss rises.

    By length of the displacement and image, in nats.

    Args:
        label: Name of the network.
        of: What is displaced: "weights" or "images".
        space: Which weights: "dequantized", "latent" or "float".
        direction: Name of the direction.
        lengths: L2 norms of the displacement: of all weights, or of each image.
        divergence: KL(p_T ‖ p_S), from the network where it stands to the displaced one.
        expected_rise: Rise of the cross-entropy under labels that the network draws itself.
        quadratic: ½δᵀFδ, with F the Fisher matrix where the network stands.
        rise: Rise of the cross-entropy under the true labels, log p_T(y) − log p_S(y).
    """

    label: str
    of: str
    space: str
    direction: str
    lengths: Float[Array, "lengths"]
    divergence: Float[Array, "lengths images"]
    expected_rise: Float[Array, "lengths images"]
    quadratic: Float[Array, "lengths images"]
    rise: Float[Array, "lengths images"]

    @property
    def samples(self) -> int:
        """Images."""
        return self.divergence.shape[1]

    @property
    def mean_divergence(self) -> Float[Array, "lengths"]:
        """KL(p_T ‖ p_S), mean over images, in nats."""
        return self.divergence.mean(1)

    @property
    def divergence_error(self) -> Float[Array, "lengths"]:
        """Its standard error over images, in nats."""
        return _error(self.divergence)

    @property
    def mean_quadratic(self) -> Float[Array, "lengths"]:
        """½δᵀFδ, mean over images, in nats."""
        return self.quadratic.mean(1)

    @property
    def mean_rise(self) -> Float[Array, "lengths"]:
        """Rise of the loss under the true labels, in nats; it may be negative."""
        return self.rise.mean(1)

    @property
    def rise_error(self) -> Float[Array, "lengths"]:
        """Its standard error over images, in nats."""
        return _error(self.rise)

    @property
    def identity_error(self) -> float:
        """Largest difference of the divergence and the expected rise: zero but for rounding."""
        return float(np.abs(self.divergence - self.expected_rise).max())

    @property
    def ratio(self) -> Float[Array, "lengths"]:
        """Mean divergence/mean quadratic: 1 in the limit of short ones; NaN where both are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.mean_divergence / self.mean_quadratic

    @property
    def ratio_error(self) -> Float[Array, "lengths"]:
        """Its standard error over images, to first order: both are of the same images."""
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = self.divergence - self.ratio[:, None] * self.quadratic
            return _error(apart) / self.mean_quadratic


@dataclass(frozen=True, eq=False)
class PACBayesBound:
    """A bound of the error of a network with noisy weights on images it has not seen.

    Args:
        error: Share of wrong answers on the training images with the noise, 0 to 1.
        distance: ‖w − w₀‖, from the weights to those fixed before training.
        sigma: Standard deviation σ of the noise on each weight.
        images: Training images n.
        confidence: ξ: it holds with a probability of at least 1 − ξ.
    """

    error: float
    distance: float
    sigma: float
    images: int
    confidence: float

    @property
    def divergence(self) -> float:
        """KL(Q ‖ P) = ‖w − w₀‖²/(2σ²), in nats."""
        return self.distance**2 / (2 * self.sigma**2)

    @property
    def complexity(self) -> float:
        """What the bound adds: √((KL + ln(2√n/ξ))/(2n))."""
        likely = np.log(2 * np.sqrt(self.images) / self.confidence)
        return float(np.sqrt((self.divergence + likely) / (2 * self.images)))

    @property
    def bound(self) -> float:
        """Error + complexity."""
        return self.error + self.complexity

    @property
    def vacuous(self) -> bool:
        """Whether it says nothing: a bound of 1 or more."""
        return self.bound >= 1


@dataclass(frozen=True, eq=False)
class ToleratedNoise:
    """Accuracy with Gaussian noise of one size on all weights.

    NaN stands for draws that were not made.

    Args:
        label: Name of the network.
        samples: Images.
        space: Which weights: "dequantized", "latent" or "float".
        size: Numbers that were disturbed.
        points: Percentage points that may be lost.
        sigmas: Standard deviations of the noise, in units of a weight.
        accuracy: Accuracy in each draw, 0 to 1.
        clean_accuracy: Accuracy without noise, 0 to 1.
        complete: False if it was interrupted.
    """

    label: str
    samples: int
    space: str
    size: int
    points: float
    sigmas: Float[Array, "sigmas"]
    accuracy: Float[Array, "sigmas draws"]
    clean_accuracy: float
    complete: bool

    @property
    def draws(self) -> int:
        """Draws that were made at every σ."""
        return int(np.isfinite(self.accuracy).sum(-1).min())

    @property
    def clean_error(self) -> float:
        """√(p(1 − p)/n) of ``clean_accuracy``: what other images would have changed."""
        return float(np.sqrt(self.clean_accuracy * (1 - self.clean_accuracy) / self.samples))

    @property
    def drop(self) -> Float[Array, "sigmas"]:
        """How much accuracy is lost, clean − disturbed, on average over draws."""
        return self.clean_accuracy - mean_of_draws(self.accuracy)

    @property
    def drop_error(self) -> Float[Array, "sigmas"]:
        """Its standard error over draws; the images are the same."""
        return error_of_draws(self.accuracy)

    @property
    def error(self) -> Float[Array, "sigmas"]:
        """Share of wrong answers with the noise, on average over draws, 0 to 1."""
        return 1 - mean_of_draws(self.accuracy)

    @property
    def fits(self) -> Bool[Array, "sigmas"]:
        """Where no more than ``points`` are lost on average."""
        return self.drop <= self.points / 100 + 1e-12

    @property
    def tolerated(self) -> float:
        """σ*: the largest σ at which that is so; 0 if every one costs more."""
        return float(self.sigmas[self.fits].max()) if self.fits.any() else 0.0

    @property
    def at_the_end(self) -> bool:
        """Whether σ* is the largest σ that was tried, so that the true one may be larger."""
        return bool(self.tolerated == self.sigmas.max())


@dataclass(frozen=True, eq=False)
class WeightChange:
    """A change of a weight that does what a change of its input does.

    Args:
        weight: W.
        change: ΔW.
        wanted: What the change of the input does to the output.
        reached: What ΔW does to it, at the input as it was.
        bound: ‖W‖·‖δ‖/‖x‖, which ‖ΔW‖ does not exceed (spectral norms); NaN where there is none.
    """

    weight: Float[Array, "out *rest"]
    change: Float[Array, "out *rest"]
    wanted: Float[Array, "*outputs"]
    reached: Float[Array, "*outputs"]
    bound: float

    @property
    def norm(self) -> float:
        """‖ΔW‖, the spectral norm of the change with a row for each output."""
        return float(np.linalg.norm(self.change.reshape(len(self.change), -1), 2))

    @property
    def residual(self) -> float:
        """‖reached − wanted‖/‖wanted‖: zero but for rounding; 0 where nothing is wanted."""
        wanted = np.linalg.norm(self.wanted)
        apart = np.linalg.norm(self.reached - self.wanted)
        return float(apart / wanted) if wanted else 0.0


@dataclass(frozen=True, eq=False)
class ConvolutionMismatch:
    """What is left of a change of images that no change of a shared kernel can do.

    Residuals are relative, ‖ΔW·P − W·ΔP‖/‖W·ΔP‖ of the best ΔW: 0 where a change of the kernel
    does all of it, 1 where it does nothing.

    Args:
        label: Name of the change.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        unknowns: Numbers of one output's kernel.
        positions: Patches of one image that it has to serve.
        alone: Residual of each image, with a ΔW of its own; 0 where the output does not change.
        together: Residual of all images with one ΔW.
    """

    label: str
    height: int
    width: int
    unknowns: int
    positions: int
    alone: Float[Array, "images"]
    together: float

    @property
    def samples(self) -> int:
        """Images."""
        return len(self.alone)

    @property
    def mean(self) -> float:
        """Mean residual of images alone."""
        return float(self.alone.mean())

    @property
    def error(self) -> float:
        """Its standard error over images; NaN of a single one."""
        return float(_error(self.alone))

    @property
    def white(self) -> float:
        """√(1 − unknowns/positions): what to expect of a change that knows nothing of the image.

        Of white noise on white noise: a subspace of so many dimensions holds that share of it.
        """
        return float(np.sqrt(max(0.0, 1 - self.unknowns / self.positions)))


@dataclass(frozen=True, eq=False)
class ErrorPropagation:
    """How a change of the images arrives at the output of every layer.

    All changes are L2 norms over one image, relative to the norm of the undisturbed output.

    Args:
        label: Name of the network.
        layers: Names of convolutions and linear layers, in the order of the forward pass.
        disturbance: ‖δ‖/‖x‖ of each image.
        change: ‖h(x + δ) − h(x)‖/‖h(x)‖ of the output h of each layer.
        predicted: ‖Jδ‖/‖h(x)‖, to first order, straight through quantizers.
        mismatch: ‖h(x + δ) − h(x) − Jδ‖/‖h(x + δ) − h(x)‖: what the first order misses.
        steps: Root mean square change of the layer's input, in steps of its quantizer; NaN where
            the input is not quantized.
        spectral: Spectral norm of each layer alone: what it can do to a change at most.
        lipschitz: Product of the norms up to the layer's output: see ``error_propagation``; NaN
            where something has none.
        bound: ``lipschitz``·‖δ‖/‖h(x)‖.
    """

    label: str
    layers: tuple[str, ...]
    disturbance: Float[Array, "images"]
    change: Float[Array, "layers images"]
    predicted: Float[Array, "layers images"]
    mismatch: Float[Array, "layers images"]
    steps: Float[Array, "layers images"]
    spectral: Float[Array, "layers"]
    lipschitz: Float[Array, "layers"]
    bound: Float[Array, "layers images"]

    @property
    def samples(self) -> int:
        """Images."""
        return self.change.shape[1]

    @property
    def mean_change(self) -> Float[Array, "layers"]:
        """Relative change, mean over images."""
        return self.change.mean(1)

    @property
    def change_error(self) -> Float[Array, "layers"]:
        """Its standard error over images."""
        return _error(self.change)

    @property
    def mean_predicted(self) -> Float[Array, "layers"]:
        """What the first order predicts, mean over images."""
        return self.predicted.mean(1)

    @property
    def mean_mismatch(self) -> Float[Array, "layers"]:
        """What the first order misses, mean over images."""
        return self.mismatch.mean(1)

    @property
    def mismatch_error(self) -> Float[Array, "layers"]:
        """Its standard error over images."""
        return _error(self.mismatch)

    @property
    def mean_bound(self) -> Float[Array, "layers"]:
        """The product of norms, mean over images."""
        return self.bound.mean(1)

    @property
    def amplification(self) -> Float[Array, "layers images"]:
        """Relative change of the output over that of the image."""
        return self.change / self.disturbance
