"""Two methods one after the other, against two loops one after the other."""

import copy

import pytest
import torch

from qatviz.augment import crop_flip, mixup
from qatviz.datasets import load
from qatviz.methods import (
    AveragedWeights,
    ConsistencyRegularization,
    CrossEntropy,
    Dampening,
    HintonKD,
    IterativeFreezing,
    Method,
    MixedCrossEntropy,
    RememberingConsistency,
    SparingConsistency,
    Switching,
    TwoTeachers,
)
from qatviz.models import small_resnet
from qatviz.studies import read_study
from qatviz.studies.building import build
from qatviz.studies.parts import methods_within
from tests.methods.common import (
    CE,
    TRAIN,
    drive,
    float_net,
    longer,
    resumed_like_whole,
    same,
    tiny,
    trained,
)

BATCHES = [(TRAIN.images[k : k + 8], TRAIN.labels[k : k + 8]) for k in (0, 5, 9, 13, 18, 2, 11)]


class Noted(Method):
    """Writes down what is asked of it; its loss is two terms."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log, self.answer = name, log, net()

    def prepare(self, student, data):
        self.log.append((self.name, "prepare"))

    def loss(self, forward, images, labels):
        self.log.append((self.name, "loss"))
        total = forward(images).sum()
        return {f"{self.name} a": 2 * total, f"{self.name} b": 3 * total}

    def after_step(self, batch, progress):
        self.log.append((self.name, progress))

    def evaluated(self, student):
        return self.answer


def net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("at", "total", "wanted"),
    [
        (0.0, 4, "ssss"),
        (0, 4, "ssss"),
        (0.5, 4, "ffss"),
        (0.5, 5, "fffss"),  # after the third step of five more than half is taken
        (0.3, 10, "fffsssssss"),  # 3/10 is 0.3
        (0.7, 10, "fffffffsss"),
        (1.0, 4, "ffff"),
        (1, 4, "ffff"),
    ],
)
def test_one_is_asked_until_the_share_is_taken_and_then_the_other(at, total, wanted):
    log = []
    method, student = Switching(Noted("f", log), Noted("s", log), at), net()
    method.prepare(student, TRAIN)
    assert log == [("f", "prepare"), ("s", "prepare")]
    log.clear()
    for step in range(1, total + 1):
        terms = method.loss(lambda x: x.float().mean() * student[1].weight, *BATCHES[0])
        assert list(terms) == ["loss"]
        whole = (BATCHES[0][0].float().mean() * student[1].weight).sum()
        torch.testing.assert_close(terms["loss"], 5 * whole)
        method.after_step(BATCHES[0], step / total)
        assert log == [(wanted[step - 1], "loss"), ("f", step / total), ("s", step / total)]
        log.clear()
    assert method.evaluated(student) is method.second.answer


def test_it_is_one_loop_and_then_another():
    method = Switching(Dampening(CrossEntropy(), 5.0), CrossEntropy(smoothing=0.2), at=0.4)
    ends = []
    for parts in ([method] * 7, [method.first] * 3 + [method.second] * 4):
        student = tiny()
        optimizer = torch.optim.SGD(student.parameters(), 0.2, momentum=0.9)
        method.prepare(student, TRAIN)
        for number, (part, batch) in enumerate(zip(parts, BATCHES, strict=True), 1):
            drive(student, part, [batch], optimizer, number, 7)
        ends.append(copy.deepcopy(student.state_dict()))
    assert same(*ends)


def test_at_the_ends_it_is_one_of_the_methods_to_the_bit():
    def consistency():
        return ConsistencyRegularization(CE(), decay=0.7)

    plain, mixed = trained(CE())[0], trained(consistency())[0]
    assert not same(plain, mixed)
    for at, wanted in ((0.0, mixed), (1.0, plain)):
        state, run = trained(Switching(CE(), consistency(), at))
        assert same(state, wanted)
        assert list(run.history.terms) == ["loss"]
    between = trained(Switching(CE(), consistency(), 0.5))[0]
    assert not same(between, plain)
    assert not same(between, mixed)


def test_the_loss_in_the_history_is_the_sum_of_the_terms():
    _, run = trained(Switching(Dampening(CE(), 5.0), CE(), at=1.0))
    _, other = trained(Dampening(CE(), 5.0))
    assert len(other.history.terms) == 2
    assert run.history.terms["loss"].tolist() == pytest.approx(
        sum(other.history.terms.values()).tolist(), rel=1e-6
    )


def test_an_average_is_up_to_date_when_its_method_takes_over():
    method = Switching(CE(), ConsistencyRegularization(CE(), decay=0.6), at=0.99)
    student = tiny()
    method.prepare(student, TRAIN)
    optimizer = torch.optim.SGD(student.parameters(), 0.2)
    wanted = student[0].weight.detach().clone()
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        wanted = 0.6 * wanted + 0.4 * student[0].weight.detach()
    torch.testing.assert_close(method.second.teacher[0].weight.detach(), wanted)


def test_the_second_says_who_is_evaluated():
    state, _ = trained(method := Switching(CE(), AveragedWeights(CE(), 0.5)))
    assert same(state, method.second.average.state_dict())
    state, _ = trained(method := Switching(AveragedWeights(CE(), 0.5), CE()))
    assert same(state, trained(CE())[0])
    assert not same(state, method.first.average.state_dict())


FIVE = {
    "consistency to labels": lambda: Switching(
        ConsistencyRegularization(CrossEntropy(), decay=0.8), CrossEntropy()
    ),
    "sparing to remembering": lambda: Switching(
        SparingConsistency(CrossEntropy(), 2, 0.5, 0.8, warm_up=True),
        RememberingConsistency(CrossEntropy(), 0.8),
        at=0.4,
    ),
    "of switches": lambda: Switching(
        Switching(CrossEntropy(), Dampening(CrossEntropy(), 2.0), at=0.25),
        TwoTeachers(CrossEntropy(), float_net(), decay=0.8),
        at=0.7,
    ),
}


@pytest.mark.parametrize("cut", [6, 9])
@pytest.mark.parametrize("make", FIVE.values(), ids=FIVE)
def test_resumed_like_whole(make, cut):
    whole, resumed = resumed_like_whole(make, cut=cut)
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())


def test_a_second_run_begins_with_the_first_method():
    method = Switching(Dampening(CE(), 5.0), ConsistencyRegularization(CE(), decay=0.7))
    first, _ = trained(method)
    second, _ = trained(method)
    assert same(first, second)


def test_it_stands_around_many_and_inside_others():
    freezing = IterativeFreezing(CE(), threshold=0.05, begin=0.1, momentum=0.3, start=0.25)
    inner = Switching(MixedCrossEntropy(mixup, crop_flip), HintonKD(float_net(), crop_flip))
    for method in (
        Switching(freezing, inner, at=0.25),
        AveragedWeights(inner, 0.9),
        ConsistencyRegularization(inner, teacher_view=crop_flip),
    ):
        state, run = trained(method, schedule=longer(2))
        assert "loss" in run.history.terms
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_a_batch_without_any_label():
    method, student = Switching(CE(), ConsistencyRegularization(CE())), tiny().train()
    method.prepare(student, TRAIN)
    for progress in (0.5, 0.75):
        terms = method.loss(
            lambda v: student(TRAIN.normalise(v)), BATCHES[0][0], torch.full((8,), -1)
        )
        assert (terms["loss"] == 0) == (progress == 0.5)
        method.after_step(BATCHES[0], progress)


@pytest.mark.parametrize("at", [-0.1, 1.1, float("nan")])
def test_bad_shares(at):
    with pytest.raises(ValueError, match="Switching: at must be from 0 to 1, got"):
        Switching(CE(), CE(), at)


def test_a_study_makes_both_and_fills_teachers_in(tmp_path):
    (tmp_path / "study.toml").write_text("""
        [base]
        bits = 2
        start = "float_small_resnet"
        [grid.method]
        labels = "CrossEntropy"
        [grid.method.both]
        name = "Switching"
        at = 0.25
        first = { name = "CrossEntropy", view = "crop_flip" }
        second = { name = "TwoTeachers", weight = 0.3, method = "CrossEntropy" }
    """)
    _, experiment = read_study(tmp_path / "study.toml", tmp_path / "cache")
    assert len(methods_within(experiment.method)) == 4
    assert experiment.label == "both"
    data, start = load("fashion-mini"), small_resnet().state_dict()
    student, method, _ = build(experiment, data, start)
    assert (type(method), method.at) == (Switching, 0.25)
    assert (type(method.first), method.first.view) == (CrossEntropy, crop_flip)
    assert (type(method.second), method.second.weight) == (TwoTeachers, 0.3)
    assert same(method.second.float_teacher.state_dict(), start)
    method.prepare(student, data.train.subset(4))
    images, labels = data.train.images[:4], data.train.labels[:4]
    terms = method.loss(lambda v: student(data.train.normalise(v)), images, labels)
    assert list(terms) == ["loss"]


def test_a_study_without_trained_weights_has_no_teacher_for_the_second(tmp_path):
    (tmp_path / "study.toml").write_text("""
        [base]
        bits = 2
        method = { name = "Switching", first = "CrossEntropy",\
 second = { name = "TwoTeachers", method = "CrossEntropy" } }
    """)
    with pytest.raises(ValueError, match=r"TwoTeachers\(CrossEntropy\) needs a teacher"):
        read_study(tmp_path / "study.toml", tmp_path / "cache")
