"""The command line: ``python -m qatviz lab``, ``publish``, ``study`` and ``runs``."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line. Default: those of the process.

    Returns:
        The exit status.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.command == "lab":
        return subprocess.call(lab_command(chosen.port))
    if chosen.command == "publish":
        from qatviz.publish import publish_all

        return publish_all(chosen.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")))
    from qatviz.studies.commands import manage_runs, run_study

    return run_study(chosen) if chosen.command == "study" else manage_runs(chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qatviz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    lab = commands.add_parser("lab", help="open JupyterLab on the first notebook")
    lab.add_argument("--port", type=int, default=8888, help="first port to try")
    publish = commands.add_parser("publish", help="execute notebooks in place")
    publish.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    _add_study(commands.add_parser("study", help="run a grid of experiments from a file"))
    _add_runs(commands.add_parser("runs", help="list, compare, delete and promote cached runs"))
    return parser


def _add_study(study: argparse.ArgumentParser) -> None:
    study.add_argument("file", type=Path, help="a study, such as studies/methods_fast.toml")
    study.add_argument("--jobs", type=_positive, default=1, help="processes; default: this one")
    study.add_argument("--threads", type=_positive, default=1, help="of each cell; default: 1")
    study.add_argument("--dask", metavar="ADDRESS", help="a Dask scheduler: tcp://host:8786")
    study.add_argument("--accelerator", default="auto", help="as Lightning Fabric names them")
    study.add_argument("--anew", action="store_true", help="run again what was promoted, too")
    study.add_argument(
        "--dry-run", action="store_true", help="build every cell and run two steps of each"
    )
    _add_cache(study)


def _add_runs(runs: argparse.ArgumentParser) -> None:
    _add_cache(runs)
    actions = runs.add_subparsers(dest="action", help="default: list")
    actions.add_parser("list", help="a line for each cell, and for the promoted ones")
    one = {"metavar": "HASH", "help": "first digits of a run's hash"}
    actions.add_parser("show", help="all about one").add_argument("hashes", nargs=1, **one)
    compare = actions.add_parser("compare", help="in what two differ")
    compare.add_argument("hashes", nargs=2, **one)
    delete = actions.add_parser("delete", help="from the cache")
    delete.add_argument("hashes", nargs="*", **one)
    delete.add_argument("--stale", action="store_true", help="all that other code made")
    promote = actions.add_parser("promote", help="copy to data/runs/studies")
    promote.add_argument("hashes", nargs="+", metavar="HASH", help="or a study file")
    promote.add_argument("--weights", action="store_true", help="the weights too")
    for action in actions.choices.values():  # a default here would hide what was said before
        _add_cache(action, default=argparse.SUPPRESS)


def _add_cache(command: argparse.ArgumentParser, **options: Any) -> None:
    command.add_argument("--cache", type=Path, help="default: data/cache/studies", **options)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {word!r}")
    return int(word)


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
