"""One look for every figure: the same colour for the same thing, everywhere."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
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
        labels: Names, of which those that begin with "float" are grey; "CR" has the teacher's
            colour, which then nobody else has.

    Returns:
        Colours by name.
    """
    labels = list(labels)
    low_bit = [label for label in labels if label != "CR" and not label.startswith("float")]
    palette = [c for c in _SAFE if "CR" not in labels or c != COLOURS["teacher"]]
    colours = {label: palette[i % len(palette)] for i, label in enumerate(low_bit)}
    colours["CR"] = COLOURS["teacher"]
    return {label: colours.get(label, COLOURS["float"]) for label in labels}


def check_kind(record: object, kind: type, *, one: bool = True, several: bool = False) -> None:
    """Refuse to draw a record of another kind, or in another container.

    Args:
        record: What a plot was given.
        kind: The class of records that it draws.
        one: Whether it draws a single one. Default: True.
        several: Whether it draws several, by label in a mapping. Default: False.

    Raises:
        ValueError: If one is of another class, or there is none, or the container is another.
    """
    inside = isinstance(record, Mapping) and several
    records = list(record.values()) if inside else [record]
    wrong = [_named(r) for r in records if not isinstance(r, kind)]
    if wrong or not records or not (inside or one):
        got = ", ".join(wrong) or (_named(record) if records else "nothing")
        ways = {"a single one": one, "several by label in a mapping": several}
        allowed = " or ".join(words for words, fits in ways.items() if fits)
        raise ValueError(
            f"this draws records of class {kind.__name__}, got {got}; allowed: {allowed}"
        )


def by_label(records: object, kind: type) -> dict[str, Any]:
    """What a plot of one or several records was given, by label, all of one kind.

    Args:
        records: A record, whose label is its own or empty; or several by label in a mapping.
        kind: The class of records that the plot draws.

    Returns:
        The records by label.

    Raises:
        ValueError: As ``check_kind``.
    """
    check_kind(records, kind, several=True)
    if isinstance(records, Mapping):
        return {str(label): record for label, record in records.items()}
    return {getattr(records, "label", ""): records}


def joined(*words: str) -> str:
    """A label and what is said of it, "label: words", or the words alone.

    Args:
        words: Parts; empty ones are left out.

    Returns:
        The parts with a colon between.
    """
    return ": ".join(filter(None, words))


def plus_minus(value: float, error: float, form: str = ".3g") -> str:
    """A number with one digit of its standard error, "1.23 ± 0.04", or without where it has none.

    Args:
        value: The number.
        error: Its standard error; NaN: it is not known.
        form: Format of the number. Default: three digits.

    Returns:
        The words.
    """
    digit = float(f"{error:.1g}")
    return f"{value:{form}} ± {digit:g}" if np.isfinite(error) else f"{value:{form}}"


def images(counts: Iterable[int]) -> str:
    """How many images several records are of, "100 images" or "100 to 2,000 images".

    Args:
        counts: Of each record.

    Returns:
        The words.
    """
    few, most = min(counts := list(counts)), max(counts)
    return f"{few:,} images" if few == most else f"{few:,} to {most:,} images"


def _named(record: object) -> str:
    """The class of an object, and of what a container holds."""
    held = record.values() if isinstance(record, Mapping) else record
    name = type(record).__name__
    if not isinstance(record, Mapping | Sequence) or isinstance(record, str) or not record:
        return name
    return f"{name} of {', '.join(dict.fromkeys(type(r).__name__ for r in held))}"
