"""Whether a network is as often right as it is sure."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence, the largest predicted probability, against accuracy.

    Args:
        label: Name of the network.
        samples: Images.
        temperature: What logits were divided by; 1 if nothing was fitted.
        edges: Borders of the bins of confidence, from 0 to 1; a bin holds its upper border.
        counts: Images in each bin.
        bin_accuracy: Accuracy in each bin, 0 to 1; NaN in empty ones.
        bin_confidence: Mean confidence in each bin, 0 to 1; NaN in empty ones.
        adaptive_ece: Expected calibration error with as many bins of equally many images.
        nll: Mean negative log-likelihood of the label, in nats.
        nll_error: Its standard error over images.
        brier: Mean over images of ∑ (p_c − 1[c is the label])², 0 to 2.
        brier_error: Its standard error over images.
        accuracy: 0 to 1.
        mean_confidence: 0 to 1.
        resampled: The expected calibration error of images drawn with replacement.
        adaptive_resampled: The same with bins of equally many images.
    """

    label: str
    samples: int
    temperature: float
    edges: Float[Array, "borders"]
    counts: Int[Array, "bins"]
    bin_accuracy: Float[Array, "bins"]
    bin_confidence: Float[Array, "bins"]
    adaptive_ece: float
    nll: float
    nll_error: float
    brier: float
    brier_error: float
    accuracy: float
    mean_confidence: float
    resampled: Float[Array, "resamples"]
    adaptive_resampled: Float[Array, "resamples"]

    @property
    def gaps(self) -> Float[Array, "bins"]:
        """Confidence − accuracy of each bin: above 0 where the network is too sure."""
        return self.bin_confidence - self.bin_accuracy

    @property
    def ece(self) -> float:
        """Expected calibration error: ∑ counts/n·|confidence − accuracy|, 0 to 1.

        Too high for few images, because chance moves every bin off the diagonal.
        """
        full = self.counts > 0
        return float((self.counts * np.abs(self.gaps))[full].sum() / self.samples)

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin that is not empty, 0 to 1."""
        return float(np.nanmax(np.abs(self.gaps)))

    @property
    def interval(self) -> tuple[float, float]:
        """Where 95 % of the resampled expected calibration errors lie."""
        return _interval(self.resampled)

    @property
    def adaptive_interval(self) -> tuple[float, float]:
        """The same for the adaptive one."""
        return _interval(self.adaptive_resampled)

    @property
    def bias(self) -> float:
        """How much higher the resampled errors are on average.

        About as much as the error itself is too high; the interval is shifted by it, twice.
        """
        return float(self.resampled.mean() - self.ece)

    @property
    def accuracy_error(self) -> float:
        """√(p(1 − p)/n)."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.samples))

    @property
    def bin_error(self) -> Float[Array, "bins"]:
        """√(p(1 − p)/count) of the accuracy in each bin; NaN in empty ones."""
        p = self.bin_accuracy
        return np.sqrt(p * (1 - p) / np.maximum(self.counts, 1))


@dataclass(frozen=True, eq=False)
class Temperature:
    """The temperature that fits a network's confidence best.

    Args:
        label: Name of the network.
        samples: Images that it was fitted on.
        value: T, what logits are to be divided by; above 1 if the network is too sure.
        before: Mean negative log-likelihood at T = 1, in nats.
        after: At the T found.
    """

    label: str
    samples: int
    value: float
    before: float
    after: float


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
