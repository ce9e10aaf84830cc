import base64
import inspect
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz.records import Trajectories
from qatviz.widgets import oscillation_replay
from qatviz.widgets.oscillation import draw_replay


def path(moments=40, weights=8, layer="conv1"):
    generator = np.random.default_rng(0)
    latent = generator.standard_normal((moments, weights))
    codes = latent.round().astype(int)
    steps = 100 + np.arange(moments)
    return Trajectories(layer, np.arange(weights), steps, latent, codes, -4, 3, 0)


def pictures(explorer):
    return len(re.findall("iVBOR", explorer.static())) - 1  # the one under the frame


def test_the_slider_moves_the_window():
    record = path()
    explorer = oscillation_replay(record, window=10, count=3)
    for first in (0, 12, 30):
        explorer.controls["first"].value = first
        seen = explorer.result
        assert seen.steps.tolist() == list(range(100 + first, 110 + first))
        assert seen.codes.tolist() == record.codes[first : first + 10, :3].tolist()
        assert seen.positions.tolist() == record.positions[first : first + 10, :3].tolist()
        assert seen.indices.tolist() == [0, 1, 2]
    assert explorer.controls["first"].max == 30


def test_runs_are_chosen_from_a_list():
    runs = {"LSQ": path(layer="a"), "CR": path(moments=30, layer="b")}
    explorer = oscillation_replay(runs, window=10)
    assert explorer.result.layer == "a"
    assert explorer.controls["first"].max == 20
    first = explorer.image
    explorer.controls["run"].value = "CR"
    assert explorer.result.layer == "b"
    assert explorer.image != first


@pytest.mark.parametrize("runs", [1, 3])
def test_few_frames(runs):
    records = {f"run {i}": path(moments=90) for i in range(runs)}
    explorer = oscillation_replay(records, window=10)
    assert 7 * runs < len(explorer.frames["first"]) * runs <= 40
    assert explorer.frames["first"][0] == 0
    assert explorer.frames["first"][-1] == 80


def test_the_static_face_has_a_frame_for_each_stop():
    explorer = oscillation_replay(path(moments=4), window=2)
    assert explorer.frames["first"] == [0, 1, 2]
    assert pictures(explorer) == 3
    assert base64.b64encode(explorer.image).decode() in explorer.static()


def test_a_window_that_is_longer_than_the_record_shows_it_whole():
    explorer = oscillation_replay(path(moments=5), window=100)
    assert explorer.result.steps.tolist() == [100, 101, 102, 103, 104]
    assert explorer.controls["first"].disabled
    assert pictures(explorer) == 1


def test_what_is_drawn():
    figure = Figure()
    record = path(moments=6, weights=2)
    draw_replay(figure, record)
    (ax,) = figure.axes
    assert ax.get_title() == f"conv1: {np.abs(np.sign(np.diff(record.codes, axis=0))).sum()} " + (
        "changes of code in view"
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="a window of 1 of 40 moments"):
        oscillation_replay(path(), window=1)
    with pytest.raises(ValueError, match="a window of 100 of 1 moments"):
        oscillation_replay(path(moments=1))
    with pytest.raises(ValueError, match="class Trajectories, got Figure"):
        inspect.unwrap(oscillation_replay)(Figure())
    with pytest.raises(ValueError, match="got list of Trajectories; allowed"):
        inspect.unwrap(oscillation_replay)([path()])
