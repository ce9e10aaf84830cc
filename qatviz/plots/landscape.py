"""Draw the loss around networks: lines, planes and ways from one to another."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of, images
from qatviz.records import LossLine, LossPath, LossSurface

QUANTITIES = {"loss": "loss (nats)", "accuracy": "accuracy (%)"}
MAP = "viridis"
MISSING = "0.88"
SMALLEST = 1e-6  # nats: what is less is drawn as that on a logarithmic scale (ours)


def loss_line(
    ax: Axes,
    records: LossLine | Mapping[str, LossLine],
    *,
    quantity: str = "loss",
    log: bool = False,
) -> Axes:
    """Draw the loss along a line through one network, or through several on one axis.

    Points that were not computed, or whose loss is not finite, are gaps.

    Args:
        ax: Where.
        records: What ``analysis.line`` returned; or several by label, in one unit.
        quantity: "loss" or "accuracy". Default: "loss".
        log: Whether the loss is on a logarithmic scale. Default: False (ours).

    Returns:
        The axes.

    Raises:
        ValueError: If the units of the lines differ, or ``quantity`` is another word.
    """
    named = by_label(records, LossLine)
    lines = list(named.values())
    unit = _common([line.unit for line in lines])
    spaces = {line.conditions.words for line in lines}
    colours = colours_of(named)
    for label, line in named.items():
        words = [label, line.conditions.words if len(spaces) > 1 else ""]
        values = _values(line, quantity)
        style = {"marker": "o", "ms": 2.5, "lw": 1.6}
        ax.plot(line.x, values, color=colours[label], label=", ".join(filter(None, words)), **style)
    ax.axvline(0, color=COLOURS["float"], lw=0.6, zorder=0)
    directions = {line.direction for line in lines}
    ax.set_xlabel(f"{directions.pop() if len(directions) == 1 else 'direction'} ({unit})")
    ax.set_ylabel(QUANTITIES[quantity])
    if log and quantity == "loss":
        ax.set_yscale("log")
    ax.set_title(_title(lines, "gaps"), fontsize="small")
    if ax.get_legend_handles_labels()[1]:
        ax.legend()
    return ax


def loss_contour(
    ax: Axes,
    record: LossSurface,
    *,
    quantity: str = "loss",
    log: bool = False,
    levels: int = 20,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> Axes:
    """Draw the loss over a plane as filled contours; a cross marks the network.

    Points that were not computed, or whose loss is not finite, are grey.

    Args:
        ax: Where.
        record: What ``analysis.plane`` returned.
        quantity: "loss" or "accuracy". Default: "loss".
        log: Whether levels of the loss grow by a factor. Default: False (ours).
        levels: How many. Default: 20 (ours).
        limits: The lowest and the highest, in the unit drawn; what lies beyond has the colour of
            the end. Default: None: those of the record.
        bar: Whether to draw the scale beside the axes. Default: True.

    Returns:
        The axes.

    Raises:
        ValueError: If ``quantity`` is another word, or nothing is finite.
    """
    check_kind(record, LossSurface)
    contours = _contour(ax, record, quantity, log, levels, limits)
    if bar:
        _bar(contours, [ax], quantity)
    return ax


def loss_contours(
    axes: Iterable[Axes],
    records: LossSurface | Mapping[str, LossSurface],
    *,
    quantity: str = "loss",
    log: bool = False,
    levels: int = 20,
    limits: tuple[float, float] | None = None,
) -> Sequence[Axes]:
    """Draw the planes of several networks on one scale of colours and the same axes.

    Args:
        axes: As many as there are records.
        records: What ``analysis.plane`` returned, or several by label, in one unit per axis.
        quantity: See ``loss_contour``.
        log: See ``loss_contour``.
        levels: See ``loss_contour``.
        limits: See ``loss_contour``. Default: None: those of all records together.

    Returns:
        The axes.

    Raises:
        ValueError: As ``loss_contour``; or if there are more or fewer axes than records, or the
            units differ.
    """
    named = by_label(records, LossSurface)
    axes = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(axes) != len(named):
        raise ValueError(f"{len(named)} records need as many axes, got {len(axes)}")
    planes = list(named.values())
    for side in (0, 1):
        _common([plane.units[side] for plane in planes])
    limits = limits or _limits(planes, quantity, log)
    for ax, (label, plane) in zip(axes, named.items(), strict=True):
        contours = _contour(ax, plane, quantity, log, levels, limits)
        ax.set_title(f"{label}\n{ax.get_title()}".strip(), fontsize="small")
        ax.set_xlim(min(p.x[0] for p in planes), max(p.x[-1] for p in planes))
        ax.set_ylim(min(p.y[0] for p in planes), max(p.y[-1] for p in planes))
    _bar(contours, axes, quantity)
    return axes


def loss_relief(
    ax: Axes,
    record: LossSurface,
    *,
    quantity: str = "loss",
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw the loss over a plane as a surface in space.

    Args:
        ax: Axes with ``projection="3d"``.
        record: What ``analysis.plane`` returned.
        quantity: See ``loss_contour``.
        log: Whether the height is log₁₀ of the loss. Default: False (ours).
        limits: Lowest and highest loss or accuracy drawn; what is higher is cut off. Default: None.

    Returns:
        The axes.

    Raises:
        ValueError: As ``loss_contour``; or if the axes are flat.
    """
    check_kind(record, LossSurface)
    if not hasattr(ax, "plot_surface"):
        raise ValueError("loss_relief needs axes made with projection='3d'")
    low, high = limits or _limits([record], quantity, log)
    values = np.clip(_values(record, quantity), low, None)
    values[values > high] = np.nan
    name, log = QUANTITIES[quantity], log and quantity == "loss"
    if log:
        values, name = np.log10(values), f"log₁₀ {name}"
        low, high = np.log10([low, high])
    x, y = np.meshgrid(record.x, record.y)
    style = {"cmap": MAP, "norm": Normalize(low, high), "lw": 0, "rcount": 201, "ccount": 201}
    ax.plot_surface(x, y, values, **style)
    ax.set(**_axis_labels(record), zlabel=name)
    ax.set_title(_title([record], "holes"), fontsize="small")
    ax.locator_params(nbins=5)
    ax.tick_params(pad=0, labelsize="small")
    ax.set_box_aspect(None, zoom=0.85)  # room for the labels
    return ax


def loss_path(
    ax: Axes, records: LossPath | Mapping[str, LossPath], *, quantity: str = "loss"
) -> Axes:
    """Draw the loss on the way from one network to another, and the chord between the ends.

    Args:
        ax: Where.
        records: What ``analysis.between`` returned; or several by label.
        quantity: "loss" or "accuracy". Default: "loss".

    Returns:
        The axes; of the loss, the legend gives the barriers.

    Raises:
        ValueError: If ``quantity`` is another word.
    """
    named = by_label(records, LossPath)
    colours = colours_of(named)
    for label, path in named.items():
        barrier = f"barrier {path.barrier:.3g} nats" if quantity == "loss" else ""
        words = ", ".join(filter(None, [label, barrier]))
        values = _values(path, quantity)
        ax.plot(path.t, values, "o-", ms=3, lw=1.6, color=colours[label], label=words or None)
        if quantity == "loss":
            inside = (path.t >= 0) & (path.t <= 1)
            style = {"color": colours[label], "lw": 0.8, "ls": "--"}
            ax.plot(path.t[inside], path.chord[inside], **style)
    for end in (0, 1):
        ax.axvline(end, color=COLOURS["float"], lw=0.6, zorder=0)
    ends = {path.ends for path in named.values()}
    first, second = ends.pop() if len(ends) == 1 else ("the first network", "the second")
    ax.set(xlabel=f"t: 0 is {first}, 1 is {second}", ylabel=QUANTITIES[quantity])
    ax.set_title(_title(named.values(), "gaps"), fontsize="small")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def _contour(
    ax: Axes,
    record: LossSurface,
    quantity: str,
    log: bool,
    levels: int,
    limits: tuple[float, float] | None,
) -> QuadContourSet:
    values = np.ma.masked_invalid(_values(record, quantity))
    low, high = limits or _limits([record], quantity, log)
    log = log and quantity == "loss"
    steps = np.geomspace(low, high, levels) if log else np.linspace(low, high, levels)
    steps[[0, -1]] = low, high
    below, above = (bool(beyond.any()) for beyond in (values < low, values > high))
    ends = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    norm = LogNorm(low, high) if log else Normalize(low, high)
    if log:
        values = np.ma.maximum(values, low)  # a loss of zero has no logarithm
    ax.set_facecolor(MISSING)
    style = {"levels": steps, "norm": norm, "cmap": MAP, "extend": ends[below, above]}
    contours = ax.contourf(record.x, record.y, values, **style)
    ax.contour(record.x, record.y, values, levels=steps, colors="white", linewidths=0.3)
    ax.plot(0, 0, "+", color="white", mew=1.5, ms=9)
    ax.set(**_axis_labels(record))
    ax.set_title(_title([record], "grey"), fontsize="small")
    return contours


def _bar(contours: QuadContourSet, axes: list[Axes], quantity: str) -> None:
    bar = axes[0].figure.colorbar(contours, ax=axes, label=QUANTITIES[quantity])
    ticks = contours.levels[:: max(1, len(contours.levels) // 6)]
    bar.set_ticks(ticks, labels=[f"{t:.3g}" for t in ticks])
    bar.minorticks_off()


def _axis_labels(record: LossSurface) -> dict[str, str]:
    names = [f"{d} ({u})" for d, u in zip(record.directions, record.units, strict=True)]
    return {"xlabel": names[0], "ylabel": names[1]}


def _values(record: LossLine | LossSurface | LossPath, quantity: str) -> np.ndarray:
    """Loss, or accuracy in %; NaN where there is none."""
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity: got {quantity!r}, allowed: {', '.join(QUANTITIES)}")
    finite = np.isfinite(record.loss)
    values = record.loss if quantity == "loss" else 100 * record.accuracy
    return np.where(finite, values, np.nan)


def _limits(records: list[LossSurface], quantity: str, log: bool) -> tuple[float, float]:
    values = np.concatenate([_values(record, quantity).ravel() for record in records])
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError("nothing to draw: no point has a finite loss")
    low, high = float(values.min()), float(values.max())
    if log and quantity == "loss":
        low, high = max(low, SMALLEST), max(high, SMALLEST)
    return low, high if high > low else low + max(abs(low), SMALLEST) * 1e-3


def _common(units: list[str]) -> str:
    if len(set(units)) > 1:
        raise ValueError(
            f"lengths in different units share no axis: {', '.join(sorted(set(units)))}"
        )
    return units[0]


def _title(records: Iterable[LossLine | LossSurface | LossPath], shown: str) -> str:
    """The space where it is one, the number of images, and what is missing where something is."""
    records = list(records)
    spaces = {r.conditions.words for r in records}
    words = [*spaces] if len(spaces) == 1 else []
    words.append(images(r.conditions.samples for r in records))
    between = "\n" if any(r.conditions.requantized for r in records) else ", "  # a long line
    return between.join(words) + _gaps(records, shown)


def _gaps(records: list[LossLine | LossSurface | LossPath], shown: str) -> str:
    """What is missing, in words, where something is."""
    left = sum(int((~r.computed).sum()) for r in records)
    endless = sum(int((r.computed & ~np.isfinite(r.loss)).sum()) for r in records)
    words = [f"{left} points not computed"] if left else []
    words += [f"{endless} without a finite loss"] if endless else []
    return f"\n{shown}: {', '.join(words)}" if words else ""
