"""What every committed notebook must be: a guest that defines nothing, executed, readable."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from qatviz.publish import LIVE, hash_cells

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 14  # lines; "about ten"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook, *, exercises: bool = False):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            is_exercise = "exercise" in cell.metadata.get("tags", [])
            if exercises or not is_exercise:
                yield cell


def test_there_are_notebooks():
    assert "00_start_here" in [path.stem for path in PATHS]


def test_defines_nothing(notebook):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    for cell in code_cells(notebook):
        defined = [
            type(n).__name__ for n in ast.walk(ast.parse(cell.source)) if isinstance(n, kinds)
        ]
        assert not defined, cell.source


def test_cells_are_small(notebook):
    for cell in list(code_cells(notebook))[1:]:  # the first one imports
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_is_executed_without_error_and_stamped(notebook):
    assert notebook.metadata["qatviz"]["cells"] == hash_cells(notebook), "run `make notebooks`"
    for cell in code_cells(notebook, exercises=True):
        assert cell.execution_count is not None, cell.source
        assert not [o for o in cell.outputs if o.output_type in ("error",)]


def test_opens_where_no_kernel_is(notebook):
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook, exercises=True):
        for output in cell.outputs:
            assert LIVE not in output.get("data", {})


def test_shows_no_address_of_an_object(notebook):
    for cell in code_cells(notebook, exercises=True):
        for output in cell.outputs:
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            assert not re.search(r"\bat 0x[0-9a-f]+", text), cell.source


@pytest.mark.parametrize(
    "path", [p for p in PATHS if not p.stem.startswith("9")], ids=lambda p: p.stem
)
def test_sets_three_exercises_and_has_their_solutions(path):
    number, name = path.stem.split("_", 1)
    notebook = nbformat.read(path, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert sum("exercise" in t for t in tags) == 3
    solutions = nbformat.read(FOLDER / f"9{number}_solutions_{name}.ipynb", as_version=4)
    outputs = str([c.get("outputs") for c in solutions.cells])
    assert outputs.count("✓ right") >= 3
    assert "✗" not in outputs


def test_check_cells_are_what_the_exercises_use():
    for path in PATHS:
        if path.stem.startswith("9"):
            continue
        source = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
        assert len(set(re.findall(r"\bcheck_\w+(?=\()", source))) == 3, path
