"""How does the curvature change with the bits? Spectra under a slider, on the same axes."""

from collections.abc import Mapping
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from qatviz import plots
from qatviz.plots.style import check_kind
from qatviz.records import Eigenvalues, SpectralDensity
from qatviz.widgets.explorer import Explorer

Spectrum = Eigenvalues | SpectralDensity
Shown = dict[str, Spectrum]


def spectrum_explorer(
    records: Mapping[int, Spectrum] | Mapping[str, Mapping[int, Spectrum]],
    *,
    reference: Spectrum | None = None,
) -> Explorer:
    """Drag the bits, choose the network or method; see the eigenvalues move on axes that do not.

    Args:
        records: What ``analysis.eigenvalues`` or ``analysis.spectral_density`` returned, all of
            one of them, by bits; or several such by name: then the name is chosen from a list.
        reference: That of the float network, drawn in grey behind. Default: None.

    Returns:
        An explorer; ``result`` is the records that are drawn, by label.

    Raises:
        ValueError: If there are no records, of both kinds, or relative to filters and not.
    """
    if not isinstance(records, Mapping) or not records:
        got = f"a {type(records).__name__}" if records else "nothing"
        raise ValueError(f"spectrum_explorer: records must be in a mapping by bits, got {got}")
    by_name = records if isinstance(next(iter(records.values())), Mapping) else {"": records}
    for group in by_name.values():
        check_kind(group, _kind(by_name), one=False, several=True)
    flat = [record for group in by_name.values() for record in group.values()]
    if reference is not None:
        check_kind(reference, _kind(by_name))
        flat.append(reference)
    if len({record.setting.relative for record in flat}) > 1:
        raise ValueError("some records are relative to filters and some are not: other units")
    bits = sorted({b for group in by_name.values() for b in group})
    look = _look(flat)

    def compute(bits: int, name: str = next(iter(by_name))) -> Shown:
        group = by_name[name]
        if bits not in group:
            allowed = ", ".join(str(b) for b in sorted(group))
            raise ValueError(f"{name} was not measured at {bits} bits; there are {allowed}")
        shown = {f"{name} {bits} bit".strip(): group[bits]}
        return shown if reference is None else {"float": reference, **shown}

    controls: dict[str, Any] = {
        "bits": ipywidgets.SelectionSlider(options=bits, description="bits")
    }
    frames: dict[str, list] = {"bits": bits}
    if len(by_name) > 1:
        controls["name"] = ipywidgets.Dropdown(options=list(by_name), description="of")
        frames["name"] = list(by_name)
    return Explorer(
        compute,
        lambda figure, shown: draw_spectrum(figure, shown, look),
        size=(8, 4),
        frames=frames,
        **controls,
    )


def draw_spectrum(figure: Figure, shown: Shown, look: Mapping[str, Any]) -> None:
    """Draw a histogram of eigenvalues, or a density.

    Args:
        figure: An empty figure.
        shown: What the explorer computed.
        look: What is the same in every picture: arguments of the plot, and ``ylim``.
    """
    settings = dict(look)
    limits = settings.pop("ylim")
    densities = isinstance(next(iter(shown.values())), SpectralDensity)
    plot = plots.density if densities else plots.spectrum
    plot(figure.subplots(), shown, **settings).set_ylim(*limits)


def _kind(by_name: Mapping[str, Any]) -> type:
    """The class that all must be of: that of the first record."""
    group = next(iter(by_name.values()))
    first = next(iter(group.values()), None) if isinstance(group, Mapping) else None
    return SpectralDensity if isinstance(first, SpectralDensity) else Eigenvalues


def _look(records: list[Spectrum]) -> dict[str, Any]:
    """Bins or width, and limits, that fit all pictures."""
    if isinstance(records[0], SpectralDensity):
        nodes = np.concatenate([record.nodes.ravel() for record in records])
        reach = float(nodes.max() - nodes.min()) or 1.0
        span = (float(nodes.min()) - 0.04 * reach, float(nodes.max()) + 0.04 * reach)
        width = reach / 100
        peak = 1 / (width * np.sqrt(2 * np.pi))
        floor = 0.1 * peak / max(record.setting.size for record in records)
        return {"width": width, "span": span, "ylim": (floor, 2 * peak)}
    edges = np.histogram_bin_edges(np.concatenate([r.values for r in records]), 25)
    highest = max(np.histogram(record.values, edges)[0].max() for record in records)
    return {"bins": edges, "ylim": (0, 1.3 * highest)}
