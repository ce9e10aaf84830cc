"""Draw toy problems whose truth is known."""

from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import OneWeight, StaircaseLoss


def one_weight(ax: Axes, record: OneWeight) -> Axes:
    """Draw the path of one latent weight, the level that was computed with, and the target.

    Args:
        ax: Where.
        record: What ``analysis.train_weight`` returned.

    Returns:
        The axes.
    """
    for index, threshold in enumerate(record.thresholds):
        name = "threshold between levels" if index == 0 else None
        ax.axhline(threshold, color=COLOURS["levels"], lw=0.8, ls=":", label=name, zorder=0)
    ax.step(
        range(len(record.target)),
        record.target,
        where="post",
        color=COLOURS["teacher"],
        lw=1.5,
        ls="--",
        label="target t",
    )
    ax.step(
        range(len(record.level)),
        record.level,
        where="post",
        color=COLOURS["quantized"],
        lw=1.2,
        alpha=0.8,
        label="level ŵ",
    )
    ax.plot(record.weight, color=COLOURS["float"], lw=1.8, label="latent weight w")
    ax.set(xlabel="update", ylabel="weight (steps)")
    ax.margins(x=0)
    return ax


def staircase_loss(ax: Axes, record: StaircaseLoss) -> Axes:
    """Draw the true loss of one rounded weight and the loss blurred by noise.

    Args:
        ax: Where.
        record: What ``analysis.staircase_loss`` returned.

    Returns:
        The axes.
    """
    noise = f"blurred by noise {record.noise:g} step wide"
    ax.plot(record.weight, record.loss, color=COLOURS["quantized"], lw=2, label="true loss")
    ax.plot(
        record.weight, record.smoothed, color=COLOURS["quantized"], lw=1.5, ls="--", label=noise
    )
    ax.axvline(record.target, color=COLOURS["teacher"], lw=1.5, ls="--", ymax=0.7, label="target t")
    ax.set(xlabel="latent weight w (steps)", ylabel="loss (ŵ − t)² (steps²)")
    ax.margins(x=0)
    ax.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="none")
    return ax


def loss_gradients(ax: Axes, record: StaircaseLoss) -> Axes:
    """Draw the true gradient (zero), the blurred loss's, and those that surrogates claim.

    Args:
        ax: Where.
        record: What ``analysis.staircase_loss`` returned.

    Returns:
        The axes.
    """
    looks = {
        "none": {"color": COLOURS["quantized"], "lw": 2, "label": "true (almost everywhere)"},
        "identity": {
            "color": COLOURS["gradient"],
            "lw": 1.2,
            "ls": ":",
            "label": "straight-through, identity",
        },
        "clipped": {"color": COLOURS["gradient"], "lw": 2, "label": "straight-through, clipped"},
    }
    for surrogate, gradient in record.gradients.items():
        ax.plot(record.weight, gradient, **looks[surrogate])
    ax.plot(
        record.weight,
        record.smoothed_gradient,
        color=COLOURS["quantized"],
        lw=1.5,
        ls="--",
        label="of the blurred loss",
    )
    ax.set(xlabel="latent weight w (steps)", ylabel="gradient ∂L/∂w (steps)")
    ax.margins(x=0)
    ax.legend(fontsize="small")
    return ax
