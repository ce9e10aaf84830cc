import inspect

import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz import plots
from tests.landscapes import a_line, a_sharpness, conditions


def test_points_with_their_values(ax):
    records = {"float": a_sharpness([0.5]), "W2": a_sharpness([2.0], loss=3.0)}
    assert plots.sharpness_points(ax, records) is ax
    points = [line.get_xydata()[0].tolist() for line in ax.lines[:2]]
    assert points == [[0.5, 0], [2.0, 1]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["float", "W2"]
    assert ax.get_xlabel() == "rise of the loss (nats)"
    assert ax.get_title() == "largest rise (20 steps)\nball of ρ = 0.05, 100 images"
    assert [t.get_text() for t in ax.texts] == ["0.5", "2"]


def test_averages_have_error_bars(ax):
    rises = [0.1, 0.2, 0.3, 0.4]
    plots.sharpness_points(ax, {"a": a_sharpness(rises, average=True)})
    error = np.std(rises, ddof=1) / 2
    (bar,) = ax.collections
    np.testing.assert_allclose(bar.get_segments()[0][:, 0], [0.25 - error, 0.25 + error])
    assert ax.get_title() == "mean rise ± standard error\nnoise of σ = 0.01, 100 images"
    assert ax.texts[0].get_text() == "0.25 ± 0.06"


def test_percent_is_of_one_plus_the_loss(ax):
    plots.sharpness_points(ax, {"W2": a_sharpness([2.0], loss=3.0)}, percent=True)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(100 * 2 / 4)
    assert "% of 1 + L" in ax.get_xlabel()


def test_spaces_that_differ_and_interruptions_are_said(ax):
    latent = conditions(space="latent", requantized=True)
    records = {
        "ŵ": a_sharpness([0.5], complete=False),
        "w": a_sharpness([0.5], conditions=latent),
    }
    plots.sharpness_points(ax, records)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["ŵ\ndequantized weights", "w\nlatent weights, rounded again at every point"]
    assert ax.texts[0].get_text() == "0.5, incomplete"


def test_panels_of_several_measures():
    axes = Figure().subplots(1, 2)
    records = {
        label: {"ball": a_sharpness([v]), "noise": a_sharpness([v, 3 * v], average=True)}
        for label, v in (("float", 0.1), ("W2", 0.3))
    }
    assert list(plots.sharpness_panels(axes, records)) == list(axes)
    assert axes[0].lines[1].get_xdata()[0] == pytest.approx(0.3)
    assert axes[1].lines[0].get_xdata()[0] == pytest.approx(0.2)
    assert axes[1].get_title().startswith("mean rise")
    with pytest.raises(ValueError, match="2 measures need as many axes, got 1"):
        plots.sharpness_panels(axes[:1], records)
    del records["W2"]["ball"]
    with pytest.raises(ValueError, match="the same measures"):
        plots.sharpness_panels(axes, records)


def test_refuses_other_records(ax):
    with pytest.raises(ValueError, match="different measures share no axis"):
        plots.sharpness_points(ax, {"a": a_sharpness([1]), "b": a_sharpness([1, 2], average=True)})
    with pytest.raises(ValueError, match="draws records of class Sharpness"):
        inspect.unwrap(plots.sharpness_points)(ax, {"a": a_line()})
    with pytest.raises(ValueError, match="draws records of class Sharpness"):
        inspect.unwrap(plots.sharpness_panels)([ax], {"a": {"ball": a_line()}})
