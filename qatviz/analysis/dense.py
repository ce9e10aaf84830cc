"""Does consistency across views carry over to segmentation and detection? Two toys on collages."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from qatviz.analysis.dense_tasks import Detection, Maps, Segmentation, Task, Valid
from qatviz.analysis.subject import undisturbed
from qatviz.calibration import calibrate
from qatviz.collages import Collages, Views, draw_views, make_collages, moved
from qatviz.datasets import Dataset, load
from qatviz.methods.ramps import sigmoid_up
from qatviz.optimizers import make_optimizers, set_rates
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.records import DensePictures, DenseRun, DenseScores
from qatviz.schedule import Schedule
from qatviz.teachers import ema_update, frozen_copy, warmed_up

ARMS = ("float", "LSQ", "CR", "CR, not aligned")
ENDS = ("first", "last")  # 8 bits
CALIBRATED = 64  # ours: labelled collages that the grids begin from
STREAMS = (
    *("float batches", "float views", "batches", "views"),
    *("unlabelled batches", "views of consistency"),
)
STREAM, TEST = 100_000, 10_000  # first seed of these, and of test collages
SHOWN = 3  # test collages that are kept as pictures
WHOLE = ("images", "test", "float_steps", "steps", "batch", "evaluations")


@dataclass(frozen=True)
class DensePlan:
    """How a toy on collages is trained.

    Args:
        images: Collages with labels. Default: 1000 (ours).
        unlabelled: More collages of the same kind, 0 or more, as many as labelled ones in each
            step, for the consistency term alone. Default: 0 (ours).
        test: Test collages. Default: 400 (ours).
        float_steps: Steps of the float network. Default: 1000 (ours).
        steps: Steps of the quantized ones, from the float one. Default: 500 (ours).
        batch: Labelled collages in a step. Default: 32 (ours).
        float_rate: Highest learning rate of the float network. Default: 0.1 (ours).
        rate: Highest learning rate of the quantized ones. Default: 0.02 (ours).
        weight_decay: Default: 1e-4 (ours).
        bits: Of weights and inputs, 2 to 8; the first and the last layer have 8. Default: 2.
        strength: λ of the consistency term at its largest, 0 or more. Default: 1 (ours).
        ramp: λ(t)/λ for the progress t from 0 to 1. Default: ``sigmoid_up`` over 5 % of training.
        decay: α of the teacher, 0 to 1, reached by ``warmed_up``. Default: 1 − 1/64 (ours): a
            window of two epochs of 1000 collages in batches of 32.
        evaluations: How often a network is evaluated while it is trained. Default: 5 (ours).

    Raises:
        ValueError: If a count is below 1, or a number is outside its range.
    """

    images: int = 1000
    unlabelled: int = 0
    test: int = 400
    float_steps: int = 1000
    steps: int = 500
    batch: int = 32
    float_rate: float = 0.1
    rate: float = 0.02
    weight_decay: float = 1e-4
    bits: int = 2
    strength: float = 1.0
    ramp: Callable[[float], float] = sigmoid_up
    decay: float = 1 - 1 / 64
    evaluations: int = 5

    def __post_init__(self) -> None:
        for name in WHOLE:
            if getattr(self, name) < 1:
                raise ValueError(f"DensePlan: {name} must be 1 or more, got {getattr(self, name)}")
        for name, fine, allowed in (
            ("unlabelled", self.unlabelled >= 0, "0 or more"),
            ("strength", self.strength >= 0, "0 or more"),
            ("decay", 0 <= self.decay <= 1, "0 to 1"),
            ("batch", self.batch <= self.images, f"{self.images} (images) or fewer"),
        ):
            if not fine:
                raise ValueError(f"DensePlan: {name} is {getattr(self, name)}; allowed: {allowed}")


def segmentation_toy(
    arms: Iterable[str] = ARMS,
    plan: DensePlan = DensePlan(),
    *,
    seed: int = 0,
    data: Dataset | None = None,
    progress: bool = True,
) -> dict[str, DenseRun]:
    """Learn the class of every pixel of collages, with a float and with low-bit networks.

    All low-bit networks begin as the same float one, quantized (LSQ), and see the same labelled
    batches in the same first views A (a mirror, and a shift of up to 6 pixels). Under ``"CR"`` an
    average of the student over training, the teacher, sees the same collages in other views A″,
    and, with f⁻ the maps moved back to where the collage was::

        L = cross-entropy(f_S(A(x)), A(mask)) + λ(t)·mean KL(f_T(A″(x))⁻ ‖ f_S(A(x))⁻)

    The mean is over the pixels that both views still show. ``"CR, not aligned"`` compares the two
    maps as they are, pixel by pixel: each then speaks of another place. The teacher's BatchNorm
    normalises by its own batches, and gradients go through the student alone. On unlabelled
    collages, which the student runs together with the labelled ones, there is the second term only.

    Args:
        arms: Of "float", "LSQ", "CR", "CR, not aligned". Default: all.
        plan: Sizes, steps and rates.
        seed: Of the collages, the float network, and all batches and views. Default: 0 (ours).
        data: Whose images are made into collages: of ``train`` and of ``test``. Default: None:
            ``load("fashion-mini")``.
        progress: Whether to show a bar. Default: True.

    Returns:
        A ``records.DenseRun`` by arm. Draw with ``plots.dense_curves`` and
        ``plots.dense_pictures``.

    Raises:
        ValueError: If an arm is unknown.

    Source: Pang et al. 2024, arXiv 2402.13497, for classification; alignment by the inverse
    transform and everything else here are ours.
    """
    return _toy(Segmentation(), tuple(arms), plan, seed, data, progress)


def detection_toy(
    arms: Iterable[str] = ARMS,
    plan: DensePlan = DensePlan(),
    *,
    seed: int = 0,
    data: Dataset | None = None,
    progress: bool = True,
) -> dict[str, DenseRun]:
    """Learn the boxes and classes of what is on collages, with a float and with low-bit networks.

    As ``segmentation_toy``, with the one-stage detector of ``dense_tasks.Detection``. Labels: the
    binary cross-entropy of "here is the centre of an object" over all cells, the cross-entropy of
    classes and the L1 distance of boxes where one is, all divided by the number of objects.
    Consistency: the divergence of "here is an object" over the cells that both views show; the
    divergence of classes, and the L1 distance of boxes, where of these the teacher says that there
    is one with a probability of ½ or more; all divided by the number of the latter, but at least
    that of collages. Views shift by whole cells (8 pixels): maps can then be moved back exactly.

    Args:
        arms: Of "float", "LSQ", "CR", "CR, not aligned". Default: all.
        plan: Sizes, steps and rates.
        seed: Of the collages, the float network, and all batches and views. Default: 0 (ours).
        data: Whose images are made into collages: of ``train`` and of ``test``. Default: None:
            ``load("fashion-mini")``.
        progress: Whether to show a bar. Default: True.

    Returns:
        A ``records.DenseRun`` by arm. Draw with ``plots.dense_curves`` and
        ``plots.dense_pictures``.

    Raises:
        ValueError: If an arm is unknown.

    Source: Pang et al. 2024, arXiv 2402.13497, for classification; alignment by the inverse
    transform and everything else here are ours.
    """
    return _toy(Detection(), tuple(arms), plan, seed, data, progress)


def compare_dense(runs: Iterable[DenseRun], against: str = "LSQ") -> DenseScores:
    """Final scores by arm over the seeds that all arms have, and differences in pairs.

    Args:
        runs: Of one task and one plan, of several arms and seeds.
        against: The arm that others are compared with. Default: "LSQ".

    Returns:
        A `records.DenseScores`. Draw with ``plots.dense_scores`` and ``plots.dense_differences``.

    Raises:
        ValueError: If the runs are of several tasks or sizes, two are of one arm and seed, none
            is of ``against``, or no seed has all arms.
    """
    runs = list(runs)
    kinds = {(r.task, r.measure, r.labelled, r.test) for r in runs}
    if len(kinds) != 1:
        raise ValueError(f"compare_dense: runs must be of one task and size, got {sorted(kinds)}")
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.seed in found.setdefault(run.arm, {}):
            raise ValueError(f"compare_dense: there are two runs of {run.arm}, seed {run.seed}")
        found[run.arm][run.seed] = run.score
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    if against not in found or not seeds:
        raise ValueError(f"compare_dense: no seed has all of {[*found]}, or none is {against!r}")
    ((task, measure, labelled, test),) = kinds
    arms = sorted(found, key=lambda arm: ARMS.index(arm) if arm in ARMS else len(ARMS))
    return DenseScores(
        task=task,
        measure=measure,
        arms=tuple(arms),
        seeds=tuple(seeds),
        scores=np.array([[found[arm][seed] for seed in seeds] for arm in arms]),
        against=against,
        quantile=float(student_t.ppf(0.975, len(seeds) - 1)) if len(seeds) > 1 else np.nan,
        labelled=labelled,
        test=test,
    )


@dataclass(frozen=True, eq=False)
class _Setting:
    """What the networks of one seed have in common."""

    task: Task
    plan: DensePlan
    seed: int
    labelled: Collages
    unlabelled: Collages
    test: Collages

    def generator(self, what: str) -> torch.Generator:
        """One that draws the same in every arm."""
        return torch.Generator().manual_seed(STREAM + 100 * self.seed + STREAMS.index(what))

    def views(self, count: int, generator: torch.Generator) -> Views:
        """One for each of several images."""
        most, multiple = self.task.most, self.task.stride
        return draw_views(count, most=most, multiple=multiple, generator=generator)


class _Consistency:
    """The teacher, and what the student lacks of it."""

    def __init__(self, setting: _Setting, student: nn.Module, *, aligned: bool) -> None:
        self.setting, self.student, self.aligned = setting, student, aligned
        self.teacher = frozen_copy(student)
        norms = {n: m for n, m in self.teacher.named_modules() if isinstance(m, _BatchNorm)}
        for norm in norms.values():
            norm.train()
        own = {f"{n}.{b}" for n, m in norms.items() for b, _ in m.named_buffers()}
        everything = dict([*student.named_parameters(), *student.named_buffers()]).keys()
        self.averaged, self.updates = everything - own, 0
        self.draws = setting.generator("views of consistency")
        count, steps = len(setting.unlabelled), setting.plan.steps
        generator = setting.generator("unlabelled batches")
        self.more = order(count, setting.plan.batch, steps, generator) if count else None

    def losses(self, batch: Collages, views: Views, index: int) -> dict[str, Tensor]:
        """The terms of the labels and of consistency, at a step."""
        setting, plan, images = self.setting, self.setting.plan, batch.images
        everyone = views
        if self.more is not None:
            images = torch.cat([images, setting.unlabelled.images[self.more[index]]])
            more = setting.views(len(images) - len(batch), self.draws)
            everyone = Views(
                torch.cat([views.mirrored, more.mirrored]), torch.cat([views.shift, more.shift])
            )
        maps = self.student(_inputs(moved(images, everyone)))
        terms = setting.task.label_loss(maps[: len(batch)], batch, views)
        others = setting.views(len(images), self.draws)
        with torch.no_grad():
            targets = self.teacher(_inputs(moved(images, others)))
        strength = plan.strength * plan.ramp(index / plan.steps)
        compared = compared_maps(
            setting.task, (maps, everyone), (targets, others), aligned=self.aligned
        )
        return terms | {"consistency": strength * setting.task.disagreement(*compared)}

    def after_step(self) -> None:
        """Let the teacher follow."""
        self.updates += 1
        decay = warmed_up(self.setting.plan.decay, self.updates)
        ema_update(self.teacher, self.student, decay, self.averaged)


class _Descent:
    """A network that is trained in place."""

    def __init__(self, setting: _Setting, arm: str, model: nn.Module) -> None:
        plan, quantized = setting.plan, arm != "float"
        self.setting, self.model, self.quantized = setting, model, quantized
        self.steps = plan.steps if quantized else plan.float_steps
        batches = setting.generator("batches" if quantized else "float batches")
        self.order = order(len(setting.labelled), plan.batch, self.steps, batches)
        self.draws = setting.generator("views" if quantized else "float views")
        self.schedule = Schedule(
            rate=plan.rate if quantized else plan.float_rate,
            warmup=0.0 if quantized else 0.1,
            decay=plan.weight_decay,
        )
        self.optimizers = make_optimizers(model, nn.Module(), self.schedule)
        self.consistency = None
        if arm.startswith("CR"):
            self.consistency = _Consistency(setting, model, aligned=arm == "CR")

    def step(self, index: int) -> dict[str, float]:
        """Take one step; the terms of its loss."""
        set_rates(self.optimizers, self.schedule, index / self.steps)
        batch = self.setting.labelled.subset(self.order[index])
        views = self.setting.views(len(batch), self.draws)
        if self.consistency:
            terms = self.consistency.losses(batch, views, index)
        else:
            maps = self.model(_inputs(moved(batch.images, views)))
            terms = self.setting.task.label_loss(maps, batch, views)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        sum(terms.values()).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.consistency:
            self.consistency.after_step()
        return {name: term.item() for name, term in terms.items()}


def compared_maps(
    task: Task, ours: tuple[Maps, Views], theirs: tuple[Maps, Views], *, aligned: bool
) -> tuple[Maps, Maps, Valid]:
    """What consistency compares of a student and a teacher.

    Args:
        task: What the maps are of.
        ours: The student's maps, and the views that these are of.
        theirs: The teacher's.
        aligned: Whether to move both back to where the collages were.

    Returns:
        Both maps, and which cells count: those that both views show; all if not aligned.
    """
    if not aligned:
        return ours[0], theirs[0], torch.ones_like(ours[0][:, 0], dtype=torch.bool)
    (student, seen), (teacher, known) = task.aligned(*ours), task.aligned(*theirs)
    return student, teacher, seen & known


def order(
    count: int, batch: int, steps: int, generator: torch.Generator
) -> Int64[Tensor, "steps batch"]:
    """Which of several collages come in each step: all once in a random order, then again.

    Args:
        count: How many there are, at least 1.
        batch: In each step.
        steps: How many.
        generator: Draws.

    Returns:
        Indices.
    """
    rounds = -(-steps * batch // count)
    drawn = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    return drawn[: steps * batch].view(steps, batch)


@undisturbed()
def _toy(
    task: Task, arms: tuple[str, ...], plan: DensePlan, seed: int, data: Dataset | None, shown: bool
) -> dict[str, DenseRun]:
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"arms must be of {', '.join(ARMS)}; got {', '.join(unknown)}")
    data = load("fashion-mini") if data is None else data
    both = make_collages(data.train, plan.images + plan.unlabelled, seed=seed)
    setting = _Setting(
        task,
        plan,
        seed,
        both.subset(slice(plan.images)),
        both.subset(slice(plan.images, None)),
        make_collages(data.test, plan.test, seed=TEST + seed),
    )
    torch.manual_seed(seed)
    model = task.network(both.images.shape[1], len(both.classes))
    low_bit = [arm for arm in ARMS if arm in arms and arm != "float"]
    total = plan.float_steps + plan.steps * len(low_bit)
    with tqdm(total=total, desc=f"{task.name}, seed {seed}", disable=not shown) as bar:
        runs = {"float": _trained(setting, "float", model, bar)}
        for arm in low_bit:
            runs[arm] = _trained(setting, arm, _quantized(model, setting), bar)
    return {arm: runs[arm] for arm in arms}


def _trained(setting: _Setting, arm: str, model: nn.Module, bar: tqdm) -> DenseRun:
    """Train a network in place, and say how good it became."""
    plan, task, begun = setting.plan, setting.task, time.perf_counter()
    descent = _Descent(setting, arm, model)
    marks = np.unique(np.linspace(0, descent.steps, plan.evaluations + 1).astype(int))
    maps = _said(model, setting.test)
    scores, means = [task.scores(maps, setting.test)], []
    for first, last in pairwise(marks):
        model.train()
        seen = []
        for index in range(first, last):
            seen.append(descent.step(index))
            bar.update()
        means.append({name: np.mean([terms[name] for terms in seen]) for name in seen[0]})
        maps = _said(model, setting.test)
        scores.append(task.scores(maps, setting.test))
    consistent, classes = arm.startswith("CR"), setting.test.classes
    return DenseRun(
        task=task.name,
        arm=arm,
        measure=task.measure,
        seed=setting.seed,
        classes=classes + ("background",) * (len(scores[0]) - len(classes)),
        steps=marks,
        per_class=np.stack(scores),
        terms={name: np.array([np.nan, *(m[name] for m in means)]) for name in means[0]},
        labelled=plan.images,
        unlabelled=plan.unlabelled if consistent else 0,
        test=plan.test,
        batch=plan.batch,
        bits=plan.bits if descent.quantized else None,
        strength=plan.strength if consistent else 0.0,
        decay=plan.decay if consistent else 0.0,
        parameters=sum(v.numel() for n, v in model.named_parameters() if "quantizer" not in n),
        seconds=time.perf_counter() - begun,
        pictures=_pictures(setting, maps),
    )


def _quantized(model: nn.Module, setting: _Setting) -> nn.Module:
    few, eight = partial(LSQ, setting.plan.bits), partial(LSQ, 8)
    student = quantize(quantize(model, few, few, keep=ENDS), eight, eight, only=ENDS)
    calibrate(student, [_inputs(setting.labelled.images[:CALIBRATED])])
    return student


@torch.no_grad()
def _said(model: nn.Module, collages: Collages) -> Maps:
    """The maps of all collages, in evaluation mode, in which the network stays."""
    model.eval()
    return torch.cat([model(_inputs(images)) for images in collages.images.split(250)])


def _inputs(images: Tensor) -> Tensor:
    """From 0 to 1: BatchNorm does the rest."""
    return images.float() / 255


def _pictures(setting: _Setting, maps: Maps) -> DensePictures:
    test = setting.test.subset(slice(SHOWN))
    said = setting.task.picture(maps[:SHOWN])
    there = [labels >= 0 for labels in test.labels]
    masks = [one["mask"] for one in said if "mask" in one]
    return DensePictures(
        images=test.images.float().mean(1).round().to(torch.uint8).numpy(),
        masks=np.stack(masks) if masks else np.empty((0, *test.masks.shape[1:]), np.uint8),
        boxes=tuple(one["boxes"] for one in said if "boxes" in one),
        labels=tuple(one["labels"] for one in said if "labels" in one),
        true_masks=test.masks.to(torch.uint8).numpy(),
        true_boxes=tuple(b[t].numpy() for b, t in zip(test.boxes, there, strict=True)),
        true_labels=tuple(k[t].numpy() for k, t in zip(test.labels, there, strict=True)),
    )
