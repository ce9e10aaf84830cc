"""What every benchmark of the house does: take turns, compare medians, write one small file."""

import json
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import trange

from qatviz.runs import describe_machine, write_whole

RUNS = Path(__file__).parent.parent / "data" / "runs"
THREADS = 2
BATCH = 128
# glibc keeps the memory of freed tensors, for all alike: on a virtual machine, asking the kernel
# for it again takes longer than the passes over it that are to be measured.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Row:
    """One comparison: ``ratio`` is ours ÷ theirs, so smaller is better.

    ``spread`` is the interquartile range of the ratio over ``n`` rounds.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    spread: float
    n: int
    unit: str


def in_a_process(function: Callable, *arguments: object) -> Any:
    """The result of a function in a fresh process, which keeps the memory it frees."""
    os.environ.update(KEEP_MEMORY)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def in_processes(
    count: int, measure: Callable[..., dict[str, np.ndarray]], *arguments: object
) -> dict[str, np.ndarray]:
    """What a function measures in several fresh processes, one after another, joined.

    Where a process happens to lie in memory moves a ratio by some per cent.
    """
    parts = [in_a_process(measure, *arguments) for _ in range(count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, *, warm_up: int = 3
) -> dict[str, np.ndarray]:
    """Seconds that a call of each candidate takes, in turns."""
    timed = {name: partial(seconds_of, call) for name, call in candidates.items()}
    return in_turns(timed, rounds, warm_up=warm_up)


def in_turns(
    candidates: dict[str, Callable[[], float]], rounds: int, *, warm_up: int = 3
) -> dict[str, np.ndarray]:
    """Seconds that each candidate returns, taken in turns so that all see the same machine.

    The order turns by one from round to round, so that no one always follows the same one.
    """
    names = list(candidates)
    for name in names:
        for _ in range(warm_up):
            candidates[name]()
    seconds = {name: np.empty(rounds) for name in names}
    for i in trange(rounds, desc=", ".join(names)[:60], unit="round", leave=False):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name][i] = candidates[name]()
    return seconds


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    what: str,
    ours: np.ndarray,
    peer: str,
    theirs: np.ndarray,
    *,
    per: int = 0,
    unit: str = "ms",
) -> Row:
    """The row of one comparison; with ``per``, times are nanoseconds per element of that many."""
    ratios = ours / theirs
    low, high = np.percentile(ratios, [25, 75])
    factor, unit = (1e9 / per, "ns per element") if per else (1e3, unit)
    return Row(
        what=what,
        peer=peer,
        ours=round(float(np.median(ours)) * factor, 4),
        theirs=round(float(np.median(theirs)) * factor, 4),
        ratio=round(float(np.median(ratios)), 4),
        spread=round(float(high - low), 4),
        n=len(ours),
        unit=unit,
    )


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that come to life inside, while they live.

    What a single operator allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {_storage(a) for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in before:
                self._born(tensor)
        return result

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.known or storage.nbytes() == 0:
            return
        self.known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def write(name: str, rows: list[Row], packages: tuple[str, ...], **more: str) -> Path:
    """Write ``data/runs/bench_<name>.json``, whole or not at all, and say where."""
    content = {
        **more,
        "machine": describe_machine(),
        "versions": {package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [asdict(row) for row in rows],
    }
    path = RUNS / f"bench_{name}.json"
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1) + "\n"))
    return path


def table(rows: list[Row]) -> str:
    """The rows as text: the ratio first, because that is what is compared."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'what':{width}}  {'peer':14}  {'ratio':>6} ± {'IQR':6}  {'ours':>9} {'theirs':>9}"]
    lines += [
        f"{row.what:{width}}  {row.peer:14}  {row.ratio:6.3f} ± {row.spread:<6.3f}  "
        f"{row.ours:9.3f} {row.theirs:9.3f} {row.unit} (n = {row.n})"
        for row in rows
    ]
    return "\n".join(lines)
