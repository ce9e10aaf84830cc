import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import COLOURS, histogram
from qatviz.records import Histogram


def record(levels=(-1.0, 0.0, 1.0, 2.0), used=(1, 2, 1, 0)):
    return Histogram(
        label="conv1",
        counts=np.array([1, 0, 3]),
        edges=np.array([-1.0, -0.25, 0.5, 1.25]),
        levels=np.array(levels),
        used=np.array(used, dtype=int),
        mean_squared_error=0.01 if len(levels) else 0.0,
        signal=1.0,
    )


def level_lines(ax):
    return [
        line.get_xdata()[0]
        for line in ax.lines
        if same_color(line.get_color(), COLOURS["levels"]) and list(line.get_ydata()) == [0, 1]
    ]


def test_bars_are_shares_in_per_cent(ax):
    assert histogram(ax, record()) is ax
    (bars,) = ax.patches
    values, edges, _ = bars.get_data()
    assert values.tolist() == [25, 0, 75]
    assert edges.tolist() == [-1, -0.25, 0.5, 1.25]
    assert ax.get_xlabel() == "value"
    assert ax.get_ylabel() == "share of values (%)"
    assert ax.figure.axes == [ax]
    assert plt.get_fignums() == []


def test_every_level_is_a_line(ax):
    histogram(ax, record())
    assert level_lines(ax) == [-1, 0, 1, 2]


def test_the_name_and_the_noise_are_in_the_title(ax):
    histogram(ax, record())
    assert ax.get_title() == "conv1 (SQNR 20.0 dB)"


def test_levels_in_view_say_how_much_they_take(ax):
    histogram(ax, record())
    shares = {text.xy[0]: text.get_text() for text in ax.texts}
    # The level 2 lies beyond the largest value, 1.25, and its margin.
    assert shares == {-1: "25%", 0: "50%", 1: "25%"}
    low, high = ax.get_xlim()
    assert -2 < low < -1
    assert 1.25 < high < 2


def test_many_levels_are_lines_without_words(ax):
    levels = np.linspace(-1, 1, 16)
    histogram(ax, record(levels, np.ones(16)))
    assert len(level_lines(ax)) == 16
    assert len(ax.texts) == 0


def test_no_quantizer_no_levels(ax):
    histogram(ax, record((), ()))
    assert level_lines(ax) == []
    assert len(ax.texts) == 0
    assert ax.get_title() == "conv1"


@pytest.mark.parametrize(("log", "scale"), [(False, "linear"), (True, "log")])
def test_counts_on_a_logarithmic_scale(ax, log, scale):
    histogram(ax, record(), log=log)
    assert ax.get_yscale() == scale
    ax.figure.canvas.draw()
