"""Draw what an average over training makes of weights that go to and fro."""

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, check_kind
from qatviz.records import AveragingToy

LOOKS = (("quantized", "o"), ("float", "s"), ("teacher", "D"))


def averaging_toy(ax: Axes, record: AveragingToy) -> Axes:
    """Draw how often codes change: those of weights, and of their averages.

    Args:
        ax: Where.
        record: What ``analysis.averaging_toy`` returned.

    Returns:
        The axes; bars are two standard errors, the line is what is predicted of the weights.
    """
    check_kind(record, AveragingToy)
    line = np.linspace(0, 1, 201)[1:-1]
    near = np.minimum(line, 1 - line)
    predicted = 2 * near * (1 - np.sqrt(near / (1 - near)) / 2)
    ax.plot(line, predicted, color=COLOURS["quantized"], lw=1, zorder=1)
    errors = 2 * record.standard_error
    for index, (name, mark) in enumerate(LOOKS):
        ax.errorbar(
            record.targets,
            record.mean[index],
            errors[index],
            fmt=mark,
            ms=5,
            color=COLOURS[name],
            label=record.codes[index],
            capsize=2,
        )
    ax.set(
        xlabel="target above the lower level (w* − ŵ↓)/s",
        ylabel="changes of code per update",
        title=f"{record.updates:,} updates for each target",
    )
    ax.legend(fontsize="small")
    return ax
