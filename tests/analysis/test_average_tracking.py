"""The tracker of an average, against the teacher of a run and against sums by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis import AverageTracker
from qatviz.methods import ConsistencyRegularization
from qatviz.quantize import quantize, quantized_layers
from qatviz.tracking import OscillationTracker
from tests.methods.common import CE, SCHEDULE, TEST, TRAIN, fit, longer, same, tiny


def test_its_average_is_the_teacher_of_consistency():
    student, method = tiny(), ConsistencyRegularization(CE(), decay=0.8)
    watch = AverageTracker(student, decay=0.8)
    fit(student, method, TRAIN, TEST, SCHEDULE, [watch])
    assert watch.tracker.steps == SCHEDULE.epochs * (len(TRAIN) // SCHEDULE.batch)
    for name, layer in quantized_layers(watch.average).items():
        teacher = method.teacher.get_submodule(name)
        assert torch.equal(layer.weight, teacher.weight)
        assert torch.equal(layer.weight_quantizer.step, teacher.weight_quantizer.step)


def test_codes_are_those_of_the_mean_weight_not_the_mean_of_codes():
    student = tiny()
    weight = student[0].weight_quantizer.step.detach()
    watch = AverageTracker(student, decay=0.9)
    latent = student[0].weight.detach().double().clone()
    for move in (0.3, -0.2, 0.7):
        with torch.no_grad():
            student[0].weight += move * weight
        watch(0, student)
        latent = 0.9 * latent + 0.1 * student[0].weight.detach().double()
    bits = student[0].weight_quantizer.bits
    wanted = (latent / weight.double()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(watch.tracker.split(watch.tracker.codes)["0"].double(), wanted)


def test_without_memory_it_is_the_tracker_of_the_student():
    student = tiny()
    plain, average = OscillationTracker(student), AverageTracker(student, decay=0.0)
    fit(student, CE(), TRAIN, TEST, longer(2), [plain, average])
    ours, theirs = average.record(), plain.record()
    assert ours.layers == theirs.layers
    for name in ("frequency", "events", "changes", "survival"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.changes.sum() > 0


def test_its_state_comes_back():
    student = tiny()
    first, second = AverageTracker(student, decay=0.5), AverageTracker(tiny(), decay=0.5)
    with torch.no_grad():
        student[0].weight.neg_()
    first(0, student)
    second.load_state_dict(first.state_dict())
    assert same(first.state_dict(), second.state_dict())
    assert second.tracker.steps == 1
    assert repr(second) == repr(first)
    assert "decay=0.5" in repr(second)


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be 0 to 1, got {decay}"):
        AverageTracker(tiny(), decay=decay)


def test_a_model_without_quantized_weights_is_refused():
    with pytest.raises(ValueError, match="to track"):
        AverageTracker(quantize(nn.Sequential(nn.Linear(2, 2)), None, None))
