"""A small student, and the two properties that every method has."""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

import qatviz.training
from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.methods import CrossEntropy
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.schedule import Schedule

fit = partial(qatviz.training.fit, accelerator="cpu")
SCHEDULE = Schedule(epochs=3, batch=6, rate=0.2, warmup=0.2, seed=4)
CE = partial(CrossEntropy, view=crop_flip)
THREE, FOUR = partial(LSQ, bits=3), partial(LSQ, bits=4)


def longer(epochs):
    """The schedule with more epochs."""
    return replace(SCHEDULE, epochs=epochs)


def split(count=26, classes=3):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[::5] = -1
    return Split(images, labels, (0.45,), (0.25,))


TRAIN, TEST = split(), split(12)


def float_net(outputs=3):
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, outputs),
    )


def tiny(weights=THREE, inputs=FOUR):
    student = quantize(float_net(), weights, inputs)
    calibrate(student, TRAIN.batches(26))
    return student


def trained(method, student=None, schedule=SCHEDULE, observers=(), data=TRAIN):
    """What training makes of a student: its state, and the run."""
    student = tiny() if student is None else student
    run = fit(student, method, data, TEST, schedule, observers)
    return copy.deepcopy(student.state_dict()), run


def same(first, second):
    """Whether two states, or numbers by name, are equal to the bit."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        other = second[key]
        equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        if not equal:
            return False
    return True


def drive(student, method, batches, optimizer, start, total):
    """The loop of ``fit`` without its views of time: some steps from the ``start``-th."""
    student.train()
    for number, batch in enumerate(batches, start):
        terms = method.loss(lambda images: student(TRAIN.normalise(images)), *batch)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        method.after_step(batch, number / total)


def resumed_like_whole(make_method, make_student=tiny, cut=5, total=12, rate=0.3):
    """Train in one piece, and in two with everything rebuilt between; return both ends."""
    generator = torch.Generator().manual_seed(1)
    chosen = [torch.randperm(len(TRAIN), generator=generator)[:6] for _ in range(total)]
    batches = [(TRAIN.images[c], TRAIN.labels[c]) for c in chosen]

    def begin():
        student, method = make_student(), make_method()
        method.prepare(student, TRAIN)
        return student, method, torch.optim.SGD(student.parameters(), rate, momentum=0.9)

    whole = begin()
    drive(*whole[:2], batches, whole[2], 1, total)
    first = begin()
    drive(*first[:2], batches[:cut], first[2], 1, total)
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    second = begin()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    drive(*second[:2], batches[cut:], second[2], cut + 1, total)
    return whole[:2], second[:2]
