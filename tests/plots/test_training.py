import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from qatviz.plots import COLOURS, accuracy_dots, history, relative_gradients
from qatviz.records import History

RECORD = History(
    terms={"cross_entropy": np.array([2.0, 1.0, 0.5]), "kd": np.array([0.3, 0.2, 0.1])},
    rate=np.array([0.1, 0.05, 0.0]),
    validation=np.array([0.5, 0.75, 0.875]),
)


def test_history_draws_each_term_over_the_epochs(ax):
    assert history(ax, RECORD) is ax
    assert [line.get_label() for line in ax.lines] == ["cross entropy", "kd"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [(1, 2), (2, 1), (3, 0.5)])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [(1, 0.3), (2, 0.2), (3, 0.1)])
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel() == "training loss (nats)"
    assert plt.get_fignums() == []


def test_history_draws_validation_in_per_cent_on_the_right(ax):
    history(ax, RECORD)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [(1, 50), (2, 75), (3, 87.5)])
    assert right.get_ylabel() == "validation accuracy (%)"


def test_history_without_validation_has_one_axis(ax):
    history(ax, History({"ce": np.ones(2)}, np.ones(2)))
    assert ax.figure.axes == [ax]


def test_history_takes_a_colour(ax):
    history(ax, RECORD, colour="#123456")
    assert same_color(ax.lines[0].get_color(), "#123456")
    history(other := Figure().add_subplot(), RECORD)
    assert same_color(other.lines[0].get_color(), COLOURS["quantized"])


def test_accuracy_dots_draws_every_seed_and_the_mean(ax):
    groups = {"float": [0.9], "2 bit": [0.7, 0.8, 0.75]}
    colours = {"float": COLOURS["float"], "2 bit": COLOURS["quantized"]}
    assert accuracy_dots(ax, groups, colours) is ax
    one, three = ax.collections
    np.testing.assert_allclose(one.get_offsets(), [(0, 90)])
    np.testing.assert_allclose(three.get_offsets(), [(0.88, 70), (1, 80), (1.12, 75)])
    assert same_color(three.get_facecolor()[0], COLOURS["quantized"])
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([90, 75])
    assert [list(line.get_xdata()) for line in ax.lines] == [[-0.25, 0.25], [0.75, 1.25]]


def test_accuracy_dots_says_mean_and_sample_deviation_in_words(ax):
    accuracy_dots(ax, {"a": [0.9], "b": [0.7, 0.8, 0.75]}, {"a": "black", "b": "black"})
    # The sample deviation of 70, 80 and 75 is √((25 + 25 + 0)/2) = 5.
    assert [text.get_text() for text in ax.texts] == ["90.0", "75.0 ± 5.0"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "test accuracy (%)"
    assert ax.get_xlim() == (-0.6, 1.6)
    assert plt.get_fignums() == []


def test_relative_gradients_draws_each_parameter_and_the_median(ax):
    groups = {"weights": [0.1, 10.0, 1.0], "steps": [2.0, 4.0]}
    assert relative_gradients(ax, groups, {"weights": "#123456"}) is ax
    dots, median, others, other_median = ax.lines
    np.testing.assert_allclose(dots.get_xydata(), [(0.1, 0), (10, 0), (1, 0)])
    np.testing.assert_allclose(others.get_xydata(), [(2, 1), (4, 1)])
    assert (median.get_xdata()[0], other_median.get_xdata()[0]) == (1, 3)
    assert same_color(dots.get_color(), "#123456")
    assert same_color(others.get_color(), COLOURS["gradient"])
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["weights", "steps"]
    assert ax.get_xlabel() == "|gradient| / |parameter|, bar: median"
    assert ax.get_ylim() == (1.5, -0.5)
    assert plt.get_fignums() == []
