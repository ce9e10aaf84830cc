"""Draw the curvature of losses: eigenvalues, their density, traces."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of, images, joined
from qatviz.records import Eigenvalues, SpectralDensity, Trace

Several = Mapping[str, Eigenvalues]
LEADING = {"magnitude": "leading λ", "largest": "largest λ", "smallest": "smallest λ"}
MOST_POINTS = 5000  # of a density


def spectrum(ax: Axes, records: Eigenvalues | Several, *, bins: int | np.ndarray = 25) -> Axes:
    """Draw how many of the outer eigenvalues lie where, and their maximum, mean and variance.

    Some eigenvalue of the Hessian lies within ‖Hv − λv‖ of each; the legend has the largest.

    Args:
        ax: Where.
        records: What ``analysis.eigenvalues`` returned, or several by label; all with the same
            number of eigenvalues, or the counts do not compare.
        bins: How many, the same for all, or their edges. Default: 25 (ours).

    Returns:
        The axes.

    Raises:
        ValueError: If some are relative to filters and some are not.
    """
    several = _several(records, Eigenvalues)
    pooled = np.concatenate([record.values for record in several.values()])
    edges = np.histogram_bin_edges(pooled, bins) if isinstance(bins, int) else bins
    for (label, record), colour in _coloured(several):
        counts, _ = np.histogram(record.values, edges)
        told = (
            f"max {record.values.max():.3g}, mean {record.values.mean():.3g}, "
            f"variance {record.values.var():.3g},\n‖Hv − λv‖ up to {record.errors.max():.1g}"
        )
        ax.stairs(counts, edges, color=colour, fill=True, alpha=0.3)
        ax.stairs(counts, edges, color=colour, lw=1.5, baseline=None, label=joined(label, told))
    many = {len(record.values) for record in several.values()}
    of = f" of {many.pop()}" if len(many) == 1 else ""
    ax.set(xlabel=f"eigenvalue ({_unit(several)})", ylabel=f"eigenvalues{of} in a bin")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _told(ax, several)


def eigenvalues(ax: Axes, records: Eigenvalues | Several) -> Axes:
    """Draw eigenvalues, the largest first, with their error bars.

    Some eigenvalue of the Hessian lies within each bar. The scale is logarithmic; where one is
    not positive, it is linear around zero, as far as the smallest magnitude, or a thousandth of
    the largest.

    Args:
        ax: Where.
        records: What ``analysis.eigenvalues`` returned, or several by label.

    Returns:
        The axes.

    Raises:
        ValueError: If some are relative to filters and some are not.
    """
    several = _several(records, Eigenvalues)
    for (label, record), colour in _coloured(several):
        places, order = np.arange(1, len(record.values) + 1), np.argsort(-record.values)
        values, errors = record.values[order], record.errors[order]
        look = {"fmt": "o-", "ms": 4, "lw": 1, "capsize": 3, "color": colour}
        ax.errorbar(places, values, errors, label=label or None, **look)
    pooled = np.concatenate([record.values for record in several.values()])
    if (pooled > 0).all():
        ax.set_yscale("log")
    elif pooled.any():
        sizes = np.abs(pooled[pooled != 0])
        ax.set_yscale("symlog", linthresh=max(sizes.min(), 1e-3 * sizes.max()))
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.set(xlabel="rank", ylabel=f"eigenvalue ({_unit(several)})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _told(ax, several)


def density(
    ax: Axes,
    records: SpectralDensity | Mapping[str, SpectralDensity],
    *,
    width: float | None = None,
    span: tuple[float, float] | None = None,
) -> Axes:
    """Draw the spectral density on a logarithmic scale, with a band of one standard error.

    The title says how many random vectors were drawn, and how many steps each took. The scale
    ends at a tenth of what one single eigenvalue adds at its place.

    Args:
        ax: Where.
        records: What ``analysis.spectral_density`` returned, or several by label.
        width: Standard deviation of the Gaussian that stands for every eigenvalue, the same for
            all. Default: None: a hundredth of ``span`` (ours).
        span: Lowest and highest eigenvalue in view. Default: None: all.

    Returns:
        The axes.

    Raises:
        ValueError: If ``width`` is not above 0, or less than a thousandth of ``span``; or some
            are relative to filters and some are not.
    """
    several = _several(records, SpectralDensity)
    at, width = _points(several, width, span)
    peak = 1 / (width * np.sqrt(2 * np.pi))
    floor = 0.1 * peak / max(record.setting.size for record in several.values())
    for (label, record), colour in _coloured(several):
        middle, error = record.density(at, width)
        middle, error = np.maximum(middle, floor), np.nan_to_num(error)
        ax.plot(at, middle, color=colour, lw=1.2, label=label or None)
        if len(record.nodes) > 1:
            low = np.maximum(middle - error, floor)
            ax.fill_between(at, low, middle + error, color=colour, alpha=0.25, lw=0)
    ax.set(yscale="log", xlabel=f"eigenvalue ({_unit(several)})", ylim=(floor, 2 * peak))
    ax.set_ylabel(f"density (each eigenvalue a bell of σ = {width:.2g})")
    ax.margins(x=0)
    shapes = {record.nodes.shape: None for record in several.values()}
    draws = " and ".join(f"{d} draws of {s} steps" for d, s in shapes)
    _told(ax, several).set_title(f"{ax.get_title()}\n{draws}", fontsize="small")
    return ax


def traces(ax: Axes, records: Trace | Mapping[str, Trace], *, layers: bool = False) -> Axes:
    """Draw traces with bars of one standard error.

    Args:
        ax: Where.
        records: What ``analysis.trace`` returned, or several by label.
        layers: Whether each parameter's own block has a bar. Default: False: the whole trace.

    Returns:
        The axes.

    Raises:
        ValueError: If layers are asked for and a record has none (Hutch++), or others than the
            first; or some are relative to filters and some are not.
    """
    several = _several(records, Trace)
    names = list(next(iter(several.values())).layers)
    if layers and (not names or any(list(r.layers) != names for r in several.values())):
        raise ValueError(
            "traces: the records have no traces of layers (Hutchinson's method has), or of "
            "different ones"
        )
    for place, ((label, record), colour) in enumerate(_coloured(several)):
        look = {"color": colour, "ecolor": "0.2", "capsize": 3}
        if layers:
            values, errors = zip(*record.layers.values(), strict=True)
            wide = 0.8 / len(several)
            places = np.arange(len(names)) + wide * (place - (len(several) - 1) / 2)
            ax.bar(places, values, wide, yerr=errors, label=label or None, **look)
        else:
            ax.bar(place, record.value, 0.6, yerr=record.standard_error, **look)
    if layers:
        ax.set_xticks(range(len(names)), [n.removesuffix(".weight") for n in names])
        if len(names) > 6:
            ax.tick_params("x", rotation=90)
    else:
        ax.set_xticks(range(len(several)), list(several))
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_ylabel(f"trace of the Hessian ({_unit(several)})")
    return _told(ax, several)


def against_bits(
    ax: Axes,
    records: Mapping[int | str, Eigenvalues | Trace | Sequence[Eigenvalues] | Sequence[Trace]],
    *,
    label: str = "",
    colour: str = COLOURS["quantized"],
) -> Axes:
    """Draw leading eigenvalues, or traces, against bits.

    One record has the error bar of its measurement. Several, such as seeds, are dots, with the
    bar of their standard deviation around their mean.

    Args:
        ax: Where; a logarithmic scale if everything is positive.
        records: A record, or several, by bits; under the name "float" those of the float network,
            which come last.
        label: Name for a legend. Default: none.
        colour: Colour. Default: that of a quantized network.

    Returns:
        The axes.

    Raises:
        ValueError: If there are eigenvalues and traces, or some are relative to filters and some
            are not, or they were asked for in different orders.
    """
    given = records.items() if isinstance(records, Mapping) else [("", records)]
    by_bits = {b: list(r) if isinstance(r, Sequence) else [r] for b, r in given}
    flat = [record for group in by_bits.values() for record in group]
    kind = Trace if flat and isinstance(flat[0], Trace) else Eigenvalues
    named = {str(i): record for i, record in enumerate(flat)}
    check_kind(named if isinstance(records, Mapping) else records, kind, one=False, several=True)
    what = "trace of the Hessian" if kind is Trace else _leading(flat)
    unit, order = _unit(named), sorted(by_bits, key=lambda b: (isinstance(b, str), b))
    positive = True
    for place, bits in enumerate(order):
        values, middle, error = _with_error(by_bits[bits])
        positive &= bool((values > 0).all())
        own = COLOURS["float"] if isinstance(bits, str) else colour
        if len(values) > 1:
            ax.plot([place] * len(values), values, "o", ms=4, mfc="white", color=own)
        name = label if place == 0 and label else None
        ax.errorbar(place, middle, error, fmt="s", ms=5, capsize=4, color=own, label=name)
    means = [_with_error(by_bits[bits])[1] for bits in order if not isinstance(bits, str)]
    ax.plot(range(len(means)), means, color=colour, lw=1, alpha=0.6)
    if positive:
        ax.set_yscale("log")
    ax.set_xticks(range(len(order)), [str(bits) for bits in order])
    ax.set(xlabel="bits", ylabel=f"{what} ({unit})", xlim=(-0.5, len(order) - 0.5))
    return _told(ax, named)


def _several(records: Any, kind: type) -> dict[str, Any]:
    """Records by label, of one kind, those that were interrupted so named."""
    several = by_label(records, kind)
    _unit(several)
    return {
        label if record.complete else f"{label} (not complete)".strip(): record
        for label, record in several.items()
    }


def _unit(several: Mapping[str, Any]) -> str:
    relative = {record.setting.relative for record in several.values()}
    if len(relative) > 1:
        raise ValueError("some records are relative to filters and some are not: other units")
    return "nats per squared filter norm" if relative.pop() else "nats per weight²"


def _coloured(several: Mapping[str, Any]) -> list[tuple[tuple[str, Any], str]]:
    colours = colours_of(several)
    if len(several) == 1:
        ((label, record),) = several.items()
        colours = {label: COLOURS["float" if record.setting.space == "float" else "quantized"]}
    return [((label, record), colours[label]) for label, record in several.items()]


def _told(ax: Axes, several: Mapping[str, Any]) -> Axes:
    """A title that says where the curvature was taken, and a legend if there are names."""
    settings = [record.setting for record in several.values()]
    spaces = " and ".join(dict.fromkeys(s.space for s in settings))
    many = images(s.samples for s in settings)
    batchnorm = "; BatchNorm of the batch" if any(s.batchnorm == "batch" for s in settings) else ""
    ax.set_title(f"at {spaces} weights, {many}{batchnorm}", fontsize="small")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small")
    return ax


def _points(
    several: Mapping[str, SpectralDensity], width: float | None, span: tuple[float, float] | None
) -> tuple[np.ndarray, float]:
    nodes = np.concatenate([record.nodes.ravel() for record in several.values()])
    low, high = span or (nodes.min(), nodes.max())
    reach = (high - low) or 1.0
    width = reach / 100 if width is None else width
    if not width >= reach / 1000:
        raise ValueError(
            f"width is {width}; allowed: {reach / 1000:.3g} (a thousandth of what is in view) "
            f"or more"
        )
    margin = 0.0 if span else 4 * width
    count = int(np.clip(4 * (reach + 2 * margin) / width, 400, MOST_POINTS))
    return np.linspace(low - margin, high + margin, count), width


def _leading(records: Sequence[Eigenvalues]) -> str:
    which = {record.which for record in records}
    if len(which) > 1:
        raise ValueError(f"eigenvalues were asked for in different orders: {sorted(which)}")
    return LEADING[which.pop()]


def _with_error(
    group: Sequence[Eigenvalues] | Sequence[Trace],
) -> tuple[np.ndarray, float, float]:
    """Values, their mean, and how far it may be off."""
    pairs = [
        (r.value, r.standard_error) if isinstance(r, Trace) else (r.values[0], r.errors[0])
        for r in group
    ]
    values = np.array([value for value, _ in pairs], float)
    error = pairs[0][1] if len(pairs) == 1 else values.std(ddof=1)
    return values, float(values.mean()), float(error)
