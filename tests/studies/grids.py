"""Parts and grids of the tests, in a module: other processes import them by name."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qatviz.methods import CrossEntropy, Method
from qatviz.models import small_cnn
from qatviz.records import TransferCurve
from qatviz.schedule import Schedule
from qatviz.studies import Experiment, grid

TINY = partial(small_cnn, width=2)
SHORT = Schedule(epochs=1, batch=64)
BASE = Experiment(model=TINY, images=128, schedule=SHORT)


def twelve(log):
    """Four arms of three seeds; one cell kills its process once, if the flag is there."""
    cells = grid(BASE, bits=[None, 2, (3, 4)], seed=range(3))
    deadly = Experiment(
        **{"model": TINY, "images": 128, "schedule": Schedule(epochs=2, batch=64), "bits": 2},
        **{"method": partial(Deadly, log=str(log)), "label": "deadly"},
    )
    return [*cells, *grid(deadly, seed=range(3))]


class Failing(CrossEntropy):
    """Fails as long as a file is there."""

    def __init__(self, flag: str):
        super().__init__()
        self.flag = flag

    def loss(self, forward, images, labels):
        if Path(self.flag).exists():
            raise RuntimeError("as it was told")
        return super().loss(forward, images, labels)


class Deadly(CrossEntropy):
    """Writes down every step, and kills its process after the first epoch while a flag is there.

    The flag holds how often.
    """

    def __init__(self, log: str):
        super().__init__()
        self.log = log

    def after_step(self, batch, progress):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {progress:.2f}\n")
        flag = Path(self.log + ".flag")
        if progress > 0.5 and flag.exists():
            left = int(flag.read_text()) - 1
            flag.write_text(str(left)) if left else flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Stopping(CrossEntropy):
    """Is interrupted in the second epoch while a file is there."""

    def __init__(self, log: str):
        super().__init__()
        self.log = log

    def after_step(self, batch, progress):
        with open(self.log, "a") as file:
            file.write(f"{progress:.2f}\n")
        if progress > 0.5 and Path(self.log + ".flag").exists():
            raise KeyboardInterrupt


class Slow(CrossEntropy):
    """Waits at every step, and writes it down."""

    def __init__(self, log: str, seconds: float = 0.2):
        super().__init__()
        self.log, self.seconds = log, seconds

    def after_step(self, batch, progress):
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{progress:.2f}\n")


class Taught(Method):
    """A method with a teacher."""

    def __init__(self, teacher: torch.nn.Module, strength: float = 1.0):
        super().__init__()
        self.teacher, self.strength = teacher, strength


class Outer(Method):
    """A method around methods."""

    def __init__(self, method: Method, *, others: list = (), strength: float = 1.0):
        super().__init__()
        self.method, self.others, self.strength = method, list(others), strength


class Counter:
    """An observer with a state."""

    def __init__(self, start: int = 0):
        self.steps = start

    def __call__(self, step, student):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Forgetful:
    """An observer without a state."""

    def __init__(self, student):
        self.names, self.seen = [name for name, _ in student.named_children()], []

    def __call__(self, step, student):
        self.seen.append(step)

    def record(self):
        return {"names": self.names, "seen": self.seen}


class Mute:
    """An observer of which nothing can be kept."""

    def __call__(self, step, student):
        """Say nothing."""


def curve(student, data):
    """An analysis that returns a record."""
    x = np.arange(3.0)
    return TransferCurve(x, x, np.ones(3), x, f"{data.name} {len(data.test)}")


def count_parameters(student, *, scale: int = 1):
    """An analysis of the student alone."""
    return {"parameters": scale * sum(p.numel() for p in student.parameters())}


def broken_analysis(student, data):
    """An analysis that fails."""
    raise RuntimeError("no analysis")


def number_and_sleep(path):
    """Write the number of this process down, whole, and stay."""
    temporary = Path(f"{path}.new")
    temporary.write_text(str(os.getpid()))
    temporary.rename(path)
    time.sleep(600)
