import inspect

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure

from qatviz import plots
from qatviz.plots import COLOURS
from tests.landscapes import a_line, a_path, a_plane, with_holes


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def test_a_line_and_its_labels(ax):
    assert plots.loss_line(ax, a_line()) is ax
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.1, 0.35, 0.1, 0.35, 1.1])
    assert ax.get_xlabel() == "random direction 1 (filter norms)"
    assert ax.get_ylabel() == "loss (nats)"
    assert ax.get_title() == "dequantized weights, 100 images"
    assert ax.get_yscale() == "linear"


def test_lines_of_several_networks_share_an_axis(ax):
    records = {
        "float": a_line(space="float"),
        "W2": a_line(height=3, space="latent", requantized=True),
    }
    plots.loss_line(ax, records, log=True)
    drawn = lines_of(ax)
    assert set(drawn) >= {
        "float, float weights",
        "W2, latent weights, rounded again at every point",
    }
    assert drawn["float, float weights"].get_color() == COLOURS["float"]
    latent = drawn["W2, latent weights, rounded again at every point"]
    np.testing.assert_allclose(latent.get_ydata(), [3.1, 0.85, 0.1, 0.85, 3.1])
    assert ax.get_title() == "100 images"
    assert ax.get_yscale() == "log"


def test_numbers_of_images_that_differ_are_said_and_long_titles_broken(ax):
    again = {"space": "latent", "requantized": True}
    plots.loss_line(ax, {"a": a_line(**again), "b": a_line(samples=2000, **again)})
    assert ax.get_title() == "latent weights, rounded again at every point\n100 to 2,000 images"


def test_accuracy_is_in_percent(ax):
    plots.loss_line(ax, {"W2": a_line()}, quantity="accuracy", log=True)
    np.testing.assert_allclose(lines_of(ax)["W2"].get_ydata(), [75, 93.75, 100, 93.75, 75])
    assert ax.get_ylabel() == "accuracy (%)"
    assert ax.get_yscale() == "linear"


def test_what_is_missing_is_a_gap(ax):
    plots.loss_line(ax, with_holes(a_line(), endless=1, missing=2))
    np.testing.assert_array_equal(ax.lines[0].get_ydata()[[0, 3, 4]], [np.nan] * 3)
    assert ax.get_title().endswith("gaps: 2 points not computed, 1 without a finite loss")


def test_lengths_in_other_units_share_no_axis(ax):
    with pytest.raises(ValueError, match="different units share no axis: 1/√"):
        plots.loss_line(ax, {"a": a_line(), "b": a_line(unit="1/√|λ|")})


def test_a_contour_is_of_the_plane_and_marks_its_network(ax):
    record = a_plane()
    assert plots.loss_contour(ax, record, levels=7) is ax
    contours = ax.collections[0]
    np.testing.assert_allclose(contours.levels, np.linspace(0.1, 3.1, 7))
    np.testing.assert_allclose(contours.zmin, 0.1)
    np.testing.assert_allclose(contours.zmax, 3.1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "random direction 1 (filter norms)",
        "random direction 2 (filter norms)",
    )
    assert ax.get_title() == "dequantized weights, 100 images"
    assert (ax.lines[0].get_xdata()[0], ax.lines[0].get_ydata()[0]) == (0, 0)
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "loss (nats)"


def test_rows_are_y_and_columns_are_x(ax):
    # 2y² rises faster than x²: the level 0.6 is reached at x = √½ but at y = ½.
    plots.loss_contour(ax, a_plane(points=41), levels=2, limits=(0.6, 3.0), bar=False)
    outline = ax.collections[1].get_paths()[0].vertices
    assert np.abs(outline[:, 0]).max() == pytest.approx(0.5**0.5, abs=0.02)
    assert np.abs(outline[:, 1]).max() == pytest.approx(0.5, abs=0.02)
    assert len(ax.figure.axes) == 1


def test_levels_may_grow_by_a_factor(ax):
    plots.loss_contour(ax, a_plane(), log=True, levels=4, limits=(0.1, 2.7))
    np.testing.assert_allclose(ax.collections[0].levels, [0.1, 0.3, 0.9, 2.7])
    assert isinstance(ax.collections[0].norm, LogNorm)
    assert ax.collections[0].extend == "max"


@pytest.mark.parametrize(
    ("limits", "extend"),
    [(None, "neither"), ((0.1, 1.0), "max"), ((0.5, 3.1), "min"), ((0.5, 1.0), "both")],
)
def test_the_scale_says_where_it_is_exceeded(ax, limits, extend):
    plots.loss_contour(ax, a_plane(), limits=limits)
    assert ax.collections[0].extend == extend


def test_a_loss_of_zero_is_drawn_on_a_logarithmic_scale(ax):
    record = a_plane()
    record.loss[2, 2] = 0.0
    plots.loss_contour(ax, record, log=True)
    assert ax.collections[0].levels[0] == pytest.approx(1e-6)


def test_a_flat_plane_is_drawn(ax):
    plots.loss_contour(ax, a_plane(height=0.0))
    plots.loss_contour(ax, a_plane(height=0.0), log=True)
    assert (np.diff(ax.collections[0].levels) > 0).all()


def test_missing_points_are_grey(ax):
    plots.loss_contour(ax, with_holes(a_plane(), endless=3, missing=5))
    assert ax.get_title().endswith("grey: 5 points not computed, 3 without a finite loss")
    assert ax.get_facecolor() == to_rgba("0.88")
    # Finite: the second row and the fourth at most (y = ±0.5), and half of the first.
    assert ax.collections[0].zmax == pytest.approx(3.1)


def test_planes_share_colours_and_axes():
    axes = Figure().subplots(1, 2)
    records = {"float": a_plane(space="float"), "W2": a_plane(height=2, reach=2.0)}
    drawn = plots.loss_contours(axes, records, levels=5)
    assert list(drawn) == list(axes)
    for ax in axes:
        np.testing.assert_allclose(ax.collections[0].levels, np.linspace(0.1, 24.1, 5))
        assert ax.get_xlim() == (-2, 2)
        assert ax.get_ylim() == (-2, 2)
    assert [ax.get_title() for ax in axes] == [
        "float\nfloat weights, 100 images",
        "W2\ndequantized weights, 100 images",
    ]
    assert len(axes[0].figure.axes) == 3  # one bar for both


def test_planes_of_accuracy():
    axes = Figure().subplots(1, 2)
    plots.loss_contours(axes, {"a": a_plane(), "b": a_plane(3)}, quantity="accuracy", levels=3)
    lowest, highest = 100 / (1.1 + 9), 100 / 1.1
    np.testing.assert_allclose(
        axes[0].collections[0].levels, np.linspace(lowest, highest, 3), rtol=1e-6
    )
    assert axes[0].figure.axes[2].get_ylabel() == "accuracy (%)"


def test_planes_need_axes_and_one_unit():
    axes = Figure().subplots(1, 2)
    with pytest.raises(ValueError, match="1 records need as many axes, got 2"):
        plots.loss_contours(axes, {"a": a_plane()})
    with pytest.raises(ValueError, match="different units"):
        plots.loss_contours(axes, {"a": a_plane(), "b": a_plane(unit="‖w‖")})


def test_a_relief_has_the_loss_as_height():
    ax = Figure().add_subplot(projection="3d")
    assert plots.loss_relief(ax, a_plane()) is ax
    assert ax.get_zlabel() == "loss (nats)"
    assert ax.get_xlabel() == "random direction 1 (filter norms)"
    assert ax.get_zlim()[1] == pytest.approx(3.1, rel=0.05)
    assert ax.get_title() == "dequantized weights, 100 images"
    ax = Figure().add_subplot(projection="3d")
    plots.loss_relief(ax, with_holes(a_plane(), endless=1), log=True, limits=(0.1, 1.0))
    assert ax.get_zlabel() == "log₁₀ loss (nats)"
    assert ax.get_zlim()[0] == pytest.approx(-1, abs=0.1)
    assert ax.get_zlim()[1] < 0.1


def test_a_relief_needs_space(ax):
    with pytest.raises(ValueError, match="projection='3d'"):
        plots.loss_relief(ax, a_plane())


def test_a_path_its_chord_and_its_barrier(ax):
    assert plots.loss_path(ax, {"plain": a_path(), "re-estimated": a_path(0.2)}) is ax
    drawn = lines_of(ax)
    np.testing.assert_allclose(drawn["plain, barrier 1 nats"].get_ydata(), [4, 1, 3, 3, 9])
    assert "re-estimated, barrier 0.2 nats" in drawn
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1, 2, 3])
    assert ax.get_xlabel() == "t: 0 is float, 1 is W2"
    assert ax.get_title() == "dequantized weights, 100 images"
    assert ax.get_ylabel() == "loss (nats)"


def test_a_path_of_accuracy_has_no_barrier(ax):
    plots.loss_path(ax, a_path(), quantity="accuracy")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [10, 90, 50, 80, 20])
    assert ax.get_legend() is None


@pytest.mark.parametrize(
    ("draw", "right", "wrong"),
    [
        (plots.loss_line, a_line, a_plane),
        (plots.loss_contour, a_plane, a_line),
        (plots.loss_relief, a_plane, a_path),
        (plots.loss_path, a_path, a_line),
    ],
)
def test_other_records_and_other_words_are_refused(ax, draw, right, wrong):
    with pytest.raises(ValueError, match="draws records of class"):
        inspect.unwrap(draw)(ax, wrong())  # the type checker of the tests would be first
    ax = Figure().add_subplot(projection="3d") if draw is plots.loss_relief else ax
    with pytest.raises(ValueError, match="'error', allowed: loss, accuracy"):
        draw(ax, right(), quantity="error")


def test_several_planes_must_be_planes():
    axes = Figure().subplots(1, 2)
    with pytest.raises(ValueError, match="draws records of class LossSurface"):
        inspect.unwrap(plots.loss_contours)(axes, {"a": a_plane(), "b": a_line()})


def test_a_plane_without_a_finite_loss_is_refused(ax):
    with pytest.raises(ValueError, match="no point has a finite loss"):
        plots.loss_contour(ax, with_holes(a_plane(), endless=25))
