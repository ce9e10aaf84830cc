import inspect

import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots.confidence import reliability, reliability_curves
from qatviz.plots.style import COLOURS
from qatviz.records import History
from tests.records.test_confidence import record


def bars(ax, colour):
    return [p for p in ax.patches if same_color(p.get_facecolor()[:3], colour)]


def test_bars_are_accuracies_and_gaps_reach_the_confidence(ax):
    assert reliability(ax, record()) is ax
    accuracy, gaps = bars(ax, COLOURS["quantized"]), bars(ax, COLOURS["rounded"])
    assert [(b.get_x(), b.get_width(), b.get_height()) for b in accuracy] == [
        (50, 25, 50),
        (75, 25, 100),
    ]
    assert [b.get_y() + b.get_height() for b in gaps] == pytest.approx([60, 95])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("confidence (%)", "accuracy (%)")
    assert {t.get_text(): t.xy[0] for t in ax.texts} == {"4": 62.5, "6": 87.5}
    assert ax.get_title() == (
        "net\nECE 7.0 % (95 %: 5.5 to 24.5), accuracy 80.0 ± 10 %\n10 images"  # √(0.8·0.2/10)
    )
    diagonal = ax.lines[0]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 100]


def test_error_bars_are_those_of_the_bins(ax):
    reliability(ax, record())
    (segments,) = [c for c in ax.collections if len(c.get_segments()) == 2]
    np.testing.assert_allclose(
        [s[:, 1].tolist() for s in segments.get_segments()], [[25, 75], [100, 100]]
    )


def test_several_networks_are_lines(ax):
    records = {"float": record(), "LSQ": record(accuracy=0.7)}
    assert reliability_curves(ax, records) is ax
    for container in ax.containers:
        np.testing.assert_allclose(container[0].get_xdata(), [60, 95])
        np.testing.assert_allclose(container[0].get_ydata(), [50, 100])
    assert same_color(ax.containers[0][0].get_color(), COLOURS["float"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "float: ECE 7.0 % (5.5 to 24.5), accuracy 80.0 ± 10 %",
        "LSQ: ECE 7.0 % (5.5 to 24.5), accuracy 70.0 ± 10 %",
    ]
    assert ax.get_legend().get_title().get_text() == "(95 %), ± standard error; 10 images"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("confidence (%)", "accuracy (%)")


@pytest.mark.parametrize(
    ("draw", "given"), [(reliability, History()), (reliability_curves, {"a": History()})]
)
def test_another_record_is_refused(ax, draw, given):
    # Without the type checker of the tests, which refuses it first.
    with pytest.raises(ValueError, match="records of class Reliability, got History"):
        inspect.unwrap(draw)(ax, given)
