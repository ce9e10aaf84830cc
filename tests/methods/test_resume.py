"""Every method goes on from a checkpoint of ``fit``, to the bit."""

from functools import partial

import pytest
import torch

from qatviz.augment import crop_flip, cutmix
from qatviz.methods import (
    AveragedWeights,
    ConsistencyRegularization,
    CrossEntropy,
    Dampening,
    HessianScaling,
    HintonKD,
    IterativeFreezing,
    MixedCrossEntropy,
    RememberingConsistency,
    SparingConsistency,
    Switching,
    TwoTeachers,
)
from qatviz.quantizers import EWGS, LSQ
from qatviz.tracking import OscillationTracker
from tests.methods.common import CE, TEST, TRAIN, fit, float_net, longer, same, tiny

lsq, ewgs = partial(tiny, partial(LSQ, bits=2)), partial(tiny, partial(EWGS, bits=2))


def freezing():
    return IterativeFreezing(CE(), threshold=0.05, begin=0.1, momentum=0.3, start=0.25)


CASES = {
    "smoothing": (lambda: CrossEntropy(smoothing=0.1), lsq),
    "distillation": (lambda: HintonKD(float_net()), lsq),
    "averaging": (lambda: AveragedWeights(CE(), 0.9), lsq),
    "dampening": (lambda: Dampening(CE(), 5.0), lsq),
    "freezing": (freezing, lsq),
    "curvature": (lambda: HessianScaling(CE(), every=2, batches=1, samples=3), ewgs),
    "all but curvature": (
        lambda: AveragedWeights(Dampening(freezing(), 0.5), 0.7),
        partial(tiny, partial(LSQ, bits=3, axis=0)),
    ),
    "consistency": (lambda: ConsistencyRegularization(CE(), decay=0.8), lsq),
    "sparing": (lambda: SparingConsistency(CE(), 3, 0.5, 0.95, warm_up=True), lsq),
    "remembering": (lambda: RememberingConsistency(CE(), 0.95, warm_up=True), lsq),
    "two teachers": (lambda: TwoTeachers(CE(), float_net(), decay=0.8), lsq),
    "mixtures, then consistency": (
        lambda: Switching(
            MixedCrossEntropy(cutmix, crop_flip), RememberingConsistency(CE(), 0.8), at=0.4
        ),
        lsq,
    ),
    "around curvature": (
        lambda: AveragedWeights(HessianScaling(CE(), every=1, batches=1, samples=3), 0.7),
        ewgs,
    ),
}


def stop_at(last, step, model):
    if step == last:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "student"), CASES.values(), ids=CASES)
def test_a_stopped_run_ends_in_the_same_bits(method, student, tmp_path):
    schedule = longer(5)  # of four steps each
    whole = (student(), method())
    run = fit(*whole, TRAIN, TEST, schedule, progress=False)
    path = tmp_path / "checkpoint"
    for last in (6, 13):
        with pytest.raises(KeyboardInterrupt):
            again = fit(
                *(student(), method(), TRAIN, TEST, schedule, [partial(stop_at, last)]),
                **{"checkpoint": path, "resume": True, "progress": False},
            )
    resumed = (student(), method())
    again = fit(
        *(*resumed, TRAIN, TEST, schedule, [partial(stop_at, 0)]),
        **{"checkpoint": path, "resume": True, "progress": False},
    )
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())
    assert again.test == run.test
    for name, values in run.history.terms.items():
        assert again.history.terms[name].tolist() == values.tolist()


def test_the_tracker_too(tmp_path):
    schedule, path = longer(4), tmp_path / "checkpoint"
    student = lsq()
    whole = OscillationTracker(student)
    fit(student, CE(), TRAIN, TEST, schedule, [whole], progress=False)
    options = {"checkpoint": path, "resume": True, "progress": False}
    for observers in ([partial(stop_at, 10)], [partial(stop_at, 0)]):
        student = lsq()
        tracker = OscillationTracker(student)
        if observers[0].args == (10,):
            with pytest.raises(KeyboardInterrupt):
                fit(student, CE(), TRAIN, TEST, schedule, [tracker, *observers], **options)
        else:
            fit(student, CE(), TRAIN, TEST, schedule, [tracker, *observers], **options)
    assert same(whole.state_dict(), tracker.state_dict())
    assert tracker.steps == 16


def test_the_average_is_what_is_kept():
    student, method = lsq(), AveragedWeights(CE(), 0.9)
    fit(student, method, TRAIN, TEST, longer(2), progress=False)
    assert same(student.state_dict(), method.average.state_dict())
    assert not torch.equal(student[0].weight, tiny()[0].weight)
