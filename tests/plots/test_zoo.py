import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz import plots
from qatviz.records import Histogram, LearnedGrid, Released, TransferCurve, ZooCurve, ZooErrors

X = np.array([-1.0, -0.5, 0.5, 1.0])
HISTOGRAM = Histogram(
    "weights", np.array([1, 8, 2]), np.linspace(-1, 1, 4), np.empty(0), np.empty(0, int), 0.0, 1.0
)
NONE = (np.empty(0), np.empty(0))


def curve(name="LSQ", **changes):
    staircase = TransferCurve(
        X, np.sign(X), np.full(4, 0.9), np.array([-1.0, 1.0]), f"{name}, 1 bit"
    )
    values = {
        "name": name,
        "curve": staircase,
        "opposed": staircase.gradient,
        "band": NONE,
        "band_label": "",
        "scale": 1.0,
        "signed": True,
    }
    return ZooCurve(**(values | changes))


def learned(name="LSQ", **changes):
    values = {
        "name": name,
        "part": "weight",
        "bits": 1,
        "loss": np.array([0.3, 0.2]),
        "before": 0.3,
        "after": 0.2,
        "levels_before": np.array([-0.9, 0.9]),
        "levels_after": np.array([-0.5, 0.5]),
        "parameters_before": {"step": np.array(1.8)},
        "parameters_after": {"step": np.array(1.0)},
        "scale": (1.0, 1.0),
        "moved": 0.25,
    }
    return LearnedGrid(**(values | changes))


def rendered(figure):
    """Draw it: warnings, such as a layout that does not fit, are errors."""
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(("count", "columns"), [(5, 4), (3, 3), (1, 1)])
def test_small_multiples_share_axes_and_have_one_legend(count, columns):
    names = [f"q{i}" for i in range(count)]
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = plots.zoo_curves(figure, [curve(n) for n in names], columns=columns)
    rendered(figure)
    rows = -(-count // columns)
    assert axes.shape == (2 * rows, columns)
    shown = [ax for ax in axes[0::2].flat if ax.axison]
    assert [ax.get_title() for ax in shown] == names
    assert len({ax.get_ylim() for ax in shown}) == 1
    assert len({ax.get_xlim() for ax in shown}) == 1
    assert len(figure.legends) == 1
    assert all(ax.get_legend() is None for ax in figure.axes)
    np.testing.assert_array_equal(shown[0].lines[1].get_ydata(), np.sign(X))


def test_both_gradients_bands_and_units_are_shown_and_told():
    figure = Figure(figsize=(9, 4), layout="constrained")
    records = [
        curve("EWGS", opposed=np.full(4, 1.1)),
        curve("NIPQ", band=(X - 3, X + 3), band_label="noise"),
        curve("DoReFa", scale=0.25),
    ]
    axes = plots.zoo_curves(figure, records, columns=3)
    rendered(figure)
    np.testing.assert_array_equal(axes[1, 0].lines[-1].get_ydata(), np.full(4, 1.1))
    assert len(axes[1, 1].lines) == 2
    assert len(axes[0, 1].collections) == 1
    assert axes[0, 0].get_ylim()[1] > 4  # the band fits
    assert "× 0.25" in axes[0, 2].get_title()
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "NIPQ: noise" in told
    assert any("−1" in t for t in told)


def test_a_plain_figure_has_no_word_of_what_is_not_there():
    figure = Figure(layout="constrained")
    plots.zoo_curves(figure, [curve()])
    assert len(figure.legends[0].get_texts()) == 3


def test_levels_before_and_after_with_the_error():
    figure, axes = plt.subplots(2, 1)
    nothing = {"parameters_before": {}, "parameters_after": {}, "loss": np.empty(0)}
    records = [learned(), learned("Affine", after=0.3, **nothing)]
    assert plots.learned_grids(axes, records, HISTOGRAM) is axes
    rendered(figure)
    before, after = (c.get_segments() for c in axes[0].collections)
    assert [s[0][0] for s in before] == [-0.9, 0.9]
    assert [s[0][0] for s in after] == [-0.5, 0.5]
    texts = [t.get_text() for ax in axes for t in ax.texts]
    assert "30.00% → 20.00%\n1 number learned" in texts
    assert "30.00%\nnothing to learn" in texts
    assert [ax.get_ylabel() for ax in axes] == ["LSQ", "Affine"]
    assert "weights" in axes[-1].get_xlabel()


def test_a_far_level_does_not_squeeze_the_values():
    _, ax = plt.subplots()
    far = learned(levels_before=np.array([-0.5, 300.0]))
    plots.learned_grids([ax], [far], HISTOGRAM)
    assert ax.get_xlim()[1] < 2.1


ERRORS = ZooErrors(
    "weights",
    np.array([1, 2]),
    ("LSQ", "DoReFa", "PACT"),
    np.array([[np.nan, 9.0], [4.0, 10.0], [np.nan, np.nan]]),
    np.array([[np.nan, 8.0], [np.nan, np.nan], [np.nan, np.nan]]),
    100,
)


def test_errors_have_a_line_a_marker_and_a_guide():
    _, ax = plt.subplots()
    assert plots.zoo_errors(ax, ERRORS) is ax
    lsq, dorefa, guide = ax.lines
    assert [line.get_label() for line in ax.lines] == ["LSQ", "DoReFa", "6.02 dB per bit"]
    assert lsq.get_marker() != dorefa.get_marker()
    assert lsq.get_linestyle() != dorefa.get_linestyle()
    np.testing.assert_allclose(dorefa.get_ydata(), [4, 10])
    np.testing.assert_allclose(guide.get_ydata(), [10 - 6.0206, 10], atol=1e-4)
    assert "best scalar (dB)" in ax.get_ylabel()


def test_errors_plain_and_relative():
    _, (plain, relative) = plt.subplots(1, 2)
    plots.zoo_errors(plain, ERRORS, plain=True)
    assert [line.get_label() for line in plain.lines] == ["LSQ", "6.02 dB per bit"]
    assert plain.get_ylabel() == "SQNR (dB)"
    plots.zoo_errors(relative, ERRORS, relative=True)
    np.testing.assert_allclose(relative.lines[1].get_ydata(), [4 - 6.0206, 10 - 12.0412], atol=1e-4)
    assert np.ptp(relative.lines[-1].get_ydata()) == 0
    assert "6.02·bits" in relative.get_ylabel()


def pair(*, gradient):
    intended, released = (
        TransferCurve(X, y, g, np.array([-1.0, 1.0]), label)
        for y, g, label in (
            (np.sign(X), np.array([0, 1.2, 0.8, 0]), "as intended"),
            (2 * np.sign(X), np.array([0.0, 1, 1, 0]), "as released"),
        )
    )
    return Released(
        "Q: a; b", "weights", intended, released, (1.0, 0.5), (12.0, 6.0), (13.0, 7.0), gradient
    )


def test_as_intended_and_as_released_on_the_same_axes():
    figure, axes = plt.subplots(1, 3)
    plots.released(axes, [pair(gradient=False), pair(gradient=True)])
    rendered(figure)
    np.testing.assert_array_equal(axes[0].lines[-2].get_ydata(), np.sign(X))
    np.testing.assert_array_equal(axes[0].lines[-1].get_ydata(), 2 * np.sign(X))
    np.testing.assert_array_equal(axes[1].lines[-1].get_ydata(), [0, 1, 1, 0])
    told = [t.get_text() for t in axes[0].get_legend().get_texts()]
    assert told == [
        "as intended: 100% of levels, 12.0 dB",
        "as released: 50% of levels, 6.0 dB",
    ]
    assert axes[0].get_xlabel() == "x (weights)"
    assert "∂x̂/∂x" in axes[1].get_ylabel()
    assert not axes[2].axison


def test_two_quantizers_over_the_values():
    figure, (left, right) = plt.subplots(1, 2)
    records = [curve(), curve("EWGS", opposed=np.full(4, 1.1), scale=0.5)]
    assert plots.compared(left, right, records, HISTOGRAM) == (left, right)
    rendered(figure)
    names = [t.get_text() for t in left.get_legend().get_texts()]
    assert names == ["LSQ", "EWGS, levels × 0.5"]
    assert len(right.lines) == 3
    assert left.get_zorder() > figure.axes[-1].get_zorder()
    assert "longest bar cut" in left.get_xlabel()  # 8 of 11, the next 2 of 11
    even = Histogram("w", np.ones(3, int), HISTOGRAM.edges, np.empty(0), np.empty(0, int), 0.0, 1.0)
    _, (left, right) = plt.subplots(1, 2)
    plots.compared(left, right, records, even)
    assert "cut" not in left.get_xlabel()
