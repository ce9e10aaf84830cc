"""The walls of the house: who may import whom, and that every module has its test."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qatviz"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_by(path):
    """Every module that a file imports, anywhere in it, with relative imports resolved."""
    package = (path.parent.relative_to(ROOT)).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join((*above, *filter(None, [node.module]))))
    return found


def outside_of(path, *allowed):
    """What a file imports beyond the standard library and what is allowed."""
    return {
        name
        for name in imported_by(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    }


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_every_module_has_a_test_of_the_same_path():
    wanted = {
        path.relative_to(PACKAGE).parent / f"test_{path.stem.lstrip('_')}.py"
        for path in MODULES
        if path.stem not in ("__init__", "__main__")
    }
    missing = sorted(str(path) for path in wanted if not (ROOT / "tests" / path).is_file())
    assert missing == []


def test_the_contracts_are_kept(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert cli.lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_the_stack_holds_every_room_of_the_architecture_in_order():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in contracts["contracts"] if c["type"] == "layers")["layers"]
    rooms = [re.findall(r"qatviz\.(\w+)", layer) for layer in layers]
    assert rooms == [
        ["widgets"],
        ["plots"],
        ["studies"],
        ["training", "reconstruction", "analysis", "export"],
        ["methods"],
        [
            *("losses", "teachers", "augment", "calibration", "corruptions", "cost", "hutchinson"),
            *("tracking", "evaluation", "finite", "history", "optimizers", "schedule"),
            *("checkpoints", "runs", "records"),
        ],
        ["quantize"],
        ["layers"],
        ["quantizers"],
    ]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("quantizers", ("torch", "jaxtyping", "typing_extensions", "qatviz.quantizers")),
        ("models", ("torch", "jaxtyping", "typing_extensions", "qatviz.models")),
        ("records", ("numpy", "jaxtyping", "qatviz.records")),
        ("plots", ("matplotlib", "seaborn", "numpy", "qatviz.records", "qatviz.plots")),
    ],
)
def test_a_room_imports_only_what_it_may(room, allowed):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert len(files) > 2
    assert {path.name: outside_of(path, *allowed) for path in files} == {
        path.name: set() for path in files
    }


def test_data_sets_import_nothing_else_of_qatviz():
    imports = imported_by(PACKAGE / "datasets.py")
    assert {n for n in imports if n.split(".")[0] == "qatviz"} == set()


def test_only_training_and_studies_import_lightning_fabric():
    who = {path.stem for path in MODULES if "lightning_fabric" in imported_by(path)}
    assert who - {"studies"} == {"training"}


def test_importing_qatviz_imports_neither_torch_nor_matplotlib():
    run("import sys, qatviz; assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)")


def test_importing_the_plots_does_not_import_torch():
    run("import sys, qatviz.plots; assert 'torch' not in sys.modules")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_postponed_annotations_and_no_silenced_complexity(path):
    text = path.read_text()
    assert "from __future__ import annotations" not in text
    # A bare noqa silences everything, so it counts too.
    silenced = re.findall(r"#\s*(?:ruff:\s*)?noqa(?!:)|noqa:.*?(?:C901|PLR0915)", text)
    assert silenced == []
