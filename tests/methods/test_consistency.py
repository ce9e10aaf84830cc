"""Consistency regularization, against its terms written out step by step."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch

from qatviz.augment import crop_flip, cutmix, mixup, unchanged
from qatviz.methods import (
    ConsistencyRegularization,
    CrossEntropy,
    Dampening,
    HessianScaling,
    HintonKD,
    Method,
)
from qatviz.methods.base import labelled_cross_entropy
from qatviz.methods.consistency import BATCHNORMS, mixed_predictions
from qatviz.methods.ramps import constant, step_on
from qatviz.quantize import quantized_layers
from qatviz.quantizers import EWGS, LSQ, NIPQ, PACT, DoReFa
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

BATCHES = [(TRAIN.images[k : k + 8], TRAIN.labels[k : k + 8]) for k in (0, 5, 9, 13, 18)]


def consistency(method=None, **given):
    options = {"ramp": constant, "decay": 0.6} | given
    return ConsistencyRegularization(method or CrossEntropy(), **options)


def prepared(method, student=None):
    student = tiny() if student is None else student
    method.prepare(student, TRAIN)
    return student.train(), torch.optim.SGD(student.parameters(), 0.2)


def terms_of(method, student, images=BATCHES[0][0], labels=BATCHES[0][1]):
    return method.loss(lambda view: student(TRAIN.normalise(view)), images, labels)


def test_the_terms_by_hand():
    method = consistency(teacher_view=lambda images: images.flip(-1), strength=0.7)
    student, _ = prepared(method)
    images, labels = BATCHES[0]
    twin, teacher = copy.deepcopy(student), copy.deepcopy(student)
    terms = terms_of(method, student)
    assert list(terms) == ["cross_entropy", "consistency"]
    logits = twin((images / 255 - 0.45) / 0.25)
    teacher.eval()[1].train()  # BatchNorm by its own batch
    with torch.no_grad():
        targets = teacher((images.flip(-1) / 255 - 0.45) / 0.25)
    p, q = logits.softmax(1), targets.softmax(1)
    divergence = sum((q * (q / p).log()).sum(1)) / len(images)
    torch.testing.assert_close(terms["cross_entropy"], labelled_cross_entropy(logits, labels))
    torch.testing.assert_close(terms["consistency"], 0.7 * divergence)


def test_the_gradient_is_that_of_a_softer_target_at_a_higher_rate():
    method = consistency(teacher_view=unchanged, strength=0.7)
    student, _ = prepared(method)
    images, labels = BATCHES[0][0], BATCHES[0][1].clamp(min=0)  # all have one
    teacher = copy.deepcopy(student).eval()
    teacher[1].train()  # BatchNorm by its own batch
    with torch.no_grad():
        targets = teacher(TRAIN.normalise(images)).softmax(1)
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    sum(method.loss(lambda view: logits, images, labels).values()).backward()
    one_hot = torch.nn.functional.one_hot(labels, targets.shape[1])
    softer = (one_hot + 0.7 * targets) / 1.7
    by_hand = 1.7 * (logits.detach().softmax(1) - softer) / len(images)
    torch.testing.assert_close(logits.grad, by_hand)


def test_the_student_runs_once_or_with_a_view_of_its_own_twice():
    counted = []
    for view in (None, crop_flip):
        method = consistency(student_view=view)
        student, _ = prepared(method)
        student.register_forward_pre_hook(lambda *_: counted.append(None))
        terms_of(method, student)
    assert len(counted) == 1 + 2


def test_the_teacher_follows_the_recursion_in_everything_but_its_own_statistics():
    method = consistency(CE(), decay=0.6)
    student, optimizer = prepared(method)
    wanted = {k: v.clone() for k, v in student.state_dict().items()}
    own = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        for key, value in student.state_dict().items():
            if key not in own and value.is_floating_point():
                wanted[key] = 0.6 * wanted[key] + 0.4 * value
    found = method.teacher.state_dict()
    for key in wanted.keys() - own:
        torch.testing.assert_close(found[key], wanted[key], atol=1e-6, rtol=1e-5)
    # Those come from the teacher's own passes, one for each step.
    assert found["1.num_batches_tracked"] == len(BATCHES)
    assert not torch.equal(found["1.running_mean"], student.state_dict()["1.running_mean"])


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_with_a_warm_up_the_teacher_is_the_mean_so_far_until_the_window_is_full(decay):
    method = consistency(CE(), decay=decay, warm_up=True, batchnorm="averaged")
    student, optimizer = prepared(method)
    averaged = [k for k, v in student.state_dict().items() if v.is_floating_point()]
    states = [{k: student.state_dict()[k].tolist() for k in averaged}]
    wanted = copy.deepcopy({k: student.state_dict()[k].double() for k in averaged})
    for t, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, t, len(BATCHES))
        states.append({k: student.state_dict()[k].tolist() for k in averaged})
        # For α = 0.7 these are 1/2, 2/3, 0.7, 0.7, 0.7; the whole state at each step.
        alpha = min(decay, t / (t + 1))
        for key in averaged:
            own = student.state_dict()[key].double()
            wanted[key] = alpha * wanted[key] + (1 - alpha) * own
            found = method.teacher.state_dict()[key].double()
            torch.testing.assert_close(found, wanted[key], atol=1e-6, rtol=1e-5)
            if decay == 1 or (decay == 0.7 and t <= 2):
                mean = torch.tensor([state[key] for state in states]).double().mean(0)
                torch.testing.assert_close(found, mean, atol=1e-6, rtol=1e-5)


def test_its_state_is_the_progress_and_the_steps():
    method = consistency(CE())
    assert method.get_extra_state() == {"progress": 0.0, "steps": 0}
    student, optimizer = prepared(method)
    drive(student, method, BATCHES[:3], optimizer, 1, len(BATCHES))
    assert method.get_extra_state() == {"progress": 0.6, "steps": 3}
    other = consistency(CE())
    other.prepare(student, TRAIN)
    other.load_state_dict(method.state_dict())
    assert other.get_extra_state() == {"progress": 0.6, "steps": 3}
    method.prepare(student, TRAIN)
    assert method.get_extra_state() == {"progress": 0.0, "steps": 0}


def test_after_the_last_step_the_student_is_let_go_of():
    method = consistency(CE())
    student, optimizer = prepared(method)
    reference = weakref.ref(student)
    drive(student, method, BATCHES[:4], optimizer, 1, len(BATCHES))
    assert method._prepared == (student,)
    drive(student, method, BATCHES[4:], optimizer, 5, len(BATCHES))
    assert method._prepared == ()
    del student, optimizer
    gc.collect()
    assert reference() is None


def test_a_second_run_begins_anew():
    method = consistency(CE(), seed=3, warm_up=True)
    first, _ = trained(method)
    second, _ = trained(method)
    assert same(first, second)


@pytest.mark.parametrize("batchnorm", ["copied", "averaged"])
def test_statistics_of_the_student_are_copied_or_averaged(batchnorm):
    method = consistency(CE(), batchnorm=batchnorm, decay=0.5)
    student, optimizer = prepared(method)
    mean = student[1].running_mean.clone()
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        mean = (mean + student[1].running_mean) / 2
    wanted = student[1].running_mean if batchnorm == "copied" else mean
    torch.testing.assert_close(method.teacher[1].running_mean, wanted)
    assert not method.teacher[1].training


def test_steps_of_quantizers_are_averaged_or_copied():
    for steps in ("averaged", "copied"):
        method = consistency(CE(), steps=steps)
        student, optimizer = prepared(method)
        drive(student, method, BATCHES, optimizer, 1, len(BATCHES))
        name = "0.weight_quantizer.step"
        equal = torch.equal(student.state_dict()[name], method.teacher.state_dict()[name])
        assert equal == (steps == "copied")
        assert not torch.equal(student[0].weight, method.teacher[0].weight)


@pytest.mark.parametrize("batchnorm", BATCHNORMS)
def test_a_decay_of_zero_is_the_student_and_of_one_its_beginning(batchnorm):
    for decay in (0.0, 1.0):
        method = consistency(CE(), decay=decay, batchnorm=batchnorm)
        student, optimizer = prepared(method)
        first = copy.deepcopy(student.state_dict())
        statistics = {k for k in first if k.startswith("1.running") or k.endswith("tracked")}
        for number, batch in enumerate(BATCHES, 1):
            drive(student, method, [batch], optimizer, number, len(BATCHES))
            wanted = dict(student.state_dict() if decay == 0 else first)
            found = dict(method.teacher.state_dict())
            for name in statistics:
                if batchnorm == "copied":
                    wanted[name] = student.state_dict()[name]
                elif batchnorm == "batch":  # of its own passes, whatever the decay
                    assert not torch.equal(found[name], first[name])
                    wanted[name] = found[name]
            assert same(found, wanted)


@pytest.mark.parametrize("view", [None, crop_flip])
def test_without_strength_training_is_the_inner_methods_to_the_bit(view):
    plain, _ = trained(CE())
    state, _ = trained(consistency(CE(), strength=0.0, student_view=None, teacher_view=view))
    assert same(state, plain)
    stronger, _ = trained(consistency(CE(), strength=1.0))
    assert not same(stronger, plain)


def test_the_same_view_of_the_same_network_agrees_exactly():
    method = consistency(CrossEntropy(unchanged), decay=0.0)
    student, optimizer = prepared(method)
    for number, batch in enumerate(BATCHES, 1):
        assert terms_of(method, student, *batch)["consistency"].item() == pytest.approx(0, abs=1e-7)
        drive(student, method, [batch], optimizer, number, len(BATCHES))


def test_the_teacher_learns_nothing_by_gradients():
    method = consistency(CE())
    student, optimizer = prepared(method)
    drive(student, method, BATCHES, optimizer, 1, len(BATCHES))
    assert not any(p.requires_grad or p.grad is not None for p in method.teacher.parameters())
    assert not [p for p in method.parameters() if p.requires_grad]
    targets = method.targets_of(BATCHES[0][0])
    assert not targets.requires_grad
    assert targets.grad_fn is None


def test_a_quantized_teacher_has_few_levels_and_a_float_one_none():
    levels = {}
    for kind in ("quantized", "float"):
        method = consistency(CE(), targets=kind)
        student, optimizer = prepared(method, tiny(partial(LSQ, bits=2, axis=0)))
        drive(student, method, BATCHES, optimizer, 1, len(BATCHES))
        layer = quantized_layers(method.teacher)["0"]
        levels[kind] = max(len(channel.unique()) for channel in layer.quantized_weight())
    assert levels["quantized"] <= 4 < levels["float"]


def test_a_float_teacher_is_the_network_without_its_quantizers():
    method = consistency(targets="float", batchnorm="averaged")
    student, _ = prepared(method)
    bare = float_net().eval()
    bare.load_state_dict({k: v for k, v in student.state_dict().items() if "quantizer" not in k})
    x = TRAIN.normalise(TRAIN.images)
    torch.testing.assert_close(method.teacher(x), bare(x))


def test_the_ramp_follows_the_progress():
    ramp = partial(step_on, start=0.5)
    method = consistency(CE(), strength=2.0, ramp=ramp, decay=1.0)
    student, _ = prepared(method)
    found = []
    for progress in (0.25, 0.75, 1.0):
        found.append(terms_of(method, student)["consistency"].item())
        method.after_step(BATCHES[0], progress)
    assert found[:2] == [0.0, 0.0]
    assert found[2] != 0


@pytest.mark.parametrize("mix", [cutmix, mixup])
def test_predictions_of_mixed_images_are_held_against_mixed_predictions(mix):
    method = consistency(mix=mix, batchnorm="averaged", seed=3)
    student, _ = prepared(method)
    student.eval()
    images, _ = BATCHES[0]
    terms = terms_of(method, student)
    torch.manual_seed(3)
    mixed, partner, share = mix(images)
    p = student(TRAIN.normalise(images)).softmax(1)
    targets = share[:, None] * p + (1 - share[:, None]) * p[partner]
    said = student(TRAIN.normalise(mixed)).log_softmax(1)
    wanted = (targets * (targets.log() - said)).sum(1).mean()
    torch.testing.assert_close(terms["consistency"], wanted, atol=1e-5, rtol=1e-4)


def test_mixed_predictions_are_probabilities():
    logits = torch.tensor([[2.0, 0.0], [0.0, 90.0]])
    mixed = mixed_predictions(logits, torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    first = torch.tensor(2.0).sigmoid()
    wanted = torch.tensor([[first / 4, 1 - first / 4], [0.0, 1.0]])
    torch.testing.assert_close(mixed.softmax(1), wanted)
    assert mixed.isfinite().all()


@pytest.mark.parametrize("quantizer", [LSQ, PACT, DoReFa, EWGS, NIPQ])
def test_it_stands_on_every_quantizer(quantizer):
    pair = [partial(quantizer, bits=4), partial(quantizer, bits=4)]
    if quantizer is PACT:  # of weights it says nothing, and images are signed
        pair = [partial(DoReFa, bits=4), {"*": pair[1], "0": partial(LSQ, bits=4)}]
    method = consistency(CE())
    if quantizer is EWGS:
        method = HessianScaling(method, every=2, batches=1, samples=2)
    state, run = trained(method, tiny(*pair))
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    assert {"cross_entropy", "consistency"} <= set(run.history.terms)


def test_it_stands_around_other_methods_and_they_around_it():
    inside = consistency(HintonKD(float_net(), crop_flip))
    _, run = trained(inside)
    assert list(run.history.terms) == ["cross_entropy", "distillation", "consistency"]
    _, run = trained(Dampening(consistency(CE()), 0.1))
    assert list(run.history.terms)[:2] == ["cross_entropy", "consistency"]


def test_the_teacher_answers_where_it_is_asked():
    method = consistency(CE(), answers="teacher")
    state, _ = trained(method)
    assert same(state, method.teacher.state_dict())
    assert not same(state, trained(consistency(CE()))[0])


def test_it_goes_on_from_its_state():
    # The window of the warm-up is not full before the 19th step of 12.
    for more in ({}, {"warm_up": True, "decay": 0.95}):
        make = partial(consistency, teacher_view=crop_flip, **more)
        whole, resumed = resumed_like_whole(make)
        for one, other in zip(whole, resumed, strict=True):
            assert same(one.state_dict(), other.state_dict())


class NoView(Method):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strength": -1.0}, "strength must be from 0 below inf, got -1.0"),
        ({"strength": float("inf")}, "strength"),
        ({"decay": 1.5}, "decay must be from 0 to 1, got 1.5"),
        ({"targets": "Quantized"}, "targets is 'Quantized'; allowed: quantized, float"),
        ({"batchnorm": "eval"}, "allowed: batch, copied, averaged"),
        ({"steps": "none"}, "allowed: averaged, copied"),
        ({"answers": "both"}, "allowed: student, teacher"),
        ({"targets": "float", "answers": "teacher"}, "cannot answer"),
    ],
)
def test_what_it_refuses(given, said):
    with pytest.raises(ValueError, match=said):
        consistency(**given)


def test_a_method_without_a_view_needs_one_for_the_teacher():
    with pytest.raises(ValueError, match="has no view; pass teacher_view="):
        consistency(NoView())
