"""What notebooks need besides the library: sources beside equations, scale, provenance."""

import inspect
import os
from importlib.metadata import version
from pathlib import Path

from IPython.display import HTML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

SCALES = ("laptop", "fast")
DATA = Path(__file__).parent.parent / "data"
"""Where the embedded images and the committed results are."""


def show_source(thing: object) -> HTML:
    """Show the tested source of a class or function, as it is imported here.

    Args:
        thing: A class or function.

    Returns:
        Coloured source, for a notebook to display.
    """
    formatter = HtmlFormatter(noclasses=True, nobackground=True, prestyles="line-height: 1.3")
    return HTML(highlight(inspect.getsource(thing), PythonLexer(), formatter))


def at_scale(*, laptop: int, fast: int) -> int:
    """The number that fits the scale a notebook runs at.

    Args:
        laptop: What a reader runs and what the committed outputs show.
        fast: What the tests run, set by the environment variable ``QATVIZ_SCALE=fast``.

    Returns:
        One of the two.

    Raises:
        ValueError: If ``QATVIZ_SCALE`` is set to something else.
    """
    scale = os.environ.get("QATVIZ_SCALE", "laptop")
    if scale not in SCALES:
        raise ValueError(f"QATVIZ_SCALE must be one of {SCALES}, got {scale!r}")
    return {"laptop": laptop, "fast": fast}[scale]


def versions() -> str:
    """The versions a notebook ran with, for its first cell.

    Returns:
        One line.
    """
    names = ("qatviz", "torch", "torchvision", "matplotlib")
    return ", ".join(f"{name} {version(name)}" for name in names)
