import inspect
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz.widgets import landscape_explorer
from qatviz.widgets.landscape import FRAMES, draw_cut
from tests.landscapes import a_line, a_plane, with_holes


@pytest.fixture
def records():
    return {"float": a_plane(), "W2": a_plane(height=3.0)}


def test_starts_at_the_centre_of_the_first_network(records):
    cut = landscape_explorer(records).result
    assert (cut.label, cut.row) == ("float", 2)
    np.testing.assert_array_equal(cut.line.loss, records["float"].loss[2])


def test_the_sliders_choose_network_and_row(records):
    explorer = landscape_explorer(records)
    before = explorer.image
    explorer.controls["network"].value = "W2"
    explorer.controls["cut"].value = -1.0
    assert explorer.result.row == 0
    np.testing.assert_array_equal(explorer.result.line.loss, records["W2"].loss[0])
    assert explorer.image != before


def test_no_more_frames_than_allowed():
    for count, points in ((1, 51), (2, 51), (3, 51), (10, 51), (2, 5)):
        records = {f"net {i}": a_plane(points=points) for i in range(count)}
        stops = landscape_explorer(records).frames
        frames = list(itertools.product(*stops.values()))
        assert len(frames) <= FRAMES == 20
        assert 0 in np.round(stops["cut"], 12)
        assert len(stops["cut"]) >= min(points, FRAMES // count) - 1


def test_draws_the_plane_left_and_the_cut_right(records):
    explorer = landscape_explorer(records, log=False)
    explorer.controls["cut"].value = 0.5
    figure = Figure()
    draw_cut(figure, explorer.result, log=False, limits=(0.1, 9.1))
    left, right = figure.axes[:2]
    assert left.get_title() == "float\ndequantized weights, 100 images"
    assert right.get_title() == ""
    assert left.lines[-1].get_ydata()[0] == 0.5
    assert left.collections[0].levels[-1] == pytest.approx(9.1)
    drawn = {line.get_label(): line.get_ydata() for line in right.lines}
    np.testing.assert_allclose(drawn["through the network"], records["float"].loss[2])
    np.testing.assert_allclose(drawn["cut at 0.50"], records["float"].loss[3])
    assert right.get_ylim() == pytest.approx((0.1, 9.1))
    assert right.get_xlabel() == "random direction 1 (filter norms)"


def test_accuracy_and_missing_points_are_drawn():
    record = with_holes(a_plane(), endless=2, missing=3)
    explorer = landscape_explorer({"W2": record}, quantity="accuracy")
    figure = Figure()
    draw_cut(figure, explorer.result, quantity="accuracy")
    assert figure.axes[1].get_ylabel() == "accuracy (%)"


def test_the_static_face_has_every_frame(records):
    explorer = landscape_explorer({"W2": a_plane()})
    assert explorer.static().count("iVBOR") == 1 + 5


def test_a_single_plane_is_shown_and_a_list_refused():
    explorer = inspect.unwrap(landscape_explorer)(a_plane(samples=7))
    figure = Figure()
    draw_cut(figure, explorer.result)
    assert figure.axes[0].get_title() == "dequantized weights, 7 images"
    with pytest.raises(ValueError, match="class LossSurface, got list of LossSurface; allowed"):
        inspect.unwrap(landscape_explorer)([a_plane()])


def test_refuses_what_is_no_common_landscape(records):
    with pytest.raises(ValueError, match="draws records of class LossSurface, got nothing"):
        landscape_explorer({})
    with pytest.raises(ValueError, match="draws records of class LossSurface"):
        inspect.unwrap(landscape_explorer)({"a": a_line()})
    with pytest.raises(ValueError, match="at most 10 planes"):
        landscape_explorer({str(i): a_plane() for i in range(11)})
    with pytest.raises(ValueError, match="the same units"):
        landscape_explorer({"a": a_plane(), "b": a_plane(unit="‖w‖")})
    with pytest.raises(ValueError, match="finite loss"):
        landscape_explorer({"a": with_holes(a_plane(), endless=25)})
