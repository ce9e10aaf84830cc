import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from qatviz.records import History
from qatviz.runs import Run, describe_machine, load_weights, save_weights, write_whole
from qatviz.schedule import Schedule


def run(**changes):
    values = {
        "label": "a <run>",
        "history": History(
            terms={"cross_entropy": np.array([1.5, 0.1]), "kd": np.array([1 / 3, 0.25])},
            rate=np.array([0.1, 0.0]),
            validation=np.array([0.5, 0.75]),
        ),
        "test": 0.8125,
        "seconds": 12.5,
        "schedule": Schedule(epochs=2, seed=7, rate=0.3),
        "machine": {"processor": "P", "threads": 2},
    }
    return Run(**(values | changes))


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "er" / "run.json"
    run().save(path)
    loaded = Run.load(str(path))
    for field in ("label", "test", "seconds", "schedule", "machine"):
        assert getattr(loaded, field) == getattr(run(), field)
    assert list(loaded.history.terms) == ["cross_entropy", "kd"]
    for name, values in run().history.terms.items():
        assert loaded.history.terms[name].tolist() == values.tolist()  # to the last bit
    assert loaded.history.rate.tolist() == [0.1, 0.0]
    assert loaded.history.validation.tolist() == [0.5, 0.75]


def test_an_empty_validation_curve_and_a_nan_survive(tmp_path):
    history = History({"ce": np.array([1.0])}, np.array([0.1]))
    run(history=history, test=float("nan")).save(tmp_path / "run.json")
    loaded = Run.load(tmp_path / "run.json")
    assert loaded.history.validation.shape == (0,)
    assert np.isnan(loaded.test)


def test_the_file_is_json_that_says_everything(tmp_path):
    run().save(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    assert set(content) == {f.name for f in dataclasses.fields(Run)}
    assert content["schedule"]["seed"] == 7
    assert content["history"]["terms"]["cross_entropy"] == [1.5, 0.1]


def without(*keys):
    content = json.loads(json.dumps(dataclasses.asdict(run()), default=np.ndarray.tolist))
    for key in keys:
        del content[key]
    return content


WRONG = without()
WRONG["schedule"]["epochs"] = 0
EXTRA = without()
EXTRA["schedule"]["colour"] = "red"
TEXT = without()
TEXT["history"]["rate"] = ["fast"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        json.dumps(without())[:200],
        "[1, 2]",
        "3",
        '"run"',
        "null",
        json.dumps(without("history")),
        json.dumps(without("schedule")),
        json.dumps(without("test")),
        json.dumps(without() | {"colour": "red"}),
        json.dumps(WRONG),
        json.dumps(EXTRA),
        json.dumps(TEXT),
        b"\xff\xfe\x00binary",
    ],
)
def test_refuses_what_is_not_a_run_and_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"broken\.json is not a saved run"):
        Run.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Run.load(tmp_path / "run.json")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "weights.safetensors")


def test_repr_is_one_stable_line():
    assert repr(run()) == "Run('a <run>': 2 epochs, seed 7, test accuracy 81.2%)"


def test_html_shows_the_numbers():
    text = run()._repr_html_()
    for name, value in (
        ("epochs", "2"),
        ("last cross_entropy", "0.1000"),
        ("last kd", "0.2500"),
        ("last validation accuracy", "75.0%"),
        ("test accuracy", "81.2%"),
        ("rate", "0.3"),
        ("batch", "128"),
        ("seed", "7"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in text


def test_html_escapes_the_label():
    assert "<caption>a &lt;run&gt;</caption>" in run()._repr_html_()


def test_machine_says_what_a_number_needs_beside_it():
    machine = describe_machine()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cores"] == os.cpu_count()
    assert machine["python"] == platform.python_version()
    assert machine["torch"] == version("torch")
    assert machine["processor"]
    json.dumps(machine)


def test_weights_come_back_bit_for_bit(tmp_path):
    state = {
        "half": torch.randn(3).bfloat16(),
        "whole": torch.tensor([2, -1]),
        "scalar": torch.tensor(float("nan")),
        "turned": torch.randn(3, 4).T,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    state["tied"] = state["parameter"]
    save_weights(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("length", [0, 4, 20, -1])
def test_refuses_truncated_weights_and_names_the_file(tmp_path, length):
    path = tmp_path / "w.safetensors"
    save_weights({"w": torch.randn(30)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file"):
        load_weights(path)


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("binary", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, binary):
    path = tmp_path / "file"
    path.write_bytes(b"old and whole")

    def fails(file):
        file.write(b"half" if binary else "half")
        file.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails, binary=binary)
    assert files(tmp_path) == {"file": b"old and whole"}


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights({"w": torch.ones(2)}, path)
    before = files(tmp_path)

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        save_weights({"w": torch.zeros(2)}, path)
    assert files(tmp_path) == before


def test_a_run_that_cannot_be_written_leaves_the_old_one(tmp_path):
    run().save(tmp_path / "run.json")
    before = files(tmp_path)
    broken = run()
    broken.machine["gpu"] = object()
    with pytest.raises(TypeError, match="cannot write a object to a run"):
        broken.save(tmp_path / "run.json")
    assert files(tmp_path) == before


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "file"
    seen = []

    def write(file):
        file.write("half")
        file.flush()
        seen.append(path.exists())
        file.write(" and whole")

    write_whole(path, write)
    assert seen == [False]
    assert files(tmp_path) == {"file": b"half and whole"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_epoch_that_was_kept_and_the_accuracy_survive(tmp_path):
    history = History({"ce": np.array([1.0])}, np.array([0.1]), accuracy=np.array([0.25]))
    run(history=history, kept_epoch=3).save(tmp_path / "run.json")
    loaded = Run.load(tmp_path / "run.json")
    assert loaded.kept_epoch == 3
    assert loaded.history.accuracy.tolist() == [0.25]
    assert "kept 3" in loaded._repr_html_()


def test_a_run_from_before_there_was_an_accuracy_is_read(tmp_path):
    content = without("kept_epoch")
    del content["history"]["accuracy"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert Run.load(tmp_path / "run.json").history.accuracy.shape == (0,)


@pytest.mark.parametrize("binary", [False, True])
def test_a_refusing_disk_is_said_by_name_and_nothing_changes(binary, tmp_path):
    (tmp_path / "file").write_text("before")

    def write(file):
        file.write(b"new" if binary else "new")
        raise OSError(28, "No space left on device")

    message = r"file could not be written and is as it was before: No space left"
    with pytest.raises(OSError, match=message) as raised:
        write_whole(tmp_path / "file", write, binary=binary)
    assert raised.value.errno == 28
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match=r"inner could not be written"):
        write_whole(tmp_path / "file" / "inner", lambda file: None)


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("content"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b)))
    write_whole(tmp_path / "file", lambda file: file.write("x"))
    assert order == ["content", "name"]
