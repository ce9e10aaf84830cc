"""A run: what happened, as numbers; and the weights it left, beside it."""

import dataclasses
import html
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from qatviz.records.training import History
from qatviz.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Run:
    """What happened in one training run.

    Args:
        label: What was trained, in a few words.
        history: Epoch by epoch.
        test: Accuracy on the test split after the last epoch, 0 to 1.
        seconds: Wall-clock time of the training.
        schedule: How it was trained.
        machine: Processor, threads, versions: what ``describe_machine`` returns.
        compile_seconds: Part of ``seconds`` that ``torch.compile`` took (what the first step
            took more than the second); 0 where nothing was compiled.
        kept_epoch: The epoch, from 1, whose weights were kept and tested; 0: the last.
    """

    label: str
    history: History
    test: float
    seconds: float
    schedule: Schedule
    machine: dict[str, str | int]
    compile_seconds: float = 0.0
    kept_epoch: int = 0

    def save(self, path: str | Path) -> None:
        """Write the run as one JSON file, whole or not at all.

        Args:
            path: Where; replaced if it exists.
        """
        content = dataclasses.asdict(self)
        write_whole(path, lambda file: file.write(json.dumps(content, default=_plain, indent=1)))

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read what ``save`` wrote.

        Args:
            path: The JSON file.

        Returns:
            The run.

        Raises:
            ValueError: If the file is not a run.
        """
        try:
            content = json.loads(Path(path).read_text())
            history = content.pop("history")
            terms = {name: np.asarray(v, float) for name, v in history["terms"].items()}
            curves = {k: np.asarray(v, float) for k, v in history.items() if k != "terms"}
            schedule = Schedule(**content.pop("schedule"))
            return cls(history=History(terms, **curves), schedule=schedule, **content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved run: {error!r}") from error

    def __repr__(self) -> str:
        return (
            f"Run({self.label!r}: {len(self.history)} epochs, seed {self.schedule.seed}, "
            f"test accuracy {self.test:.1%})"
        )

    def _repr_html_(self) -> str:
        last = {name: f"{values[-1]:.4f}" for name, values in self.history.terms.items()}
        if len(self.history.validation):
            last["validation accuracy"] = f"{self.history.validation[-1]:.1%}"
        kept = f", kept {self.kept_epoch}" if self.kept_epoch else ""
        rows = {
            "epochs": f"{len(self.history)}{kept}",
            **{f"last {name}": value for name, value in last.items()},
            "test accuracy": f"{self.test:.1%}",
            "rate": self.schedule.rate,
            "batch": self.schedule.batch,
            "seed": self.schedule.seed,
            "time": f"{self.seconds:.0f} s",
        }
        if self.compile_seconds:
            rows["time"] += f", of which compiling {self.compile_seconds:.0f} s"
        cells = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{value}</td></tr>" for key, value in rows.items()
        )
        return f"<table><caption>{html.escape(self.label)}</caption>{cells}</table>"


def describe_machine() -> dict[str, str | int]:
    """What a measured number needs beside it.

    Returns:
        Processor, system, threads and versions.
    """
    names = ("torch", "torchvision", "lightning-fabric", "numpy")
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def save_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a ``state_dict`` as safetensors, whole or not at all.

    Args:
        state: Tensors by name.
        path: Where; replaced if it exists.
    """
    # Copies, because safetensors refuses tied weights: two names for one memory.
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}
    data = safetensors.torch.save(copies)
    write_whole(path, lambda file: file.write(data), binary=True)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read what ``save_weights`` wrote; nothing is unpickled.

    Args:
        path: The safetensors file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: If the file is not whole safetensors.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def write_whole(path: str | Path, write: Callable, *, binary: bool = False) -> None:
    """Write a file beside its place and move it there: readers see all of it or nothing.

    The content reaches the disk before the name does, so this holds when the machine stops, too.
    A process that is killed may leave ``.NAME.*`` beside the file, which nothing reads.

    Args:
        path: Where; parent folders are made.
        write: Called with the open file.
        binary: Whether the file takes bytes. Default: False.

    Raises:
        OSError: If the disk is full or refuses; says which file, and that it is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with os.fdopen(handle, "wb" if binary else "w") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError):
            raise _refused(path, error) from error
        raise


def _refused(path: Path, error: OSError) -> OSError:
    """The same kind of error, in words for the user."""
    reason = error.strerror or str(error)
    return OSError(error.errno, f"{path} could not be written and is as it was before: {reason}")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} to a run")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(li.split(":", 1)[1].strip() for li in lines if li.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
