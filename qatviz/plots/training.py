"""Draw how training went."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import History


def history(ax: Axes, record: History, *, colour: str = COLOURS["quantized"]) -> Axes:
    """Draw each loss term over the epochs, and the validation accuracy on an axis of its own.

    Args:
        ax: Where.
        record: The history of a run.
        colour: Colour of what was trained. Default: that of a quantized network.

    Returns:
        The axes of the loss.
    """
    epochs = np.arange(1, len(record) + 1)
    for index, (name, values) in enumerate(record.terms.items()):
        label = name.replace("_", " ")
        ax.plot(epochs, values, "o-", ms=4, color=colour, alpha=1 / (1 + index), label=label)
    ax.set(xlabel="epoch", ylabel="training loss (nats)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    lines = list(ax.lines)
    if len(record.validation):
        right = ax.twinx()
        style = {"color": colour, "mfc": "white", "label": "validation accuracy"}
        lines += right.plot(epochs, 100 * record.validation, "s--", ms=4, **style)
        right.set_ylabel("validation accuracy (%)")
        right.spines["right"].set_visible(True)
    ax.legend(handles=lines, loc="center right")
    return ax


def accuracy_dots(
    ax: Axes, accuracies: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> Axes:
    """Draw one dot per seed and the mean of each group, with its value in words.

    Args:
        ax: Where.
        accuracies: Accuracies (0 to 1) of the seeds, by group.
        colours: A colour for each group.

    Returns:
        The axes.
    """
    for place, (name, values) in enumerate(accuracies.items()):
        values = 100 * np.asarray(values)
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        ax.scatter(place + np.asarray(offsets), values, color=colours[name], s=28, zorder=3)
        ax.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color=colours[name], lw=2)
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        ax.annotate(
            f"{values.mean():.1f}{spread}",
            (place, values.max()),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    ax.set_xticks(range(len(accuracies)), list(accuracies))
    ax.set(ylabel="test accuracy (%)", xlim=(-0.6, len(accuracies) - 0.4))
    ax.margins(y=0.2)
    return ax


def relative_gradients(
    ax: Axes, ratios: Mapping[str, Sequence[float]], colours: Mapping[str, str] | None = None
) -> Axes:
    """Draw |gradient| / |parameter| of each parameter, and the median of each group.

    Args:
        ax: Where.
        ratios: The ratios by group, above 0; the first group is drawn on top.
        colours: Colours by group. Default: None: that of gradients.

    Returns:
        The axes, the ratio on a logarithmic scale.
    """
    colours = colours or {}
    for place, (name, values) in enumerate(ratios.items()):
        colour = colours.get(name, COLOURS["gradient"])
        ax.plot(values, [place] * len(values), "o", ms=4, color=colour, alpha=0.45, mec="none")
        ax.plot(np.median(values), place, "|", ms=16, mew=2, color=colour)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ax.set(xscale="log", xlabel="|gradient| / |parameter|, bar: median")
    ax.set_ylim(len(ratios) - 0.5, -0.5)
    return ax
