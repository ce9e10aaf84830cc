import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from qatviz.augment import crop_flip
from qatviz.losses import distillation
from qatviz.methods import CrossEntropy, HintonKD
from qatviz.methods.base import labelled_cross_entropy
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.methods.common import (
    CE,
    TRAIN,
    float_net,
    longer,
    resumed_like_whole,
    same,
    tiny,
    trained,
)

KD = partial(HintonKD, view=crop_flip)


class Broken(nn.Module):
    """Answers while it is looked at, and may not be run in training."""

    def __init__(self):
        super().__init__()
        self.net, self.runs = float_net(), 0

    def forward(self, images):
        self.runs += 1
        return self.net(images)


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_the_terms_by_hand_on_one_normalised_view(weight):
    teacher, student = float_net(), tiny()
    teacher[1].running_mean.uniform_(-1, 1)
    method = HintonKD(teacher, lambda images: images.flip(-1), temperature=3.0, weight=weight)
    method.prepare(student, TRAIN)
    images, labels = TRAIN.images[:8], TRAIN.labels[:8]
    seen = []

    def forward(views):
        seen.append(views)
        return student((views / 255 - 0.45) / 0.25)

    terms = method.loss(forward, images, labels)
    assert len(seen) == 1
    x = (images.flip(-1) / 255 - 0.45) / 0.25
    logits, targets = student(x), teacher.eval()(x)
    assert list(terms) == ["cross_entropy", "distillation"]
    hard = (1 - weight) * labelled_cross_entropy(logits, labels)
    soft = weight * distillation(logits, targets, 3.0)
    torch.testing.assert_close(terms["cross_entropy"], hard)
    torch.testing.assert_close(terms["distillation"], soft)


def test_both_see_the_same_random_view():
    # A teacher that is the student itself: no divergence, whatever the view.
    student = float_net().eval()
    method = HintonKD(student, crop_flip, weight=1.0)
    method.prepare(student, TRAIN)
    terms = method.loss(lambda v: student(TRAIN.normalise(v)), TRAIN.images, TRAIN.labels)
    assert list(terms) == ["distillation"]
    assert abs(terms["distillation"].item()) < 1e-6


def test_weight_zero_is_cross_entropy_to_the_bit_and_runs_no_teacher():
    broken = Broken()
    method = KD(broken, weight=0.0)
    state, run = trained(method)
    plain, plain_run = trained(CE())
    assert same(state, plain)
    assert list(run.history.terms) == ["cross_entropy"]
    assert run.history.terms["cross_entropy"].tolist() == (
        plain_run.history.terms["cross_entropy"].tolist()
    )
    # Only prepare looked at it.
    assert method.teacher.runs <= 2
    assert broken.runs == 0


def test_weight_one_reads_no_label():
    teacher = float_net()
    first, _ = trained(KD(teacher, weight=1.0))
    shuffled = replace(TRAIN, labels=(TRAIN.labels + 1) % 3)
    second, _ = trained(KD(teacher, weight=1.0), data=shuffled)
    assert same(first, second)
    assert not same(first, trained(KD(teacher, weight=0.9))[0])


def test_the_teacher_is_a_copy_that_training_leaves_alone():
    teacher = float_net().train()
    before = copy.deepcopy(teacher.state_dict())
    method = KD(teacher).train()
    state, run = trained(method)
    assert same(method.teacher.state_dict(), before)
    assert same(teacher.state_dict(), before)
    assert teacher.training
    assert not any(m.training for m in method.teacher.modules())
    assert list(method.parameters()) == list(method.teacher.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.parameters())
    assert sorted(run.history.terms) == ["cross_entropy", "distillation"]
    assert not same(state, trained(CE())[0])


def test_distillation_pulls_the_student_to_the_teacher():
    teacher = float_net()
    trained(CrossEntropy(), teacher)
    images = TRAIN.normalise(TRAIN.images)
    gaps = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        student = tiny()
        nn.init.normal_(student[5].weight)
        trained(HintonKD(teacher, weight=weight), student, longer(12))
        gaps.append(distillation(student(images), teacher(images)).item())
    assert gaps[1] < 0.5 * gaps[0]


def test_a_quantized_teacher_and_a_float_student():
    state, _ = trained(KD(tiny()), float_net())
    assert all(v.isfinite().all() for v in state.values())


def test_resumed_like_whole():
    whole, resumed = resumed_like_whole(lambda: HintonKD(float_net()))
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())


def test_what_normalises_holds_one_image():
    method = HintonKD(float_net())
    method.prepare(tiny(), TRAIN)
    assert len(method._normalise.__self__) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"weight": 1.1}, "weight must be from 0 to 1, got 1.1"),
        ({"weight": -0.1}, "weight must be from 0 to 1"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        HintonKD(float_net(), **arguments)


def test_teachers_that_are_refused():
    fresh = quantize(float_net(), partial(LSQ, bits=3), partial(LSQ, bits=3))
    with pytest.raises(ValueError, match="not calibrated"):
        HintonKD(fresh)
    with pytest.raises(
        ValueError, match=r"teacher returns \[5\] numbers per image, the student \[3"
    ):
        HintonKD(float_net(5)).prepare(tiny(), TRAIN)
    coloured = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match="cannot take images of shape"):
        HintonKD(coloured).prepare(tiny(), TRAIN)
