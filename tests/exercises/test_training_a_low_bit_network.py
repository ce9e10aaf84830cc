import math
from functools import partial

import pandas as pd
import pytest
import torch

from qatviz.augment import flip
from qatviz.checkpoints import load_tree, save_tree
from qatviz.datasets import Split
from qatviz.exercises.training_a_low_bit_network import (
    NEEDED,
    PARTS,
    StopAt,
    check_interval,
    check_needed,
    check_rate,
)
from qatviz.methods import CrossEntropy
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.schedule import Schedule
from qatviz.training import fit


def half_cosine(done, end=math.pi):
    return 0.5 * (1 + math.cos(end * done))


def right(progress, highest, warmup):
    """A line up, half a cosine down."""
    if progress < warmup:
        return highest * progress / warmup
    return highest * half_cosine((progress - warmup) / (1 - warmup))


def warmed(after):
    """A line up, and something else after it."""
    return lambda p, highest, w: highest * (p / w if p < w else after(p, w))


def test_the_cosine_with_warm_up_is_right():
    assert check_rate(right).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda p, highest, w: highest * half_cosine(p), "no warm-up in it"),
        (lambda p, highest, w: highest * half_cosine((p - w) / (1 - w)), "no warm-up yet"),
        (warmed(lambda p, w: half_cosine(p)), "stretch what is left"),
        (warmed(lambda p, w: half_cosine((p - w) / (1 - w), math.pi / 2)), "end at zero"),
        (warmed(lambda p, w: math.cos(math.pi * (p - w) / (1 - w))), "add 1"),
        (lambda p, highest, w: right(p, 1.0, w), "highest rate"),
        (lambda p, highest, w: highest, "at progress 0 it is 0.0000, got 0.2000"),
    ],
)
def test_each_wrong_rate_has_its_hint(function, hint):
    verdict = check_rate(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_what_a_checkpoint_needs_is_right():
    assert check_needed({"student", "optimizers", "generators"}).right
    assert check_needed(["generators", "student", "optimizers"]).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ({"student", "generators"}, "momentum"),
        ({"student", "optimizers"}, "drawn"),
        ({"optimizers", "generators"}, "those of the start"),
        (PARTS, "one too many"),
        ("student", "momentum"),
        ({"weights"}, "there is no weights; choose from student"),
    ],
)
def test_each_wrong_set_has_its_hint(answer, hint):
    verdict = check_needed(answer)
    assert verdict.right is False
    assert hint in verdict.message


@pytest.fixture(scope="module")
def job():
    """A 2-bit student as a function of nothing, and what it is trained with."""
    torch.manual_seed(0)
    model = small_cnn(width=2)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    data = Split(images, torch.arange(32) % 10, (0.5,), (0.25,))

    def train(path=None, stop=None, resume=False):
        student = quantize(model, partial(LSQ, 2), None)
        method, schedule = CrossEntropy(flip), Schedule(epochs=3, batch=8, rate=0.05)
        options = {"checkpoint": path, "resume": resume, "progress": False, "accelerator": "cpu"}
        try:
            fit(student, method, data, data, schedule, [StopAt(stop)], **options)
        except KeyboardInterrupt:
            assert stop is not None
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    return train


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_needed_exactly_where_the_check_says(job, tmp_path, part):
    early, late = tmp_path / "early", tmp_path / "late"
    job(early, stop=5)
    job(late, stop=9)
    save_tree(load_tree(late) | {part: load_tree(early)[part]}, tmp_path / "swapped")
    same = torch.equal(job(), job(tmp_path / "swapped", resume=True))
    assert same == (part not in NEEDED)


def test_nothing_swapped_is_the_same_run(job, tmp_path):
    job(tmp_path / "late", stop=9)
    assert torch.equal(job(), job(tmp_path / "late", resume=True))


def test_stop_at_stops_after_its_step_only():
    stop = StopAt(3)
    stop(2, torch.nn.Identity())
    stop(4, torch.nn.Identity())
    StopAt()(3, torch.nn.Identity())
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        stop(3, torch.nn.Identity())


OURS, THEIRS = pd.Series([0.90, 0.88, 0.89]), pd.Series([0.87, 0.86, 0.88])
# Differences 0.03, 0.02, 0.01: mean 0.02, sample deviation 0.01, of the population 0.01·√(2/3).
# Arms: deviations 0.01 and 0.01, so the unpaired standard error is √(2·0.0001/3).
T = 4.30265  # the 97.5 % quantile of Student's t with two degrees of freedom


def interval(half, mean=0.02):
    return mean, mean - half, mean + half


def test_the_paired_interval_is_right():
    assert check_interval(interval(T * 0.01 / 3**0.5), OURS, THEIRS).right
    assert check_interval(interval(4.303 * 0.01 / 3**0.5), OURS, THEIRS).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (interval(1.96 * 0.01 / 3**0.5), "Student's t"),
        (interval(2.91999 * 0.01 / 3**0.5), "0.975"),
        (interval(T * 0.01), "√n less"),
        (interval(T * 0.01 * (2 / 3) ** 0.5 / 3**0.5), "divides by n − 1"),
        (interval(3.18245 * 0.01 / 3**0.5), "not n."),
        (interval(0.01 / 3**0.5), "one standard error"),
        (interval(T * (0.0002 / 3) ** 0.5), "unpaired: subtract"),
        (interval(2.77645 * (0.0002 / 3) ** 0.5), "degrees of freedom of both"),
        (interval(T * 0.01 / 3**0.5, mean=-0.02), "other way round"),
        ([100 * v for v in interval(T * 0.01 / 3**0.5)], "percent"),
        (sorted(interval(T * 0.01 / 3**0.5)), "in this order"),
        (interval(0.5), "mean is right"),
        (interval(0.01, mean=0.5), "mean difference is 0.0200, got 0.5000"),
        ((0.02, 0.01), "three numbers"),
    ],
)
def test_each_wrong_interval_has_its_hint(answer, hint):
    verdict = check_interval(answer, OURS, THEIRS)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_rate(lambda progress, highest, warmup: ...).right is None
    assert check_rate(lambda progress, highest, warmup: None).right is None
    assert check_needed(None).right is None
    assert check_interval(None, OURS, THEIRS).right is None
