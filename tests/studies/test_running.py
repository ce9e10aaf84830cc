"""Whole studies: here, in pools, on Dask, interrupted, killed, twice at once."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import loky
import pandas as pd
import pytest
import torch

from qatviz.methods import CrossEntropy
from qatviz.schedule import Schedule
from qatviz.studies import Cell, dry_run, finished, grid, processes, study
from qatviz.studies.cells import run_sent
from qatviz.studies.sources import folders
from tests.studies.grids import (
    BASE,
    TINY,
    Counter,
    Deadly,
    Failing,
    Slow,
    Stopping,
    broken_analysis,
    curve,
    twelve,
)

ROOT = Path(__file__).resolve().parents[2]
quiet = partial(study, progress=False)


def comparable(result):
    return result.table.drop(columns="seconds")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The study of twelve in this process, and the log that is part of three of its cells."""
    folder = tmp_path_factory.mktemp("here")
    return quiet(twelve(folder / "log"), cache=folder / "cache"), folder / "log"


def steps_by_process(log, already=()):
    lines = [line.split() for line in log.read_text().splitlines()[len(already) :]]
    return {pid: [p for q, p in lines if q == pid] for pid, _ in lines}


def kill_once(log):
    """From now on, the first cell that comes to its second epoch kills its process."""
    Path(f"{log}.flag").write_text("1")
    return log.read_text().splitlines()


@pytest.mark.slow
def test_a_study_is_a_table_of_real_runs(here):
    result, log = here
    assert len(result.table) == 12
    assert not result.table.error.any()
    assert list(result.table.threads.unique()) == [1]
    assert list(result.summary().index) == ["float", "W2A2", "W3A4", "deadly"]
    assert result.table.test.between(0, 1).all()
    assert result.table.hash.is_unique
    assert len(log.read_text().splitlines()) == 3 * 4


@pytest.mark.slow
def test_what_is_cached_is_not_run_again(here, monkeypatch):
    result, _ = here
    monkeypatch.setattr("qatviz.studies.running.run_cell", None)
    again = quiet(result.experiments, cache=next(iter(result.cells.values())).folder.parent)
    pd.testing.assert_frame_equal(again.table, result.table)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "loky"])
def test_a_pool_gives_the_same_table_although_a_worker_is_killed(here, cache, kind):
    expected, log = here
    already = kill_once(log)
    executor = processes(2) if kind == "processes" else loky.get_reusable_executor(2)
    result = quiet(expected.experiments, executor, cache=cache)
    pd.testing.assert_frame_equal(comparable(result), comparable(expected))
    lines = log.read_text().splitlines()[len(already) :]
    # The killed cell's first epoch and a step, the others whole, its second epoch again; a cell
    # beside it may have been lost with the pool, and have repeated a step or two.
    assert 13 <= len(lines) <= 15
    loky.get_reusable_executor(1).shutdown(kill_workers=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed")
def test_dask_gives_the_same_table_although_a_worker_is_killed(here, cache):
    from distributed import Client, LocalCluster

    expected, log = here
    already = kill_once(log)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        result = quiet(expected.experiments, client.get_executor(), cache=cache)
        pd.testing.assert_frame_equal(comparable(result), comparable(expected))
        # The client itself, whose submit() may hand back old results, does as well.
        again = quiet([replace(BASE, seed=50)], client, cache=cache)
        assert not again.table.error.any()
    lines = log.read_text().splitlines()[len(already) :]
    # Dask loses what its worker ran; a second thread waited for its turn meanwhile.
    assert len(lines) == 13


@pytest.mark.slow
def test_a_cell_that_kills_twice_is_reported_and_those_beside_it_are_not(cache, tmp_path):
    log = tmp_path / "log"
    Path(f"{log}.flag").write_text("9")
    deadly = replace(
        BASE,
        **{"method": partial(Deadly, log=str(log)), "label": "deadly"},
        schedule=Schedule(epochs=2, batch=64),
    )
    slow = partial(Slow, log=str(tmp_path / "slow"), seconds=0.5)
    beside = replace(deadly, method=slow, label="beside")
    child = replace(BASE, start=deadly, label="child")
    result = quiet([deadly, beside, child], processes(2), cache=cache)
    errors = dict(zip(result.table.label, result.table.error, strict=True))
    assert errors["deadly"].startswith("its worker died 2 times")
    assert errors["beside"] == ""
    assert errors["child"].startswith("its start, deadly")
    assert Path(f"{log}.flag").read_text() == "7", "it was tried twice, and never here"


def test_what_fails_does_not_stop_the_others_and_is_tried_again(cache, tmp_path, capsys):
    flag = tmp_path / "flag"
    flag.touch()
    failing = replace(BASE, method=partial(Failing, flag=str(flag)), label="failing")
    child = replace(BASE, start=failing, label="child")
    good = replace(BASE, label="good")
    result = study([failing, child, good], cache=cache)
    assert list(result.table.error) == [
        *("RuntimeError: as it was told", f"its start, failing ({failing.hash}), failed", "")
    ]
    said = capsys.readouterr()
    text = said.out + said.err
    assert "failed: failing, seed 0: RuntimeError: as it was told" in text
    assert f"python -m qatviz runs show {failing.hash}" in text
    assert "3/3 cells, 2 failed" in text
    flag.unlink()
    assert not quiet([failing, child, good], cache=cache).table.error.any()


def test_an_interrupted_study_goes_on(cache, tmp_path):
    log = tmp_path / "log"
    (tmp_path / "log.flag").touch()
    e = replace(BASE, method=partial(Stopping, log=str(log)), schedule=Schedule(epochs=2, batch=64))
    with pytest.raises(KeyboardInterrupt):
        quiet([BASE, e], cache=cache)
    assert Cell(cache / BASE.hash).finished
    (tmp_path / "log.flag").unlink()
    assert not quiet([BASE, e], cache=cache).table.error.any()
    assert log.read_text().split() == ["0.25", "0.50", "0.75", "0.75", "1.00"]


def test_one_bar_counts_the_epochs_of_all_cells(cache, capsys):
    two = replace(BASE, schedule=Schedule(epochs=2, batch=64))
    study([BASE, two], cache=cache)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "3/3" in last
    assert "2/2 cells, 0 failed" in last
    study([BASE, two], cache=cache)
    assert "| 3/3" in capsys.readouterr().err.splitlines()[-1], "the cached count as done"


def test_threads_of_one_process_take_turns(cache):
    before = torch.get_rng_state()
    cells = grid(BASE, seed=range(3))
    with ThreadPoolExecutor(3) as pool:
        result = quiet(cells, pool, cache=cache)
    expected = quiet(cells, cache=cache.parent / "other")
    pd.testing.assert_frame_equal(comparable(result), comparable(expected))
    assert torch.equal(torch.get_rng_state(), before)


class Immediately:
    """The least that is an executor: ``submit()``, and futures with ``done()`` and ``result()``."""

    def __init__(self, far=None):
        self.far = far

    def submit(self, function, e, cache, **options):
        future = Future()
        future.set_result(function(e, self.far or cache, **options))
        return future


def test_the_least_executor_will_do_and_its_disk_may_be_another(cache, tmp_path):
    start = replace(BASE, seed=8)
    cells = [replace(BASE, start=start, bits=2)]
    result = quiet(cells, Immediately(tmp_path / "far"), cache=cache)
    assert not result.table.error.any()
    assert {p.parent.name for p in cache.glob("*/run.json")} == {start.hash, cells[0].hash}


def test_an_executor_that_raises_fails_the_cell_not_the_study(cache):
    class Refusing(Immediately):
        def submit(self, function, e, cache, **options):
            future = Future()
            future.set_exception(TypeError("cannot be pickled"))
            return future

    (error,) = quiet([BASE], Refusing(), cache=cache).table.error
    assert error == "TypeError: cannot be pickled"


def test_workers_that_cannot_begin_stop_the_study(cache):
    from concurrent.futures import BrokenExecutor

    class Dead:
        def submit(self, *args, **options):
            raise BrokenExecutor("nobody there")

    for executor in (Dead(), Dead):
        with pytest.raises(RuntimeError, match=r"died before they began .*guarded by `if __name__"):
            quiet([BASE], executor, cache=cache)


def test_finished_is_what_there_is_and_runs_nothing(cache):
    there, missing = BASE, replace(BASE, seed=9)
    ran = quiet([there], cache=cache)
    found = finished([there, missing, there], cache=cache)
    assert list(found.table.error) == ["", "not run"]
    assert found.table.test[0] == ran.table.test[0]
    assert found.summary().n.tolist() == [1]
    assert not (cache / missing.hash).exists()


def test_observers_and_analyses_are_kept(cache):
    e = replace(BASE, observers={"n": Counter}, analyses={"c": curve})
    found = quiet([e], cache=cache).cell(e).results()
    assert found["observers"]["n"] == {"steps": 2}
    assert found["analyses"]["c"].label == "fashion-mini 5000"


def test_promoted_cells_are_used(cache, promoted):
    quiet([BASE], cache=promoted)
    assert quiet([BASE], cache=cache).cells[BASE.hash].folder.parent == promoted
    (promoted / BASE.hash / "weights.safetensors").unlink()
    again = quiet([BASE], cache=cache, anew=True)
    assert again.cells[BASE.hash].folder.parent == cache
    made = (cache / BASE.hash / "run.json").stat().st_mtime_ns
    quiet([BASE], cache=cache, anew=True)
    assert (cache / BASE.hash / "run.json").stat().st_mtime_ns == made, "what is cached stays"
    shutil.rmtree(cache / BASE.hash)
    child = replace(BASE, start=BASE, bits=2)
    assert not quiet([child], cache=cache).table.error.any(), "the start is run again: no weights"


def test_finished_cells_need_no_data_set(cache, monkeypatch):
    result = quiet([BASE], cache=cache)

    def lost(*key):
        raise FileNotFoundError("no data here")

    monkeypatch.setattr("qatviz.studies.checks.data_of", lost)
    pd.testing.assert_frame_equal(quiet([BASE], cache=cache).table, result.table)
    with pytest.raises(ValueError, match="no data here"):
        quiet([BASE, replace(BASE, seed=1)], cache=cache)


def test_stale_runs_are_used_and_flagged(cache, monkeypatch, capsys):
    quiet([BASE], cache=cache)
    monkeypatch.setattr("qatviz.studies.cells.code_hash", lambda description: "new")
    result = study([BASE], cache=cache)
    assert list(result.table.stale) == [True]
    assert "stale: 1 runs were made by other code" in capsys.readouterr().out


def test_a_dry_run_builds_every_cell_takes_two_steps_and_keeps_nothing(cache, tmp_path):
    log = tmp_path / "log"
    long = Schedule(epochs=50, batch=64)
    e = replace(
        BASE, method=partial(Slow, log=str(log), seconds=0), schedule=long, images=None, bits=2
    )
    child = replace(e, start=e, bits=4, analyses={"c": curve})
    assert dry_run([child], cache) == {}
    assert log.read_text().split() == ["0.50", "1.00"] * 2
    assert not cache.exists()
    bad = replace(BASE, analyses={"b": broken_analysis})
    failed = dry_run([bad, e], cache)
    assert list(failed) == [bad.hash]
    assert "no analysis" in failed[bad.hash]


def test_impossible_threads_are_refused(cache):
    with pytest.raises(ValueError, match="threads must be a whole number from 1, got 0"):
        quiet([BASE], cache=cache, threads=0)


STUDY = """
import sys
from functools import partial
from dataclasses import replace
from qatviz.studies import grid, study
from tests.studies.grids import BASE, Slow
slow = partial(Slow, log=sys.argv[2], seconds=0.3)
study(grid(replace(BASE, method=slow), seed=range(4)), cache=sys.argv[1], progress=False)
"""


def in_another_process(cache, log):
    command = [sys.executable, "-c", STUDY, str(cache), str(log)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_studies_on_one_cache_lose_nothing_and_do_nothing_twice(cache, tmp_path):
    log = tmp_path / "log"
    both = [in_another_process(cache, log) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list(cache.glob("*/run.json"))) == 4
    assert len(log.read_text().split()) == 4 * 2, "four cells of two steps, once each"
    assert not list(cache.glob("*/failure.txt"))


@pytest.mark.slow
def test_a_study_that_is_killed_leaves_no_lock_behind(cache, tmp_path):
    log = tmp_path / "log"
    process = in_another_process(cache, log)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cells = grid(replace(BASE, method=partial(Slow, log=str(log), seconds=0.3)), seed=range(4))
    result = quiet(cells, cache=cache)
    assert not result.table.error.any()
    assert len(result.runs) == 4


INTERRUPTED = """
[base]
images = 128
model = { name = "small_cnn", width = 2 }
schedule = { epochs = 30, batch = 64 }
method = { name = "tests.studies.grids:Slow", log = "LOG", seconds = 0.1 }
[grid]
seed = [0, 1]
"""


@pytest.mark.slow
def test_an_interrupted_command_ends_its_processes_and_goes_on(cache, tmp_path):
    log, path = tmp_path / "log", tmp_path / "study.toml"
    path.write_text(INTERRUPTED.replace("LOG", str(log)))
    command = [sys.executable, "-m", "qatviz", "study", str(path), "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--cache", str(cache)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: the same command goes on where this stopped" in said
    assert "Traceback" not in said
    written = log.read_text()
    time.sleep(0.5)
    assert log.read_text() == written, "its processes have ended"
    assert any(Cell(p.parent).epoch for p in cache.glob("*/checkpoint.safetensors"))
    assert not list(cache.glob("*/failure.txt"))


def test_methods_of_the_arms_are_those_that_train(cache):
    mirrored = partial(CrossEntropy, view=BASE.method.keywords["view"])
    arms = grid(replace(BASE, model=TINY), method={"plain": CrossEntropy, "mirrored": mirrored})
    plain, other = quiet(arms, cache=cache).runs.values()
    assert plain.history.terms["cross_entropy"][0] != other.history.terms["cross_entropy"][0]


def test_a_cache_that_cannot_be_written_is_refused_before_anything_starts(cache):
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"the cache .* cannot be written"):
        study([BASE], cache=cache, progress=False)


def test_a_full_disk_fails_the_cells_and_the_study_returns(cache, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, f"{path} could not be written: No space left on device")

    monkeypatch.setattr("qatviz.studies.cells.write_whole", full)
    result = study(grid(BASE, seed=range(2)), cache=cache, progress=False)
    assert len(result.errors) == 2
    assert all("No space left on device" in error for error in result.errors.values())


def test_only_the_worker_needs_the_modules(cache, tmp_path, monkeypatch):
    text = "from qatviz.methods import CrossEntropy\n\n\nclass Far(CrossEntropy):\n    pass\n"
    (tmp_path / "far_away.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from far_away import Far

    e = replace(BASE, method=Far)
    sent, where = pickle.dumps(e), folders(e.describe())
    assert str(tmp_path) in where
    sys.modules.pop("far_away")
    monkeypatch.setattr("sys.path", [p for p in sys.path if p != str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="far_away"):
        run_sent((sent, []), cache)
    assert run_sent((sent, where), cache).failure == ""
    sys.modules.pop("far_away")
