"""Draw how alike two networks are inside."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of
from qatviz.records import Similarity

QUANTITIES = {
    "cka": ("linear CKA", "matched_cka", "matched_cka_error"),
    "cosine": ("cosine of the outputs", "cosine", "cosine_error"),
    "distance": ("relative distance ‖b − a‖/‖a‖", "distance", "distance_error"),
}
NUMBERED = 12  # layers up to which every cell has its number


def similarity_map(ax: Axes, record: Similarity) -> Axes:
    """Draw the CKA of every pair of layers as a table of colours, with numbers if it is small.

    Args:
        ax: Where. A colour bar takes some of its room.
        record: What ``analysis.linear_cka`` returned.

    Returns:
        The axes.
    """
    check_kind(record, Similarity)
    image = ax.imshow(record.cka, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    if max(record.cka.shape) <= NUMBERED:
        for (row, column), value in np.ndenumerate(record.cka):
            look = {"color": "black" if value > 0.6 else "white", "size": "x-small"}
            ax.annotate(f"{value:.2f}", (column, row), ha="center", va="center", **look)
    ax.set_yticks(range(len(record.rows)), record.rows)
    ax.set_xticks(
        range(len(record.columns)), record.columns, rotation=40, ha="right", rotation_mode="anchor"
    )
    first, second = record.labels
    ax.set(xlabel=f"layers of {second}", ylabel=f"layers of {first}")
    ax.set_title(f"{record.samples} images, {record.batches} batches")
    ax.figure.colorbar(image, ax=ax, label="linear CKA")
    return ax


def similarity_lines(
    ax: Axes, records: Similarity | Mapping[str, Similarity], quantity: str = "cka"
) -> Axes:
    """Draw how alike the layers that match are, one line for each pair of networks.

    Args:
        ax: Where.
        records: What ``analysis.linear_cka`` returned, or several by name of the pair; all of
            the same layers.
        quantity: "cka", "cosine" or "distance". Default: "cka".

    Returns:
        The axes.

    Raises:
        ValueError: If ``quantity`` is another word, or the pairs have other layers.
    """
    named = by_label(records, Similarity)
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity is {quantity!r}; allowed: {', '.join(QUANTITIES)}")
    first = next(iter(named))
    layers = named[first].matched
    if different := [name for name, r in named.items() if r.matched != layers]:
        raise ValueError(f"{different[0]!r} has other layers than {first!r}")
    label, values, errors = QUANTITIES[quantity]
    colours = colours_of(named)
    for name, record in named.items():
        look = {"fmt": "o-", "ms": 4, "capsize": 3, "color": colours[name], "label": name}
        ax.errorbar(range(len(layers)), getattr(record, values), getattr(record, errors), **look)
    ax.axhline(0 if quantity == "distance" else 1, color=COLOURS["float"], lw=0.6, ls="--")
    ax.set_ylabel(label)
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor")
    if any(named):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return ax
