import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qatviz.publish import LIVE, clean, hash_cells, hash_package, publish

EXPLORER = """
from qatviz.widgets import Explorer
Explorer(lambda x: x, lambda figure, result: None, x=(0, 4))
"""


def written(tmp_path, *cells):
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=[*cells]), path)
    return path


@pytest.mark.slow
def test_publish_executes_stamps_and_keeps_the_static_face(tmp_path):
    path = written(tmp_path, new_markdown_cell("prose"), new_code_cell(EXPLORER))
    publish(path)
    notebook = nbformat.read(path, as_version=4)
    (output,) = notebook.cells[1].outputs
    assert set(output.data) == {"text/plain", "text/html", "image/png"}
    assert notebook.cells[1].execution_count == 1
    assert notebook.metadata.qatviz == {"cells": hash_cells(notebook), "package": hash_package()}
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
def test_a_failing_cell_leaves_the_file_as_it_was(tmp_path):
    path = written(tmp_path, new_code_cell("1 / 0"))
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        publish(path)
    assert path.read_bytes() == before


def test_clean_drops_live_views_bars_and_foreign_metadata():
    view = {"model_id": "1"}
    bar = new_output("display_data", {LIVE: view, "text/plain": "100%"})
    explorer = new_output("display_data", {LIVE: view, "text/html": "<p>", "text/plain": "e"})
    error_stream = new_output("stream", name="stderr", text="warning")
    printed = new_output("stream", name="stdout", text="printed")
    cell = new_code_cell("x", outputs=[bar, explorer, error_stream, printed])
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"no": "state"}})
    clean(notebook)
    assert [o.output_type for o in cell.outputs] == ["display_data", "stream"]
    assert set(cell.outputs[0].data) == {"text/html", "text/plain"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_hash_cells_sees_code_but_not_prose():
    one = new_notebook(cells=[new_markdown_cell("a"), new_code_cell("x = 1")])
    prose = new_notebook(cells=[new_markdown_cell("b"), new_code_cell("x = 1")])
    code = new_notebook(cells=[new_markdown_cell("a"), new_code_cell("x = 2")])
    assert hash_cells(one) == hash_cells(prose) != hash_cells(code)
