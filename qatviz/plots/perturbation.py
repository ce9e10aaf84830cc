"""Draw what disturbed images and disturbed weights do to networks."""

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of, joined, plus_minus
from qatviz.records import (
    AccuracyBySamples,
    AccuracyDifference,
    CorruptionAccuracy,
    InputNoise,
    ViewConsistency,
    WeightNoise,
)
from qatviz.records.perturbation import error_of_draws, mean_of_draws

_INPUT = {
    "accuracy": ("accuracy (%)", 100),
    "loss": ("loss (nats)", 1),
    "divergence": ("KL from clean to noisy prediction (nats)", 1),
    "flips": ("changed predictions (%)", 100),
    "variance": ("variance of logits / clean variance", 1),
}
_WEIGHT = {
    "drop": ("lost accuracy (percentage points)", 100),
    "rise": ("added loss (nats)", 1),
    "accuracy": ("accuracy (%)", 100),
    "loss": ("loss (nats)", 1),
}
_LEVELS = {
    "filter": "noise ρ (share of each filter's length)",
    "multiplicative": "noise η (share of each weight)",
    "flips": "flipped codes p (share)",
}


def input_noise(
    ax: Axes, records: InputNoise | Mapping[str, InputNoise], *, of: str = "accuracy"
) -> Axes:
    """Draw a number against the noise on the images, one line per network.

    Args:
        ax: Where.
        records: What ``analysis.input_noise`` returned, or several by name of the network.
        of: "accuracy", "loss", "divergence", "flips" or "variance". Default: "accuracy".

    Returns:
        The axes. Bands are two standard errors of the mean: over draws, of the variance over
        images. Accuracy and loss start from the clean ones.

    Raises:
        ValueError: If ``of`` is something else.
    """
    named = by_label(records, InputNoise)
    ylabel, factor = _choose(of, _INPUT)
    colours = colours_of(named)
    for name, record in named.items():
        if of == "variance":
            mean, error = record.mean_relative_variance, record.relative_variance_error
        else:
            draws = getattr(record, of)
            mean, error = mean_of_draws(draws), error_of_draws(draws)
        start = {"accuracy": record.clean_accuracy, "loss": record.clean_loss}.get(of, 0.0)
        label = f"{name} ({record.draws} draws, n = {record.samples})".strip()
        _band(ax, record.sigmas, mean, error, start, factor, label, colours[name])
    ax.set(xlabel="noise σ (units of a normalised image)", ylabel=ylabel)
    ax.legend()
    return ax


def weight_noise(
    ax: Axes, records: WeightNoise | Mapping[str, WeightNoise], *, of: str = "drop"
) -> Axes:
    """Draw a number against the noise on the weights, one line per network.

    Args:
        ax: Where.
        records: What ``analysis.weight_noise`` returned, or several by name of the network;
            all of the same kind of noise.
        of: "drop" (of accuracy), "rise" (of the loss), "accuracy" or "loss". Default: "drop".

    Returns:
        The axes. Bands are two standard errors of the mean over draws.

    Raises:
        ValueError: If ``of`` is something else, or the kinds differ.
    """
    named = by_label(records, WeightNoise)
    ylabel, factor = _choose(of, _WEIGHT)
    kinds = sorted({record.kind for record in named.values()})
    if len(kinds) > 1:
        raise ValueError(f"records are of several kinds of noise: {', '.join(kinds)}")
    colours = colours_of(named)
    for name, record in named.items():
        if of in ("drop", "rise"):
            mean, error = getattr(record, of), getattr(record, f"{of}_error")
        else:
            mean, error = (f(getattr(record, of)) for f in (mean_of_draws, error_of_draws))
        start = {"accuracy": record.clean_accuracy, "loss": record.clean_loss}.get(of, 0.0)
        label = f"{name} ({record.space} weights, {record.draws} draws)".strip()
        _band(ax, record.levels, mean, error, start, factor, label, colours[name])
    ax.set(xlabel=_LEVELS[kinds[0]], ylabel=ylabel)
    ax.legend()
    return ax


def _choose(of: str, choices: dict[str, tuple[str, int]]) -> tuple[str, int]:
    if of not in choices:
        raise ValueError(f"of is {of!r}; allowed: {', '.join(choices)}")
    return choices[of]


def _band(
    ax: Axes,
    x: np.ndarray,
    mean: np.ndarray,
    error: np.ndarray,
    start: float,
    factor: int,
    label: str,
    colour: str,
) -> None:
    """A line with a band of two standard errors, from the clean value at no noise."""
    order = np.argsort(x)
    x, mean, error = x[order], factor * mean[order], 2 * factor * error[order]
    if x[0] > 0:
        x, mean, error = np.r_[0, x], np.r_[factor * start, mean], np.r_[0, error]
    ax.plot(x, mean, "o-", ms=4, color=colour, label=label)
    ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)


def corruption_accuracy(ax: Axes, record: CorruptionAccuracy) -> Axes:
    """Draw the accuracy of every kind and severity as a table of colours.

    Args:
        ax: Where.
        record: What ``analysis.corruption_accuracy`` returned.

    Returns:
        The axes.
    """
    check_kind(record, CorruptionAccuracy)
    sns.heatmap(
        100 * record.mean,
        vmin=0,
        vmax=100,
        annot=True,
        fmt=".0f",
        cmap="viridis",
        ax=ax,
        cbar_kws={"label": "accuracy (%)"},
        xticklabels=record.severities.tolist(),
        yticklabels=[kind.replace("_", " ") for kind in record.kinds],
    )
    ax.set(xlabel="severity (ours)", ylabel="")
    ax.tick_params(axis="y", rotation=0)
    clean = plus_minus(100 * record.clean_accuracy, 100 * record.clean_error, ".1f")
    told = f"clean accuracy {clean} %, n = {record.samples}\n{_corruption_error(record)}"
    ax.set_title(f"{record.label}\n{told}".strip(), fontsize="medium")
    return ax


def _corruption_error(record: CorruptionAccuracy) -> str:
    """With its standard error over draws."""
    value, error = 100 * record.corruption_error, 100 * record.corruption_error_error
    return f"mean corruption error {plus_minus(value, error, '.1f')} %"


def corruption_means(
    ax: Axes, records: CorruptionAccuracy | Mapping[str, CorruptionAccuracy]
) -> Axes:
    """Draw the mean accuracy of each kind, a bar per network, and the clean one as a dash.

    Args:
        ax: Where.
        records: What ``analysis.corruption_accuracy`` returned, or several by name of the network;
            all of the same kinds.

    Returns:
        The axes. Error bars are two standard errors over draws.

    Raises:
        ValueError: If the kinds differ.
    """
    named = by_label(records, CorruptionAccuracy)
    first = next(iter(named.values()))
    if different := [n for n, r in named.items() if r.kinds != first.kinds]:
        raise ValueError(f"{different[0]!r} has other kinds than {next(iter(named))!r}")
    width, colours = 0.8 / len(named), colours_of(named)
    for index, (name, record) in enumerate(named.items()):
        places = np.arange(len(first.kinds)) - 0.4 + (index + 0.5) * width
        error = 200 * np.nan_to_num(record.by_kind_error)
        look = {"color": colours[name], "ecolor": "0.3"}
        label = joined(name, _corruption_error(record))
        ax.bar(places, 100 * record.by_kind, width, yerr=error, label=label, **look)
        ax.axhline(100 * record.clean_accuracy, color=colours[name], ls="--", lw=1)
    names = [kind.replace("_", " ") for kind in first.kinds]
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(ylabel="accuracy over severities (%), dashed: clean", ylim=(0, 100))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def view_consistency(ax: Axes, records: ViewConsistency | Mapping[str, ViewConsistency]) -> Axes:
    """Draw how often the predictions for views agree with those for the images, per draw.

    Args:
        ax: Where.
        records: What ``analysis.view_consistency`` returned, or several by name of the network;
            all of the same view.

    Returns:
        The axes: a dot per draw, a line at the mean, a cross where all draws agree.

    Raises:
        ValueError: If the views differ.
    """
    named = by_label(records, ViewConsistency)
    views = sorted({record.view for record in named.values()})
    if len(views) > 1:
        raise ValueError(f"records are of several views: {', '.join(views)}")
    colours = colours_of(named)
    for place, (name, record) in enumerate(named.items()):
        look = {"color": colours[name]}
        offsets = place + np.linspace(-0.15, 0.15, len(record.agreement))
        ax.plot(offsets, 100 * record.agreement, "o", ms=4, mfc="white", **look)
        ax.plot([place - 0.25, place + 0.25], [100 * record.mean_agreement] * 2, lw=2, **look)
        ax.plot(place, 100 * record.unanimous, "x", ms=7, mew=2, **look)
    ax.set_xticks(range(len(named)), list(named))
    ax.set(
        ylabel=f"same prediction under {views[0]} (%)\nline: mean, ×: in all draws",
        xlim=(-0.6, len(named) - 0.4),
    )
    return ax


def accuracy_by_samples(ax: Axes, record: AccuracyBySamples) -> Axes:
    """Draw accuracy against the number of test images, with where 95 % of the orders lie.

    Args:
        ax: Where.
        record: What ``analysis.accuracy_by_samples`` returned.

    Returns:
        The axes. Dotted: two standard errors of images drawn anew, to either side of the
        accuracy on all.
    """
    check_kind(record, AccuracyBySamples)
    colours, (low, high) = colours_of(record.labels), record.band
    for index, name in enumerate(record.labels):
        look = {"color": colours[name]}
        label = f"{name}: {100 * record.full[index]:.1f} %"
        ax.plot(record.sizes, 100 * record.mean[index], "o-", ms=4, label=label, **look)
        ends = 100 * low[index], 100 * high[index]
        ax.fill_between(record.sizes, *ends, alpha=0.2, lw=0, **look)
        for side in (-2, 2):
            end = record.full[index] + side * record.standard_error[index]
            ax.plot(record.sizes, 100 * end, ":", lw=1, **look)
    orders = record.accuracy.shape[1]
    ax.set(xscale="log", xlabel=f"test images (first n of {orders} orders)", ylabel="accuracy (%)")
    ax.legend()
    return ax


def accuracy_difference(ax: Axes, record: AccuracyDifference) -> Axes:
    """Draw the paired difference of two accuracies against the number of test images.

    Args:
        ax: Where.
        record: What ``AccuracyBySamples.difference`` returned.

    Returns:
        The axes. Dotted: two standard errors of images drawn anew.
    """
    check_kind(record, AccuracyDifference)
    look = {"color": COLOURS["quantized"]}
    ax.plot(record.sizes, 100 * record.mean, "o-", ms=4, **look)
    low, high = record.band
    ax.fill_between(record.sizes, 100 * low, 100 * high, alpha=0.2, lw=0, **look)
    for side in (-2, 2):
        ax.plot(record.sizes, 100 * (record.full + side * record.standard_error), ":", lw=1, **look)
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.set(xscale="log", xlabel="test images", ylabel=f"{record.first} − {record.second} (points)")
    return ax
