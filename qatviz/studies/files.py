"""A study as a TOML file: a table of what its cells have in common, and a grid.

Names are looked up in qatviz's rooms (``"LSQ"``, ``"small_resnet"``, ``"flip"``);
``"my_module:MyMethod"`` is imported, also from the file's folder; ``{name = "Dampening",
strength = 0.1}`` gives arguments. An argument of text is looked up too, unless the parameter is
declared as text. ``bits = "float"`` is Python's None. A start that is a table is an experiment of
its own, which has the seed of the cell that begins from it unless it names one. In ``[grid]`` a
choice is a list, or a table whose keys are labels; ``[grid.arms]`` sets several fields together,
of ``schedule`` those that it names.
"""

import inspect
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from qatviz.schedule import Schedule
from qatviz.studies.cells import CACHE
from qatviz.studies.checks import problems as found_by_checks
from qatviz.studies.checks import refuse
from qatviz.studies.experiment import Experiment, combine, unknown
from qatviz.studies.parts import find

ROOMS = {
    "model": ("models",),
    "weights": ("quantizers",),
    "inputs": ("quantizers",),
    "method": ("methods",),
    "observers": ("tracking", "analysis"),
    "analyses": ("analysis",),
}
ARGUMENTS = (
    "augment",
    "methods",
    "methods.ramps",
    "quantizers",
    "models",
    "losses",
    "analysis",
)
FIELDS = tuple(field.name for field in fields(Experiment))
SCHEDULE = tuple(field.name for field in fields(Schedule))


def read_study(path: str | Path, cache: str | Path = CACHE) -> list[Experiment]:
    """Read the experiments of a study.

    Args:
        path: The TOML file.
        cache: Folder of the cells, for the checks. Default: ``data/cache/studies``.

    Returns:
        The experiments.

    Raises:
        ValueError: Lists every problem of the file and of the experiments.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a study: {error}") from error
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    reader = _Reader()
    experiments = reader.study(content)
    if reader.problems:
        # What could be read is checked too, so that everything is said at once.
        refuse([*reader.problems, *found_by_checks(experiments, Path(cache))])
    return experiments


class _Reader:
    """Reads tables; what is wrong is collected."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.following: list[Experiment] = []

    def study(self, content: Mapping[str, Any]) -> list[Experiment]:
        for key in content.keys() - {"title", "base", "grid"}:
            self.problems.append(unknown(f"the table [{key}]", key, ("title", "base", "grid")))
        base = self.experiment(content.get("base", {}), "base")
        choices = dict(self.choices(self.table(content.get("grid", {}), "grid")))
        made, refused = combine(base, choices)
        self.problems += refused
        return [self.followed(e) for e in made]

    def table(self, value: Any, where: str) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self.problems.append(f"{where} must be a table, got {value!r}")
        return {}

    def followed(self, e: Experiment) -> Experiment:
        if any(e.start is start for start in self.following):
            return replace(e, start=replace(e.start, seed=e.seed))
        return e

    def experiment(self, table: Any, where: str) -> Experiment:
        """An experiment; if there is none, one of those fields that are possible."""
        found = self.fields(table, where)
        try:
            return Experiment(**found)
        except ValueError as error:
            self.problems.append(f"[{where}]: {error}")
        possible = {}
        for key, value in found.items():
            try:
                Experiment(**possible, **{key: value})
                possible[key] = value
            except ValueError:
                continue
        return Experiment(**possible)

    def fields(self, table: Any, where: str) -> dict[str, Any]:
        found = {}
        for key, value in self.table(table, where).items():
            if key not in FIELDS:
                self.problems.append(unknown(f"{where}.{key}", key, FIELDS))
                continue
            known = len(self.problems)
            read = self.value(key, value, f"{where}.{key}")
            if len(self.problems) == known:
                found[key] = read
        return found

    def value(self, key: str, value: Any, where: str) -> Any:
        """What stands for a field."""
        if key == "bits":
            return _bits(value)
        if key == "schedule":
            return self.schedule(value, where)
        if key == "start" and isinstance(value, dict):
            return self.start(value, where)
        if key in ("observers", "analyses"):
            parts = self.table(value, where)
            return {n: self.part(v, ROOMS[key], f"{where}.{n}") for n, v in parts.items()}
        return self.part(value, ROOMS[key], where) if key in ROOMS else value

    def start(self, table: Mapping[str, Any], where: str) -> Experiment:
        start = self.experiment(table, where)
        if "seed" not in table:
            self.following.append(start)
        return start

    def schedule(self, table: Any, where: str) -> Schedule | None:
        table = self.table(table, where)
        for key in table.keys() - set(SCHEDULE):
            self.problems.append(unknown(f"{where}.{key}", key, SCHEDULE))
        try:
            return Schedule(**{key: v for key, v in table.items() if key in SCHEDULE})
        except (TypeError, ValueError) as error:
            self.problems.append(f"{where}: {error}")
            return None

    def choices(self, table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for key, choice in table.items():
            if key == "schedule" and isinstance(choice, dict):
                for name, values in choice.items():
                    yield f"schedule.{name}", values
            elif key == "arms" and isinstance(choice, dict):
                yield key, {w: self.arm(v, f"grid.arms.{w}") for w, v in choice.items()}
            elif isinstance(choice, dict | list) and choice:
                yield from self.readable(key, choice)
            else:
                yield key, choice

    def arm(self, table: Any, where: str) -> dict[str, Any]:
        """Fields to change; of a schedule only those that are named."""
        table = dict(self.table(table, where))
        schedule = self.table(table.pop("schedule", {}), f"{where}.schedule")
        if self.schedule(schedule, f"{where}.schedule") is None:
            schedule = {}
        inner = {f"schedule.{key}": v for key, v in schedule.items() if key in SCHEDULE}
        return self.fields(table, where) | inner

    def readable(self, key: str, choice: dict | list) -> Iterable[tuple[str, Any]]:
        """A choice, without what could not be read; none if nothing is left."""
        found = {}
        for name, value in choice.items() if isinstance(choice, dict) else enumerate(choice):
            known = len(self.problems)
            read = self.value(key, value, f"grid.{key}.{name}")
            if len(self.problems) == known:
                found[name] = read
        if found:
            yield key, found if isinstance(choice, dict) else list(found.values())

    def part(self, value: Any, rooms: Iterable[str], where: str) -> Any:
        """A class, a function, or one with arguments."""
        if isinstance(value, str):
            return self.named(value, rooms, where)
        if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
            self.problems.append(f'{where} must be a name, or {{name = "…", …}}, got {value!r}')
            return None
        target = self.named(value["name"], rooms, where)
        if target is None:
            return None
        given = {
            key: self.argument(target, key, given, f"{where}.{key}")
            for key, given in value.items()
            if key != "name"
        }
        return partial(target, **given)

    def argument(self, target: Any, key: str, value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [self.argument(target, key, item, where) for item in value]
        if isinstance(value, dict) and "name" in value:
            return self.part(value, ARGUMENTS, where)
        parameter = inspect.signature(target).parameters.get(key)
        declared = inspect.Parameter.empty if parameter is None else parameter.annotation
        if not isinstance(value, str) or _takes_text(declared):
            return value
        undeclared = declared is inspect.Parameter.empty and ":" not in value
        if undeclared and value not in _names(ARGUMENTS):
            return value
        return self.named(value, ARGUMENTS, where)

    def named(self, name: str, rooms: Iterable[str], where: str) -> Any:
        if ":" in name:
            try:
                return find(name)
            except ValueError as error:
                self.problems.append(f"{where}: {error}")
                return None
        known = _names(rooms)
        if name not in known:
            self.problems.append(unknown(f"{where} = {name!r}", name, known))
        return known.get(name)


def _bits(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_bits(item) for item in value)
    return None if value == "float" else value


def _takes_text(annotation: Any) -> bool:
    if annotation is str or get_origin(annotation) is Literal:
        return True
    return any(_takes_text(kind) for kind in get_args(annotation) if kind is not annotation)


def _names(rooms: Iterable[str]) -> dict[str, Any]:
    """What can be called in some rooms, by name."""
    found = {}
    for room in rooms:
        module = import_module(f"qatviz.{room}")
        own = [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if callable(value) and not name.startswith("_"):
                found.setdefault(name, value)
    return found
