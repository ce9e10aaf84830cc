"""How fast images reach a training step, and how fast whole steps are, beside the usual recipe.

The usual recipe is torchvision's for CIFAR: a ``DataLoader`` whose 2 workers crop, flip and
normalise one image at a time. Run by ``make bench``, alone on the machine. Both take turns in
one process; before the clock starts, both must give batches of the same form and statistics.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from house import BATCH, THREADS, Row, compare, in_processes, in_turns, table, write
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapStyle
from torchvision import transforms as v1
from torchvision.transforms import v2

from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Dataset, Split, load
from qatviz.methods import CrossEntropy
from qatviz.models import resnet20
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.schedule import Schedule
from qatviz.training import fit

PROCESSES = 3
ROUNDS = 8  # in each process
WARM_UP = 1
SKIPPED = 8  # batches before the clock starts, of which 4 lay ready: 2 workers fetch 2 ahead
BATCHES = 50  # under the clock
STEPS = 4  # under the clock, after one more
SETTLE = 0.25  # seconds in which workers fill their buffers, so as not to disturb who is next
PACKAGES = ("torch", "torchvision")
UNIT = f"ms per {BATCH} images"
CIFAR = Path(__file__).parent.parent / "data" / "cache" / "cifar10_jpeg"
Batches = Iterator[tuple[Tensor, Tensor]]


def main() -> None:
    """Measure everything and write ``data/runs/bench_training.json``."""
    name = data().name
    print(f"measured on {name}" + ("" if CIFAR.is_dir() else f", because there is no {CIFAR}"))
    path = in_processes(PROCESSES, data_path_seconds)
    step = in_processes(PROCESSES, step_seconds)
    rows = [
        *(row("data path", path, "ours", peer) for peer in ("dataloader", "dataloader v2")),
        row("float step", step, "float", "float, dataloader", "dataloader"),
        row("lsq step", step, "lsq", "lsq, dataloader", "dataloader"),
        row("data path in step", step, "until the model", "float", "float step"),
    ]
    print(table(rows))
    for r in rows[:-1]:
        ours, theirs = (round(1e3 * BATCH / ms) for ms in (r.ours, r.theirs))
        print(f"{r.what}: {ours:,} images per second, {r.peer}: {theirs:,}")
    print("written to", write("training", rows, PACKAGES, data=name))


def row(what: str, seconds: dict[str, np.ndarray], ours: str, theirs: str, peer: str = "") -> Row:
    """One comparison of what was measured in the same rounds."""
    return compare(what, seconds[ours], peer or theirs, seconds[theirs], unit=UNIT)


def data() -> Dataset:
    """CIFAR-10 as JPEG files if they are there, or else the embedded set in three channels."""
    if CIFAR.is_dir():
        return Dataset("CIFAR-10 (JPEG)", **parts(load("imagefolder", CIFAR)))
    return Dataset("fashion-mini, grey in three channels", **parts(load("fashion-mini")))


def parts(of: Dataset) -> dict[str, Split]:
    """The splits of a data set, with three channels."""
    return {part: coloured(getattr(of, part)) for part in ("train", "validation", "test")}


def coloured(split: Split) -> Split:
    """The same images with three channels."""
    if split.images.shape[1] == 3:
        return split
    images = split.images.repeat(1, 3, 1, 1)
    return Split(images, split.labels, split.mean * 3, split.std * 3, split.classes)


# --- The two ways to a batch


def our_batches(train: Split) -> Batches:
    """The steps of ``fit`` with ``crop_flip`` up to the model, epoch after epoch without end."""
    while True:
        for chosen in torch.randperm(len(train)).split(BATCH)[: len(train) // BATCH]:
            images = train.images.index_select(0, chosen)
            yield train.normalise(crop_flip(images)), train.labels[chosen]


class Pictures(MapStyle):
    """Images one at a time, as torchvision's CIFAR10 gives them: NumPy to PIL to transforms."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class Tensors(MapStyle):
    """Images one at a time, as uint8 tensors to transforms: PIL never sees them."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.data, self.targets, self.transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), self.targets[index]


def usual(split: Split) -> Pictures:
    """The usual recipe of torchvision's examples."""
    size, norm = split.images.shape[-2:], v1.Normalize(split.mean, split.std)
    steps = [v1.RandomCrop(size, 4), v1.RandomHorizontalFlip(), v1.ToTensor(), norm]
    return Pictures(split, v1.Compose(steps))


def usual_v2(split: Split) -> Tensors:
    """The same with torchvision's newer transforms, on tensors."""
    size, norm = split.images.shape[-2:], v2.Normalize(split.mean, split.std)
    floats = v2.ToDtype(torch.float32, scale=True)
    return Tensors(
        split, v2.Compose([v2.RandomCrop(size, 4), v2.RandomHorizontalFlip(), floats, norm])
    )


def loaded(images: MapStyle) -> Batches:
    """A ``DataLoader`` of 2 workers, epoch after epoch without end."""
    settings = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    loader = DataLoader(images, BATCH, num_workers=2, **settings)
    while True:
        yield from loader


def check_same_batches(ours: Batches, theirs: Batches, name: str) -> None:
    """Refuse a peer whose batches are not like ours in form or, on 4096 images, in statistics."""
    (a, labels), (b, targets) = (
        [torch.cat(tensors) for tensors in zip(*islice(batches, 32), strict=True)]
        for batches in (ours, theirs)
    )
    same_form = (a.shape, a.dtype, labels.dtype) == (b.shape, b.dtype, targets.dtype)
    # The mean of a channel over so many images varies by 0.01.
    off = [(f(a, (0, 2, 3)) - f(b, (0, 2, 3))).abs().max() for f in (torch.mean, torch.std)]
    if not same_form or max(off) > 0.06:
        raise SystemExit(f"{name}: {b.dtype} {tuple(b.shape)}, means and deviations off by {off}")


# --- What is measured


def data_path_seconds() -> dict[str, np.ndarray]:
    """Seconds per batch of ours and of the loaders."""
    train = prepare().train
    ours, usuals = our_batches(train), {"dataloader": usual, "dataloader v2": usual_v2}
    loaders = {name: loaded(make(train)) for name, make in usuals.items()}
    for name, theirs in loaders.items():
        check_same_batches(ours, theirs, name)
    turns = {"ours": partial(per_batch, ours)}
    turns |= {name: settled(partial(per_batch, theirs)) for name, theirs in loaders.items()}
    return in_turns(turns, ROUNDS, warm_up=WARM_UP)


def step_seconds() -> dict[str, np.ndarray]:
    """Seconds per step of ResNet-20, float and W2A2 LSQ, on ours and on the usual loader."""
    of = prepare()
    theirs, model = loaded(usual(of.train)), resnet20(len(of.classes))
    lsq = partial(LSQ, bits=2)
    student = quantize(model, lsq, {"*": lsq, "conv1": nn.Identity})
    calibrate(student, [next(our_batches(of.train))[0]])
    turns = {"until the model": partial(our_step, copy.deepcopy(model), of, whole=False)}
    for name, network in {"float": model, "lsq": student}.items():
        turns[name] = partial(our_step, copy.deepcopy(network), of)
        turns[f"{name}, dataloader"] = settled(partial(usual_step, network, theirs))
    return in_turns(turns, ROUNDS, warm_up=WARM_UP)


def prepare() -> Dataset:
    """The data, in a process that has the threads and the seed of all."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return data()


def per_batch(batches: Batches) -> float:
    """Seconds per batch when somebody only takes them, once nothing lies ready."""
    for _ in islice(batches, SKIPPED):
        pass
    start = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    return (time.perf_counter() - start) / BATCHES


def settled(measure: Callable[[], float]) -> Callable[[], float]:
    """The same, leaving the machine quiet."""

    def measured() -> float:
        seconds = measure()
        time.sleep(SETTLE)
        return seconds

    return measured


class Enough(Exception):
    """Ends ``fit`` where the clock stops."""


def our_step(model: nn.Module, of: Dataset, *, whole: bool = True) -> float:
    """Seconds per step of ``fit``, or from the end of one until the model is called again."""
    called: list[float] = []
    ended: list[float] = []

    def clock(step: int, student: nn.Module) -> None:
        ended.append(time.perf_counter())
        if step > STEPS:
            raise Enough

    schedule = Schedule(epochs=1, batch=BATCH, rate=0.01, seed=int(torch.randint(1000, ())))
    method, settings = CrossEntropy(view=crop_flip), {"accelerator": "cpu", "progress": False}
    hook = model.register_forward_pre_hook(lambda *_: called.append(time.perf_counter()))
    with suppress(Enough):
        fit(model, method, of.train, of.test, schedule, [clock], **settings)
    hook.remove()
    until = (ended if whole else called)[-STEPS:]
    return float(np.mean(np.subtract(until, ended[:-1])))


def usual_step(model: nn.Module, batches: Batches) -> float:
    """Seconds per step of the plain loop that everybody writes, fed by a loader."""
    optimizer = torch.optim.SGD(
        model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    model.train()
    ticks = []
    for images, labels in islice(batches, STEPS + 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        ticks.append(time.perf_counter())
    return (ticks[-1] - ticks[0]) / STEPS


if __name__ == "__main__":
    main()
