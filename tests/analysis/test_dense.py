"""The toys: one step by hand, arms in pairs, and what is refused."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from qatviz.analysis import DensePlan, compare_dense, dense, detection_toy, segmentation_toy
from qatviz.analysis.dense_tasks import Detection, Segmentation, mean_divergence
from qatviz.collages import Views, draw_views, make_collages, moved, moved_back
from qatviz.datasets import Dataset, Split
from qatviz.quantizers import LSQ
from tests.analysis.common import generators
from tests.records.test_dense import run as a_run

TINY = DensePlan(images=8, test=3, float_steps=2, steps=3, batch=4, evaluations=2)
TOYS = [segmentation_toy, detection_toy]


def stripes():
    """Two classes: light, and striped."""
    images = torch.full((6, 1, 8, 8), 200, dtype=torch.uint8)
    images[1::2, :, ::2] = 90
    return Split(images, torch.arange(6) % 2, classes=("light", "striped"))


DATA = Dataset("stripes", stripes(), stripes(), stripes())


def toy(which, arms=dense.ARMS, plan=TINY, **changes):
    return which(arms, plan, **({"data": DATA, "progress": False} | changes))


def setting(task=None, plan=TINY, seed=0):
    both = make_collages(DATA.train, plan.images + plan.unlabelled, seed=seed)
    parts = both.subset(slice(plan.images)), both.subset(slice(plan.images, None))
    return dense._Setting(task or Segmentation(), plan, seed, *parts, both.subset(slice(3)))


def student(of):
    torch.manual_seed(0)
    return dense._quantized(of.task.network(1, 2), of)


@pytest.fixture(scope="module")
def runs():
    return {which.__name__: toy(which) for which in TOYS}


@pytest.mark.parametrize("which", TOYS)
def test_every_arm_says_what_it_is(runs, which):
    found = runs[which.__name__]
    assert tuple(found) == dense.ARMS
    for arm, run in found.items():
        low_bit, consistent = arm != "float", arm.startswith("CR")
        assert (run.arm, run.seed, run.labelled, run.test, run.batch) == (arm, 0, 8, 3, 4)
        assert run.bits == (2 if low_bit else None)
        assert (run.strength, run.decay) == ((1.0, 1 - 1 / 64) if consistent else (0, 0))
        assert run.steps.tolist() == ([0, 1, 3] if low_bit else [0, 1, 2])
        assert ("consistency" in run.terms) == consistent
        assert all(len(v) == 3 and math.isnan(v[0]) for v in run.terms.values())
        assert all(np.isfinite(v[1:]).all() for v in run.terms.values())
        assert run.per_class.shape == (3, len(run.classes))
        assert run.seconds > 0
        assert len(run.pictures.images) == 3
    names = ("light", "striped")
    assert run.classes == (*names, "background") if which is segmentation_toy else names
    assert run.measure == ("mIoU" if which is segmentation_toy else "AP at IoU 0.5")


@pytest.mark.parametrize("which", TOYS)
def test_low_bit_arms_begin_alike_and_see_the_same(runs, which):
    low_bit = [run for arm, run in runs[which.__name__].items() if arm != "float"]
    for run in low_bit[1:]:
        np.testing.assert_array_equal(run.per_class[0], low_bit[0].per_class[0])
        # The first step is taken from the same network, on the same view of the same batch.
        for name, values in low_bit[0].terms.items():
            assert run.terms[name][1] == values[1]
            assert run.terms[name][2] != values[2]


@pytest.mark.parametrize("which", TOYS)
def test_without_strength_consistency_is_lsq_to_the_bit(runs, which):
    quiet = toy(which, ["CR"], replace(TINY, strength=0.0))["CR"]
    lsq = runs[which.__name__]["LSQ"]
    np.testing.assert_array_equal(quiet.per_class, lsq.per_class)
    for name, values in lsq.terms.items():
        np.testing.assert_array_equal(quiet.terms[name], values)
    np.testing.assert_array_equal(quiet.pictures.masks, lsq.pictures.masks)


@pytest.mark.parametrize("which", TOYS)
def test_an_arm_alone_is_the_arm_among_others_and_the_seed_decides(runs, which):
    for arm in ("float", "CR, not aligned"):
        (again,) = toy(which, [arm]).values()
        np.testing.assert_array_equal(again.per_class, runs[which.__name__][arm].per_class)
        for name, values in again.terms.items():
            np.testing.assert_array_equal(values, runs[which.__name__][arm].terms[name])
    (other,) = toy(which, ["float"], seed=1).values()
    assert all(other.terms[n][1] != runs[which.__name__]["float"].terms[n][1] for n in other.terms)


@pytest.mark.parametrize("which", TOYS)
def test_unlabelled_collages_reach_consistency_alone(runs, which):
    more = toy(which, ["LSQ", "CR"], replace(TINY, unlabelled=5))
    assert (more["LSQ"].unlabelled, more["CR"].unlabelled) == (0, 5)
    lsq = runs[which.__name__]["LSQ"]
    np.testing.assert_array_equal(more["LSQ"].per_class, lsq.per_class)
    assert more["CR"].terms["consistency"][1] != runs[which.__name__]["CR"].terms["consistency"][1]


def test_the_network_is_quantized_with_eight_bits_at_its_ends():
    for task in (Segmentation(), Detection()):
        grids = [m for m in student(setting(task)).modules() if isinstance(m, LSQ)]
        bits = [q.bits for q in grids]
        assert bits == [8, 8, *[2] * (len(bits) - 4), 8, 8]
        assert all(q.calibrated for q in grids)


def literal_step(of, model, consistent):
    """What one step does to each parameter: 1.9 times rate and gradient (Nesterov, no decay)."""
    batch = of.labelled.subset(dense.order(8, 4, 3, of.generator("batches"))[0])
    first = draw_views(4, most=6, generator=of.generator("views"))
    second = draw_views(4, most=6, generator=of.generator("views of consistency"))
    model.train()
    maps = model(moved(batch.images, first) / 255)
    pixels = maps.log_softmax(1)
    masks = moved(batch.masks, first, 2)
    loss = 0.0
    for index, row, column in np.ndindex(4, 48, 48):
        loss = loss - pixels[index, masks[index, row, column], row, column]
    loss = loss / (4 * 48 * 48)
    if consistent:
        targets = copy.deepcopy(model)(moved(batch.images, second) / 255).detach()
        (back, seen), (others, known) = moved_back(maps, first), moved_back(targets, second)
        loss = loss + math.exp(-5) * mean_divergence(back, others, seen & known)
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, values)
    return {n: v.detach() - 0.02 * 1.9 * g for n, v, g in zip(names, values, found, strict=True)}


@pytest.mark.parametrize("arm", ["LSQ", "CR"])
def test_one_step_by_hand(arm):
    of = setting(plan=replace(TINY, weight_decay=0.0))
    model = student(of)
    expected = literal_step(of, copy.deepcopy(model), arm == "CR")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    descent = dense._Descent(of, arm, model)
    model.train()
    descent.step(0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-3, atol=1e-6)
    assert any((p != before[n]).any() for n, p in model.named_parameters())
    if arm == "CR":
        teacher = descent.consistency.teacher
        for name, value in teacher.named_parameters():
            mean = (before[name] + dict(model.named_parameters())[name].detach()) / 2
            torch.testing.assert_close(value, mean)
            assert not value.requires_grad
            assert value.grad is None


def test_the_teacher_normalises_by_its_batch_and_collects_its_own_statistics():
    of = setting()
    model = student(of)
    descent = dense._Descent(of, "CR", model)
    model.train()
    descent.step(0)
    descent.step(1)
    ours, theirs = model.get_submodule("first_norm"), descent.consistency.teacher.first_norm
    assert theirs.training
    assert theirs.num_batches_tracked == 2
    assert not torch.equal(ours.running_mean, theirs.running_mean)
    batch = torch.rand(2, 16, 4, 4)
    wanted = batch.mean((0, 2, 3))
    before = theirs.running_mean.clone()
    theirs(batch)
    torch.testing.assert_close(theirs.running_mean, 0.9 * before + 0.1 * wanted)


def test_what_is_compared():
    task = Detection()
    maps = [torch.rand(1, 7, 6, 6) for _ in "st"]
    views = [
        Views(torch.tensor([m]), torch.tensor([[8 * s, 0]])) for m, s in ((True, 1), (False, -1))
    ]
    pairs = list(zip(maps, views, strict=True))
    ours, theirs, valid = dense.compared_maps(task, *pairs, aligned=False)
    assert ours is maps[0]
    assert theirs is maps[1]
    assert valid.all()
    ours, theirs, valid = dense.compared_maps(task, *pairs, aligned=True)
    expected = maps[0].flip(-1)
    expected = torch.cat([expected[:, :3], expected[:, [5, 4, 3, 6]]], 1)
    # Down by a row, so that the last was lost; up by one, so that the first was.
    assert torch.equal(ours[0, :, :5], expected[0, :, 1:])
    assert torch.equal(theirs[0, :, 1:], maps[1][0, :, :5])
    assert valid[0].all(1).tolist() == [False, True, True, True, True, False]
    assert valid.sum() == 24


def test_every_collage_comes_once_before_any_comes_again():
    drawn = dense.order(5, 3, 4, torch.Generator().manual_seed(0)).flatten().tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == list(range(5))
    assert len(drawn) == 12
    assert drawn[:5] != drawn[5:10]


def test_global_generators_are_left_alone(monkeypatch):
    before = generators()
    toy(segmentation_toy, ["float"])
    assert generators() == before

    def broken(*args):
        torch.rand(1)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(dense._Descent, "step", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        toy(segmentation_toy, ["float"])
    assert generators() == before


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="got KD"):
        toy(segmentation_toy, ["LSQ", "KD"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 0}, "images must be 1 or more, got 0"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"unlabelled": -1}, "unlabelled is -1; allowed: 0 or more"),
        ({"strength": -0.5}, "strength is -0.5"),
        ({"decay": 1.5}, "decay is 1.5; allowed: 0 to 1"),
        ({"batch": 9, "images": 8}, r"batch is 9; allowed: 8 \(images\) or fewer"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DensePlan(**changes)


def finished(arm, seed, score, **changes):
    per_class = np.array([[0.0, 0.0, np.nan], [score - 0.1, score + 0.1, np.nan]])
    return a_run(arm, seed, per_class=per_class, labelled=5, test=7, **changes)


def test_scores_of_the_seeds_that_all_arms_have():
    numbers = {"CR": [0.5, 0.6, 0.7], "LSQ": [0.4, 0.5, 0.3, 0.9]}
    found = [finished(arm, seed, x) for arm, xs in numbers.items() for seed, x in enumerate(xs)]
    record = compare_dense(found)
    assert record.arms == ("LSQ", "CR")
    assert record.seeds == (0, 1, 2)
    np.testing.assert_allclose(record.scores, [[0.4, 0.5, 0.3], [0.5, 0.6, 0.7]])
    assert record.quantile == pytest.approx(4.302653)  # from a table: 2 degrees of freedom
    assert (record.task, record.measure) == ("segmentation", "mIoU")
    assert (record.labelled, record.test, record.against) == (5, 7, "LSQ")
    assert math.isnan(compare_dense([finished("LSQ", 3, 0.5)]).quantile)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "one task and size"),
        ([finished("LSQ", 0, 0.5), finished("LSQ", 1, 0.5, task="detection")], "one task and size"),
        ([finished("LSQ", 0, 0.5), finished("LSQ", 0, 0.6)], "two runs of LSQ, seed 0"),
        ([finished("CR", 0, 0.5)], "none is 'LSQ'"),
        ([finished("LSQ", 0, 0.5), finished("CR", 1, 0.5)], "no seed has all"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(found, words):
    with pytest.raises(ValueError, match=words):
        compare_dense(found)
