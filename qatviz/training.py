"""The only training loop, and the only file that knows Lightning Fabric."""

import hashlib
import inspect
import pickle
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from qatviz.checkpoints import load_tree, save_tree
from qatviz.datasets import Split
from qatviz.evaluation import check_fit, evaluate, reestimate_batchnorm
from qatviz.finite import first_not_finite
from qatviz.history import HistoryWriter
from qatviz.methods import Method
from qatviz.optimizers import make_optimizers, set_rates
from qatviz.quantize import not_ready
from qatviz.runs import Run, describe_machine
from qatviz.schedule import Schedule

Observer = Callable[[int, nn.Module], None]
Batch = tuple[Tensor, Tensor]


def fit(
    student: nn.Module,
    method: Method,
    train: Split,
    test: Split,
    schedule: Schedule,
    observers: Iterable[Observer] = (),
    *,
    unlabelled: Split | None = None,
    ratio: int = 1,
    validation: Split | None = None,
    label: str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | list[int] = 1,
    compile: bool = False,
    progress: bool = True,
) -> Run:
    """Train a student in place, and say what happened.

    Per step: the method's loss terms are summed and differentiated, the optimizers step, the
    method does its after-step, then each observer is called with the number of the step and the
    student itself. Batches are drawn without replacement; what is left over at the end of an
    epoch waits for a later one. All randomness comes from ``schedule.seed`` and torch's global
    generators, which are left as they were.

    **Checkpoints.** At the end of every epoch the file holds all that the rest of the run
    depends on: student, method, optimizers, generators, observers with a ``state_dict``. A run
    that was stopped at any moment, by any means, ends in the same weights to the bit when it is
    called again, with the same student, method and data, and ``resume``, on the same machine
    with the same number of threads.

    **Several devices.** Each process takes every n-th image of a batch and draws its own views;
    gradients are averaged. Without BatchNorm and random views, and where every image has a label
    (cross-entropy is a mean over the labelled images of a process), the result is that of one
    process, but for rounding. BatchNorm normalises by the images of its own process, as is usual
    in PyTorch, and the running statistics are those of the first. Validation, test, observers,
    checkpoints, and loss and accuracy on the training images in the history are the first
    process's; the state of an observer comes back if it has a ``state_dict``. A script must be
    guarded by ``if __name__ == "__main__"``; under ``torchrun`` give ``devices`` as many as it
    starts per machine; there the other processes return None.

    Args:
        student: A float model, or a quantized and calibrated one. Ends in evaluation mode.
        method: How to train, such as ``CrossEntropy(view=crop_flip)``.
        train: Training images.
        test: Test images, looked at once, after the last epoch.
        schedule: Epochs, batch size, rates, precision, seed.
        observers: Called after each step. Default: none.
        unlabelled: Images whose labels are not read. Each batch is followed by some of them,
            drawn without replacement in an epoch, with label −1, in the same forward pass. An
            epoch stays one pass over ``train``. Default: None.
        ratio: How many of them for each image of ``train``. Default: 1 (ours; FixMatch: 7).
        validation: Images for the accuracy after each epoch, and for every choice. Default:
            None: no curve, no choice.
        label: Name of the run. Default: the method's class.
        checkpoint: File to keep the state in. Default: None: none is written.
        resume: Whether to go on from the checkpoint if there is one. Default: False: an
            existing one is an error, so that no work is lost by accident.
        accelerator: Device, as Lightning Fabric names them. Default: "auto": a GPU if there.
        devices: How many, or which. Default: 1.
        compile: Whether training steps run under ``torch.compile``: faster steps after a first
            one of half a minute or so, which the run's ``compile_seconds`` says; needs a C++
            compiler on the machine. Observers and evaluation see the student itself, not
            compiled. Default: False (ours: the notebooks' runs are shorter than compiling).
        progress: Whether to show a bar. Default: True.

    Returns:
        The run: history, test accuracy, time, machine.

    Raises:
        ValueError: Before the first step, if a quantizer is not calibrated, images do not fit
            the model, a batch cannot be cut as asked, there is nothing to train or no labelled
            validation to choose by, or the checkpoint is a folder, exists (without ``resume``)
            or is another run's; during training, if the loss is not finite (names the step and
            the first layer), or after an epoch a number of a quantizer is not.
        RuntimeError: If another process trains with the same checkpoint.
    """
    path = None if checkpoint is None else Path(checkpoint)
    observers, name = tuple(observers), label or type(method).__name__
    for split in (train, test, unlabelled, validation):
        if split is not None:
            check_fit(student, split)
    job = _Job(
        *(student, method, train, test, unlabelled, ratio, validation, schedule, observers),
        *(name, path, resume, compile, progress),
    )
    fabric = _fabric(accelerator, devices, schedule)
    _check_job(job, fabric.world_size)
    # In a partial, because Fabric would take a frozen dataclass among the arguments apart.
    run = fabric.launch(partial(_train, job=job))
    if isinstance(run, bytes):
        run, states = pickle.loads(run)
        with _seeded(schedule.seed, fabric.device):
            method.prepare(student, train)  # as the processes did: what is loaded needs a place
        job.load(*states)
    student.eval()
    return run


@dataclass(frozen=True)
class _Job:
    """What ``fit`` was asked to do."""

    student: nn.Module
    method: Method
    train: Split
    test: Split
    unlabelled: Split | None
    ratio: int
    validation: Split | None
    schedule: Schedule
    observers: tuple[Observer, ...]
    label: str
    checkpoint: Path | None
    resume: bool
    compile: bool
    progress: bool

    @property
    def batch(self) -> int:
        return min(self.schedule.batch, len(self.train))

    @property
    def steps(self) -> int:
        return len(self.train) // self.batch * self.schedule.epochs

    def states(self) -> tuple[dict, dict, list]:
        seen = [o.state_dict() if hasattr(o, "state_dict") else None for o in self.observers]
        return self.student.state_dict(), self.method.state_dict(), seen

    def load(self, student: dict, method: dict, observers: list) -> None:
        self.student.load_state_dict(student)
        self.method.load_state_dict(method)
        for observer, state in zip(self.observers, observers, strict=True):
            if state is not None:
                observer.load_state_dict(state)

    def identity(self, processes: int) -> dict[str, Any]:
        """What must be the same for a checkpoint to be this run's."""
        plain = (bool, int, float, str, type(None))
        splits = ("train", "unlabelled", "validation")
        settings = {
            f"method{f'.{name}' * bool(name)}.{key}": value
            for name, module in self.method.named_modules()
            if isinstance(module, Method)
            for key, value in vars(module).items()
            if isinstance(value, plain) and not key.startswith("_") and key != "training"
        }
        return {
            **{f"schedule.{key}": value for key, value in self.schedule.as_dict().items()},
            **settings,
            "method": type(self.method).__name__,
            "observers": [type(observer).__name__ for observer in self.observers],
            "processes": processes,
            "ratio": self.ratio,
            **{name: _fingerprint(getattr(self, name)) for name in splits},
        }


def _train(fabric: Fabric, job: _Job) -> Run | bytes | None:
    """Train in this process; a process started for it gives back what it made, as bytes."""
    spawned = fabric.world_size > 1 and not torch.distributed.is_torchelastic_launched()
    if spawned:
        job = _unshared(job)
    seeded = _seeded(job.schedule.seed, fabric.device)
    with _alone(job, fabric), seeded, _bar(job, fabric) as bar:
        loop = _Loop(fabric, job)
        bar.initial = bar.n = bar.last_print_n = loop.step  # not taken now: no part of the rate
        for epoch in range(loop.epoch, job.schedule.epochs):
            job.student.train()
            for batch in loop.batches():
                loop.descend(batch)
                if bar.update():
                    bar.set_postfix_str(loop.history.running(), refresh=False)
            loop.end_epoch(epoch + 1)
            bar.set_postfix_str(loop.history.latest())
        run = loop.finish() if fabric.is_global_zero else None
    # Tensors would pass through memory that is gone with the process.
    return pickle.dumps((run, job.states())) if spawned else run


class _Loop:
    """A run under way: what a checkpoint holds, and what changes it."""

    def __init__(self, fabric: Fabric, job: _Job) -> None:
        self.fabric, self.job = fabric, job
        self.epoch, self.step, self.history = 0, 0, HistoryWriter()
        self.before, self.began = 0.0, time.perf_counter()
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "student": None}
        self.identity = job.identity(fabric.world_size) if job.checkpoint else {}
        # What convolutions read fastest; a teacher that is copied from the student has it too.
        job.student.to(memory_format=torch.channels_last)
        job.method.prepare(job.student, job.train)  # with one seed: the same in all processes
        if fabric.global_rank:
            torch.manual_seed(job.schedule.seed + fabric.global_rank)
        optimizers = make_optimizers(job.student, job.method, job.schedule)
        model = torch.compile(job.student) if job.compile else job.student
        self.model, *self.optimizers = fabric.setup(model, *optimizers)
        job.method.to(fabric.device)
        self.train = _on(fabric.device, job.train)
        self.unlabelled = job.unlabelled and _on(fabric.device, job.unlabelled)
        if job.checkpoint and job.checkpoint.exists():
            self.load(job.checkpoint)

    def batches(self) -> Iterator[Batch]:
        """One epoch of raw images in random order, this process's part of each batch."""
        steps = len(self.train) // self.job.batch
        labelled = self.drawn(self.train, steps, self.job.batch)
        if self.unlabelled is None:
            yield from labelled
            return
        others = self.drawn(self.unlabelled, steps, self.job.batch * self.job.ratio)
        for (images, labels), (more, hidden) in zip(labelled, others, strict=True):
            both = zip((images, labels), (more, torch.full_like(hidden, -1)), strict=True)
            yield tuple(self.joined(*pair) for pair in both)

    def drawn(self, data: Split, steps: int, size: int) -> Iterator[Batch]:
        """Batches of a split, drawn anew only when all of it has been seen."""
        passes = max(1, -(-steps * size // len(data)))
        order = torch.cat([torch.randperm(len(data)) for _ in range(passes)])
        if self.fabric.world_size > 1:
            order = self.fabric.broadcast(order)
        for chosen in order.split(size)[:steps]:
            own = chosen[self.fabric.global_rank :: self.fabric.world_size]
            own = own.to(self.fabric.device)
            yield data.images.index_select(0, own), data.labels[own]

    def joined(self, labelled: Tensor, others: Tensor) -> Tensor:
        """One behind the other, in each of the parts that gradients are accumulated over."""
        parts = self.job.schedule.accumulate
        pairs = zip(labelled.chunk(parts), others.chunk(parts), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    def descend(self, batch: Batch) -> None:
        """One step, and what follows it."""
        began, schedule, total = time.perf_counter(), self.job.schedule, self.job.steps
        rate = set_rates(self.optimizers, schedule, (self.step + 0.5) / total)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.differentiate(batch)
        self.average_own_gradients()
        self.step_optimizers()
        self.step += 1
        self.job.method.after_step(batch, self.step / total)
        if self.fabric.is_global_zero:
            for observer in self.job.observers:
                observer(self.step, self.job.student)
        self.history.end_step(rate, time.perf_counter() - began)

    def step_optimizers(self) -> None:
        """Clip, and step; a scale of gradients ("16-mixed") moves once, after all of them."""
        clip = self.job.schedule.clip
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        for optimizer in self.optimizers:
            if clip is not None:
                self.fabric.clip_gradients(
                    self.model, optimizer, max_norm=clip, error_if_nonfinite=False
                )
            if scaler is None:
                optimizer.step()
            else:  # Fabric would move it after each, and the next would divide by another one.
                scaler.step(optimizer.optimizer)
        if scaler is not None:
            scaler.update()

    def differentiate(self, batch: Batch) -> None:
        """Gradients of the mean loss over the parts of a batch."""
        parts = self.job.schedule.accumulate
        for part, (images, labels) in enumerate(zip(*(t.chunk(parts) for t in batch), strict=True)):
            forward = self.history.watching(self.forward, labels)
            with self.fabric.no_backward_sync(self.model, enabled=part < parts - 1):
                terms = self.job.method.loss(forward, images, labels)
                loss = torch.stack(list(terms.values())).sum()
                if not loss.isfinite():
                    raise ValueError(self.not_finite(terms, images, labels))
                self.fabric.backward(loss / parts)
            self.history.add(terms, parts)

    def forward(self, images: Tensor) -> Any:
        return self.model(self.train.normalise(images))

    def average_own_gradients(self) -> None:
        """Over the processes, for what the method trains; the model's are averaged already."""
        if self.fabric.world_size > 1:
            students = {id(p) for p in self.job.student.parameters()}
            for p in self.job.method.parameters():
                if p.grad is not None and id(p) not in students:
                    p.grad = self.fabric.all_reduce(p.grad, reduce_op="mean")

    def not_finite(self, terms: dict[str, Tensor], images: Tensor, labels: Tensor) -> str:
        student, precision = self.job.student, self.fabric.strategy.precision

        def forward(x: Tensor) -> Any:
            with self.fabric.autocast():  # as in training: what overflowed is to overflow again
                return precision.convert_output(student(self.train.normalise(x)))

        run = partial(self.job.method.loss, forward, images, labels)
        layer = first_not_finite(student, run) or "none: it is in the loss itself"
        values = ", ".join(f"{name} = {value.item():.4g}" for name, value in terms.items())
        return f"the loss is not finite at step {self.step}: {values}; first layer: {layer}"

    def end_epoch(self, epoch: int) -> None:
        """Validate, choose, and write everything down."""
        if bad := not_ready(self.job.student):
            raise ValueError(
                f"after epoch {epoch} a parameter of these quantizers is not finite: "
                f"{', '.join(bad)}"
            )
        self.epoch = epoch
        asked = self.job.validation is not None and self.fabric.is_global_zero
        self.history.end_epoch(self.validate(self.job.validation) if asked else None)
        if self.job.checkpoint:
            self.save(self.job.checkpoint)

    def validate(self, validation: Split) -> float:
        answering = self.answering()
        accuracy = evaluate(answering, validation)
        if self.job.schedule.keep == "best" and accuracy > self.best["accuracy"]:
            kept = {key: deepcopy(value) for key, value in answering.state_dict().items()}
            self.best = {"accuracy": accuracy, "epoch": self.epoch, "student": kept}
        return accuracy

    def answering(self) -> nn.Module:
        """Who is evaluated; training goes on as if this had not been asked."""
        student, schedule = self.job.student, self.job.schedule
        module = self.job.method.evaluated(student)
        if schedule.reestimate:
            module = deepcopy(module)
            reestimate_batchnorm(module, self.train, schedule.reestimate, self.job.batch)
        return module

    def finish(self) -> Run:
        """Leave the weights that were kept in the student, and test them, once."""
        job, student = self.job, self.job.student
        state = self.best["student"] or self.answering().state_dict()
        student.load_state_dict({k: deepcopy(v) for k, v in state.items()})
        student.eval().to(memory_format=torch.contiguous_format)
        accuracy = evaluate(student, job.test)
        machine = describe_machine() | {
            "device": _device_name(self.fabric.device),
            "processes": self.fabric.world_size,
        }
        return Run(
            *(job.label, self.history.record(), accuracy, self.seconds(), job.schedule, machine),
            compile_seconds=self.history.compile_seconds() if job.compile else 0.0,
            kept_epoch=self.best["epoch"],
        )

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def save(self, path: Path) -> None:
        own = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        generators = _gathered(self.fabric, own)
        if self.fabric.is_global_zero:
            student, method, observers = self.job.states()
            content = {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds(),
                "threads": torch.get_num_threads(),
                "identity": self.identity,
                "student": student,
                "method": method,
                "observers": observers,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": self.fabric.strategy.precision.state_dict(),
                "generators": generators,
                "history": self.history.state_dict(),
                "best": self.best,
            }
            save_tree(content, path)

    def load(self, path: Path) -> None:
        content = load_tree(path)
        _check_same(content["identity"], self.identity, path)
        _check_same(_shapes(content["student"]), _shapes(self.job.student.state_dict()), path)
        if content["threads"] != torch.get_num_threads():
            warnings.warn(
                f"{path} was written with {content['threads']} threads, now there are "
                f"{torch.get_num_threads()}: results may differ in the last bits",
                stacklevel=2,
            )
        self.epoch, self.step = content["epoch"], content["step"]
        self.before, self.best = content["seconds"], content["best"]
        self.job.load(content["student"], content["method"], content["observers"])
        _check_taken(content["student"], self.job.student.state_dict(), path)
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.fabric.strategy.precision.load_state_dict(content["scaler"])
        self.history.load_state_dict(content["history"])
        generators = content["generators"][self.fabric.global_rank]
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"], self.fabric.device)


def _unshared(job: _Job) -> _Job:
    """The job with copies of what training changes: processes share the memory of tensors."""
    student, method, observers = deepcopy((job.student, job.method, job.observers))
    return replace(job, student=student, method=method, observers=observers)


def _fabric(accelerator: str, devices: int | list[int], schedule: Schedule) -> Fabric:
    strategy: str | DDPStrategy = "auto"
    many = devices > 1 if isinstance(devices, int) else len(devices) > 1
    launched = torch.distributed.is_torchelastic_launched()
    if many or launched:
        # A notebook cannot be imported by new processes, so there they are forked.
        start = "popen" if launched else "fork" if hasattr(sys, "ps1") else "spawn"
        # Or a second forward of the same step would find BatchNorm's statistics overwritten.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        strategy = DDPStrategy(start_method=start, **{sync: False})
    return Fabric(
        accelerator=accelerator, devices=devices, strategy=strategy, precision=schedule.precision
    )


def _check_job(job: _Job, processes: int) -> None:
    schedule, parts = job.schedule, processes * job.schedule.accumulate
    if job.batch % parts:
        raise ValueError(
            f"a batch of {job.batch} images cannot be cut into {parts} equal parts "
            f"({processes} processes, accumulate {schedule.accumulate})"
        )
    _check_unlabelled(job)
    if schedule.keep == "best" and job.validation is None:
        raise ValueError("keep is 'best', which needs validation images to choose by")
    if schedule.keep == "best" and (job.validation.labels < 0).all():
        raise ValueError("keep is 'best', but no validation image has a label to choose by")
    if job.checkpoint and job.checkpoint.is_dir():
        raise ValueError(f"{job.checkpoint} is a folder; a checkpoint is one file")
    if job.resume and job.checkpoint is None:
        raise ValueError("resume needs a checkpoint: the file to go on from")
    if job.checkpoint and job.checkpoint.exists() and not job.resume:
        raise ValueError(
            f"{job.checkpoint} exists: resume=True goes on from it; to start anew, delete it"
        )


def _check_unlabelled(job: _Job) -> None:
    if job.ratio < 1:
        raise ValueError(f"ratio is {job.ratio}; allowed: 1 or more unlabelled images for each")
    if job.unlabelled and _normalised(job.unlabelled) != _normalised(job.train):
        raise ValueError("unlabelled images are normalised by other numbers than those of train")


def _normalised(data: Split) -> tuple[list[float], list[float]]:
    return list(data.mean), list(data.std)


def _check_same(there: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    differ = [
        f"{key} {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differ:
        raise ValueError(f"{path} is another run's: {'; '.join(differ)}")


def _shapes(state: dict[str, Any]) -> dict[str, list[int]]:
    return {f"student.{k}": list(v.shape) for k, v in state.items() if isinstance(v, Tensor)}


def _check_taken(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse a student that cannot go back: tensors always can, extra states may not."""
    extra = (key for key in saved if key.endswith("_extra_state"))
    if lost := [k for k in extra if not _alike(saved[k], now[k])]:
        raise ValueError(
            f"the student has changed for good since {path} was written, as by NIPQ's end_noise "
            f"({', '.join(lost)}): hand in one as it was before training"
        )


def _alike(one: Any, other: Any) -> bool:
    return torch.equal(one, other.cpu()) if isinstance(one, Tensor) else one == other


def _fingerprint(data: Split | None) -> str | None:
    """A hash of the images, the labels and the normalisation."""
    if data is None:
        return None
    digest = hashlib.blake2b(repr((data.mean, data.std)).encode(), digest_size=8)
    for tensor in (data.images, data.labels):
        # As bytes, because NumPy has no bfloat16.
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return f"{len(data)} images, {digest.hexdigest()}"


def _gathered(fabric: Fabric, own: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    if fabric.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def _on(device: torch.device, data: Split) -> Split:
    return data if data.images.device == device else data.to(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _bar(job: _Job, fabric: Fabric) -> tqdm:
    hidden = not (job.progress and fabric.is_global_zero)
    return tqdm(total=job.steps, desc="training", unit="step", leave=False, disable=hidden)


@contextmanager
def _alone(job: _Job, fabric: Fabric) -> Iterator[None]:
    """Hold the checkpoint; the system lets go of it however the process ends."""
    if job.checkpoint is None or not fabric.is_global_zero:
        yield
        return
    job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.checkpoint.with_name(f"{job.checkpoint.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"another process trains with {job.checkpoint}") from error
    with lock:
        # What a process left that was killed while it wrote: ``write_whole``'s names, no others.
        left = re.compile(rf"\.{re.escape(job.checkpoint.name)}\.[a-z0-9_]{{8}}")
        for file in job.checkpoint.parent.iterdir():
            if left.fullmatch(file.name):
                file.unlink()
        yield


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw everything inside from one seed; leave the global generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
