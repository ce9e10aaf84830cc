"""What consistency regularization costs: one training step of each form beside one of LSQ.

ResNet-20, W2A2, 128 labelled images. Beside each ratio stands what counting passes predicts, where
a forward pass of an image is 1 unit of work and a backward one 2, so that LSQ takes 3 for each
labelled image. The units are counted before the clock starts: a table that does not hold is
refused. Of each form also the memory of tensors that a step holds at its worst. Run by hand, alone
on the machine; all forms take turns in one process.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from house import BATCH, PeakMemory, Row, compare, in_processes, in_turns, seconds_of, table, write
from torch import Tensor, nn
from training import prepare

from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Dataset
from qatviz.methods import (
    ConsistencyRegularization,
    CrossEntropy,
    HintonKD,
    Method,
    SparingConsistency,
)
from qatviz.models import resnet20
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ

PROCESSES = 3
ROUNDS = 8  # in each process
WARM_UP = 2
PACKAGES = ("torch",)
UNIT = f"ms per {BATCH} labelled images"
# Units of work for each labelled image.
UNITS = {
    "lsq": 3,
    "lsq + kd": 4,
    "cr, shared view": 4,
    "cr, separate view": 7,
    "cr, one unlabelled each": 8,
    "cr, seven unlabelled each": 32,
    "cr, half of each batch": 3.5,
    "cr + kd": 5,
}
UNLABELLED = {"cr, one unlabelled each": 1, "cr, seven unlabelled each": 7}


def main() -> None:
    """Measure all forms and write ``data/runs/bench_consistency.json``."""
    seconds = in_processes(PROCESSES, step_seconds)
    rows, held = rows_of(seconds), memory_rows(peaks())
    print(table(rows + held))
    for row, (name, units) in zip(rows, list(UNITS.items())[1:], strict=True):
        predicted = units / UNITS["lsq"]
        print(f"{name}: {row.ratio:.2f} times LSQ, {predicted:.2f} by counting passes")
    print("written to", write("consistency", rows + held, PACKAGES, data=prepare().name))


def rows_of(seconds: dict[str, np.ndarray]) -> list[Row]:
    """Every form beside LSQ, in the same rounds."""
    return [
        compare(
            *(f"{name}: {units} units", seconds[name]),
            *(f"lsq: {UNITS['lsq']} units", seconds["lsq"]),
            unit=UNIT,
        )
        for name, units in UNITS.items()
        if name != "lsq"
    ]


def memory_rows(held: dict[str, float]) -> list[Row]:
    """Peak memory of every form beside LSQ's; it is counted, so it has no spread."""
    return [
        Row(
            what=f"{name}: peak memory",
            peer="lsq: peak memory",
            ours=round(bytes_ / 2**20, 1),
            theirs=round(held["lsq"] / 2**20, 1),
            ratio=round(bytes_ / held["lsq"], 4),
            spread=0.0,
            n=1,
            unit=f"MiB, {BATCH} labelled images",
        )
        for name, bytes_ in held.items()
        if name != "lsq"
    ]


def methods(float_model: nn.Module) -> dict[str, Method]:
    """Every form, with one view of crops and flips."""
    labels = partial(CrossEntropy, view=crop_flip)
    taught = partial(HintonKD, float_model, view=crop_flip)
    return {
        "lsq": labels(),
        "lsq + kd": taught(),
        "cr, shared view": ConsistencyRegularization(labels()),
        "cr, separate view": ConsistencyRegularization(labels(), student_view=crop_flip),
        "cr, one unlabelled each": ConsistencyRegularization(labels()),
        "cr, seven unlabelled each": ConsistencyRegularization(labels()),
        "cr, half of each batch": SparingConsistency(labels(), every=1, share=0.5),
        "cr + kd": ConsistencyRegularization(taught()),
    }


def step_seconds(batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Seconds per step of each form."""
    steps = {}
    for name, step in all_steps(batch).items():
        if (found := step.units()) != UNITS[name]:
            raise SystemExit(f"{name}: {found} units of work, expected: {UNITS[name]}")
        steps[name] = partial(seconds_of, step)
    return in_turns(steps, rounds, warm_up=WARM_UP)


def peaks(batch: int = BATCH) -> dict[str, float]:
    """Bytes of tensors that live at once in a second step of each form, parameters left out."""
    found = {}
    for name, step in all_steps(batch).items():
        step()
        with PeakMemory() as memory:
            step()
        found[name] = memory.peak
    return found


def all_steps(batch: int) -> dict[str, "Step"]:
    """A step of each form."""
    of = prepare()
    float_model = resnet20(len(of.classes))
    return {
        name: Step(method, float_model, of, batch, unlabelled=UNLABELLED.get(name, 0))
        for name, method in methods(float_model).items()
    }


class Step:
    """A training step of one method on a student of its own, from raw images on."""

    def __init__(
        self, method: Method, float_model: nn.Module, of: Dataset, batch: int, *, unlabelled: int
    ) -> None:
        lsq = partial(LSQ, bits=2)
        self.student = quantize(float_model, lsq, {"*": lsq, "conv1": nn.Identity})
        calibrate(self.student, [of.train.normalise(of.train.images[:batch])])
        method.prepare(self.student, of.train)
        self.method, self.train, self.batch, self.unlabelled = method, of.train, batch, unlabelled
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.student.train()

    def __call__(self) -> None:
        chosen = torch.randperm(len(self.train))[: self.batch * (1 + self.unlabelled)]
        images, labels = self.train.images.index_select(0, chosen), self.train.labels[chosen]
        labels[self.batch :] = -1
        self.optimizer.zero_grad()
        sum(self.method.loss(self.forward, images, labels).values()).backward()
        self.optimizer.step()
        self.method.after_step((images, labels), 0.5)

    def forward(self, view: Tensor) -> Tensor:
        """Normalise and run the student."""
        return self.student(self.train.normalise(view))

    def units(self) -> float:
        """Units of work for each labelled image, counted in one step."""
        seen: list[float] = []

        def count(weight: int) -> Callable[..., None]:
            return lambda module, inputs: seen.append(weight * len(inputs[0]))

        first = {name for name, _ in self.student.named_children()}
        teachers = [
            module
            for name, module in self.method.named_modules()
            if name.rpartition(".")[2] == "teacher"
            and first <= dict(module.named_children()).keys()
        ]
        hooks = [self.student.register_forward_pre_hook(count(3))]
        hooks += [teacher.register_forward_pre_hook(count(1)) for teacher in teachers]
        self()
        for hook in hooks:
            hook.remove()
        return sum(seen) / self.batch


if __name__ == "__main__":
    main()
