"""Draw what the gradients of a quantized network say."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS
from qatviz.records import Descent, GradientAgreement

_LOOKS = ("o-", "s--", "^:", "d-.")


def gradient_agreement(ax: Axes, records: Sequence[GradientAgreement]) -> Axes:
    """Draw the cosine between quantized and float gradients, layer by layer.

    Args:
        ax: Where.
        records: What ``analysis.gradient_agreement`` returned, one per quantized network,
            at most four.

    Returns:
        The axes.
    """
    for index, (record, look) in enumerate(zip(records, _LOOKS, strict=False)):
        colour, shade = COLOURS["gradient"], 1 - 0.22 * index
        ax.plot(record.cosine, look, color=colour, alpha=shade, ms=6, label=record.label)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.set_xticks(range(len(records[0].layers)), records[0].layers, rotation=40, ha="right")
    ax.set(ylabel="cosine with the float gradient", ylim=(-0.6, 1.05))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def descent(ax: Axes, record: Descent) -> Axes:
    """Draw the loss along the gradient, and along its shuffles.

    Args:
        ax: Where.
        record: What ``analysis.descent`` returned.

    Returns:
        The axes.
    """
    length = 100 * record.length
    for index, losses in enumerate(record.shuffled):
        name = f"shuffled gradient ({len(record.shuffled)} draws)" if index == 0 else None
        ax.plot(length, losses, color=COLOURS["float"], lw=1, alpha=0.6, label=name)
    ax.plot(length, record.along, "o-", color=COLOURS["gradient"], lw=2, label="gradient")
    ax.set(xlabel="distance moved (% of the weights' norm)", ylabel="loss (nats)")
    ax.set_title(record.label)
    ax.legend()
    return ax
