"""One look for every figure: the same colour for the same thing, everywhere."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import seaborn as sns

_SAFE = sns.color_palette("colorblind").as_hex()

COLOURS = {
    "float": "#4d4d4d",
    "quantized": _SAFE[0],
    "teacher": _SAFE[2],
    "rounded": _SAFE[3],
    "gradient": _SAFE[1],
    "levels": _SAFE[4],
}
"""Colour-blind-safe (seaborn's "colorblind", after Wong 2011, Nature Methods 8, 441).

float: a float network or tensor; quantized: a trained low-bit one; teacher: what a student is
drawn towards; rounded: low-bit without training; gradient: what a backward pass claims;
levels: the grid.
"""


def use_style() -> None:
    """Set the house's look for the figures that follow: once, at the top of a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.dpi": 96,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each of several networks: grey for the float one, then the palette in order.

    Args:
        labels: Names, of which those that begin with "float" are grey.

    Returns:
        Colours by name.
    """
    labels = list(labels)
    low_bit = [label for label in labels if not label.startswith("float")]
    colours = {label: _SAFE[i % len(_SAFE)] for i, label in enumerate(low_bit)}
    return {label: colours.get(label, COLOURS["float"]) for label in labels}


def check_kind(record: object, kind: type) -> None:
    """Refuse to draw a record of another kind.

    Args:
        record: What a plot was given: a record, or several in a sequence or by name.
        kind: The class of records that it draws.

    Raises:
        ValueError: If one is of another class, or there is none.
    """
    records = [record]
    if isinstance(record, Mapping):
        records = list(record.values())
    elif isinstance(record, Sequence):
        records = list(record)
    wrong = [type(r).__name__ for r in records if not isinstance(r, kind)]
    if wrong or not records:
        got = ", ".join(wrong) or "nothing"
        raise ValueError(f"this draws records of class {kind.__name__}, got {got}")
