import copy
from functools import partial

import pytest
import torch

from qatviz.methods import AveragedWeights, CrossEntropy, IterativeFreezing, Method
from qatviz.quantizers import LSQ
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

BATCHES = [(TRAIN.images[k : k + 8], TRAIN.labels[k : k + 8]) for k in (0, 5, 9, 13, 18)]


def steps_of(method, student=None):
    """Train a few steps; the states before and after each, and the student."""
    student = tiny() if student is None else student
    method.prepare(student, TRAIN)
    states = [copy.deepcopy(student.state_dict())]
    optimizer = torch.optim.SGD(student.parameters(), 0.2)
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        states.append(copy.deepcopy(student.state_dict()))
    return student, states


def literal(states, decay, warm_up):
    """The recursion, one number at a time."""
    average = {k: v.double().flatten().tolist() for k, v in states[0].items()}
    for t, state in enumerate(states[1:], 1):
        a = min(decay, 1 - 1 / (t + 1)) if warm_up else decay
        for key, own in state.items():
            new = own.double().flatten().tolist()
            pairs = zip(average[key], new, strict=True)
            kept = [a * old + (1 - a) * value for old, value in pairs]
            average[key] = kept if own.is_floating_point() else new
    return average


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
@pytest.mark.parametrize("quantized", [True, False])
def test_the_average_is_the_recursion(decay, warm_up, quantized):
    method = AveragedWeights(CE(), decay, warm_up)
    student, states = steps_of(method, tiny() if quantized else float_net())
    assert not same(states[0], states[-1])
    wanted = literal(states, decay, warm_up)
    found = method.evaluated(student).state_dict()
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        assert value.flatten().tolist() == pytest.approx(wanted[key], rel=1e-5, abs=1e-6), key


def test_the_warm_up_is_the_plain_mean():
    method = AveragedWeights(CE(), 1.0)
    student, states = steps_of(method)
    mean = torch.stack([s["0.weight"] for s in states]).mean(0)
    torch.testing.assert_close(method.evaluated(student)[0].weight.detach(), mean)


def test_decay_one_without_warm_up_is_the_start():
    method = AveragedWeights(CE(), 1.0, warm_up=False)
    student, states = steps_of(method)
    assert same(method.evaluated(student).state_dict(), states[0])


def test_decay_zero_is_the_student_to_the_bit():
    student = tiny()
    method = AveragedWeights(CE(), 0.0)
    gaps = []

    def observer(step, model):
        gaps.append(same(model.state_dict(), method.evaluated(model).state_dict()))

    state, _ = trained(method, student, observers=[observer])
    assert gaps == [True] * 12
    assert same(state, trained(CE())[0])
    assert same(method.average.state_dict(), state)


def test_training_itself_is_not_changed():
    seen = [[], []]
    for method, states in zip((AveragedWeights(CE(), 0.9), CE()), seen, strict=True):
        trained(method, observers=[lambda _, m, s=states: s.append(m[0].weight.detach().clone())])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_the_average_is_quantized():
    method = AveragedWeights(CE(), 0.7)
    student, _ = steps_of(method)
    average = method.evaluated(student)
    assert not average.training
    weight, step = average[0].quantized_weight(), average[0].weight_quantizer.step
    assert len(weight.unique()) <= 8
    torch.testing.assert_close(weight / step, (weight / step).round())
    assert not torch.equal(average[0].weight_quantizer.step, student[0].weight_quantizer.step)


class Scales(Method):
    """Changes the student as it is prepared, as some methods do."""

    def prepare(self, student, data):
        with torch.no_grad():
            student[0].weight *= 2


def test_the_average_begins_with_the_prepared_student():
    student, method = tiny(), AveragedWeights(Scales())
    method.prepare(student, TRAIN)
    assert same(method.average.state_dict(), student.state_dict())


def test_averaged_over_freezing_over_labels():
    freezing = IterativeFreezing(CE(), threshold=0.2, begin=0.2, momentum=0.5, start=0.0)
    method = AveragedWeights(freezing, 0.5)
    student = tiny(partial(LSQ, bits=2))
    trained(method, student, longer(6))
    assert freezing.share_frozen > 0
    assert method.evaluated(student) is method.average
    # The wrapped method alone trains the same student.
    alone = tiny(partial(LSQ, bits=2))
    other = IterativeFreezing(CE(), threshold=0.2, begin=0.2, momentum=0.5, start=0.0)
    trained(other, alone, longer(6))
    assert torch.equal(other.frozen, freezing.frozen)


def test_resumed_like_whole():
    whole, resumed = resumed_like_whole(lambda: AveragedWeights(CrossEntropy(), 0.8))
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())
    assert whole[1].state_dict()["_extra_state"] == 12


def test_a_second_run_begins_anew():
    method = AveragedWeights(CE(), 0.9)
    first, _ = trained(method)
    second, _ = trained(method)
    assert same(first, second)
    assert method._prepared == ()


def test_the_student_is_no_part_of_the_method():
    method, student = AveragedWeights(CE()), tiny()
    method.prepare(student, TRAIN)
    assert not any(m is student for m in method.modules())
    assert not any(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay must be from 0 to 1, got"):
        AveragedWeights(CE(), decay)
