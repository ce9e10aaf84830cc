"""Execute notebooks in place, as they are committed: outputs, no widget state, a stamp."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm.auto import tqdm

LIVE = "application/vnd.jupyter.widget-view+json"
PACKAGE = Path(__file__).parent


def publish_all(paths: Sequence[Path]) -> int:
    """Execute notebooks one after the other and write them back.

    Args:
        paths: Notebook files.

    Returns:
        0; an error in a cell is raised and leaves that file as it was.
    """
    for path in (bar := tqdm(paths, desc="notebooks")):
        bar.set_postfix_str(path.name)
        publish(path)
    return 0


def publish(path: Path) -> None:
    """Execute one notebook and write it back, ready to be read on a web page.

    Live widget views are dropped from the outputs, because without their state a page shows
    an error in their place; their static faces stay. The metadata get a stamp: the hash of
    the code cells and of the package that made the outputs.

    Args:
        path: The notebook file.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    )
    client.execute()
    clean(notebook)
    notebook.metadata["qatviz"] = {"cells": hash_cells(notebook), "package": hash_package()}
    nbformat.write(notebook, path)


def clean(notebook: NotebookNode) -> None:
    """Remove what only means something to the kernel that ran, in place.

    Args:
        notebook: An executed notebook.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in map(_without_live_view, cell.outputs) if o is not None]


def hash_cells(notebook: NotebookNode) -> str:
    """A hash of everything a notebook runs.

    Args:
        notebook: Any notebook.

    Returns:
        Sixteen hexadecimal digits.
    """
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return _hash("\0".join(sources).encode())


def hash_package() -> str:
    """A hash of the package's own source.

    Returns:
        Sixteen hexadecimal digits.
    """
    return _hash(b"\0".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _without_live_view(output: NotebookNode) -> NotebookNode | None:
    """The output without its live view; None for a bar that finished and is gone."""
    if output.output_type == "stream" and output.name == "stderr":
        return None
    data = output.get("data", {})
    if LIVE not in data:
        return output
    del data[LIVE]
    return output if "text/html" in data else None
