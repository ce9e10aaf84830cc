"""Draw how sharp networks are, beside each other."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import check_kind, colours_of
from qatviz.records import Sharpness


def sharpness_points(ax: Axes, records: Mapping[str, Sharpness], *, percent: bool = False) -> Axes:
    """Draw one measure of several networks, averages with their standard error.

    Args:
        ax: Where.
        records: Records of one measure over one region, by label.
        percent: Whether rises are shares of 1 + L, in % (Keskar et al.). Default: False: in nats.

    Returns:
        The axes.

    Raises:
        ValueError: If the measures or their regions differ.
    """
    check_kind(records, Sharpness)
    kinds = sorted({f"{r.measure}, {r.region}" for r in records.values()})
    if len(kinds) > 1:
        raise ValueError(f"different measures share no axis: {'; '.join(kinds)}")
    colours = colours_of(records)
    spaces = {r.conditions.words for r in records.values()}
    for place, (label, record) in enumerate(records.items()):
        unit = 100 / (1 + record.loss) if percent else 1.0
        value, error = unit * record.value, unit * record.standard_error
        style = {"fmt": "o", "ms": 6, "capsize": 4, "color": colours[label]}
        ax.errorbar(value, place, xerr=error if record.average else None, **style)
        spread = f" ± {error:.1g}" if record.average else ""
        state = "" if record.complete else ", incomplete"
        text = f"{value:.3g}{spread}{state}".replace("-", "−")
        ax.annotate(text, (value, place), (0, 8), textcoords="offset points", ha="center")
    names = [f"{label}\n{r.conditions.words}" if len(spaces) > 1 else label
             for label, r in records.items()]  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    ax.margins(x=0.2)
    ax.set_xlabel(f"rise of the loss ({'% of 1 + L' if percent else 'nats'})")
    measure, region = kinds[0].split(", ", 1)
    error = " ± standard error" if any(r.average for r in records.values()) else ""
    ax.set_title(f"{measure}{error}\n{region}")
    return ax


def sharpness_panels(
    axes: Iterable[Axes], records: Mapping[str, Mapping[str, Sharpness]], *, percent: bool = False
) -> Sequence[Axes]:
    """Draw several measures of several networks, one per axes, each on its own scale.

    Args:
        axes: As many as there are measures.
        records: What ``analysis.sharpness_measures`` returned, by label of the network.
        percent: See ``sharpness_points``.

    Returns:
        The axes.

    Raises:
        ValueError: If the networks do not have the same measures, or there are more or fewer axes.
    """
    for measures in records.values():
        check_kind(measures, Sharpness)
    names = {label: tuple(measures) for label, measures in records.items()}
    if len(set(names.values())) != 1:
        raise ValueError(f"the networks must have the same measures, got {names}")
    (measures,) = set(names.values())
    axes = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(axes) != len(measures):
        raise ValueError(f"{len(measures)} measures need as many axes, got {len(axes)}")
    for ax, name in zip(axes, measures, strict=True):
        sharpness_points(
            ax, {label: found[name] for label, found in records.items()}, percent=percent
        )
    return axes
