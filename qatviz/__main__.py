"""The command line: ``python -m qatviz lab`` and ``python -m qatviz publish``."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line. Default: those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m qatviz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    lab = commands.add_parser("lab", help="open JupyterLab on the first notebook")
    lab.add_argument("--port", type=int, default=8888, help="first port to try")
    publish = commands.add_parser("publish", help="execute notebooks in place")
    publish.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    chosen = parser.parse_args(arguments)
    if chosen.command == "lab":
        return subprocess.call(lab_command(chosen.port))
    from qatviz.publish import publish_all

    return publish_all(chosen.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")))


def lab_command(port: int, folder: Path = NOTEBOOKS) -> list[str]:
    """The command that serves JupyterLab: this machine only, with a token.

    Args:
        port: First port to try; the next free one is taken.
        folder: Where the notebooks are. Default: this repository's.

    Returns:
        Words of the command. Without a screen no browser is opened: the address is printed.
        As root, which Jupyter otherwise refuses, root is allowed.
    """
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={folder}"]
    # As the default address, not as a file to open: so the printed address leads there too.
    command.append("--LabApp.default_url=/lab/tree/00_start_here.ipynb")
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    if not has_screen():
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return command


def has_screen() -> bool:
    """Whether a browser window can open here.

    Returns:
        True on Windows and macOS, elsewhere if a display is set.
    """
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
