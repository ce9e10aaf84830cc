"""Consistency of features, against the cosine written out with networks cut before their end."""

import copy

import pytest
import torch
from torch import nn

from qatviz.methods import CrossEntropy, FeatureConsistency
from qatviz.methods.features import inputs_of
from qatviz.quantize import quantize
from tests.methods.common import CE, TRAIN, drive, resumed_like_whole, same, tiny, trained

FIRST = 0.006737946999085467  # e⁻⁵: the ramp at the first step
IMAGES, LABELS = TRAIN.images[:8], TRAIN.labels[:8]


def prepared(**options):
    method, student = FeatureConsistency(CrossEntropy(), **options), tiny()
    method.prepare(student, TRAIN)
    method.teacher[0].weight.mul_(torch.linspace(0.5, 2.0, 4).view(4, 1, 1, 1))  # else they agree
    return method, student.train()


def terms_of(method, student):
    return method.loss(lambda view: student(TRAIN.normalise(view)), IMAGES, LABELS)


def cosine_distance(first, second):
    total = 0.0
    for a, b in zip(first.double(), second.double(), strict=True):
        total += 1 - (a @ b) / (a.norm() * b.norm())
    return total / len(first)


def test_the_term_is_the_cosine_of_what_the_last_layer_is_given():
    method, student = prepared(strength=3.0)
    x = (IMAGES / 255 - 0.45) / 0.25
    with torch.no_grad():  # the last layer cut off; BatchNorm by the batch in both
        ours = copy.deepcopy(student)[:-1](x)
        theirs = copy.deepcopy(method.teacher)[:-1](x)
    terms = terms_of(method, student)
    assert list(terms) == ["cross_entropy", "consistency"]
    wanted = 3 * FIRST * cosine_distance(ours, theirs)
    assert wanted > 1e-4
    assert terms["consistency"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_neither_last_layer_has_a_part_in_it():
    method, student = prepared()
    first = terms_of(method, student)["consistency"]
    with torch.no_grad():
        method.teacher[5].bias += 5.0
        student[5].weight *= 2.0
    loss = terms_of(method, student)["consistency"]
    assert loss == first
    loss.backward()
    assert student[5].weight.grad is None
    assert student[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_it_leaves_no_hooks_and_keeps_no_features():
    method, student = prepared()
    terms_of(method, student)
    for model in (student, method.teacher):
        assert not any(layer._forward_pre_hooks for layer in model.modules())
    assert method._features == []
    copy.deepcopy(method)  # refused if it held what is differentiated
    with pytest.raises(RuntimeError, match="stop"), inputs_of(student[5]):
        raise RuntimeError("stop")
    assert not student[5]._forward_pre_hooks


def test_a_run_that_is_cut_goes_on_as_the_whole_one():
    (student, method), (other, resumed) = resumed_like_whole(
        lambda: FeatureConsistency(CrossEntropy(), strength=2.0, decay=0.7)
    )
    assert same(student.state_dict(), other.state_dict())
    assert same(method.teacher.state_dict(), resumed.teacher.state_dict())


def test_it_changes_training_and_strength_zero_does_not():
    plain, _ = trained(CE())
    none, _ = trained(FeatureConsistency(CE(), strength=0.0))
    some, run = trained(FeatureConsistency(CE(), strength=5.0, decay=0.7))
    assert same(none, plain)
    assert not same(some, plain)
    assert (run.history.terms["consistency"] > 0).any()


def test_a_student_without_a_linear_layer_is_refused():
    student = quantize(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), None, None)
    with pytest.raises(ValueError, match="no linear layer"):
        FeatureConsistency(CrossEntropy()).prepare(student, TRAIN)


@pytest.mark.parametrize("options", [{"strength": -1.0}, {"decay": 1.5}])
def test_numbers_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FeatureConsistency(CrossEntropy(), **options)


def test_the_teacher_moves_after_a_step():
    method, student = prepared(decay=0.5)
    before = copy.deepcopy(method.teacher.state_dict())
    drive(student, method, [(IMAGES, LABELS)], torch.optim.SGD(student.parameters(), 0.2), 1, 2)
    assert not same(before, method.teacher.state_dict())
