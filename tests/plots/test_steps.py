import matplotlib.pyplot as plt
import numpy as np

from qatviz import plots
from qatviz.records import StepErrors, StepGradient, StepRatios, StepTrace

NAMES, INPUT = ("a.weight", "a.input", "b.weight"), np.array([False, True, False])


def test_the_step_gradient_beside_that_of_clipped_values():
    x = np.array([-3.0, 0.2, 2.0])
    record = StepGradient(x, np.array([-2, -0.2, 1]), np.array([-2.0, 0, 1]), -2, 1)
    _, ax = plt.subplots()
    assert plots.step_gradient(ax, record) is ax
    np.testing.assert_allclose(ax.lines[-2].get_ydata(), [-2, -0.2, 1])
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [-2, 0, 1])
    assert [line.get_xdata()[0] for line in ax.lines[:3]] == [-1.5, -0.5, 0.5]


def test_ratios_of_weights_and_inputs_have_axes_of_their_own():
    record = StepRatios(
        NAMES, INPUT, np.array([0.1, 0.2, 0.3]), np.array([1.0, 2, 3]), np.full(3, 0.1), 4
    )
    _, axes = plt.subplots(1, 2)
    plots.step_ratios(axes, record)
    names = [[t.get_text() for t in ax.get_yticklabels()] for ax in axes]
    assert names == [["a", "b"], ["a"]]
    labelled = {line.get_label(): line.get_xdata() for line in axes[0].lines}
    np.testing.assert_allclose(labelled["with g"], [0.1, 0.3])
    np.testing.assert_allclose(labelled["without g"], [1, 3])
    assert "4 batches" in axes[0].get_title()


def test_a_trace_is_relative_to_the_first_record():
    sizes = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 1.0]])
    record = StepTrace("run", np.array([1, 5]), sizes, NAMES, INPUT)
    _, axes = plt.subplots(1, 2)
    assert plots.step_trace(axes[0], record) is axes[0]
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), [1, 2])
    np.testing.assert_allclose(axes[0].lines[2].get_ydata(), [1, 0.25])
    assert sorted(t.get_text() for t in axes[0].texts) == ["a ×2", "b ×0.25"]
    plots.step_trace(axes[1], record, inputs=True)
    assert len(axes[1].lines) == 2


def test_sizes_of_all_steps_may_be_negative():
    record = StepTrace("wild", np.array([1, 5]), np.array([[1.0, 2, 3], [-9, 2, 90]]), NAMES, INPUT)
    _, ax = plt.subplots()
    assert plots.step_sizes(ax, record) is ax
    assert [line.get_ydata()[-1] for line in ax.lines[:3]] == [-9, 2, 90]
    assert ax.get_yscale() == "symlog"
    assert "all 3 steps" in ax.get_title()


def test_errors_of_two_moments_share_the_axis():
    records = [
        StepErrors(NAMES, INPUT, np.array(r), np.ones(3), 2.4) for r in ([1.0, 2, 3], [1.0] * 3)
    ]
    _, ax = plt.subplots()
    assert plots.step_errors(ax, records, ["before", "after"]) is ax
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 2, 3])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a  w", "a  in", "b  w"]
    assert "2.4" in ax.get_xlabel()
