"""Watch weights cross their thresholds: a window that is dragged over training."""

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from qatviz import plots
from qatviz.plots.style import by_label
from qatviz.records import Trajectories
from qatviz.widgets.explorer import Explorer

FRAMES = 24  # in the static face, of all runs together


def oscillation_replay(
    records: Trajectories | Mapping[str, Trajectories], *, window: int = 100, count: int = 6
) -> Explorer:
    """Drag a window over training; see latent weights on their way and the codes they give.

    Args:
        records: What ``WeightTrajectories.record`` returned, or several by label: then the run
            is chosen from a list.
        window: Moments in view. Default: 100 (ours).
        count: Weights in view, the first. Default: 6 (ours).

    Returns:
        An explorer; ``result`` is the part of the record that is in view.

    Raises:
        ValueError: If ``window`` is below 2, or a record has fewer than 2 moments.
    """
    runs = by_label(records, Trajectories)
    shortest = min(len(record.steps) for record in runs.values())
    if window < 2 or shortest < 2:
        raise ValueError(
            f"oscillation_replay: a window of {window} of {shortest} moments; both must be at "
            f"least 2"
        )
    window = min(window, shortest)
    last = shortest - window

    def compute(first: int, run: str = next(iter(runs))) -> Trajectories:
        record, seen = runs[run], slice(first, first + window)
        return replace(
            record,
            steps=record.steps[seen],
            positions=record.positions[seen, :count],
            codes=record.codes[seen, :count],
            indices=record.indices[:count],
        )

    stops = np.unique(np.linspace(0, last, max(FRAMES // len(runs), 1)).astype(int))
    controls = {"first": ipywidgets.IntSlider(0, 0, max(last, 1), description="first moment")}
    frames = {"first": stops.tolist()}
    if last == 0:
        controls["first"].disabled = True
    if len(runs) > 1:
        controls["run"] = ipywidgets.Dropdown(options=list(runs), description="run")
        frames["run"] = list(runs)
    return Explorer(compute, draw_replay, size=(9, 4), frames=frames, **controls)


def draw_replay(figure: Figure, record: Trajectories) -> None:
    """Draw the window.

    Args:
        figure: An empty figure.
        record: What the explorer computed.
    """
    ax = plots.trajectories(figure.subplots(), record)
    ax.set_title(f"{record.layer}: {record.changes.sum()} changes of code in view")
