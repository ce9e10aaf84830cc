"""The folder of an experiment."""

import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from filelock import Timeout

from qatviz.records import TransferCurve
from qatviz.schedule import Schedule
from qatviz.studies import Cell, cells, run_cell
from qatviz.studies.building import build, data_of, float_model
from qatviz.studies.cells import PROMOTED, find, identity, is_running, locked, receive, remove
from tests.studies.grids import (
    BASE,
    Counter,
    Failing,
    Stopping,
    broken_analysis,
    count_parameters,
    curve,
)

TWO = replace(BASE, schedule=Schedule(epochs=2, batch=64))


def test_a_finished_cell_holds_everything(cache):
    e = replace(
        *(BASE,),
        **{"bits": 2, "observers": {"n": Counter}},
        analyses={"curve": curve, "size": partial(count_parameters, scale=2)},
    )
    outcome = run_cell(e, cache)
    cell = Cell(cache / e.hash)
    assert (outcome.hash, outcome.failure, dict(outcome.files)) == (e.hash, "", {})
    assert cell.finished
    assert not cell.stale
    assert not cell.running
    names = {path.name for path in cell.folder.iterdir()}
    assert names == {"experiment.json", "results.safetensors", "run.json", "weights.safetensors"}
    assert cell.about["experiment"] == e.describe()
    assert (cell.about["threads"], cell.run.machine["threads"]) == (1, 1)
    found = cell.results()
    record = found["analyses"]["curve"]
    assert isinstance(record, TransferCurve)
    assert record.label == "fashion-mini 5000"
    assert np.array_equal(record.x, [0.0, 1.0, 2.0])
    assert found["observers"] == {"n": {"steps": 2}}
    student, _, _ = build(e, data_of(e.data, None), None)
    count = sum(p.numel() for p in student.parameters())
    assert found["analyses"]["size"] == {"parameters": 2 * count}
    student.load_state_dict(cell.weights())


@pytest.mark.slow
def test_threads_are_set_inside_recorded_and_put_back(cache):
    before = torch.get_num_threads()
    run_cell(BASE, cache, threads=2)
    assert torch.get_num_threads() == before
    assert Cell(cache / BASE.hash).run.machine["threads"] == 2


def test_a_failure_is_written_down_and_the_next_time_it_is_tried_again(cache, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    e = replace(BASE, method=partial(Failing, flag=str(flag)))
    outcome, cell = run_cell(e, cache), Cell(cache / e.hash)
    assert "RuntimeError: as it was told" in outcome.failure
    assert cell.error == "RuntimeError: as it was told"
    assert 'raise RuntimeError("as it was told")' in cell.failure
    assert not cell.finished
    assert not cell.running
    flag.unlink()
    assert run_cell(e, cache).failure == ""
    assert cell.finished
    assert cell.failure == ""


def stopped(cache, tmp_path):
    """A cell that was interrupted in its second epoch, and where its steps are written."""
    log = tmp_path / "log"
    (tmp_path / "log.flag").touch()
    e = replace(TWO, method=partial(Stopping, log=str(log)), observers={"n": Counter})
    with pytest.raises(KeyboardInterrupt):
        run_cell(e, cache)
    (tmp_path / "log.flag").unlink()
    return e, log


def test_an_interrupted_cell_goes_on_and_ends_as_if_it_had_not_been(cache, tmp_path):
    e, log = stopped(cache, tmp_path)
    cell = Cell(cache / e.hash)
    assert (cell.epoch, cell.finished, cell.failure) == (1, False, "")
    (cell.folder / ".run.json.half").write_text("{")  # as a killed process leaves it
    assert run_cell(e, cache).failure == ""
    assert log.read_text().split() == ["0.25", "0.50", "0.75", "0.75", "1.00"]
    assert not list(cell.folder.glob(".*"))
    run_cell(e, tmp_path / "other")
    whole = Cell(tmp_path / "other" / e.hash)
    assert all(torch.equal(v, whole.weights()[k]) for k, v in cell.weights().items())
    assert cell.run.test == whole.run.test
    assert cell.results() == whole.results() == {"observers": {"n": {"steps": 4}}, "analyses": {}}


@pytest.mark.parametrize("what", ["training", "threads"])
def test_what_was_begun_with_other_code_or_threads_begins_anew(cache, tmp_path, what):
    e, log = stopped(cache, tmp_path)
    path = cache / e.hash / "experiment.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {what: "other"}))
    run_cell(e, cache)
    assert log.read_text().split() == ["0.25", "0.50", "0.75", "0.25", "0.50", "0.75", "1.00"]


def test_a_broken_analysis_does_not_cost_the_training(cache, tmp_path):
    log = tmp_path / "log"
    e = replace(TWO, method=partial(Stopping, log=str(log)), analyses={"bad": broken_analysis})
    assert "no analysis" in run_cell(e, cache).failure
    assert "no analysis" in run_cell(e, cache).failure
    assert log.read_text().split() == ["0.25", "0.50", "0.75", "1.00"]


def test_a_finished_cell_is_not_run_again_and_is_stale_if_the_code_changed(cache):
    run_cell(BASE, cache)
    cell = Cell(cache / BASE.hash)
    path = cell.folder / "experiment.json"
    path.write_text(json.dumps(cell.about | {"code": "other"}))
    before = os.stat(cell.folder / "run.json").st_mtime_ns
    run_cell(BASE, cache)
    assert os.stat(cell.folder / "run.json").st_mtime_ns == before
    assert cell.stale


def test_the_start_is_run_first_and_its_weights_are_where_training_begins(cache):
    start = replace(BASE, seed=3)
    e = replace(BASE, start=start, bits=4)
    seen = {}
    run_cell(e, cache)
    weights = Cell(cache / start.hash).weights()
    data = data_of(e.data, None)
    student, _, _ = build(e, data, weights)
    seen = float_model(e, data, weights).state_dict()
    assert all(torch.equal(student.state_dict()[k], v) for k, v in seen.items())
    assert Cell(cache / e.hash).finished


def test_a_worker_on_another_disk_sends_the_files(cache, tmp_path):
    outcome = run_cell(BASE, tmp_path / "far", token=".client")
    assert set(outcome.files) == set(cells.RESULTS)
    cell = receive(outcome, cache)
    assert cell.finished
    assert cell.run.test == Cell(tmp_path / "far" / BASE.hash).run.test
    assert not run_cell(BASE, cache, token=identity(cache)).files
    assert identity(cache) == identity(cache) != identity(tmp_path / "far")


def test_what_failed_far_away_is_written_down_here(cache, tmp_path):
    (tmp_path / "flag").touch()
    e = replace(BASE, method=partial(Failing, flag=str(tmp_path / "flag")))
    cell = receive(run_cell(e, tmp_path / "far", token=".client"), cache)
    assert cell.error == "RuntimeError: as it was told"


def test_a_cell_is_found_in_the_cache_and_then_among_the_promoted(cache, promoted):
    assert find(BASE, cache) is None
    run_cell(BASE, promoted)
    assert find(BASE, cache).folder.parent == promoted
    (promoted / BASE.hash / "weights.safetensors").unlink()
    assert find(BASE, cache) is not None
    assert find(BASE, cache, weights=True) is None
    run_cell(BASE, cache)
    assert find(BASE, cache, weights=True).folder.parent == cache
    assert promoted != PROMOTED


def test_a_lock_is_held_by_one_and_a_held_cell_is_not_removed(cache):
    cell = Cell(cache / BASE.hash)
    cell.folder.mkdir(parents=True)
    assert not is_running(cell)
    with locked(cell):
        assert is_running(cell)
        with pytest.raises(Timeout):
            remove(cell, timeout=0)
    remove(cell)
    assert not cell.folder.exists()


def test_a_record_that_cannot_be_rebuilt_is_refused(cache):
    with pytest.raises(ValueError, match=r"not a record of qatviz\.records"):
        cells._packed({"a": [Schedule()]})


def test_a_file_of_weights_that_changed_is_noticed(cache, tmp_path):
    run_cell(BASE, cache)
    path = tmp_path / "start.safetensors"
    path.write_bytes((cache / BASE.hash / "weights.safetensors").read_bytes())
    e = replace(BASE, start=str(path))
    run_cell(replace(BASE, seed=9), cache)
    path.write_bytes((cache / replace(BASE, seed=9).hash / "weights.safetensors").read_bytes())
    assert "has changed since" in run_cell(e, cache).failure
    path.unlink()
    assert "does not exist" in run_cell(e, cache).failure


def test_a_damaged_description_says_which_folder_to_delete(cache):
    folder = cache / BASE.hash
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged: .*delete its folder"):
        _ = Cell(folder).about
