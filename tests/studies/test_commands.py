"""The commands, called as the command line calls them."""

import json
import sys

import pytest

from qatviz.__main__ import main
from qatviz.studies import Cell, commands
from qatviz.studies.cells import locked
from qatviz.studies.commands import flattened

STUDY = """
[base]
images = 128
model = { name = "small_cnn", width = 2 }
analyses = { size = "tests.studies.grids:count_parameters" }
[base.schedule]
epochs = 1
batch = 64
[grid]
bits = ["float", 2]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture
def run(cache, capsys):
    """Run a command; its status, and what it printed."""

    def run(*words):
        status = main([*words, "--cache", str(cache)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def hashes(cache):
    return sorted(path.parent.name for path in cache.glob("*/run.json"))


def test_a_study_is_run_listed_shown_compared_promoted_and_deleted(run, file, cache, promoted):
    status, out, _ = run("study", file)
    assert status == 0
    assert "Study(2 runs, 2 arms" in out
    a, b = hashes(cache)
    assert a in out
    assert b in out

    _, out, _ = run("runs")
    assert out.count("finished") == 2
    assert a in out

    _, out, _ = run("runs", "show", a[:6])
    assert "qatviz.models.small:small_cnn" in out
    assert "torch" in out

    _, out, _ = run("runs", "compare", a, b)
    assert "bits" in out
    assert "test" in out
    assert "schedule.batch" not in out, "only what differs"

    status, out, _ = run("runs", "promote", file)
    assert out.count("promoted") == 2
    names = {path.name for path in (promoted / a).iterdir()}
    assert names == {"experiment.json", "results.safetensors", "run.json"}
    assert set(Cell(promoted / a).results()["analyses"]) == {"size"}
    run("runs", "promote", a, "--weights")
    assert Cell(promoted / a).weights().keys() == Cell(cache / a).weights().keys()

    status, out, _ = run("runs", "delete", a, b)
    assert (status, out) == (0, f"deleted {a}\ndeleted {b}\n")
    _, out, _ = run("runs", "list")
    assert out.count("promoted") == 2
    run("study", file)
    assert hashes(cache) == [], "promoted ones are not run again"


def test_what_was_promoted_is_run_anew_if_asked_for(run, file, cache):
    run("study", file)
    made = hashes(cache)
    run("runs", "promote", file)
    run("runs", "delete", *made)
    status, _, _ = run("study", file, "--anew")
    assert status == 0
    assert hashes(cache) == made


def test_a_dry_run_keeps_nothing(run, file, cache):
    status, out, _ = run("study", file, "--dry-run")
    assert status == 0
    assert "2 of 2 cells can be built and take two steps" in out
    assert hashes(cache) == []


def test_a_failing_cell_gives_a_status_and_its_traceback(run, tmp_path, cache):
    path = tmp_path / "bad.toml"
    path.write_text(STUDY.replace("count_parameters", "broken_analysis"))
    status, out, _ = run("study", str(path), "--dry-run")
    assert status == 1
    assert "no analysis" in out
    status, out, _ = run("study", str(path))
    assert status == 1
    name = next(p.parent.name for p in cache.glob("*/failure.txt"))
    _, out, _ = run("runs", "show", name)
    assert 'raise RuntimeError("no analysis")' in out
    _, out, _ = run("runs")
    assert "failed: RuntimeError: no analysis" in out
    status, _, err = run("runs", "promote", name)
    assert status == 2
    assert f"{name} is not finished" in err


def test_a_bad_file_is_refused_without_a_traceback(run, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('[base]\nbits = 1\nmethod = "CrossEntropie"\n')
    status, _, err = run("study", str(path))
    assert status == 2
    assert "nothing was started, 2 problems" in err
    assert "did you mean CrossEntropy" in err


def test_stale_runs_are_flagged_and_deleted_together(run, file, cache):
    run("study", file)
    a, b = hashes(cache)
    path = cache / a / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "old"}))
    _, out, _ = run("runs")
    assert out.count("stale") == 2, "the column's name, and one run"
    _, out, _ = run("runs", "promote", a)
    assert "stale: other code made it than there is now" in out
    assert run("runs", "delete", "--stale")[1] == f"deleted {a}\n"
    assert hashes(cache) == [b]


def test_what_is_being_run_is_not_deleted_and_what_was_interrupted_says_so(run, file, cache):
    run("study", file)
    a, _ = hashes(cache)
    (cache / a / "run.json").unlink()
    assert "interrupted, epoch 0 of 1" in run("runs")[1]
    with locked(Cell(cache / a)):
        assert "running, epoch 0 of 1" in run("runs")[1]
        status, _, err = run("runs", "delete", a)
        assert status == 2
        assert f"{a} is being run" in err


def test_an_empty_cache_and_unknown_hashes_are_said(run, cache):
    assert "no runs in" in run("runs")[1]
    assert run("runs", "show", "abc")[2] == "no run begins with 'abc'\n"
    assert run("runs", "delete")[2] == "name the runs to delete, or give --stale\n"


def test_dask_that_is_not_installed_is_said_with_the_extra(run, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, _, err = run("study", file, "--dask", "tcp://127.0.0.1:1")
    assert status == 2
    assert 'pip install "qatviz[dask]"' in err


def test_jobs_are_processes(run, file, monkeypatch, cache):
    seen = {}

    def fake(experiments, executor, **options):
        seen.update(options, executor=executor)
        raise ValueError("enough")

    monkeypatch.setattr(commands, "study", fake)
    run("study", file, "--jobs", "3", "--threads", "2")
    assert seen["executor"].args == (3,)
    assert (seen["threads"], seen["cache"]) == (2, cache.resolve())
    run("study", file)
    assert seen["executor"] is None


@pytest.mark.slow
def test_a_dask_scheduler_is_found_by_its_address(run, file, cache):
    from distributed import LocalCluster

    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    options["scheduler_kwargs"] = {"dashboard": False}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        status, _, _ = run("study", file, "--dask", cluster.scheduler_address)
    assert status == 0
    assert len(hashes(cache)) == 2


def test_descriptions_become_one_level():
    content = {"a": {"part": "m:f", "with": {}}, "b": {"part": "m:g", "with": {"x": {"y": 1}}}}
    assert flattened(content) == {"a": "m:f", "b.part": "m:g", "b.with.x.y": 1}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("runs", "show"), "required: HASH"),
        (("runs", "compare", "a"), "required: HASH"),
        (("runs", "promote"), "required: HASH"),
        (("runs", "list", "nonsense"), "unrecognized arguments: nonsense"),
        (("study", "x.toml", "--jobs", "0"), "must be a whole number from 1, got '0'"),
        (("study", "x.toml", "--jobs", "two"), "must be a whole number from 1, got 'two'"),
    ],
)
def test_words_that_do_not_fit_are_refused(run, capsys, words, says):
    with pytest.raises(SystemExit):
        run(*words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("before", [True, False])
def test_the_cache_may_be_named_before_and_after_the_action(file, cache, capsys, before):
    named = ["--cache", str(cache)]
    main(["study", file, *named])
    a, b = hashes(cache)
    capsys.readouterr()
    words = [*named, "compare"] if before else ["compare", *named]
    assert main(["runs", *words, a, b]) == 0
    assert "bits" in capsys.readouterr().out


def test_what_cannot_be_compared_is_flagged_and_not_deleted(run, file, cache, monkeypatch):
    run("study", file)
    monkeypatch.setattr("qatviz.studies.cells.code_hash", lambda content: "missing")
    assert run("runs")[1].count("missing") == 2
    out = run("runs", "delete", "--stale")[1]
    assert out.count("kept") == 2
    assert len(hashes(cache)) == 2


def test_the_hints_of_a_study_name_its_cache(run, tmp_path, cache):
    path = tmp_path / "bad.toml"
    path.write_text(STUDY.replace("count_parameters", "broken_analysis"))
    out = run("study", str(path))[1]
    assert f"--cache {cache.resolve()}" in out
