"""A hash of the code that makes a result: what else it would take for it to come out again."""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The rest of qatviz.studies decides when and where a cell is run, not what comes out.
OWN = ("qatviz.studies.building", "qatviz.studies.parts")
ROOTS = ("qatviz.training", "qatviz.studies.building")


def code_hash(description: dict[str, Any]) -> str:
    """A hash of the code behind an experiment, without comments, docstrings and layout.

    The modules that are reached by imports from ``qatviz.training`` and from the experiment's
    parts, within qatviz and the packages of the parts. An import from a package's ``__init__``
    leads to the module that defines the name, so that a new file beside it changes nothing.
    Computed once in a process for the same parts: what was edited since needs a new process,
    as the imported code does.

    Args:
        description: What ``Experiment.describe()`` returns.

    Returns:
        16 hexadecimal digits; "missing" if a part is no longer there.
    """
    return _hash_of(tuple(sorted(set(_modules_in(description)))))


def folders(description: dict[str, Any]) -> list[str]:
    """Where the packages of an experiment's parts are.

    Args:
        description: What ``Experiment.describe()`` returns.

    Returns:
        The folders, as ``sys.path`` has them.
    """
    tops = sorted({name.partition(".")[0] for name in _modules_in(description)})
    files = [path for path in map(_file, tops) if path]
    above = [p.parent.parent if p.name == "__init__.py" else p.parent for p in files]
    return list(dict.fromkeys(map(str, above)))


def _modules_in(description: Any) -> Iterator[str]:
    if isinstance(description, dict):
        if "part" in description:
            yield description["part"].partition(":")[0]
        description = list(description.values())
    if isinstance(description, list):
        for item in description:
            yield from _modules_in(item)


@cache
def _hash_of(modules: tuple[str, ...]) -> str:
    packages = {name.partition(".")[0] for name in ("qatviz", *modules)}
    packages -= sys.stdlib_module_names
    if not all(_file(name) or name.partition(".")[0] not in packages for name in modules):
        return "missing"
    digest = hashlib.sha256()
    for name in sorted(reached((*ROOTS, *modules), packages)):
        digest.update(f"{name}\0{_code(_file(name))}\0".encode())
    return digest.hexdigest()[:16]


def reached(roots: Iterable[str], packages: Iterable[str]) -> set[str]:
    """The modules that are reached by imports.

    Args:
        roots: Names of the modules to begin from.
        packages: Top-level packages that are followed.

    Returns:
        Names of modules that have a source file, the roots among them.
    """
    packages, found, waiting = set(packages), set(), list(roots)
    while waiting:
        name = waiting.pop()
        inside = name.partition(".")[0] in packages
        ours = name.startswith("qatviz.studies") and name not in OWN
        if name not in found and inside and not ours and _file(name):
            found.add(name)
            waiting += _imports(name, packages)
    return found


def _imports(name: str, packages: set[str]) -> set[str]:
    """The modules of some packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(_parsed(_file(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, name)
            # Others are not even looked for, which would import the packages above them.
            if source.partition(".")[0] in packages:
                found |= {_definer(source, alias.name) for alias in node.names}
    return found


def _definer(module: str, name: str) -> str:
    """The module in which a name is defined that can be imported from another one."""
    path = _file(f"{module}.{name}")
    if path:
        return f"{module}.{name}"
    path = _file(module)
    if path and path.name == "__init__.py":
        for node in _parsed(path).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _definer(_absolute(node, module), alias.name)
    return module


def _absolute(node: ast.ImportFrom, importer: str) -> str:
    if not node.level:
        return node.module or ""
    parts = importer.split(".")
    is_package = _file(importer).name == "__init__.py"
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *filter(None, [node.module])])


@cache
def _file(module: str) -> Path | None:
    """The source of a module, without importing it (only the packages above it)."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec.origin if spec and spec.has_location else None
    return Path(origin) if origin and origin.endswith(".py") else None


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _code(path: Path) -> str:
    """The syntax tree as text, without docstrings and places."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
