"""What is refused before anything starts: all of it at once."""

import os
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from qatviz.datasets import Dataset
from qatviz.runs import load_weights
from qatviz.studies.building import build, data_of, float_model, seeded
from qatviz.studies.cells import PROMOTED, Cell, find, replaced_file
from qatviz.studies.experiment import Experiment


def with_starts(experiments: Iterable[Experiment]) -> list[Experiment]:
    """The experiments and those they start from, each hash once, starts first.

    Args:
        experiments: What is asked for.

    Returns:
        What has to be run, in an order in which it can be.
    """
    found: dict[str, Experiment] = {}
    for experiment in experiments:
        if isinstance(experiment.start, Experiment):
            found |= {e.hash: e for e in with_starts([experiment.start]) if e.hash not in found}
        found.setdefault(experiment.hash, experiment)
    return list(found.values())


def needed(
    experiments: Iterable[Experiment], cache: Path, *, anew: bool = False
) -> list[Experiment]:
    """What is still to be run: what is not finished, and starts whose weights are not there.

    Args:
        experiments: What is asked for.
        cache: Folder of the cells.
        anew: Whether promoted ones are to be run again, too. Default: False.

    Returns:
        The experiments, starts first.
    """
    everything = with_starts(experiments)
    found = {e.hash for e in experiments if find(e, cache, promoted=not anew) is None}
    for e in reversed(everything):  # what comes after needs what comes before
        start = e.start if e.hash in found and isinstance(e.start, Experiment) else None
        if start is not None and find(start, cache, weights=True, promoted=not anew) is None:
            found.add(start.hash)
    return [e for e in everything if e.hash in found]


def check(experiments: Sequence[Any], cache: Path, *, anew: bool = False) -> None:
    """Refuse what cannot work, before anything starts.

    Each data set is loaded once, and each arm built once, of what is not yet finished.

    Args:
        experiments: What is asked for.
        cache: Folder of the cells.
        anew: As ``needed``.

    Raises:
        ValueError: Lists every problem.
    """
    refuse(problems(experiments, cache, anew=anew))


def refuse(found: Iterable[str]) -> None:
    """Raise one error for many problems.

    Args:
        found: The problems, in words; none: nothing happens.

    Raises:
        ValueError: Lists each once.
    """
    found = list(dict.fromkeys(found))
    if found:
        count = f"{len(found)} problem{'s' * (len(found) > 1)}"
        raise ValueError(f"nothing was started, {count}:\n- " + "\n- ".join(found))


def problems(experiments: Sequence[Any], cache: Path, *, anew: bool = False) -> list[str]:
    """Everything that is wrong with a study.

    Args:
        experiments: What is asked for.
        cache: Folder of the cells.
        anew: As ``needed``.

    Returns:
        The problems, in words.
    """
    strange = [e for e in experiments if not isinstance(e, Experiment)]
    if strange:
        return [f"an Experiment was expected, got {e!r}" for e in strange]
    everything = with_starts(experiments)
    found = [*_doubles(experiments), *_collisions([*experiments, *everything], cache)]
    todo = needed(experiments, cache, anew=anew)
    found += _unwritable(cache) if todo else []
    data, missing = _data(todo)
    found += missing + [p for e in _one_per_arm(todo) for p in _built(e, data)]
    return list(dict.fromkeys(found))


def _unwritable(cache: Path) -> Iterator[str]:
    folder = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield f"the cache {cache} cannot be written"


def _doubles(experiments: Sequence[Experiment]) -> Iterator[str]:
    by_hash: dict[str, Experiment] = {}
    by_label: dict[str, Experiment] = {}
    for e in experiments:
        first = by_hash.setdefault(e.hash, e)
        if first.content == e.content and first.name != e.name:
            yield f"the same experiment has two labels, {first.name!r} and {e.name!r}"
        if e.label:
            other = by_label.setdefault(e.label, e)
            if other.arm != e.arm:
                differ = ", ".join(differing(other.describe(), e.describe()))
                yield f"the label {e.label!r} names two arms, which differ in {differ}"


def _collisions(experiments: Sequence[Experiment], cache: Path) -> Iterator[str]:
    seen: dict[str, Experiment] = {}
    for e in experiments:
        if seen.setdefault(e.hash, e).content != e.content:
            yield f"{e.name!r} and {seen[e.hash].name!r} have one hash, {e.hash}, but differ"
        for folder in (cache / e.hash, PROMOTED / e.hash):
            try:
                there = Cell(folder).about.get("experiment", e.describe())
            except ValueError as error:
                yield str(error)
                continue
            if there != e.describe():
                differ = ", ".join(differing(there, e.describe()))
                yield f"{folder} has the hash of {e.name!r} but differs in {differ}"


def differing(a: dict, b: dict) -> list[str]:
    """The entries in which two descriptions differ.

    Args:
        a: One.
        b: The other.

    Returns:
        Names of the entries.
    """
    return [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def _data(experiments: Sequence[Experiment]) -> tuple[dict, list[str]]:
    """The data sets that could be loaded, and why others could not."""
    found, missing = {}, []
    for key in dict.fromkeys((e.data, e.root) for e in experiments):
        try:
            found[key] = data_of(*key)
        except (OSError, ValueError, HTTPException) as error:
            missing.append(f"data set {key[0]!r}: {error}")
    return found, missing


def _one_per_arm(experiments: Sequence[Experiment]) -> list[Experiment]:
    return list({e.arm: e for e in reversed(experiments)}.values())[::-1]


def _built(e: Experiment, sets: dict) -> Iterator[str]:
    """Why an arm cannot be built; its start's weights stand in by random ones."""
    data = sets.get((e.data, e.root))
    if data is None:
        return
    if e.images is not None and e.images > len(data.train):
        yield f"{e.name}: images is {e.images}, {e.data} has {len(data.train)} to train on"
        return
    if e.start_file is not None and (changed := replaced_file(e)):
        yield f"{e.name}: {changed}"
        return
    try:
        build(e, data, start_like(e, data))
    except Exception as error:
        yield f"{e.name}: {type(error).__name__}: {error}"


def start_like(e: Experiment, data: Dataset) -> dict[str, torch.Tensor] | None:
    """Weights of the shape of those to begin from, where these may not exist yet.

    Args:
        e: The experiment.
        data: Its data set.

    Returns:
        The weights of the file, the untrained ones of another experiment, or None.
    """
    if isinstance(e.start, Experiment):
        with seeded(e.start.seed):
            return float_model(e.start, data_of(e.start.data, e.start.root), None).state_dict()
    return None if e.start_file is None else load_weights(e.start_file)
