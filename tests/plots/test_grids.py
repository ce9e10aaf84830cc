import matplotlib.pyplot as plt
import numpy as np

from qatviz import plots
from qatviz.records import BitsCurve, ChannelSQNR, RangeSweep

SWEEP = RangeSweep(
    "weights", 3, np.array([0.5, 1.0]), np.array([0.3, 0.0]), np.array([0.1, 0.2]), 2.0
)
CURVE = BitsCurve("min-max", np.array([2, 3]), np.array([10.0, 16.0]), "SQNR (dB)")


def test_a_sweep_shows_both_errors_and_marks_the_least_sum():
    _, ax = plt.subplots()
    assert plots.range_sweep(ax, SWEEP) is ax
    clipping, rounding, both, dot = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(clipping, [15, 0])
    np.testing.assert_allclose(rounding, [5, 10])
    np.testing.assert_allclose(both, [20, 10])
    np.testing.assert_allclose(dot, 10)
    assert "%" in ax.get_xlabel()
    assert "%" in ax.get_ylabel()


def test_minima_of_several_bits_are_named():
    _, ax = plt.subplots()
    plots.range_minima(ax, [SWEEP, SWEEP])
    assert [text.get_text() for text in ax.texts] == ["3 bit", "3 bit"]


def test_channels_are_drawn_twice_against_their_size():
    record = ChannelSQNR(
        "w", 3, np.array([0.1, 0.5]), np.array([1.0, 9.0]), np.array([8.0, 10.0]), 8.5, 9.5
    )
    _, ax = plt.subplots()
    assert plots.channel_sqnr(ax, record) is ax
    tensor, channel = ax.lines[-2:]
    np.testing.assert_allclose(tensor.get_ydata(), [1, 9])
    np.testing.assert_allclose(channel.get_ydata(), [8, 10])
    assert "8.5 dB" in tensor.get_label()
    assert "dB" in ax.get_ylabel()


def test_a_curve_against_bits_and_the_line_of_six_decibels():
    _, ax = plt.subplots()
    plots.six_decibels(plots.bits_curve(ax, CURVE), CURVE)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [10, 16])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [16 - 6.0206, 16], atol=1e-4)
    assert ax.get_ylabel() == "SQNR (dB)"


def test_accuracies_are_shown_in_per_cent():
    _, ax = plt.subplots()
    plots.bits_curve(ax, BitsCurve("a", np.array([2]), np.array([0.5]), "accuracy"))
    assert ax.lines[0].get_ydata().tolist() == [50]
    assert ax.get_ylabel() == "accuracy (%)"
