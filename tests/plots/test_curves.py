import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import COLOURS, surrogate_gradient, transfer_curve
from qatviz.records import TransferCurve

X = np.array([-1.0, -0.2, 0.7, 2.0])
CURVE = TransferCurve(
    x=X,
    y=np.array([-1.0, 0.0, 1.0, 1.0]),
    gradient=np.array([0.0, 1.0, 2.0, -0.5]),
    levels=np.array([-1.0, 0.0, 1.0]),
    label="LSQ, 2 bit",
)


@pytest.mark.parametrize("draw", [transfer_curve, surrogate_gradient])
def test_returns_the_axes_it_was_given(ax, draw):
    assert draw(ax, CURVE) is ax
    assert ax.figure.axes == [ax]
    assert plt.get_fignums() == []


def test_transfer_curve_draws_the_staircase_over_the_float_line(ax):
    transfer_curve(ax, CURVE)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["LSQ, 2 bit"].get_xydata(), np.stack([X, CURVE.y], 1))
    np.testing.assert_array_equal(lines["float: y = x"].get_xydata(), np.stack([X, X], 1))
    assert same_color(lines["LSQ, 2 bit"].get_color(), COLOURS["quantized"])
    assert same_color(lines["float: y = x"].get_color(), COLOURS["float"])


def test_transfer_curve_draws_every_level(ax):
    transfer_curve(ax, CURVE)
    levels = [line for line in ax.lines if same_color(line.get_color(), COLOURS["levels"])]
    assert [line.get_ydata()[0] for line in levels] == [-1, 0, 1]
    assert [line.get_ydata()[1] for line in levels] == [-1, 0, 1]


def test_transfer_curve_names_its_axes_and_lines(ax):
    transfer_curve(ax, CURVE)
    assert ax.get_xlabel() == "input x"
    assert ax.get_ylabel() == "output x̂ (same units as x)"
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["float: y = x", "LSQ, 2 bit"]
    assert ax.get_xlim() == (-1, 2)


def test_surrogate_gradient_draws_the_gradient(ax):
    surrogate_gradient(ax, CURVE)
    line = next(line for line in ax.lines if line.get_label() == "LSQ, 2 bit")
    np.testing.assert_array_equal(line.get_xydata(), np.stack([X, CURVE.gradient], 1))
    assert same_color(line.get_color(), COLOURS["gradient"])
    assert ax.get_xlabel() == "input x"
    assert ax.get_ylabel() == "∂x̂/∂x used in training"
    low, high = ax.get_ylim()
    assert (low, high) == pytest.approx((-0.55, 2.4))


def test_two_curves_share_one_pair_of_axes(ax):
    transfer_curve(ax, CURVE)
    other = TransferCurve(X, -X, X, np.empty(0), "other")
    transfer_curve(ax, other)
    line = next(line for line in ax.lines if line.get_label() == "other")
    np.testing.assert_array_equal(line.get_ydata(), -X)
