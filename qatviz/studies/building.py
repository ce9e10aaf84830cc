"""From an experiment to a student that is ready to train, and its training."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qatviz.calibration import activation_quantizers, calibrate
from qatviz.datasets import Dataset, load
from qatviz.methods import Method
from qatviz.quantize import quantizable_layers, quantize
from qatviz.runs import Run
from qatviz.studies.parts import Part, make, make_method
from qatviz.training import fit

CALIBRATION = 64  # images that inputs' grids are chosen from (ours)


@lru_cache(maxsize=2)
def data_of(name: str, root: str | None) -> Dataset:
    """A data set, kept in memory for the next experiment.

    Args:
        name: As ``datasets.load`` knows it.
        root: Where its files are.

    Returns:
        The data set.
    """
    return load(name, root)


def float_model(experiment: Any, data: Dataset, state: Mapping[str, Tensor] | None) -> nn.Module:
    """The float network that training or quantization begins from.

    Args:
        experiment: The experiment.
        data: Its data set.
        state: Weights to begin from; entries of quantizers are left out. None: random ones.

    Returns:
        The network.
    """
    classes = len(data.classes) or int(data.train.labels.max()) + 1
    model = make(experiment.model, classes=classes, in_channels=data.train.images.shape[1])
    if state is not None:
        model.load_state_dict({k: v for k, v in state.items() if "_quantizer." not in k})
    return model


def quantized(experiment: Any, model: nn.Module, data: Dataset) -> nn.Module:
    """The student: a copy of the float network, quantized and calibrated as the experiment says.

    Args:
        experiment: The experiment.
        model: The float network.
        data: Its data set; the first 64 training images choose the inputs' grids.

    Returns:
        The student.
    """
    if not experiment.quantized:
        return copy.deepcopy(model)
    names = list(quantizable_layers(model))
    ends = [] if experiment.ends is None else [names[0], names[-1]]
    student = quantize(model, *_factories(experiment, experiment.pair), keep=ends)
    if ends and experiment.ends != "float":
        pair = tuple(None if bits is None else experiment.ends for bits in experiment.pair)
        student = quantize(student, *_factories(experiment, pair), only=ends)
    if activation_quantizers(student):
        calibrate(student, data.train.batches(CALIBRATION, limit=CALIBRATION))
    return student


def build(
    experiment: Any, data: Dataset, state: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Method, dict[str, Any]]:
    """What ``fit`` needs: the student, the method, the observers.

    Args:
        experiment: The experiment.
        data: Its data set.
        state: Weights to begin from, or None.

    Returns:
        The student, the method, and the observers by name.
    """
    with seeded(experiment.seed):
        model = float_model(experiment, data, state)
        student = quantized(experiment, model, data)
        method = make_method(experiment.method, teacher=model)
        observers = {
            name: make(part, student=student, model=student)
            for name, part in experiment.observers.items()
        }
    return student, method, observers


def train(
    experiment: Any,
    data: Dataset,
    state: Mapping[str, Tensor] | None,
    *,
    checkpoint: Path | None = None,
    accelerator: str = "auto",
    watch: Callable[[int], None] | None = None,
) -> tuple[nn.Module, Run, dict[str, Any]]:
    """Build and train, going on from the checkpoint if there is one.

    With an observer that has no ``state_dict`` training begins anew.

    Args:
        experiment: The experiment.
        data: Its data set.
        state: Weights to begin from, or None.
        checkpoint: File written at the end of every epoch. Default: None: none.
        accelerator: Device, as Lightning Fabric names them. Default: "auto".
        watch: Called with the number of each step. Default: None.

    Returns:
        The student, the run, and the observers by name.
    """
    student, method, observers = build(experiment, data, state)
    if checkpoint is not None and not all(hasattr(o, "state_dict") for o in observers.values()):
        # What such an observer saw before an interruption is lost, so all begins anew.
        checkpoint.unlink(missing_ok=True)
    images = data.train if experiment.images is None else data.train.subset(experiment.images)
    if experiment.repeat > 1:
        images = replace(
            images,
            images=images.images.repeat(experiment.repeat, 1, 1, 1),
            labels=images.labels.repeat(experiment.repeat),
        )
    run = fit(
        *(student, method, images, data.test),
        replace(experiment.schedule, seed=experiment.seed),
        [*observers.values(), Watch(watch)],
        unlabelled=data.train if experiment.unlabelled else None,
        ratio=max(experiment.unlabelled, 1),
        validation=data.validation,
        label=experiment.name,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        accelerator=accelerator,
        progress=False,
    )
    return student, run, observers


class Watch:
    """An observer that only tells the number of the step.

    Args:
        tell: Whom; None: nobody.
    """

    # Always there, because a checkpoint is refused if the observers are not the same.
    def __init__(self, tell: Callable[[int], None] | None) -> None:
        self.tell = tell

    def __call__(self, step: int, student: nn.Module) -> None:
        """Say it.

        Args:
            step: Number of the step.
            student: Not looked at.
        """
        if self.tell is not None:
            self.tell(step)


def kept(observer: Any) -> Any:
    """What is kept of an observer: its ``record()``, its ``result``, or its ``state_dict()``.

    Args:
        observer: The observer after training.

    Returns:
        The first of these that it has.
    """
    for verb in ("record", "result", "state_dict"):
        if hasattr(observer, verb):
            value = getattr(observer, verb)
            return value() if callable(value) else value
    return None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw everything inside from one seed; leave the global generators as they were.

    Args:
        seed: The seed.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _factories(experiment: Any, pair: tuple[int | None, ...]) -> list[Part | None]:
    parts = (experiment.weights, experiment.inputs)
    return [
        None if bits is None else partial(part, bits)
        for part, bits in zip(parts, pair, strict=True)
    ]
