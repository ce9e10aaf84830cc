import inspect

import numpy as np
import pytest

from qatviz import plots
from qatviz.analysis import averaging_toy, oscillation_toy


@pytest.fixture(scope="module")
def toy():
    return averaging_toy([0.2, 0.5, 0.6], decay=0.9, updates=200, settle=0, windows=1, weights=4)


def test_points_with_errors_over_the_predicted_line(ax, toy):
    assert plots.averaging_toy(ax, toy) is ax
    series = {container.get_label(): container.lines for container in ax.containers}
    assert list(series) == ["student", "average of weights", "average of codes"]
    for index, (points, _, (bars,)) in enumerate(series.values()):
        assert points.get_xdata().tolist() == [0.2, 0.5, 0.6]
        assert points.get_ydata().tolist() == toy.mean[index].tolist()
        lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, 4 * toy.standard_error[index], atol=1e-12)
    assert len({points.get_color() for points, _, _ in series.values()}) == 3
    (line,) = (x for x in ax.lines if len(x.get_xdata()) > 100)
    grid = line.get_xdata()
    for target, predicted in zip(toy.targets, toy.predicted_student, strict=True):
        assert line.get_ydata()[np.isclose(grid, target)] == pytest.approx(predicted)
    assert ax.get_xlabel() == "target above the lower level (w* − ŵ↓)/s"
    assert ax.get_ylabel() == "changes of code per update"
    assert ax.get_title() == "800 updates for each target"
    ax.figure.canvas.draw()


def test_another_record_is_refused(ax):
    wrong = oscillation_toy([0.3], updates=20, windows=2)
    with pytest.raises(ValueError, match="class AveragingToy, got OscillationToy"):
        inspect.unwrap(plots.averaging_toy)(ax, wrong)
