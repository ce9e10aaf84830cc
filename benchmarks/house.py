"""What every benchmark of the house does: take turns, compare medians, write one small file."""

import json
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import trange

from qatviz.runs import describe_machine, write_whole

RUNS = Path(__file__).parent.parent / "data" / "runs"


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


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, *, warm_up: int = 3
) -> dict[str, np.ndarray]:
    """Seconds of each candidate, taken in turns so that all see the same machine.

    The order turns by one from round to round, so that no one always follows the same one.
    """
    names = list(candidates)
    for name in names:
        for _ in range(warm_up):
            candidates[name]()
    seconds = {name: np.empty(rounds) for name in names}
    for i in trange(rounds, desc=", ".join(names)[:60], unit="round", leave=False):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            candidates[name]()
            seconds[name][i] = time.perf_counter() - start
    return seconds


def compare(what: str, ours: np.ndarray, peer: str, theirs: np.ndarray, *, per: int = 0) -> Row:
    """The row of one comparison; with ``per``, times are nanoseconds per element of that many."""
    ratios = ours / theirs
    low, high = np.percentile(ratios, [25, 75])
    factor, unit = (1e9 / per, "ns per element") if per else (1e3, "ms")
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


def write(name: str, rows: list[Row], packages: tuple[str, ...]) -> Path:
    """Write ``data/runs/bench_<name>.json``, whole or not at all, and say where."""
    content = {
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
