"""Draw learned steps: their gradient, their updates, their way and their end."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import StepErrors, StepGradient, StepRatios, StepTrace


def step_gradient(ax: Axes, record: StepGradient) -> Axes:
    """Draw what one value tells the step, against where the value lies on the grid.

    Args:
        ax: Where.
        record: What ``analysis.step_gradient`` returned.

    Returns:
        The axes.
    """
    for code in range(record.low, record.high):
        ax.axvline(code + 0.5, color=COLOURS["levels"], lw=0.6, alpha=0.6, zorder=0)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.plot(record.ratio, record.learned, color=COLOURS["gradient"], lw=2, label="LSQ")
    ax.plot(
        record.ratio,
        record.clipped_only,
        color=COLOURS["float"],
        lw=1.2,
        ls="--",
        label="clipped values only (as PACT)",
    )
    ax.set(xlabel="v/s (thin lines: rounding thresholds)", ylabel="∂v̂/∂s used in training")
    ax.margins(x=0)
    ax.legend(loc="upper left")
    return ax


def step_ratios(axes: np.ndarray, record: StepRatios) -> np.ndarray:
    """Draw the relative updates of steps beside those of the weights, with and without scale.

    Args:
        axes: Two: for the quantizers of weights, and of inputs.
        record: What ``analysis.step_ratios`` returned.

    Returns:
        The axes.
    """
    for ax, which, kind in zip(
        axes, (~record.is_input, record.is_input), ("weights", "inputs"), strict=True
    ):
        places = np.arange(which.sum())
        for x, low, high in zip(
            places, record.with_scale[which], record.without_scale[which], strict=True
        ):
            ax.plot([low, high], [x, x], color=COLOURS["gradient"], lw=0.8, alpha=0.6)
        ax.plot(
            record.without_scale[which],
            places,
            "o",
            mfc="white",
            color=COLOURS["gradient"],
            label="without g",
        )
        ax.plot(record.with_scale[which], places, "o", color=COLOURS["gradient"], label="with g")
        ax.axvline(1, color=COLOURS["float"], lw=0.8, ls="--")
        ax.set_yticks(places, _layers(record.names, which))
        ax.invert_yaxis()
        ax.set(xscale="log", xlabel="R: relative update, step / weights")
        ax.set_title(f"steps of {kind}, mean of {record.batches} batches", pad=22)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=2)
    return axes


def step_trace(ax: Axes, record: StepTrace, *, inputs: bool = False) -> Axes:
    """Draw each step size over training, relative to where it was first recorded.

    Args:
        ax: Where.
        record: What a ``StepRecorder`` recorded.
        inputs: Whether to draw the steps of the inputs. Default: those of the weights.

    Returns:
        The axes.
    """
    which = record.is_input if inputs else ~record.is_input
    relative = record.sizes[:, which] / record.sizes[0, which]
    colour = COLOURS["quantized"]
    ax.axhline(1, color=COLOURS["float"], lw=0.6)
    ax.plot(record.steps, relative, color=colour, lw=1.2, alpha=0.7)
    ends, names = relative[-1], _layers(record.names, which)
    for index in {int(ends.argmin()), int(ends.argmax())}:
        ax.annotate(
            f"{names[index]} ×{ends[index]:.2g}",
            (record.steps[-1], ends[index]),
            xytext=(0, 5 if index == ends.argmax() else -6),
            textcoords="offset points",
            ha="right",
            va="bottom" if index == ends.argmax() else "top",
            fontsize="small",
            color=colour,
        )
    ax.set(xlabel="optimizer steps", ylabel="step size / first recorded")
    ax.margins(y=0.2)
    ax.set_title(f"{record.label}: {'inputs' if inputs else 'weights'}")
    return ax


def step_sizes(ax: Axes, record: StepTrace) -> Axes:
    """Draw all step sizes over training, on a scale that is logarithmic on both sides of zero.

    For runs that go wrong: steps that grow a hundredfold, or turn negative.

    Args:
        ax: Where.
        record: What a ``StepRecorder`` recorded.

    Returns:
        The axes.
    """
    ax.plot(record.steps, record.sizes, color=COLOURS["gradient"], lw=1, alpha=0.7)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set(xlabel="optimizer steps", ylabel="step size (units of each tensor)")
    ax.set_title(f"{record.label}: all {len(record.names)} steps")
    return ax


def step_errors(ax: Axes, records: Sequence[StepErrors], labels: Sequence[str]) -> Axes:
    """Draw each learned step as a multiple of the step whose rounding error is smallest.

    Args:
        ax: Where.
        records: What ``analysis.step_errors`` returned, before and after training, say.
        labels: A name for each; the last is drawn filled.

    Returns:
        The axes.
    """
    names = records[0].names
    places = np.arange(len(names))
    fills = ["white"] * (len(records) - 1) + [COLOURS["quantized"]]
    for record, label, fill in zip(records, labels, fills, strict=True):
        ax.plot(record.ratio, places, "o", mfc=fill, color=COLOURS["quantized"], label=label)
    ax.axvline(1, color=COLOURS["float"], lw=0.8, ls="--")
    ax.set_yticks(
        places, [name.replace(".weight", "  w").replace(".input", "  in") for name in names]
    )
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel=f"step / step of least ∑|v̂ − v|^{records[0].p:g}")
    ax.set_xticks([0.125, 0.25, 0.5, 1, 2, 4, 8], ["⅛", "¼", "½", "1", "2", "4", "8"])
    ax.minorticks_off()
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(records))
    return ax


def _layers(names: Sequence[str], which: np.ndarray) -> list[str]:
    """Names of the layers, without the ending that says which quantizer."""
    return [name.rsplit(".", 1)[0] for name, chosen in zip(names, which, strict=True) if chosen]
