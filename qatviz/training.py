"""The only training loop, and the only file that knows Lightning Fabric."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

from qatviz.datasets import Split
from qatviz.evaluation import check_fit, evaluate
from qatviz.methods import Method
from qatviz.quantize import not_ready, quantizers
from qatviz.records import History
from qatviz.runs import Run, describe_machine
from qatviz.schedule import Schedule

Observer = Callable[[int, nn.Module], None]


def fit(
    student: nn.Module,
    method: Method,
    train: Split,
    test: Split,
    schedule: Schedule,
    observers: Iterable[Observer] = (),
    *,
    validation: Split | None = None,
    label: str | None = None,
    accelerator: str = "auto",
    compile: bool = False,
) -> Run:
    """Train a student in place, and say what happened.

    Per step: the method's loss terms are summed and differentiated, SGD steps, the method
    does its after-step, then each observer is called with the number of the step and the
    student itself. Batches are drawn without replacement; what is left over at the end of an
    epoch waits for a later one. All randomness comes from ``schedule.seed``; the global
    generators are left as they were.

    Args:
        student: A float model, or a quantized and calibrated one. Ends in evaluation mode.
        method: How to train, such as ``CrossEntropy(view=crop_flip)``.
        train: Training images.
        test: Test images, looked at once, after the last epoch.
        schedule: Epochs, batch size, rates, precision, seed.
        observers: Called after each step. Default: none.
        validation: Images for the accuracy after each epoch. Default: None: no curve.
        label: Name of the run. Default: the method's class.
        accelerator: Device, as Lightning Fabric names them. Default: "auto": a GPU if there.
        compile: Whether training steps run under ``torch.compile``: faster steps after a first
            one of half a minute or so, which the run's ``compile_seconds`` says; needs a C++
            compiler on the machine. Observers and evaluation see the student itself, not
            compiled. Default: False (ours: the notebooks' runs are shorter than compiling).

    Returns:
        The run: history, test accuracy, time, machine.

    Raises:
        ValueError: Before the first step, if a quantizer is not calibrated or images do not
            fit the model; during training, if the loss is not finite, or after an epoch a
            number of a quantizer is not (names it).
    """
    for split in (train, test) if validation is None else (train, test, validation):
        check_fit(student, split)
    fabric = Fabric(accelerator=accelerator, devices=1, precision=schedule.precision)
    observers = tuple(observers)
    start, history, step = time.perf_counter(), _HistoryWriter(), 0
    with _seeded(schedule.seed, fabric.device), _bar(train, schedule) as bar:
        method.prepare(student, train)
        optimizer = torch.optim.SGD(_groups(student, method, schedule), schedule.rate)
        model = torch.compile(student) if compile else student
        model, optimizer = fabric.setup(model, optimizer)
        method.to(fabric.device)
        forward = _after(train.normalise, model)
        for epoch in range(schedule.epochs):
            student.train()
            for batch in _batches(train, schedule, fabric.device):
                began = time.perf_counter()
                rate = schedule.rate_at((step + 0.5) / bar.total)
                terms = method.loss(forward, *batch)
                loss = torch.stack(list(terms.values())).sum()
                _check_finite(loss, terms, step, student)
                _descend(loss, optimizer, rate, fabric)
                step += 1
                method.after_step(batch, step / bar.total)
                for observer in observers:
                    observer(step, student)
                history.add_step(terms, rate, time.perf_counter() - began)
                bar.update()
            _check_quantizers(student, epoch + 1)
            history.end_epoch(None if validation is None else evaluate(student, validation))
            bar.set_postfix_str(history.latest())
    seconds = time.perf_counter() - start
    test_accuracy = evaluate(student.eval(), test)
    return Run(
        label or type(method).__name__,
        *(history.record(), test_accuracy, seconds, schedule, describe_machine()),
        compile_seconds=history.compile_seconds() if compile else 0.0,
    )


def _batches(
    data: Split, schedule: Schedule, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of raw images and labels in random order, without an incomplete last batch."""
    size = min(schedule.batch, len(data))
    for chosen in torch.randperm(len(data)).split(size)[: len(data) // size]:
        yield data.images[chosen].to(device), data.labels[chosen].to(device)


def _groups(student: nn.Module, method: Method, schedule: Schedule) -> list[dict]:
    """Parameter groups: weight decay everywhere but on quantizer parameters."""
    own = {id(p) for q in quantizers(student).values() for p in q.parameters()}
    # By id: a method may hold a part of the student, which must not be stepped twice.
    both = {id(p): p for m in (student, method) for p in m.parameters() if p.requires_grad}
    common = {"momentum": schedule.momentum, "nesterov": schedule.momentum > 0}
    groups = [
        {"params": [p for i, p in both.items() if i not in own], "weight_decay": schedule.decay},
        {"params": [p for i, p in both.items() if i in own], "weight_decay": 0.0},
    ]
    return [group | common for group in groups if group["params"]]


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, fabric: Fabric) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    fabric.backward(loss)
    optimizer.step()


def _after(normalise: Callable[[Tensor], Tensor], model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: model(normalise(images))


def _check_finite(loss: Tensor, terms: dict[str, Tensor], step: int, student: nn.Module) -> None:
    if not loss.isfinite():
        values = ", ".join(f"{name} = {value.item():.4g}" for name, value in terms.items())
        bad = "".join(f"; {name} holds a number that is not" for name in not_ready(student))
        raise ValueError(f"the loss is not finite at step {step}: {values}{bad}")


def _check_quantizers(student: nn.Module, epoch: int) -> None:
    if bad := not_ready(student):
        raise ValueError(
            f"after epoch {epoch} a parameter of these quantizers is not finite: {', '.join(bad)}"
        )


def _bar(train: Split, schedule: Schedule) -> tqdm:
    steps = len(train) // min(schedule.batch, len(train))
    return tqdm(total=steps * schedule.epochs, desc="training", unit="step", leave=False)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw everything inside from one seed; leave the global generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _HistoryWriter:
    """Collects what a run's ``History`` holds while it happens."""

    def __init__(self) -> None:
        self.sums, self.steps = defaultdict(float), 0
        self.terms, self.rate, self.validation = defaultdict(list), [], []
        self.first_steps: list[float] = []

    def add_step(self, terms: dict[str, Tensor], rate: float, seconds: float) -> None:
        self.steps += 1
        if len(self.first_steps) < 2:
            self.first_steps.append(seconds)
        self.last_rate = rate
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value.detach()

    def end_epoch(self, validation: float | None) -> None:
        for name, total in self.sums.items():
            self.terms[name].append(float(total) / self.steps)
        self.rate.append(self.last_rate)
        if validation is not None:
            self.validation.append(validation)
        self.sums, self.steps = defaultdict(float), 0

    def latest(self) -> str:
        text = ", ".join(f"{name} {values[-1]:.3f}" for name, values in self.terms.items())
        return text + (f", validation {self.validation[-1]:.1%}" if self.validation else "")

    def compile_seconds(self) -> float:
        """What the first step took more than the second."""
        first, *second = self.first_steps
        return first - sum(second)

    def record(self) -> History:
        terms = {name: np.array(values) for name, values in self.terms.items()}
        return History(terms, np.array(self.rate), np.array(self.validation, dtype=float))
