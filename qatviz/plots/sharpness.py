"""Draw how sharp networks are, beside each other."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import by_label, check_kind, colours_of, images, plus_minus
from qatviz.records import Sharpness


def sharpness_points(
    ax: Axes, records: Sharpness | Mapping[str, Sharpness], *, percent: bool = False
) -> Axes:
    """Draw one measure of several networks, averages with their standard error.

    Args:
        ax: Where.
        records: A record, or several of one measure over one region, by label.
        percent: Whether rises are shares of 1 + L, in % (Keskar et al.). Default: False: in nats.

    Returns:
        The axes.

    Raises:
        ValueError: If the measures or their regions differ.
    """
    named = by_label(records, Sharpness)
    kinds = sorted({f"{r.measure}, {r.region}" for r in named.values()})
    if len(kinds) > 1:
        raise ValueError(f"different measures share no axis: {'; '.join(kinds)}")
    colours = colours_of(named)
    spaces = {r.conditions.words for r in named.values()}
    for place, (label, record) in enumerate(named.items()):
        unit = 100 / (1 + record.loss) if percent else 1.0
        value, error = unit * record.value, unit * record.standard_error
        style = {"fmt": "o", "ms": 6, "capsize": 4, "color": colours[label]}
        ax.errorbar(value, place, xerr=error if record.average else None, **style)
        told = plus_minus(value, error if record.average else np.nan)
        state = "" if record.complete else ", incomplete"
        text = f"{told}{state}".replace("-", "−")
        ax.annotate(text, (value, place), (0, 8), textcoords="offset points", ha="center")
    names = [f"{label}\n{r.conditions.words}" if len(spaces) > 1 else label
             for label, r in named.items()]  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    ax.margins(x=0.2)
    ax.set_xlabel(f"rise of the loss ({'% of 1 + L' if percent else 'nats'})")
    measure, region = kinds[0].split(", ", 1)
    error = " ± standard error" if any(r.average for r in named.values()) else ""
    many = images(r.conditions.samples for r in named.values())
    ax.set_title(f"{measure}{error}\n{region}, {many}")
    return ax


def sharpness_panels(
    axes: Iterable[Axes],
    records: Mapping[str, Sharpness] | Mapping[str, Mapping[str, Sharpness]],
    *,
    percent: bool = False,
) -> Sequence[Axes]:
    """Draw several measures of several networks, one per axes, each on its own scale.

    Args:
        axes: As many as there are measures.
        records: What ``analysis.sharpness_measures`` returned, or several by label of the network.
        percent: See ``sharpness_points``.

    Returns:
        The axes.

    Raises:
        ValueError: If the networks do not have the same measures, or there are more or fewer axes.
    """
    several = isinstance(records, Mapping) and not any(
        isinstance(record, Sharpness) for record in records.values()
    )
    named = records if several else {"": records}
    for measures in named.values():
        check_kind(measures, Sharpness, one=False, several=True)
    names = {label: tuple(measures) for label, measures in named.items()}
    if len(set(names.values())) != 1:
        raise ValueError(f"the networks must have the same measures, got {names}")
    (measures,) = set(names.values())
    axes = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(axes) != len(measures):
        raise ValueError(f"{len(measures)} measures need as many axes, got {len(axes)}")
    for ax, name in zip(axes, measures, strict=True):
        sharpness_points(
            ax, {label: found[name] for label, found in named.items()}, percent=percent
        )
    return axes
