import inspect
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qatviz import plots
from tests.records.test_dense import run, scores


def axes(count):
    return Figure().subplots(1, count)


def test_scores_over_training(ax):
    better = run("CR", per_class=np.array([[0.0], [0.8]]))
    assert plots.dense_curves(ax, {"LSQ": run(), "CR": better}) is ax
    for line, ys in zip(ax.lines, ([10, 70], [0, 80]), strict=True):
        assert line.get_xdata().tolist() == [0, 10]
        np.testing.assert_allclose(line.get_ydata(), ys)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer steps", "mIoU (%)")
    assert ax.get_title() == "segmentation: 400 test collages"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["LSQ", "CR"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    ax.figure.canvas.draw()


def test_a_single_run_has_no_legend(ax):
    plots.dense_curves(ax, run())
    assert ax.get_legend() is None


def test_a_dot_for_each_seed_and_the_mean_with_its_interval(ax):
    record = scores()
    assert plots.dense_scores(ax, record) is ax
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    for line, values in zip(dots, record.scores, strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * values)
    for place, container in enumerate(ax.containers):
        (points, _, (bars,)) = container.lines
        assert points.get_ydata() == pytest.approx([100 * record.mean[place]])
        length = np.ptp(bars.get_segments()[0][:, 1])
        assert length == pytest.approx(200 * record.half_width[place])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["float", "LSQ", "CR"]
    assert ax.get_ylabel() == "mIoU (%)"
    assert ax.get_title() == ("segmentation, 3 seeds\n1,000 labelled, 400 test collages each")


def test_differences_with_their_intervals_and_zero(ax):
    record = scores()
    assert plots.dense_differences(ax, record) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["float", "CR"]
    for place, (index, container) in enumerate(zip((0, 2), ax.containers, strict=True)):
        (points, _, (bars,)) = container.lines
        assert points.get_xdata() == pytest.approx([100 * record.difference[index]])
        assert points.get_ydata().tolist() == [place]
        length = np.ptp(bars.get_segments()[0][:, 0])
        assert length == pytest.approx(200 * record.difference_half_width[index])
    assert ax.get_xlabel() == "difference in mIoU from LSQ (points)"
    assert [0, 0] in [list(line.get_xdata()) for line in ax.lines]


def test_masks_beside_the_collage_and_the_truth():
    row, one = axes(4), run()
    other = replace(one, pictures=replace(one.pictures, masks=np.zeros((1, 48, 48), np.uint8)))
    assert plots.dense_pictures(row, {"LSQ": one, "CR": other}) is row
    assert [ax.get_title() for ax in row] == ["collage", "truth", "LSQ", "CR"]
    shown = [ax.images[-1].get_array() for ax in row]
    np.testing.assert_array_equal(shown[0], one.pictures.images[0])
    np.testing.assert_array_equal(shown[1], shown[2])
    bag, coat = shown[2][15, 10], shown[3][15, 10]
    assert (shown[2][0, 0] == 0).all()  # background
    assert (shown[2][35, 30] == bag).all()
    assert (bag != coat).any()
    assert [t.get_text() for t in row[3].texts] == ["coat"]
    (name,) = row[2].texts  # on the bag, not between its two parts
    column, line = (int(v) for v in name.get_position())
    assert (shown[2][line, column] == bag).all()
    assert not row[0].texts
    row[0].figure.canvas.draw()


def test_names_of_neighbours_do_not_cover_each_other():
    one = run()
    masks = one.pictures.masks.copy()
    masks[:] = one.classes.index("background")
    masks[:, 20:23], masks[:, 23:26] = 0, 1
    row = axes(3)
    plots.dense_pictures(row, {"LSQ": replace(one, pictures=replace(one.pictures, masks=masks))})
    (_, upper), (_, lower) = (name.get_position() for name in row[2].texts)
    assert lower - upper >= 5


def test_boxes_around_pixels():
    row = axes(3)
    plots.dense_pictures(row, {"LSQ": run(boxes=True)})
    boxes = [[p for p in ax.patches if isinstance(p, Rectangle)] for ax in row]
    assert [len(found) for found in boxes] == [0, 1, 1]
    assert (boxes[2][0].get_xy(), boxes[1][0].get_xy()) == ((4.5, 9.5), (5.5, 10.5))
    assert (boxes[2][0].get_width(), boxes[2][0].get_height()) == (10, 10)
    assert [t.get_text() for ax in row for t in ax.texts] == ["coat", "bag"]
    assert len(row[1].images) == 1  # the collage, and no mask over it


def test_pictures_need_their_axes_and_runs_that_keep_them():
    with pytest.raises(ValueError, match="must be 3 axes, got 2"):
        plots.dense_pictures(axes(2), {"LSQ": run()})
    with pytest.raises(ValueError, match="and pictures"):
        plots.dense_pictures(axes(3), {"LSQ": run(pictures=None)})


def test_other_records_are_refused(ax):
    for name, wrong in (
        ("dense_curves", scores()),
        ("dense_curves", {"a": run(), "b": scores()}),
        ("dense_scores", run()),
        ("dense_differences", {"a": scores()}),
        ("dense_pictures", run()),
    ):
        with pytest.raises(ValueError, match=r"records of class Dense\w+, got "):
            inspect.unwrap(getattr(plots, name))(ax, wrong)
