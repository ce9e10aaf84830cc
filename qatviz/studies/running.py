"""Run a grid of experiments: what is cached is not run again, what fails does not stop others."""

import pickle
import shlex
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qatviz.datasets import Dataset, Split
from qatviz.studies.building import data_of, train
from qatviz.studies.cells import (
    CACHE,
    Cell,
    Outcome,
    analysed,
    find,
    identity,
    last_line,
    receive,
    run_cell,
    run_sent,
)
from qatviz.studies.checks import check, needed, start_like, with_starts
from qatviz.studies.executors import Pool, broke
from qatviz.studies.experiment import Experiment
from qatviz.studies.sources import folders
from qatviz.studies.tables import Study

POLL = 0.05  # seconds between two looks at the futures
LOOK = 1.0  # seconds between two looks at the checkpoints
DEATHS = 2  # of its worker, after which a cell is not tried again
DRY_IMAGES = 64  # of validation and test in a dry run (ours)


def study(
    experiments: Iterable[Any],
    executor: Any = None,
    *,
    cache: str | Path = CACHE,
    threads: int = 1,
    accelerator: str = "auto",
    anew: bool = False,
    progress: bool = True,
) -> Study:
    """Run what is not yet cached, and return everything as a table.

    What was interrupted goes on from its last epoch. A cell that fails is reported, and tried
    again by the next call. A worker that dies loses only its cell, which is run again; since one
    death breaks a whole pool of processes, the cells that were in it are then run one at a
    time, after the others, and one whose worker dies twice is reported as failed.

    Args:
        experiments: The cells, as from ``grid``. Their starts are run first.
        executor: Where: None, in this process; ``processes(4)``; a ``ProcessPoolExecutor`` or
            loky's; ``client.get_executor()`` of Dask; anything whose ``submit()`` returns
            futures with ``done()`` and ``result()``; or a factory of such a thing. (Dask runs
            a lost cell again itself, as often as its ``allowed-failures`` says.) A
            ``ProcessPoolExecutor`` that forks is replaced by one that does not (forked
            processes hang after torch has computed with several threads).
        cache: Folder of the cells. Default: ``data/cache/studies``.
        threads: Threads of torch in each cell: they change results in the last bits, so they
            are recorded. Default: 1 (ours: cells side by side use cores better).
        accelerator: Device of each cell, as Lightning Fabric names them. Default: "auto".
        anew: Whether to run again, here, what was promoted; what is in the cache stays, so that
            a study that was interrupted goes on. Default: False.
        progress: Whether to show a bar over the epochs of all cells. Default: True.

    Returns:
        The results.

    Raises:
        ValueError: Before anything starts; lists all problems of all experiments.
        RuntimeError: If the workers cannot even begin.
    """
    asked = list(dict.fromkeys(experiments))
    cache = Path(cache).expanduser().resolve()
    if not (isinstance(threads, int) and threads >= 1):
        raise ValueError(f"threads must be a whole number from 1, got {threads!r}")
    check(asked, cache, anew=anew)
    todo = needed(asked, cache, anew=anew)
    job = _Job(asked, todo, cache, threads, accelerator, progress)
    with job.bar:
        if executor is None:
            job.run_here()
        else:
            job.run_on(executor)
    result = Study(asked, *job.found())
    if progress:
        report(result, cache)
    return result


def finished(experiments: Iterable[Any], *, cache: str | Path = CACHE) -> Study:
    """What is there of a study, in the cache or promoted; nothing is run.

    For drawing what others have run: ``study`` with the same cells runs what is missing.

    Args:
        experiments: The cells, as from ``grid``.
        cache: Folder of the cells. Default: ``data/cache/studies``.

    Returns:
        The results that there are; the row of a cell that is not finished has no numbers, and
        "not run" as its error.
    """
    asked = list(dict.fromkeys(experiments))
    cells = {e.hash: find(e, Path(cache).expanduser().resolve()) for e in asked}
    there = {key: cell for key, cell in cells.items() if cell is not None}
    return Study(asked, there, {key: "not run" for key in cells if key not in there})


def dry_run(
    experiments: Iterable[Any], cache: str | Path = CACHE, accelerator: str = "auto"
) -> dict[str, str]:
    """Build every cell, run two steps of each, and its analyses; nothing is kept.

    Args:
        experiments: The cells.
        cache: Folder of the cells, for the checks that come first.
        accelerator: Device, as Lightning Fabric names them. Default: "auto".

    Returns:
        What failed: tracebacks by hash.

    Raises:
        ValueError: As ``study``.
    """
    asked, failed = list(dict.fromkeys(experiments)), {}
    check(asked, Path(cache))
    for e in tqdm(with_starts(asked), desc="dry run", unit="cell"):
        try:
            two_steps(e, accelerator)
        except Exception:
            failed[e.hash] = traceback.format_exc()
    return failed


def two_steps(e: Experiment, accelerator: str) -> None:
    """Build an experiment, train it for two steps, analyse it, and forget it.

    Args:
        e: The experiment.
        accelerator: Device, as Lightning Fabric names them.
    """
    data = data_of(e.data, e.root)
    batch = min(e.schedule.batch, (e.images or len(data.train)) // 2)
    small = Dataset(
        *(data.name, _first(data.train, 2 * batch)),
        *(_first(split, DRY_IMAGES) for split in (data.validation, data.test)),
        unlabelled=data.unlabelled and _first(data.unlabelled, DRY_IMAGES),
    )
    schedule = replace(e.schedule, epochs=1, batch=batch)
    twice = replace(e, images=None, repeat=1, schedule=schedule)
    student, _, _ = train(twice, small, start_like(e, data), accelerator=accelerator)
    analysed(twice, student.cpu(), small)


def report(result: Study, cache: Path) -> None:
    """Say what failed and what is stale, if anything.

    Args:
        result: The study.
        cache: Folder of its cells.
    """
    where = "" if cache == CACHE.resolve() else f" --cache {shlex.quote(str(cache))}"
    for row in result.table.itertuples():
        if row.error:
            tqdm.write(f"failed: {row.label}, seed {row.seed}: {row.error}")
            tqdm.write(f"        the traceback: python -m qatviz runs show {row.hash}{where}")
    stale = [row.hash for row in result.table.itertuples() if row.stale]
    if stale:
        tqdm.write(
            f"stale: {len(stale)} runs were made by other code than there is now "
            f"(the table says which); to run them anew: python -m qatviz runs delete --stale{where}"
        )
        if any(result.cells[key].folder.parent != cache for key in stale):
            tqdm.write("       and what is promoted: run the study with anew=True, or --anew")


def _first(split: Split, images: int) -> Split:
    return split.subset(min(images, len(split)))


class _Job:
    """A study under way: what is still to be run."""

    def __init__(
        self,
        asked: list[Experiment],
        todo: list[Experiment],
        cache: Path,
        threads: int,
        accelerator: str,
        progress: bool,
    ) -> None:
        self.asked, self.cache = asked, cache
        self.options = {"threads": threads, "accelerator": accelerator}
        self.todo = {e.hash: e for e in todo}
        everything = list(self.todo.values()) + [e for e in asked if e.hash not in self.todo]
        self.errors: dict[str, str] = {}
        self.bar = _Bar(everything, {e.hash for e in everything} - set(self.todo), progress)

    def found(self) -> tuple[dict[str, Cell], dict[str, str]]:
        """The finished cells, and what went wrong in the others."""
        cells = {e.hash: find(e, self.cache) for e in self.asked}
        return {h: cell for h, cell in cells.items() if cell is not None}, self.errors

    def run_here(self) -> None:
        while self.todo:
            e = next(iter(self.todo.values()))  # starts come first
            if self.start_failed(e):
                continue
            watch = self.bar.watch(e)
            self.finish(e, run_cell(e, self.cache, watch=watch, **self.options))

    def run_on(self, executor: Any) -> None:
        with _open(executor) as pool:
            crew = _Crew(self, pool, identity(self.cache))
            try:
                crew.work()
            except BaseException:
                crew.cancel()
                raise

    def ready(self) -> Iterator[Experiment]:
        """What can be run now, because its start is there."""
        for e in list(self.todo.values()):
            if not self.start_failed(e) and getattr(e.start, "hash", None) not in self.todo:
                yield e

    def start_failed(self, e: Experiment) -> bool:
        """Whether its start failed, and so does it."""
        failed = getattr(e.start, "hash", None) in self.errors
        if failed:
            self.fail(e, f"its start, {e.start.name} ({e.start.hash}), failed")
        return failed

    def finish(self, e: Experiment, outcome: Outcome) -> None:
        """Take an outcome in."""
        cell = receive(outcome, self.cache)
        if outcome.failure and not cell.finished:
            self.fail(e, last_line(outcome.failure))
        else:
            self.settle(e)

    def fail(self, e: Experiment, error: str) -> None:
        self.errors[e.hash] = error
        self.settle(e)

    def settle(self, e: Experiment) -> None:
        self.todo.pop(e.hash, None)
        self.bar.end(e, len(self.errors))


class _Crew:
    """The cells of a job on an executor, which may lose some of them."""

    def __init__(self, job: _Job, pool: Pool, token: str) -> None:
        self.job, self.pool, self.token = job, pool, token
        self.futures: dict[str, tuple[Experiment, Any]] = {}
        self.deaths: dict[str, int] = {}
        self.idle_breaks, self.looked, self.since = 0, 0.0, time.time()

    def work(self) -> None:
        while self.job.todo:
            try:
                self.submit()
                self.collect()
            except Exception as error:
                if not broke(error):
                    raise
                self.recover(error)
            self.look()
            if self.job.todo:
                time.sleep(POLL)

    def cancel(self) -> None:
        """Leave what has not begun; what has can be gone on with."""
        for _, future in self.futures.values():
            future.cancel()

    def submit(self) -> None:
        """Everything that is ready; what may have killed a worker comes last, and alone."""
        ready = [e for e in self.job.ready() if e.hash not in self.futures]
        suspects = [e for e in ready if self.deaths.get(e.hash)]
        for e in [e for e in ready if not self.deaths.get(e.hash)]:
            self.hand_over(e)
        if suspects and not self.futures:
            self.hand_over(suspects[0])

    def hand_over(self, e: Experiment) -> None:
        options = self.job.options | {"token": self.token, "attempt": uuid.uuid4().hex}
        sent = (pickle.dumps(e), folders(e.describe()))
        self.futures[e.hash] = (e, self.pool.submit(run_sent, sent, self.job.cache, **options))

    def collect(self) -> None:
        for key, (e, future) in list(self.futures.items()):
            if not future.done():
                continue
            try:
                outcome = future.result()
            except Exception as error:
                if broke(error):
                    raise
                outcome = Outcome(e.hash, traceback.format_exc(), {})
            del self.futures[key]
            self.idle_breaks = 0
            self.job.finish(e, outcome)

    def recover(self, error: Exception) -> None:
        """A worker died and the pool with it: count the cells that were in it, and go on."""
        self.keep_what_is_done()
        lost, self.futures = self.futures, {}
        begun = [e for e, _ in lost.values() if self.began(e)]
        self.idle_breaks = 0 if begun else self.idle_breaks + 1
        if self.idle_breaks >= DEATHS or not self.pool.renew():
            raise RuntimeError(
                f"the workers died before they began ({error}); a script that uses processes "
                f'must be guarded by `if __name__ == "__main__":`'
            ) from error
        for e in begun:
            self.deaths[e.hash] = self.deaths.get(e.hash, 0) + 1
            if self.deaths[e.hash] >= DEATHS:
                text = f"its worker died {DEATHS} times (out of memory?): {error}"
                self.job.finish(e, Outcome(e.hash, text, {}))

    def began(self, e: Experiment) -> bool:
        running = self.cell(e).running
        return bool(running) and running["since"] >= self.since

    def keep_what_is_done(self) -> None:
        """What the pool finished before it broke."""
        for key, (e, future) in list(self.futures.items()):
            if future.done() and future.exception() is None:
                del self.futures[key]
                self.job.finish(e, future.result())

    def look(self) -> None:
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            for e, _ in self.futures.values():
                self.job.bar.at(e, self.cell(e).epoch)

    def cell(self, e: Experiment) -> Cell:
        return Cell(self.job.cache / e.hash)


class _Bar:
    """One bar over the epochs of all cells."""

    def __init__(self, everything: list[Experiment], done: set[str], progress: bool) -> None:
        self.epochs = {e.hash: 0 for e in everything}
        self.total, self.done, self.failed = len(everything), len(done), 0
        self.bar = tqdm(
            total=sum(e.schedule.epochs for e in everything),
            initial=sum(e.schedule.epochs for e in everything if e.hash in done),
            desc="study",
            unit="epoch",
            disable=not progress,
        )

    def __enter__(self) -> None:
        self.say()

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def at(self, e: Experiment, epoch: int) -> None:
        """A cell has come so far."""
        if epoch > self.epochs[e.hash]:
            self.bar.update(epoch - self.epochs[e.hash])
            self.epochs[e.hash] = epoch

    def end(self, e: Experiment, failed: int) -> None:
        """A cell is finished or failed."""
        self.at(e, e.schedule.epochs)
        self.done, self.failed = self.done + 1, failed
        self.say()

    def say(self) -> None:
        self.bar.set_postfix_str(f"{self.done}/{self.total} cells, {self.failed} failed")

    def watch(self, e: Experiment) -> Callable[[int], None]:
        """An observer in this process that moves the bar at the end of every epoch."""
        images = e.images or len(data_of(e.data, e.root).train)
        steps = images // min(e.schedule.batch, images)
        return lambda step: self.at(e, step // steps)


@contextmanager
def _open(executor: Any) -> Iterator[Pool]:
    """A pool that is closed; at once, if something went wrong."""
    pool = Pool(executor)
    try:
        yield pool
    except BaseException:
        pool.close(at_once=True)
        raise
    pool.close()
