"""Draw weights that go to and fro between two codes, and what hangs on it."""

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of
from qatviz.records import (
    BatchNormDrift,
    BinDistances,
    Oscillation,
    OscillationLottery,
    OscillationToy,
    Trajectories,
)

SERIES = {
    "above": "weights that oscillate (%)",
    "changed": "codes that change in a step (%)",
    "oscillated": "weights that turn back in a step (%)",
}


def trajectories(ax: Axes, record: Trajectories, *, count: int | None = None) -> Axes:
    """Draw latent weights as lines over their integer codes as steps, and the thresholds.

    Args:
        ax: Where.
        record: What ``WeightTrajectories.record`` returned.
        count: How many weights, the first. Default: None: all.

    Returns:
        The axes.
    """
    check_kind(record, Trajectories)
    shown = record.codes.shape[1] if count is None else min(count, record.codes.shape[1])
    colours = sns.color_palette("husl", shown)
    for index, colour in enumerate(colours):
        codes, latent = record.codes[:, index], record.positions[:, index]
        ax.step(record.steps, codes, where="post", color=colour, lw=3, alpha=0.3)
        ax.plot(record.steps, latent, color=colour, lw=1, zorder=3)
    codes = record.codes[:, :shown]
    for threshold in np.arange(codes.min(initial=0), codes.max(initial=0) + 2) - 0.5:
        if record.low < threshold < record.high:
            ax.axhline(threshold, color=COLOURS["levels"], lw=0.6, ls=":", zorder=0)
    ax.set(xlabel="training step", ylabel="weight w/s (codes)", title=record.layer)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0)
    return ax


def bin_distances(
    ax: Axes,
    records: BinDistances | Mapping[str, BinDistances],
    *,
    layer: str | None = None,
    folded: bool = False,
) -> Axes:
    """Draw how weights are spread between the thresholds of their codes.

    Args:
        ax: Where.
        records: What ``analysis.bin_distances`` returned, or several by label.
        layer: Name of the layer; None: all layers together. Default: None (ours).
        folded: Whether |u| is drawn, from 0 to ½. Default: False (ours).

    Returns:
        The axes. A flat line at 1 % (folded: 2 %) are weights that are spread evenly.
    """
    several = by_label(records, BinDistances)
    colours = colours_of(several) if len(several) > 1 else dict.fromkeys(several, "#4d4d4d")
    for label, record in several.items():
        rows = record.folded if folded else record.counts
        row = rows.sum(0) if layer is None else rows[record.layers.index(layer)]
        edges = record.edges[len(record.edges) // 2 :] if folded else record.edges
        share, fill = 100 * row / max(row.sum(), 1), len(several) == 1
        look = {"fill": True, "alpha": 0.35} if fill else {"lw": 1.5, "baseline": None}
        ax.stairs(share, edges, color=colours[label], label=label or None, **look)
    ax.axhline(100 / len(share), color="0.5", lw=0.8, ls=":", zorder=0)
    u = "|w/s − round(w/s)|" if folded else "w/s − round(w/s)"
    ax.set(xlabel=f"{u} (steps of the grid)", ylabel="share of weights (%)")
    ax.margins(x=0)
    ax.set_ylim(bottom=0)
    return _legend(ax, several)


def oscillating_layers(ax: Axes, records: Oscillation | Mapping[str, Oscillation]) -> Axes:
    """Draw the share of each layer's weights that oscillate; depthwise layers are hatched.

    Args:
        ax: Where.
        records: What ``OscillationTracker.record`` returned, or several by label, of the same
            layers.

    Returns:
        The axes.

    Raises:
        ValueError: If the records are of different layers.
    """
    several = by_label(records, Oscillation)
    _check_layers(several)
    values = {label: 100 * record.oscillating for label, record in several.items()}
    threshold = next(iter(several.values())).threshold
    _bars(ax, several, values, colours_of(several))
    ax.set_ylabel(f"weights with frequency above {threshold:g} (%)")
    return _legend(ax, several)


def oscillation_causes(ax: Axes, record: Oscillation) -> Axes:
    """Draw how often codes changed because the weight moved, and because the grid did.

    Args:
        ax: Where.
        record: What ``OscillationTracker.record`` returned.

    Returns:
        The axes.
    """
    check_kind(record, Oscillation)
    values = {
        "weight moved": record.by_weight,
        "grid changed": record.by_step,
        "all changes": record.changes,
    }
    names = ("quantized", "levels", "float")
    colours = {label: COLOURS[n] for label, n in zip(values, names, strict=True)}
    _bars(ax, dict.fromkeys(values, record), values, colours)
    ax.set_ylabel(f"changes of code per weight, {record.steps} steps")
    return _legend(ax, values)


def oscillation_series(
    ax: Axes, records: Oscillation | Mapping[str, Oscillation], *, series: str = "above"
) -> Axes:
    """Draw a share of weights over training.

    Args:
        ax: Where.
        records: What ``OscillationTracker.record`` returned, or several by label.
        series: ``"above"``: frequency above the threshold; ``"changed"``: codes that change in a
            step; ``"oscillated"``: weights that turn back in a step. Default: "above" (ours).

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such series.
    """
    several = by_label(records, Oscillation)
    if series not in SERIES:
        raise ValueError(f"series must be one of {', '.join(SERIES)}, got {series!r}")
    colours = colours_of(several)
    for label, record in several.items():
        share = 100 * getattr(record, series)
        ax.plot(record.moments, share, color=colours[label], lw=1.5, label=label or None)
    ax.set(xlabel="training step", ylabel=SERIES[series])
    ax.set_ylim(bottom=0)
    return _legend(ax, several)


def code_survival(ax: Axes, records: Oscillation | Mapping[str, Oscillation]) -> Axes:
    """Draw the share of codes that did not change in the last so many steps.

    Args:
        ax: Where.
        records: What ``OscillationTracker.record`` returned, or several by label.

    Returns:
        The axes, steps on a logarithmic scale.
    """
    several = by_label(records, Oscillation)
    colours = colours_of(several)
    for label, record in several.items():
        share = [100 * record.overall(column) for column in record.survival.T]
        ax.plot(record.windows, share, "o-", ms=4, color=colours[label], label=label or None)
    ax.set(xscale="log", xlabel="last steps", ylabel="codes that did not change (%)")
    return _legend(ax, several)


def frequency_spread(ax: Axes, records: Oscillation | Mapping[str, Oscillation]) -> Axes:
    """Draw how the frequencies of all weights are spread, and the threshold.

    Weights below the first border, most of which never oscillated, are left out: their share
    would hide the others. It is in the legend.

    Args:
        ax: Where.
        records: What ``OscillationTracker.record`` returned, or several by label.

    Returns:
        The axes, frequency on a logarithmic scale.
    """
    several = by_label(records, Oscillation)
    colours = colours_of(several)
    for label, record in several.items():
        counts = record.frequency_counts.sum(0)
        share = 100 * counts / counts.sum()
        words = f"{label}: " if label else ""
        ax.stairs(
            share[1:],
            record.frequency_edges[1:],
            color=colours[label],
            lw=1.5,
            label=f"{words}{share[0]:.1f} % at rest",
        )
        ax.axvline(record.threshold, color=COLOURS["levels"], lw=0.8, ls=":", zorder=0)
    ax.set(xscale="log", xlabel="frequency (oscillations per step)", ylabel="share of weights (%)")
    ax.legend(fontsize="small")
    return ax


def oscillation_toy(ax: Axes, record: OscillationToy) -> Axes:
    """Draw measured rates of oscillation over the predicted line 2d/s, and the time spent above.

    Args:
        ax: Where.
        record: What ``analysis.oscillation_toy`` returned.

    Returns:
        The axes.
    """
    check_kind(record, OscillationToy)
    line = np.linspace(0, 1, 201)
    looks = (
        ("quantized", "oscillations per update", record.events, 2 * np.minimum(line, 1 - line)),
        ("teacher", "share of time at the upper level", record.upper, line),
    )
    for name, label, measured, predicted in looks:
        ax.plot(line, predicted, color=COLOURS[name], lw=1, zorder=1)
        ax.plot(record.targets, measured, "o", ms=5, color=COLOURS[name], label=label)
    ax.set(xlabel="target above the lower level (w* − ŵ↓)/s", ylabel="measured; line: predicted")
    ax.legend(fontsize="small")
    return ax


def toy_decay(ax: Axes, record: OscillationToy) -> Axes:
    """Draw how often and how far one weight oscillates while the learning rate changes.

    Args:
        ax: Where.
        record: What ``analysis.oscillation_toy`` returned.

    Returns:
        The axes; the oscillations per update over 2d/s, the spread of the latent weight over
        what the first rate η₀ allows, η₀s.
    """
    check_kind(record, OscillationToy)
    ends = record.window * np.arange(1, len(record.window_events) + 1)
    often = record.window_events[:, record.shown] / record.predicted_events[record.shown]
    far = record.window_spread[:, record.shown] / record.rates[0]
    rate = record.window_rates / record.rates[0]
    ax.plot(ends, rate, color=COLOURS["levels"], lw=1, ls=":", label="learning rate / first")
    ax.plot(ends, often, "o-", ms=4, color=COLOURS["quantized"], label="how often / (2d/s)")
    ax.plot(ends, far, "s-", ms=4, color=COLOURS["float"], label="how far / (η₀s)")
    ax.set(xlabel="update", ylabel="ratio", title=f"{record.schedule} learning rate")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax


def oscillation_lottery(
    ax: Axes, records: OscillationLottery | Mapping[str, OscillationLottery]
) -> Axes:
    """Draw the accuracy of each draw as a dot, the network's as a line.

    Args:
        ax: Where.
        records: What ``analysis.oscillation_lottery`` returned, or several by label.

    Returns:
        The axes; the bar is the network with one standard error of its images, the diamond the
        one with oscillating weights at their mean codes.
    """
    several = by_label(records, OscillationLottery)
    colours = colours_of(several)
    for place, (label, record) in enumerate(several.items()):
        first, colour = place == 0, colours[label]
        offsets = np.linspace(-0.18, 0.18, len(record.accuracy))
        names = ("draws", "network ± standard error", "at mean codes") if first else (None,) * 3
        ax.plot(
            place + offsets,
            100 * record.accuracy,
            "o",
            ms=4,
            alpha=0.6,
            color=colour,
            mec="none",
            label=names[0],
        )
        centre, error = 100 * record.checkpoint_accuracy, 100 * record.standard_error
        ax.plot([place - 0.3, place + 0.3], [centre] * 2, color=colour, lw=2, label=names[1])
        ax.fill_between(
            [place - 0.3, place + 0.3], centre - error, centre + error, color=colour, alpha=0.15
        )
        settled = 100 * record.settled_accuracy
        ax.plot(place, settled, "D", ms=6, mfc="white", mec=colour, label=names[2])
    ax.set_xticks(range(len(several)), list(several))
    images = " to ".join(map(str, sorted({r.samples for r in several.values()})))
    ax.set(ylabel=f"accuracy (%), {images} images", xlim=(-0.6, len(several) - 0.4))
    ax.margins(y=0.3)  # room for the legend
    ax.legend(fontsize="small")
    return ax


def batchnorm_drift(ax: Axes, record: BatchNormDrift) -> Axes:
    """Draw how far each channel's running statistics are from the network's own, by layer.

    Args:
        ax: Where.
        record: What ``analysis.batchnorm_drift`` returned.

    Returns:
        The axes, divergence on a logarithmic scale; the bar is the mean of a layer, the dashed
        one what chance alone makes of it.
    """
    check_kind(record, BatchNormDrift)
    for place, values in enumerate(record.divergence):
        colour = COLOURS["gradient" if record.kinds[place] == "depthwise" else "quantized"]
        offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(place + offsets, values, "o", ms=3, color=colour, alpha=0.5, mec="none")
        ends, first = [place - 0.35, place + 0.35], place == 0
        means = (record.means[place], record.noise_means[place])
        name = "mean of the layer" if first else None
        ax.plot(ends, [means[0]] * 2, color=colour, lw=2, label=name)
        name = "between halves of the images" if first else None
        ax.plot(ends, [means[1]] * 2, color=COLOURS["float"], lw=1.5, ls="--", label=name)
    names = [
        f"{layer}\n({kind})" if kind == "depthwise" else layer
        for layer, kind in zip(record.layers, record.kinds, strict=True)
    ]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize="small")
    ax.set(yscale="log", ylabel="KL(running ‖ estimated anew) (nats)")
    ax.legend(fontsize="small")
    return ax


def _check_layers(records: Mapping[str, Oscillation]) -> None:
    first = next(iter(records.values())).layers
    for label, record in records.items():
        if record.layers != first:
            raise ValueError(f"{label!r} has other layers: {record.layers}, not {first}")


def _bars(
    ax: Axes,
    records: Mapping[str, Oscillation],
    values: Mapping[str, np.ndarray],
    colours: Mapping[str, str],
) -> None:
    """A group of bars for each layer."""
    width = 0.8 / len(values)
    for index, (label, record) in enumerate(records.items()):
        places = np.arange(len(record.layers)) + (index - (len(values) - 1) / 2) * width
        bars = ax.bar(places, values[label], width, color=colours[label], label=label or None)
        for bar, depthwise in zip(bars, record.depthwise, strict=True):
            if depthwise:
                bar.set(hatch="///", edgecolor="white", linewidth=0)
    ax.set_xticks(range(len(record.layers)), record.layers, rotation=45, ha="right")
    ax.tick_params(axis="x", labelsize="small")
    ax.margins(y=0.3 if len(values) > 1 else 0.05)  # room for the legend


def _legend(ax: Axes, several: Mapping[str, object]) -> Axes:
    if any(several):
        ax.legend(fontsize="small")
    return ax
