"""The folder of one experiment: what is in it, and how it is filled."""

import json
import os
import pickle
import shutil
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from qatviz import records
from qatviz.checkpoints import load_tree, read_plain, save_tree
from qatviz.datasets import DATA, Dataset
from qatviz.runs import Run, load_weights, save_weights, write_whole
from qatviz.studies.building import data_of, kept, seeded, train
from qatviz.studies.experiment import Experiment, analysis_arguments, file_digest
from qatviz.studies.sources import code_hash

CACHE = DATA / "cache" / "studies"
PROMOTED = DATA / "runs" / "studies"
RECORD = "record of"
# What a finished cell consists of, and comes back with from a machine that shares no disk.
RESULTS = ("experiment.json", "results.safetensors", "weights.safetensors", "run.json")

# ``fit`` draws from the process's own generators: one cell at a time in a process.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Cell:
    """The folder of one experiment.

    Args:
        folder: Named by the experiment's hash.
    """

    folder: Path

    @property
    def hash(self) -> str:
        """The experiment's hash."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it is all there: ``run.json`` is written last."""
        return (self.folder / "run.json").is_file()

    @property
    def running(self) -> dict[str, Any] | None:
        """Who runs it, or ran it when it was interrupted."""
        return _json(self.folder / "running.json")

    @property
    def about(self) -> dict[str, Any]:
        """The experiment's description, its name, and the code and threads it is run with."""
        return _json(self.folder / "experiment.json") or {}

    @cached_property
    def run(self) -> Run:
        """What happened."""
        return Run.load(self.folder / "run.json")

    @property
    def failure(self) -> str:
        """The traceback of what went wrong the last time; empty if nothing did."""
        try:
            return (self.folder / "failure.txt").read_text()
        except FileNotFoundError:
            return ""

    @property
    def error(self) -> str:
        """What went wrong the last time, in a line."""
        return last_line(self.failure)

    @property
    def flag(self) -> str:
        """``"stale"`` if other code made it than would make it now; empty if not.

        ``"missing"`` if that cannot be said, because a module is not found from here.
        """
        about = self.about
        code = code_hash(about.get("experiment", {}))
        return "missing" if code == "missing" else "stale" * (code != about.get("code"))

    @property
    def stale(self) -> bool:
        """Whether it cannot be said that the code of now made it."""
        return bool(self.flag)

    @property
    def epoch(self) -> int:
        """Epochs in the checkpoint; 0 if there is none."""
        try:
            return int(read_plain(self.folder / "checkpoint.safetensors")["epoch"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def weights(self) -> dict[str, Tensor]:
        """The student's ``state_dict``.

        Returns:
            Tensors by name.
        """
        return load_weights(self.folder / "weights.safetensors")

    def results(self) -> dict[str, dict[str, Any]]:
        """What observers and analyses left.

        Returns:
            ``{"observers": {name: …}, "analyses": {name: …}}``, records as records again.
        """
        path = self.folder / "results.safetensors"
        if not path.is_file():
            return {"observers": {}, "analyses": {}}
        return _unpacked(load_tree(path))


@dataclass(frozen=True)
class Outcome:
    """What comes back from where a cell was run.

    Args:
        hash: The experiment's.
        failure: The traceback, or empty.
        files: Content by name, where the client does not see the worker's disk.
    """

    hash: str
    failure: str
    files: Mapping[str, bytes]


def last_line(text: str) -> str:
    """The last line of a traceback that is not indented.

    Args:
        text: The traceback.

    Returns:
        The line; empty if there is none.
    """
    lines = text.strip().splitlines()
    return next((line for line in reversed(lines) if line and line[0] != " "), "")


def run_sent(sent: tuple[bytes, list[str]], cache: Path, **options: Any) -> Outcome:
    """``run_cell`` where only the worker needs the modules, not what hands the work on.

    Args:
        sent: The experiment, pickled, and where its modules are on the client: looked into last.
        cache: Folder of the cells.
        options: As ``run_cell`` takes them.

    Returns:
        The outcome.
    """
    pickled, folders = sent
    sys.path += [folder for folder in folders if folder not in sys.path]
    return run_cell(pickle.loads(pickled), cache, **options)


def run_cell(
    experiment: Experiment,
    cache: Path,
    *,
    threads: int = 1,
    accelerator: str = "auto",
    token: str = "",
    attempt: str = "",
    watch: Any = None,
) -> Outcome:
    """Run one experiment into its folder, or go on where it was interrupted.

    Whoever runs the same cell at the same time waits, and takes the result. A failure is
    written down and returned; an interruption (``KeyboardInterrupt``) is raised.

    Args:
        experiment: What to run. Its start is run first if it is not there.
        cache: Folder of the cells.
        threads: Threads of torch. Default: 1: cells side by side use cores better (ours).
        accelerator: Device, as Lightning Fabric names them. Default: "auto".
        token: The ``identity`` of the client's cache: where this one is another, the content of
            the files comes back. Default: "": it is the same.
        attempt: Makes each submission different from the others, for executors that would
            otherwise hand back the last one's result. Default: "".
        watch: Called after each step, in this process only. Default: None.

    Returns:
        The outcome.
    """
    cache = Path(cache)
    shared = not token or identity(cache) == token
    failure = ""
    try:
        ensure(experiment, cache, threads=threads, accelerator=accelerator, watch=watch)
    except Exception:
        failure = traceback.format_exc()
    folder = cache / experiment.hash
    files = {} if shared else {n: (folder / n).read_bytes() for n in RESULTS if _has(folder, n)}
    return Outcome(experiment.hash, failure, files if not failure else {})


def ensure(
    experiment: Experiment, cache: Path, *, threads: int, accelerator: str, watch: Any = None
) -> Cell:
    """A finished cell: the one that is there, or a new one.

    Args:
        experiment: What to run.
        cache: Folder of the cells.
        threads: Threads of torch.
        accelerator: Device, as Lightning Fabric names them.
        watch: Called after each step. Default: None.

    Returns:
        The cell.
    """
    cell = Cell(cache / experiment.hash)
    with _ONE_AT_A_TIME, locked(cell), _threads(threads):
        if cell.finished:
            return cell
        _prepare(cell, experiment, threads)
        try:
            state = _start_state(experiment, cache, threads=threads, accelerator=accelerator)
            _fill(cell, experiment, state, accelerator, watch)
        except Exception:
            _note_failure(cell, traceback.format_exc())
            raise
        finally:
            (cell.folder / "running.json").unlink(missing_ok=True)
    return cell


@contextmanager
def locked(cell: Cell, timeout: float = -1) -> Iterator[None]:
    """Hold the cell: one process and one thread at a time. The kernel lets go if it dies.

    Args:
        cell: The cell.
        timeout: Seconds to wait, then ``filelock.Timeout``. Default: −1: any time.

    Yields:
        Nothing.
    """
    # Beside the folders, never deleted: a lock in a folder that is removed guards nothing.
    locks = cell.folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / cell.hash, timeout):
        yield


def identity(cache: Path) -> str:
    """A name of a cache by which two processes see whether they share its disk.

    Args:
        cache: Folder of the cells.

    Returns:
        Random text, always the same for one cache.
    """
    path = cache / ".locks" / "identity"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            write_whole(path, lambda file: file.write(uuid.uuid4().hex))
        return path.read_text()


def find(
    experiment: Experiment, cache: Path, *, weights: bool = False, promoted: bool = True
) -> Cell | None:
    """The finished cell of an experiment: in the cache, or promoted.

    Args:
        experiment: The experiment.
        cache: Folder of the cells.
        weights: Whether the weights must be there too. Default: False.
        promoted: Whether promoted ones count. Default: True.

    Returns:
        The cell, or None.
    """
    for root in (cache, PROMOTED) if promoted else (cache,):
        cell = Cell(root / experiment.hash)
        if cell.finished and (not weights or _has(cell.folder, "weights.safetensors")):
            return cell
    return None


def receive(outcome: Outcome, cache: Path) -> Cell:
    """Write into this cache what a worker on another disk made.

    Args:
        outcome: What came back.
        cache: Folder of the cells.

    Returns:
        The cell.
    """
    cell = Cell(cache / outcome.hash)
    if cell.finished or not (outcome.files or outcome.failure):
        return cell
    if outcome.failure:
        with suppress(OSError), locked(cell):
            if not cell.finished:
                _note_failure(cell, outcome.failure)
        return cell
    with locked(cell):
        if not cell.finished:
            for name in (n for n in RESULTS if n in outcome.files):
                write_bytes(cell.folder / name, outcome.files[name])
            (cell.folder / "failure.txt").unlink(missing_ok=True)
    return cell


def _note_failure(cell: Cell, text: str) -> None:
    """Write it down, if the disk takes it: it is reported anyway."""
    with suppress(OSError):
        write_whole(cell.folder / "failure.txt", lambda file: file.write(text))


def remove(cell: Cell, *, timeout: float = -1) -> None:
    """Delete a cell, once nobody runs it.

    Args:
        cell: The cell.
        timeout: Seconds to wait for that, then ``filelock.Timeout``. Default: −1: any time.
    """
    with locked(cell, timeout):
        shutil.rmtree(cell.folder, ignore_errors=True)


def is_running(cell: Cell) -> bool:
    """Whether somebody runs it now.

    Args:
        cell: The cell.

    Returns:
        True if its lock is held.
    """
    try:
        with locked(cell, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a cache that cannot be written
        return False


def _prepare(cell: Cell, experiment: Experiment, threads: int) -> None:
    """Make the folder ready: keep a checkpoint of the same code, and nothing else."""
    content = experiment.describe()
    about = {
        "name": experiment.name,
        "experiment": content,
        "code": code_hash(content),
        # An analysis may be mended without training again.
        "training": code_hash(content | {"analyses": {}}),
        "threads": threads,
    }
    same = all(cell.about.get(key) == about[key] for key in ("experiment", "training", "threads"))
    if cell.folder.exists() and not same:
        shutil.rmtree(cell.folder)
    cell.folder.mkdir(parents=True, exist_ok=True)
    for partial in cell.folder.glob(".*"):  # left by a process that was killed
        partial.unlink()
    (cell.folder / "failure.txt").unlink(missing_ok=True)
    running = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    _write_json(cell.folder / "experiment.json", about)
    _write_json(cell.folder / "running.json", running)


def _fill(
    cell: Cell,
    experiment: Experiment,
    state: Mapping[str, Tensor] | None,
    accelerator: str,
    watch: Any,
) -> None:
    data = data_of(experiment.data, experiment.root)
    checkpoint = cell.folder / "checkpoint.safetensors"
    student, run, observers = train(
        *(experiment, data, state),
        checkpoint=checkpoint,
        accelerator=accelerator,
        watch=watch,
    )
    student.cpu()
    results = {"observers": {name: kept(o) for name, o in observers.items()}}
    results["analyses"] = analysed(experiment, student, data)
    save_tree(_packed(results), cell.folder / "results.safetensors")
    save_weights(student.state_dict(), cell.folder / "weights.safetensors")
    run.save(cell.folder / "run.json")
    # Everything that it held is in the other files now.
    for left in cell.folder.glob("checkpoint.*"):
        left.unlink()


def analysed(experiment: Experiment, student: nn.Module, data: Dataset) -> dict[str, Any]:
    """What the experiment's analyses return, each from the seed of the experiment.

    Args:
        experiment: The experiment.
        student: Trained.
        data: The data set.

    Returns:
        Results by name.
    """
    found = {}
    for name, analysis in experiment.analyses.items():
        with seeded(experiment.seed):
            given = analysis_arguments(analysis, student.eval(), data)
            found[name] = analysis(*given.args, **given.kwargs)
    return found


def _start_state(
    experiment: Experiment, cache: Path, *, threads: int, accelerator: str
) -> Mapping[str, Tensor] | None:
    if isinstance(experiment.start, Experiment):
        there = find(experiment.start, cache, weights=True)
        there = there or ensure(experiment.start, cache, threads=threads, accelerator=accelerator)
        return there.weights()
    if experiment.start_file is None:
        return None
    found = replaced_file(experiment)
    if found:
        raise ValueError(found)
    return load_weights(experiment.start_file)


def replaced_file(experiment: Experiment) -> str:
    """Whether the file of weights is another than when the experiment was made.

    Args:
        experiment: The experiment; its start is a file.

    Returns:
        What to say of it; empty if all is well.
    """
    path, expected = experiment.start_file, experiment.describe()["start"]["sha256"]
    if not path.is_file():
        return f"start: {path} does not exist (here)"
    if file_digest(path) != expected:
        return f"start: {path} has changed since the experiment was made"
    return ""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _packed(value: Any) -> Any:
    """Records as dictionaries that say which record they are."""
    if is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if getattr(records, name, None) is not type(value):
            raise ValueError(f"{type(value)!r} cannot be kept: not a record of qatviz.records")
        content = {f.name: _packed(getattr(value, f.name)) for f in fields(value)}
        return {RECORD: name, "fields": content}
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_packed(item) for item in value])
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if RECORD in value:
            return getattr(records, value[RECORD])(**_unpacked(value["fields"]))
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(item) for item in value)
    return value


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete its folder") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    write_whole(path, lambda file: file.write(text))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file.
        content: What it is to hold.
    """
    write_whole(path, lambda file: file.write(content), binary=True)
