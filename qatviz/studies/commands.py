"""The commands ``python -m qatviz study`` and ``python -m qatviz runs``."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import Timeout

from qatviz.studies import cells
from qatviz.studies.cells import Cell, write_bytes
from qatviz.studies.checks import refuse
from qatviz.studies.executors import processes
from qatviz.studies.files import read_study
from qatviz.studies.running import dry_run, study

# Committed files are small: what observers and analyses kept comes along.
PROMOTE = ("experiment.json", "results.safetensors", "run.json")


def run_study(chosen: argparse.Namespace) -> int:
    """``python -m qatviz study FILE.toml``.

    Args:
        chosen: The words of the command line.

    Returns:
        0; 1 if a cell failed; 2 if nothing was started; 130 if it was interrupted.
    """
    with _said() as status:
        cache = _cache(chosen)
        experiments = read_study(chosen.file, cache)
        if chosen.dry_run:
            failed = dry_run(experiments, cache, chosen.accelerator)
            for key, text in failed.items():
                print(f"{key} failed:\n{text}")
            good = len(experiments) - len(failed)
            print(f"dry run: {good} of {len(experiments)} cells can be built and take two steps")
            return int(bool(failed))
        options = {"threads": chosen.threads, "accelerator": chosen.accelerator}
        options["anew"] = chosen.anew
        with _executor(chosen) as executor:
            result = study(experiments, executor, cache=cache, **options)
        _show(result.table.drop(columns=["data", "model"]))
        print(result)
        return int(bool(result.errors))
    return status[0]


def manage_runs(chosen: argparse.Namespace) -> int:
    """``python -m qatviz runs``: list, show, compare, delete, promote.

    Args:
        chosen: The words of the command line.

    Returns:
        0; 2 if it was refused.
    """
    actions = {
        None: list_runs,
        "list": list_runs,
        "show": show_run,
        "compare": compare_runs,
        "delete": delete_runs,
        "promote": promote_runs,
    }
    with _said() as status:
        actions[chosen.action](chosen)
        return 0
    return status[0]


def list_runs(chosen: argparse.Namespace) -> None:
    """Print a line for each cell.

    Args:
        chosen: The words of the command line.
    """
    rows = [_row(cell) for root in _roots(chosen) for cell in cells_in(root)]
    if rows:
        _show(pd.DataFrame(rows).sort_values(["name", "seed"]))
    else:
        print(f"no runs in {_cache(chosen)}")


def show_run(chosen: argparse.Namespace) -> None:
    """Print everything about one cell, the traceback of a failure included.

    Args:
        chosen: The words of the command line.
    """
    cell = one_cell(chosen.hashes[0], _roots(chosen))
    about = cell.about
    for key, value in (_row(cell) | {"folder": cell.folder, "code": about.get("code")}).items():
        print(f"{key:>12}: {value}")
    for key, value in flattened(about.get("experiment", {})).items():
        print(f"{key:>12}: {value}")
    if cell.finished:
        for key, value in cell.run.machine.items():
            print(f"{key:>12}: {value}")
    print(cell.failure, end="")


def compare_runs(chosen: argparse.Namespace) -> None:
    """Print in what two cells differ, and their results.

    Args:
        chosen: The words of the command line.
    """
    two = [one_cell(prefix, _roots(chosen)) for prefix in chosen.hashes]
    columns = [flattened(c.about.get("experiment", {})) | _row(c) for c in two]
    keys = [k for k in dict.fromkeys([*columns[0], *columns[1]]) if k != "hash"]
    rows = {k: [c.get(k, "") for c in columns] for k in keys}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[c.hash for c in two])
    differ = [a != b for a, b in rows.values()]
    print(table[differ].to_string())


def delete_runs(chosen: argparse.Namespace) -> None:
    """Delete cells of the cache: the named ones, or all stale ones.

    Args:
        chosen: The words of the command line.

    Raises:
        ValueError: If nothing was named, or a cell is being run.
    """
    cache = _cache(chosen)
    gone = [one_cell(prefix, [cache]) for prefix in chosen.hashes]
    if chosen.stale:
        gone += [cell for cell in cells_in(cache) if cell.flag == "stale"]
        for cell in (c for c in cells_in(cache) if c.flag == "missing"):
            print(f"kept {cell.hash}: a module of it is not found from here")
    elif not gone:
        raise ValueError("name the runs to delete, or give --stale")
    for cell in dict.fromkeys(gone):
        try:
            cells.remove(cell, timeout=0)
        except Timeout as error:
            raise ValueError(f"{cell.hash} is being run: stop that first") from error
        print(f"deleted {cell.hash}")


def promote_runs(chosen: argparse.Namespace) -> None:
    """Copy finished cells from the cache to ``data/runs/studies``, to be committed.

    Args:
        chosen: The words of the command line: hashes or study files.
    """
    cache, found = _cache(chosen), []
    for word in chosen.hashes:
        if word.endswith(".toml"):
            found += [Cell(cache / e.hash) for e in read_study(word, cache)]
        else:
            found.append(one_cell(word, [cache]))
    refuse(f"{cell.hash} is not finished" for cell in found if not cell.finished)
    for cell in dict.fromkeys(found):
        stale = f", {cell.flag}: other code made it than there is now" if cell.stale else ""
        size = promote(cell, weights=chosen.weights)
        print(f"promoted {cell.hash} {cell.about['name']} ({size / 1e3:.0f} kB{stale})")


def promote(cell: Cell, *, weights: bool = False) -> int:
    """Copy one finished cell to ``data/runs/studies``.

    Args:
        cell: The cell.
        weights: Whether the weights come along. Default: False.

    Returns:
        Bytes that were copied.
    """
    size = 0
    for name in ("weights.safetensors",) * weights + PROMOTE:
        content = (cell.folder / name).read_bytes()
        size += len(content)
        write_bytes(cells.PROMOTED / cell.hash / name, content)
    return size


def cells_in(root: Path) -> list[Cell]:
    """The cells in a folder.

    Args:
        root: The cache, or where promoted ones are.

    Returns:
        The cells, by hash.
    """
    return [Cell(path.parent) for path in sorted(root.glob("*/experiment.json"))]


def one_cell(prefix: str, roots: Iterable[Path]) -> Cell:
    """The cell whose hash begins so.

    Args:
        prefix: The first digits, as many as are needed.
        roots: Where to look; the first that has it counts.

    Returns:
        The cell.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found: dict[str, Cell] = {}
    for root in roots:
        for cell in cells_in(root):
            if cell.hash.startswith(prefix):
                found.setdefault(cell.hash, cell)
    if len(found) != 1:
        what = "no run begins" if not found else f"{len(found)} runs begin"
        raise ValueError(f"{what} with {prefix!r}")
    return next(iter(found.values()))


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """A nested description as one level.

    Args:
        value: Dictionaries and lists of plain values.
        name: What comes before each key. Default: nothing.

    Returns:
        ``{"method.with.strength": 0.1, …}``; a part without arguments as its name.
    """
    if not isinstance(value, dict):
        return {name: value}
    if value.keys() == {"part", "with"} and not value["with"]:
        return {name: value["part"]}
    found = {}
    for key, item in value.items():
        found |= flattened(item, f"{name}.{key}" if name else key)
    return found


def _row(cell: Cell) -> dict[str, Any]:
    about = cell.about
    content = about.get("experiment", {})
    run = cell.run if cell.finished else None
    curve = [] if run is None else run.history.validation
    return {
        "hash": cell.hash,
        "name": about.get("name", ""),
        "data": content.get("data", {}).get("name", ""),
        "seed": content.get("seed", ""),
        "state": _state(cell, content),
        "validation": f"{curve[run.kept_epoch - 1]:.4f}" if len(curve) else "",
        "test": "" if run is None else f"{run.test:.4f}",
        "seconds": "" if run is None else round(run.seconds),
        "threads": about.get("threads", ""),
        "stale": cell.flag,
    }


def _state(cell: Cell, content: dict[str, Any]) -> str:
    if cell.finished:
        return "promoted" if cell.folder.parent == cells.PROMOTED else "finished"
    if cell.failure:
        return f"failed: {cell.error}"
    epochs = f"epoch {cell.epoch} of {content.get('schedule', {}).get('epochs', '?')}"
    return f"{'running' if cells.is_running(cell) else 'interrupted'}, {epochs}"


def _cache(chosen: argparse.Namespace) -> Path:
    return (chosen.cache or cells.CACHE).expanduser().resolve()


def _roots(chosen: argparse.Namespace) -> list[Path]:
    return [_cache(chosen), cells.PROMOTED]


def _show(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, na_rep=""))


@contextmanager
def _executor(chosen: argparse.Namespace) -> Iterator[Any]:
    if chosen.dask is None:
        yield processes(chosen.jobs) if chosen.jobs > 1 else None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(f'--dask needs: pip install "qatviz[dask]" ({error})') from error
    with Client(chosen.dask) as client:
        yield client.get_executor()


@contextmanager
def _said() -> Iterator[list[int]]:
    """What was refused, without a traceback."""
    status = [2]
    try:
        yield status
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        status[0] = 130
        print("interrupted: the same command goes on where this stopped", file=sys.stderr)
