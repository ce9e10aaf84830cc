"""What does the loss around a network look like? A plane, and a cut through it that moves."""

from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from qatviz import plots
from qatviz.plots.style import by_label, colours_of
from qatviz.records import LossLine, LossSurface
from qatviz.widgets.explorer import Explorer

FRAMES = 20


@dataclass(frozen=True, eq=False)
class Cut:
    """One row of a plane.

    Args:
        label: Of the network.
        surface: The plane.
        row: Number of the row.
    """

    label: str
    surface: LossSurface
    row: int

    @property
    def line(self) -> LossLine:
        """The loss along the row."""
        return self.surface.row(self.row)


def landscape_explorer(
    records: LossSurface | Mapping[str, LossSurface], *, log: bool = True, quantity: str = "loss"
) -> Explorer:
    """Choose a network and drag a cut through its plane; all networks share their scales.

    Nothing is computed: the planes are. At most 20 pictures go into the face without a kernel.

    Args:
        records: What ``analysis.plane`` returned, or several by label, up to 10 of them.
        log: Whether losses are on a logarithmic scale. Default: True (ours).
        quantity: "loss" or "accuracy". Default: "loss".

    Returns:
        An explorer; ``result`` is the cut.

    Raises:
        ValueError: If there is no plane, or there are more than 10, one is something else, units
            differ, or nothing is finite.
    """
    named = by_label(records, LossSurface)
    if len(named) > FRAMES // 2:
        raise ValueError(f"at most {FRAMES // 2} planes fit in an explorer, got {len(named)}")
    planes = list(named.values())
    units = {plane.units for plane in planes}
    if len(units) > 1:
        raise ValueError(f"the planes must have the same units, got {sorted(units)}")
    limits = _limits(planes, quantity, log)
    low, high = min(p.y[0] for p in planes), max(p.y[-1] for p in planes)

    def compute(network: str, cut: float) -> Cut:
        surface = named[network]
        return Cut(network, surface, int(np.abs(surface.y - cut).argmin()))

    def draw(figure: Figure, result: Cut) -> None:
        draw_cut(figure, result, log=log, quantity=quantity, limits=limits)

    stops = min(FRAMES // len(named), len(planes[0].y))
    stops -= 1 - stops % 2  # odd: one in the middle
    cuts = [float(c) for c in np.linspace(low, high, stops)] if stops > 1 else [0.0]
    step = float(np.diff(planes[0].y).min())
    return Explorer(
        compute,
        draw,
        network=ipywidgets.Dropdown(options=list(named), description="network"),
        cut=ipywidgets.FloatSlider(
            0, min=low, max=high, step=step, description="cut at", readout_format=".2f"
        ),
        frames={"network": list(named), "cut": cuts},
    )


def draw_cut(
    figure: Figure,
    result: Cut,
    *,
    log: bool = True,
    quantity: str = "loss",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw the plane with the cut on the left, the loss along it on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
        log: Whether losses are on a logarithmic scale. Default: True (ours).
        quantity: "loss" or "accuracy". Default: "loss".
        limits: Lowest and highest value of both pictures. Default: None: those of the plane.
    """
    left, right = figure.subplots(1, 2)
    surface = result.surface
    plots.loss_contour(left, surface, quantity=quantity, log=log, limits=limits)
    left.set_title(f"{result.label}\n{left.get_title()}".strip(), fontsize="small")
    left.axhline(surface.y[result.row], color="white", lw=1.5)
    middle = surface.row(len(surface.y) // 2)
    plots.loss_line(right, middle, quantity=quantity, log=log)
    right.lines[0].set(alpha=0.3, marker="", label="through the network")
    plots.loss_line(right, result.line, quantity=quantity, log=log)
    colour = colours_of([result.label])[result.label]
    right.lines[-2].set(color=colour, label=f"cut at {surface.y[result.row]:.2f}")
    right.set_xlabel(f"{surface.directions[0]} ({surface.units[0]})")
    right.set_title("")  # that of the plane
    right.legend(loc="upper center")
    right.set_ylim(limits or _limits([surface], quantity, log))


def _limits(planes: list[LossSurface], quantity: str, log: bool) -> tuple[float, float]:
    values = np.concatenate(
        [(p.loss if quantity == "loss" else 100 * p.accuracy)[np.isfinite(p.loss)] for p in planes]
    )
    if not len(values):
        raise ValueError("no point of any plane has a finite loss")
    low, high = float(values.min()), float(values.max())
    if log and quantity == "loss":
        low = max(low, 1e-6)
    return low, max(high, low * 1.001 + 1e-9)
