"""What a network does when its images or its weights are disturbed."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array


def mean_of_draws(values: Float[Array, "*cells draws"]) -> Float[Array, "*cells"] | float:
    """The mean over the draws that were made.

    Args:
        values: NaN where a draw was not made.

    Returns:
        NaN where there was none; infinite where a draw is.
    """
    made = ~np.isnan(values)
    count = made.sum(-1)
    return np.where(count > 0, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def error_of_draws(values: Float[Array, "*cells draws"]) -> Float[Array, "*cells"] | float:
    """The standard error of that mean: what other draws would have changed.

    Args:
        values: NaN where a draw was not made.

    Returns:
        NaN where there were fewer than two, or one is infinite.
    """
    count = (~np.isnan(values)).sum(-1)
    mean = np.asarray(mean_of_draws(values))
    centred = values - np.where(np.isfinite(mean), mean, np.nan)[..., None]
    variance = np.nansum(centred**2, -1) / np.maximum(count - 1, 1)
    known = (count > 1) & np.isfinite(mean)
    return np.where(known, np.sqrt(variance / np.maximum(count, 1)), np.nan)


class _Measured:
    """What is common to records of accuracy on undisturbed images."""

    clean_accuracy: float
    samples: int

    @property
    def clean_error(self) -> float:
        """√(p(1 − p)/n) of ``clean_accuracy``: what other images would have changed."""
        return float(np.sqrt(self.clean_accuracy * (1 - self.clean_accuracy) / self.samples))


@dataclass(frozen=True, eq=False)
class InputNoise(_Measured):
    """Predictions under Gaussian noise on the images.

    NaN stands for draws that were not made. Where noise makes logits that are not finite, an
    image counts as wrong and as changed, its ``variance`` is NaN, and loss and divergence of the
    draw are infinite; likewise in the other records here.

    Args:
        label: Name of the network.
        samples: Images.
        sigmas: Standard deviations of the noise, in units of a normalised image.
        accuracy: Accuracy in each draw, 0 to 1.
        loss: Loss in each draw, in nats for cross-entropy.
        divergence: Mean over images of KL(f(x) ‖ f(x + δ)) in each draw, in nats.
        flips: Share of the images whose prediction is another one than without noise.
        variance: By image, the variance over draws of each logit, averaged over logits.
        clean_accuracy: Accuracy without noise, 0 to 1.
        clean_loss: Loss without noise.
        clean_variance: Variance over images of each logit without noise, averaged over logits.
        complete: False if it was interrupted.
    """

    label: str
    samples: int
    sigmas: Float[Array, "sigmas"]
    accuracy: Float[Array, "sigmas draws"]
    loss: Float[Array, "sigmas draws"]
    divergence: Float[Array, "sigmas draws"]
    flips: Float[Array, "sigmas draws"]
    variance: Float[Array, "sigmas images"]
    clean_accuracy: float
    clean_loss: float
    clean_variance: float
    complete: bool

    @property
    def draws(self) -> int:
        """Draws that were made at every σ."""
        return int(np.isfinite(self.accuracy).sum(-1).min())

    @property
    def relative_variance(self) -> Float[Array, "sigmas images"]:
        """The variance of each image in units of the variance of clean logits.

        NaN where these have none: of a single image, or of a constant network.
        """
        return self.variance / (self.clean_variance or np.nan)

    @property
    def mean_relative_variance(self) -> Float[Array, "sigmas"]:
        """The same, averaged over images."""
        return self.relative_variance.mean(1)

    @property
    def relative_variance_error(self) -> Float[Array, "sigmas"]:
        """Standard error over images of that mean; NaN of a single image."""
        return error_of_draws(self.relative_variance)


@dataclass(frozen=True, eq=False)
class CorruptionAccuracy(_Measured):
    """Accuracy on corrupted images: a table of kinds and severities.

    NaN stands for draws that were not made.

    Args:
        label: Name of the network.
        samples: Images.
        kinds: Names of the corruptions.
        families: The family of each.
        severities: From mild to strong.
        accuracy: Accuracy in each draw, 0 to 1; where nothing is random, all draws are the same.
        loss: Loss in each draw, in nats for cross-entropy.
        clean_accuracy: Accuracy on the images as they are, 0 to 1.
        clean_loss: Loss on them.
        complete: False if it was interrupted.
    """

    label: str
    samples: int
    kinds: tuple[str, ...]
    families: tuple[str, ...]
    severities: Int[Array, "severities"]
    accuracy: Float[Array, "kinds severities draws"]
    loss: Float[Array, "kinds severities draws"]
    clean_accuracy: float
    clean_loss: float
    complete: bool

    @property
    def mean(self) -> Float[Array, "kinds severities"]:
        """Accuracy of each cell, 0 to 1."""
        return mean_of_draws(self.accuracy)

    @property
    def by_kind(self) -> Float[Array, "kinds"]:
        """Accuracy of each kind over all severities; NaN where one is missing."""
        return self.mean.mean(1)

    @property
    def by_kind_error(self) -> Float[Array, "kinds"]:
        """Standard error of that over draws."""
        return error_of_draws(self.accuracy.mean(1))

    @property
    def corruption_error(self) -> float:
        """Mean over kinds and severities of 1 − accuracy, 0 to 1; NaN if a cell is missing.

        Not divided by the errors of another network, as is done for ImageNet-C.
        """
        return float(1 - self.mean.mean())

    @property
    def corruption_error_error(self) -> float:
        """Standard error of ``corruption_error`` over draws; the images are the same."""
        return float(error_of_draws(self.accuracy.mean((0, 1))))

    @property
    def sampling_error(self) -> Float[Array, "kinds severities"]:
        """√(p(1 − p)/n) of each cell: what other images would have changed."""
        return np.sqrt(self.mean * (1 - self.mean) / self.samples)


@dataclass(frozen=True, eq=False)
class WeightNoise(_Measured):
    """Accuracy and loss with disturbed weights.

    NaN stands for draws that were not made.

    Args:
        label: Name of the network.
        samples: Images.
        kind: "filter", "multiplicative" or "flips".
        space: Which weights: "dequantized", "latent" or "float".
        batchnorm: "running", or "re-estimated" at every point.
        levels: Sizes of the noise: ρ, η or p, by kind.
        accuracy: Accuracy in each draw, 0 to 1.
        loss: Loss in each draw, in nats for cross-entropy.
        clean_accuracy: Accuracy without noise, with the same treatment of BatchNorm.
        clean_loss: Loss without noise.
        complete: False if it was interrupted.
    """

    label: str
    samples: int
    kind: str
    space: str
    batchnorm: str
    levels: Float[Array, "levels"]
    accuracy: Float[Array, "levels draws"]
    loss: Float[Array, "levels draws"]
    clean_accuracy: float
    clean_loss: float
    complete: bool

    @property
    def draws(self) -> int:
        """Draws that were made at every level."""
        return int(np.isfinite(self.accuracy).sum(-1).min())

    @property
    def drop(self) -> Float[Array, "levels"]:
        """How much accuracy is lost, clean − disturbed, on average over draws."""
        return self.clean_accuracy - mean_of_draws(self.accuracy)

    @property
    def drop_error(self) -> Float[Array, "levels"]:
        """Its standard error over draws."""
        return error_of_draws(self.accuracy)

    @property
    def rise(self) -> Float[Array, "levels"]:
        """How much loss is added, disturbed − clean, on average over draws."""
        return mean_of_draws(self.loss) - self.clean_loss

    @property
    def rise_error(self) -> Float[Array, "levels"]:
        """Its standard error over draws."""
        return error_of_draws(self.loss)

    def tolerated(self, points: float = 1.0) -> float:
        """σ*: the largest level at which no more than so much accuracy is lost on average.

        Args:
            points: Percentage points. Default: 1 (consistency regularization, as we specified
                it, with 10 beside).

        Returns:
            One of the levels measured; 0 if every one costs more.
        """
        fine = self.levels[self.drop <= points / 100 + 1e-12]
        return float(fine.max()) if len(fine) else 0.0


@dataclass(frozen=True, eq=False)
class ViewConsistency(_Measured):
    """Predictions on augmented views of images.

    Args:
        label: Name of the network.
        view: Name of the view.
        samples: Images.
        agreement: Share of the images whose prediction is that of the image itself, by draw.
        divergence: Mean over images of KL(f(x) ‖ f(view(x))), by draw, in nats.
        accuracy: Accuracy on the views, by draw, 0 to 1.
        unanimous: Share of the images whose prediction was the same in every draw.
        clean_accuracy: Accuracy on the images themselves, 0 to 1.
        complete: False if it was interrupted.
    """

    label: str
    view: str
    samples: int
    agreement: Float[Array, "draws"]
    divergence: Float[Array, "draws"]
    accuracy: Float[Array, "draws"]
    unanimous: float
    clean_accuracy: float
    complete: bool

    @property
    def mean_agreement(self) -> float:
        """Mean over draws of the share that agrees, 0 to 1."""
        return float(mean_of_draws(self.agreement))

    @property
    def agreement_error(self) -> float:
        """Its standard error over draws."""
        return float(error_of_draws(self.agreement))

    @property
    def mean_divergence(self) -> float:
        """Mean over draws of the divergence, in nats."""
        return float(mean_of_draws(self.divergence))

    @property
    def divergence_error(self) -> float:
        """Its standard error over draws, in nats."""
        return float(error_of_draws(self.divergence))


@dataclass(frozen=True, eq=False)
class AccuracyBySamples:
    """Accuracy on the first n of a data set in many orders, the same for all networks.

    The mean does not depend on n. Only the spread shrinks, as √(p(1 − p)/n): the curve says how
    well an accuracy is measured, and nothing of generalization.

    Args:
        labels: Names of the networks.
        sizes: Numbers of images n, ascending.
        accuracy: Accuracy on the first n in each order, 0 to 1.
        correct: Which images each network gets right.
    """

    labels: tuple[str, ...]
    sizes: Int[Array, "sizes"]
    accuracy: Float[Array, "networks orders sizes"]
    correct: Bool[Array, "networks images"]

    @property
    def samples(self) -> int:
        """Images in all."""
        return self.correct.shape[1]

    @property
    def full(self) -> Float[Array, "networks"]:
        """Accuracy on all images, 0 to 1."""
        return self.correct.mean(1)

    @property
    def mean(self) -> Float[Array, "networks sizes"]:
        """Mean over orders."""
        return self.accuracy.mean(1)

    @property
    def band(self) -> tuple[Float[Array, "networks sizes"], Float[Array, "networks sizes"]]:
        """Where 95 % of the orders lie: the 2.5th and the 97.5th percentile.

        Towards all images it closes, because orders share ever more of them: see
        ``standard_error`` for what other images would have changed.
        """
        low, high = np.percentile(self.accuracy, [2.5, 97.5], axis=1)
        return low, high

    @property
    def standard_error(self) -> Float[Array, "networks sizes"]:
        """√(p(1 − p)/n), of n images drawn anew, with p the accuracy on all of them."""
        p = self.full[:, None]
        return np.sqrt(p * (1 - p) / self.sizes)

    def difference(self, first: str, second: str) -> "AccuracyDifference":
        """How much more accurate one network is than another, on the same images.

        Args:
            first: Name of a network.
            second: Name of what is subtracted.

        Returns:
            The paired difference.

        Raises:
            ValueError: If there is no network of that name.
        """
        for name in (first, second):
            if name not in self.labels:
                raise ValueError(f"network is {name!r}; allowed: {', '.join(self.labels)}")
        a, b = self.labels.index(first), self.labels.index(second)
        gain = self.correct[a].astype(float) - self.correct[b]
        return AccuracyDifference(
            first, second, self.sizes, self.accuracy[a] - self.accuracy[b], gain
        )


@dataclass(frozen=True, eq=False)
class AccuracyDifference:
    """The difference of two accuracies on the first n images, in many orders.

    Args:
        first: Name of a network.
        second: Name of what is subtracted.
        sizes: Numbers of images n.
        difference: On the first n in each order, −1 to 1.
        gain: By image: 1 where only the first is right, −1 where only the second is, else 0.
    """

    first: str
    second: str
    sizes: Int[Array, "sizes"]
    difference: Float[Array, "orders sizes"]
    gain: Float[Array, "images"]

    @property
    def mean(self) -> Float[Array, "sizes"]:
        """Mean over orders."""
        return self.difference.mean(0)

    @property
    def band(self) -> tuple[Float[Array, "sizes"], Float[Array, "sizes"]]:
        """Where 95 % of the orders lie."""
        low, high = np.percentile(self.difference, [2.5, 97.5], axis=0)
        return low, high

    @property
    def full(self) -> float:
        """The difference on all images."""
        return float(self.gain.mean())

    @property
    def standard_error(self) -> Float[Array, "sizes"]:
        """√(variance of the gain/n), of n images drawn anew.

        Smaller than that of two separate measurements where the networks agree on most images.
        """
        return np.sqrt(self.gain.var() / self.sizes)
