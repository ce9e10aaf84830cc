"""Whether the probabilities that a network predicts come true.

Elsewhere this is called calibration; in this package calibrating is choosing grids.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qatviz.analysis.subject import Data, clean_loss, subject, undisturbed
from qatviz.evaluation import predict
from qatviz.records import Reliability, Temperature

COLDEST, HOTTEST = 0.02, 50.0
CHUNK = 100


@undisturbed()
def reliability(
    model: nn.Module,
    data: Data,
    *,
    bins: int = 15,
    temperature: float | Temperature = 1.0,
    resamples: int = 1000,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
) -> Reliability:
    """Compare how sure a network is with how often it is right.

    Images are put into bins by confidence, the largest predicted probability; in bin b of n_b
    images, acc_b is the share that is right and conf_b the mean confidence::

        ECE = ∑ n_b/n·|acc_b − conf_b|        MCE = max |acc_b − conf_b|

    once with bins of equal width, once with bins of equally many images (adaptive). A low-bit
    network that underfits is often less over-confident for that alone: report its accuracy too.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these; not what a temperature was fitted on.
        bins: Bins of confidence, at least 1. Default: 15 (Guo et al.).
        temperature: What logits are divided by, above 0: a number, or what ``fit_temperature``
            found. Default: 1: nothing.
        resamples: Sets of images drawn with replacement, at least 1, for the interval of the
            ECE. Default: 1000 (ours).
        samples: How many images, the first. Default: None: all. Below a few thousand the ECE is
            too high by a percent or two.
        seed: Of the resampling. Default: 0.
        label: Name of the network. Default: none (ours).

    Returns:
        Counts, accuracies and confidences by bin, and the scores. ``records.Reliability``. Draw
        with ``plots.reliability`` or, of several networks, ``plots.reliability_curves``.

    Raises:
        ValueError: As ``subject``; or if a logit is not finite, ``bins`` or ``resamples`` is below
            1, or the temperature is not above 0.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section
    2; adaptive bins: Nguyen & O'Connor 2015, arXiv 1508.05154.
    """
    value = temperature.value if isinstance(temperature, Temperature) else float(temperature)
    for name, number in (("bins", bins), ("resamples", resamples)):
        if number < 1:
            raise ValueError(f"{name} is {number}; allowed: 1 or more")
    if not 0 < value < math.inf:
        raise ValueError(f"temperature is {value}; allowed: a finite number above 0")
    logits, labels = predict(model, subject(model, data, samples))
    clean_loss(logits.double(), labels)
    chances = (logits.double() / value).softmax(1)
    confidence, predicted = (t.numpy() for t in chances.max(1))
    right = predicted == labels.numpy()
    # Ascending, so that bins of equally many images are slices.
    order = confidence.argsort(kind="stable")
    gap = (confidence - right)[order]
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence[order], edges[1:-1], right=True)
    widths, masses = _resampled(gap, place, bins, resamples, np.random.default_rng(seed))
    counts, sums = (
        np.bincount(place, minlength=bins),
        [np.bincount(place, values[order], bins) for values in (right, confidence)],
    )
    nll = -(logits.double() / value).log_softmax(1).gather(1, labels[:, None])
    brier = (chances - nn.functional.one_hot(labels, chances.shape[1])).square().sum(1)
    means = [np.where(counts > 0, s / np.maximum(counts, 1), np.nan) for s in sums]
    return Reliability(
        label=label,
        samples=len(labels),
        temperature=value,
        edges=edges,
        counts=counts,
        bin_accuracy=means[0],
        bin_confidence=means[1],
        adaptive_ece=float(_by_mass(gap[None], bins)[0]),
        nll=nll.mean().item(),
        nll_error=_error(nll),
        brier=brier.mean().item(),
        brier_error=_error(brier),
        accuracy=float(right.mean()),
        mean_confidence=float(confidence.mean()),
        resampled=widths,
        adaptive_resampled=masses,
    )


@undisturbed()
def fit_temperature(
    model: nn.Module, data: Data, *, samples: int | None = None, label: str = ""
) -> Temperature:
    """Find the temperature T with the largest likelihood of the labels, of logits/T.

    Predictions stay the same; only how sure they are changes.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: As for ``reliability``, but other images: a validation split.
        samples: How many images, the first. Default: None: all.
        label: Name of the network. Default: none (ours).

    Returns:
        T, from 0.02 to 50, and what it gains on these images. ``records.Temperature``: a number,
        which has no plot; what it changes, ``plots.reliability_curves`` draws.

    Raises:
        ValueError: As ``subject``; or if a logit is not finite.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    logits, labels = predict(model, subject(model, data, samples))
    clean_loss(logits.double(), labels)

    def nll(log_temperature: float) -> float:
        return cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    ends = math.log(COLDEST), math.log(HOTTEST)
    best = minimize_scalar(nll, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return Temperature(label, len(labels), math.exp(best.x), nll(0.0), float(best.fun))


def _resampled(
    gap: np.ndarray, place: np.ndarray, bins: int, resamples: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """ECE by width and by mass of resampled images; gaps in the order of confidence."""
    widths, masses = [], []
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = np.sort(generator.integers(len(gap), size=(rows, len(gap)), dtype=np.int32), 1)
        cells = place[drawn] + bins * np.arange(rows)[:, None]
        sums = np.bincount(cells.ravel(), gap[drawn].ravel(), rows * bins).reshape(rows, bins)
        widths.append(np.abs(sums).sum(1) / len(gap))
        masses.append(_by_mass(gap[drawn], bins))
    return np.concatenate(widths), np.concatenate(masses)


def _by_mass(gap: np.ndarray, bins: int) -> np.ndarray:
    """∑ |∑ gap of a bin|/n, of bins of equally many images, by row."""
    images = gap.shape[1]
    parts = np.array_split(np.arange(images), min(bins, images))
    return np.abs(np.add.reduceat(gap, [part[0] for part in parts], axis=1)).sum(1) / images


def _error(values: Tensor) -> float:
    """The standard error of a mean over images; NaN of one."""
    if len(values) < 2:
        return float("nan")
    return (values.std() / math.sqrt(len(values))).item()
