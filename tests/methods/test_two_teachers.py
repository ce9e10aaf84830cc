"""Two teachers, against their mixture written out."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from qatviz.augment import crop_flip
from qatviz.datasets import load
from qatviz.methods import ConsistencyRegularization, CrossEntropy, HintonKD, TwoTeachers
from qatviz.methods.base import labelled_cross_entropy
from qatviz.models import small_resnet
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.studies import read_study
from qatviz.studies.building import build
from tests.methods.common import (
    CE,
    TRAIN,
    drive,
    float_net,
    resumed_like_whole,
    same,
    tiny,
    trained,
)

FIRST = 0.006737946999085467  # e⁻⁵: the ramp at the first step
BATCHES = [(TRAIN.images[k : k + 8], TRAIN.labels[k : k + 8]) for k in (0, 5, 9, 13, 18)]


def other_net(outputs=3):
    """A float network with weights and statistics of its own."""
    net = float_net(outputs)
    with torch.no_grad():
        net[5].weight.add_(torch.linspace(-1, 1, net[5].weight.numel()).view_as(net[5].weight))
        net[1].running_mean.fill_(0.2)
    return net


def prepared(method):
    student = tiny()
    method.prepare(student, TRAIN)
    method.teacher[5].bias += torch.tensor([0.5, -0.5, 0.0])  # else it is the student at first
    return student.train(), torch.optim.SGD(student.parameters(), 0.2)


def terms_of(method, student, images=BATCHES[0][0], labels=BATCHES[0][1]):
    return method.loss(lambda view: student(TRAIN.normalise(view)), images, labels)


def mirrored(images):
    return images.flip(-1)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0, 1])
def test_the_terms_by_hand(weight):
    net = other_net()
    method = TwoTeachers(CrossEntropy(mirrored), net, weight, strength=0.7)
    student, _ = prepared(method)
    images, labels = BATCHES[0]
    x = (images.flip(-1) / 255 - 0.45) / 0.25
    logits, average = copy.deepcopy(student)(x), copy.deepcopy(method.teacher)
    with torch.no_grad():
        of_average, of_net = average(x).softmax(1), net.eval()(x).softmax(1)
    target, own = (1 - weight) * of_average + weight * of_net, logits.softmax(1)
    wanted = sum((q * (q / p).log()).sum() for q, p in zip(target, own, strict=True)) / 8
    terms = terms_of(method, student)
    assert list(terms) == ["cross_entropy", "consistency"]
    torch.testing.assert_close(terms["cross_entropy"], labelled_cross_entropy(logits, labels))
    torch.testing.assert_close(terms["consistency"], FIRST * 0.7 * wanted, atol=1e-7, rtol=1e-4)


def test_weight_zero_is_consistency_to_the_bit_and_runs_no_float_teacher():
    counted, options = [], {"strength": 0.5, "decay": 0.7, "warm_up": True}
    method = TwoTeachers(CE(), other_net(), 0.0, **options)
    method.float_teacher[5].register_forward_pre_hook(lambda *_: counted.append(None))
    state, run = trained(method)
    plain, other = trained(ConsistencyRegularization(CE(), **options))
    assert same(state, plain)
    for name, values in other.history.terms.items():
        assert run.history.terms[name].tolist() == values.tolist()
    assert len(counted) <= 1  # in ``prepare``
    assert not same(trained(TwoTeachers(CE(), other_net(), 0.1, **options))[0], plain)


def test_weight_one_is_distillation_alone_and_runs_no_average():
    counted, net = [], other_net()
    method = TwoTeachers(CrossEntropy(), net, 1.0, strength=3.0)
    method.ramp = lambda progress: 1.0
    student, _ = prepared(method)
    method.teacher.register_forward_pre_hook(lambda *_: counted.append(None))
    hinton = HintonKD(net, temperature=1.0, weight=0.75)
    hinton.prepare(student, TRAIN)
    # Of one view without randomness: λ = 3 is a weight of 3/4, times 4.
    terms, wanted = (terms_of(m, copy.deepcopy(student)) for m in (method, hinton))
    torch.testing.assert_close(terms["consistency"], 4 * wanted["distillation"])
    torch.testing.assert_close(terms["cross_entropy"], 4 * wanted["cross_entropy"])
    assert counted == []


def test_both_see_one_random_view_which_is_not_the_students():
    method, seen = TwoTeachers(CrossEntropy(crop_flip), other_net()), {}
    student, _ = prepared(method)
    for name, module in {
        "student": student,
        "average": method.teacher,
        "float": method.float_teacher,
    }.items():
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
        )
    terms_of(method, student)
    assert {name: len(views) for name, views in seen.items()} == dict.fromkeys(seen, 1)
    assert torch.equal(seen["average"][0], seen["float"][0])
    assert not torch.equal(seen["student"][0], seen["float"][0])


def test_with_the_average_as_second_teacher_it_is_consistency():
    # A mixture of two equal predictions, whatever the weight.
    method = TwoTeachers(CrossEntropy(), float_net(), 0.3, decay=1.0)
    student, _ = prepared(method)
    method.float_teacher = method.teacher
    alone = ConsistencyRegularization(CrossEntropy(), decay=1.0)
    alone.prepare(student, TRAIN)
    alone.teacher.load_state_dict(method.teacher.state_dict())
    wanted, found = (terms_of(m, copy.deepcopy(student)) for m in (alone, method))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_teacher_that_is_certain_leaves_the_loss_finite(weight):
    net = other_net()
    with torch.no_grad():
        net[5].bias += torch.tensor([0.0, 500.0, 0.0])
    method = TwoTeachers(CrossEntropy(), net, weight)
    student, _ = prepared(method)
    with torch.no_grad():
        method.teacher[5].bias += torch.tensor([0.0, 500.0, 0.0])
    terms = terms_of(method, student)
    assert terms["consistency"].isfinite()
    own = copy.deepcopy(student)(TRAIN.normalise(BATCHES[0][0])).log_softmax(1)[:, 1]
    torch.testing.assert_close(terms["consistency"], -FIRST * own.mean(), atol=1e-6, rtol=1e-3)


def test_the_average_moves_and_the_float_teacher_does_not():
    net = other_net().train()
    before = copy.deepcopy(net.state_dict())
    method = TwoTeachers(CE(), net, decay=0.6).train()
    student, optimizer = prepared(method)
    wanted = student[0].weight.detach().clone()
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        wanted = 0.6 * wanted + 0.4 * student[0].weight.detach()
        torch.testing.assert_close(method.teacher[0].weight.detach(), wanted)
    assert same(net.state_dict(), before)
    assert same(method.float_teacher.state_dict(), before)
    assert net.training
    assert not any(module.training for module in method.float_teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in method.parameters())


def test_a_batch_without_any_label_is_learned_from():
    method = TwoTeachers(CrossEntropy(), other_net())
    student, _ = prepared(method)
    terms = terms_of(method, student, labels=torch.full((8,), -1))
    assert terms["cross_entropy"].item() == 0
    terms["consistency"].backward()
    assert student[5].weight.grad.abs().sum() > 0


def test_resumed_like_whole():
    def make():
        return TwoTeachers(CrossEntropy(), other_net(), 0.3, decay=0.95, warm_up=True)

    whole, resumed = resumed_like_whole(make)
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())


def test_it_stands_around_distillation_and_with_quantized_teachers():
    _, run = trained(TwoTeachers(HintonKD(float_net(), crop_flip), tiny()))
    assert list(run.history.terms) == ["cross_entropy", "distillation", "consistency"]
    assert all(values[0] > 0 for values in run.history.terms.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": 1.1}, "weight must be from 0 to 1, got 1.1"),
        ({"weight": -0.1}, "weight must be from 0 to 1, got -0.1"),
        ({"weight": float("nan")}, "weight must be from 0 to 1, got nan"),
        ({"strength": -1.0}, "strength must be from 0 below inf, got -1.0"),
        ({"decay": 2.0}, "decay must be from 0 to 1, got 2.0"),
    ],
)
def test_bad_numbers(given, said):
    with pytest.raises(ValueError, match=said):
        TwoTeachers(CE(), float_net(), **given)


def test_teachers_that_are_refused():
    fresh = quantize(float_net(), partial(LSQ, bits=3), partial(LSQ, bits=3))
    with pytest.raises(ValueError, match="not calibrated"):
        TwoTeachers(CE(), fresh)
    with pytest.raises(
        ValueError, match=r"TwoTeachers: the teacher returns \[5\] numbers .* the student \[3\]"
    ):
        TwoTeachers(CE(), float_net(5)).prepare(tiny(), TRAIN)
    # Of one class it would be broadcast without a word.
    with pytest.raises(ValueError, match=r"the teacher returns \[1\]"):
        TwoTeachers(CE(), float_net(1)).prepare(tiny(), TRAIN)
    coloured = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match="cannot take images of shape"):
        TwoTeachers(CE(), coloured).prepare(tiny(), TRAIN)


def test_a_study_fills_the_teacher_in_with_the_float_network(tmp_path):
    (tmp_path / "study.toml").write_text("""
        [base]
        bits = 2
        start = "float_small_resnet"
        method = { name = "TwoTeachers", weight = 0.25, warm_up = true,\
 method = { name = "HintonKD", view = "crop_flip" } }
    """)
    (experiment,) = read_study(tmp_path / "study.toml", tmp_path / "cache")
    data, start = load("fashion-mini"), small_resnet().state_dict()
    student, method, _ = build(experiment, data, start)
    assert (type(method), method.weight, method.warm_up) == (TwoTeachers, 0.25, True)
    assert same(method.float_teacher.state_dict(), start)
    assert same(method.method.teacher.state_dict(), start)
    assert method.teacher_view is crop_flip
    assert start.keys() < student.state_dict().keys()
    method.prepare(student, data.train.subset(4))
