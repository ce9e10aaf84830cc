import copy
import math
import pickle
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise

import jaxtyping
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

import qatviz.training
from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.evaluation import evaluate, reestimate_batchnorm
from qatviz.methods import CrossEntropy, Method
from qatviz.methods.base import labelled_cross_entropy
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.schedule import Schedule
from tests.quantizers.conformance import cases

fit = partial(qatviz.training.fit, accelerator="cpu")
MEAN, STD = 0.45, 0.25


def split(count=22, channels=1, unlabelled=False):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, 6, 6), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    labels[::4] = -1 if unlabelled else 0
    return Split(images, labels, (MEAN,) * channels, (STD,) * channels)


TRAIN, TEST, VALIDATION = split(22, unlabelled=True), split(12), split(10)
SCHEDULE = Schedule(epochs=2, batch=5, rate=0.1, warmup=0.3, momentum=0.8, decay=0.05, seed=4)


def tiny(quantized=True, calibrated=True):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    if not quantized:
        return model
    student = quantize(model, partial(LSQ, bits=3), partial(LSQ, bits=4))
    if calibrated:
        calibrate(student, TRAIN.batches(22))
    return student


def literal_rate(schedule, progress):
    """Up a line, down a cosine."""
    if progress < schedule.warmup:
        return schedule.rate * progress / schedule.warmup
    angle = math.pi * (progress - schedule.warmup) / (1 - schedule.warmup)
    return schedule.rate * (1 + math.cos(angle)) / 2


def literal_fit(student, data, schedule):
    """The loop of the docstring, by hand: batches, rates, SGD with Nesterov momentum and decay."""
    student = copy.deepcopy(student).train()
    parameters = dict(student.named_parameters())
    velocity = {}
    torch.manual_seed(schedule.seed)
    per_epoch = len(data) // schedule.batch
    total = per_epoch * schedule.epochs
    losses, rates, step = [], [], 0
    for _ in range(schedule.epochs):
        order = torch.randperm(len(data))
        losses.append([])
        for k in range(per_epoch):
            rate = literal_rate(schedule, (step + 0.5) / total)
            chosen = order[k * schedule.batch : (k + 1) * schedule.batch]
            logits = student((data.images[chosen] / 255 - MEAN) / STD)
            labels = data.labels[chosen]
            log_p = logits.log_softmax(1)
            picked = [log_p[i, label] for i, label in enumerate(labels) if label >= 0]
            loss = -sum(picked) / len(picked)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for (name, p), g in zip(parameters.items(), gradients, strict=True):
                    decay = 0 if "_quantizer" in name else schedule.decay
                    g = g + decay * p
                    v = velocity[name] = schedule.momentum * velocity.get(name, 0) + g
                    p -= rate * (g + schedule.momentum * v)
            losses[-1].append(loss.item())
            step += 1
        rates.append(rate)
    return student.eval(), [sum(e) / len(e) for e in losses], rates


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("momentum", [0.8, 0.0])
def test_training_is_the_literal_loop(quantized, momentum):
    student = tiny(quantized).eval()
    schedule = Schedule(**(SCHEDULE.as_dict() | {"momentum": momentum}))
    expected, losses, rates = literal_fit(student, TRAIN, schedule)
    before = copy.deepcopy(student.state_dict())
    run = fit(student, CrossEntropy(), TRAIN, TEST, schedule)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-6, atol=1e-6)
    moved = {key for key, value in student.state_dict().items() if not value.equal(before[key])}
    assert moved == {key for key in before if not key.endswith("_extra_state")}
    np.testing.assert_allclose(run.history.terms["cross_entropy"], losses, rtol=1e-5)
    np.testing.assert_allclose(run.history.rate, rates, rtol=1e-9)
    assert run.test == evaluate(expected, TEST)


def test_same_seed_same_result_to_the_bit():
    first = tiny()
    second, other = copy.deepcopy(first), copy.deepcopy(first)
    method = partial(CrossEntropy, view=crop_flip)
    one = fit(first, method(), TRAIN, TEST, SCHEDULE)
    torch.randn(7)  # the global generator has moved on
    two = fit(second, method(), TRAIN, TEST, SCHEDULE)
    fit(other, method(), TRAIN, TEST, Schedule(**(SCHEDULE.as_dict() | {"seed": 5})))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(first[0].weight, other[0].weight)
    assert np.array_equal(one.history.terms["cross_entropy"], two.history.terms["cross_entropy"])
    assert one.test == two.test


def test_the_global_generators_are_left_as_they_were():
    student = tiny()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit(student, CrossEntropy(crop_flip), TRAIN, TEST, SCHEDULE, validation=VALIDATION)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize("kind", [list, iter])
def test_observers_are_called_after_each_step_with_the_raw_student(kind):
    student, calls, weights = tiny(), [], []

    def observer(step, model):
        calls.append((step, model is student, model.training))
        weights.append(model[0].weight.detach().clone())

    fit(student, CrossEntropy(), TRAIN, TEST, SCHEDULE, kind([observer]))
    assert calls == [(step, True, True) for step in range(1, 9)]
    assert all(not torch.equal(a, b) for a, b in pairwise(weights))
    assert torch.equal(weights[-1], student[0].weight)


class Recorder(CrossEntropy):
    """Writes down in which order its verbs are called, and with what."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare(self, student, data):
        self.calls.append(("prepare", student, data))

    def loss(self, forward, images, labels):
        self.calls.append(("loss", images, labels))
        return super().loss(forward, images, labels)

    def after_step(self, batch, progress):
        self.calls.append(("after_step", batch, progress))


def test_the_three_verbs_of_a_method():
    student, method = tiny(), Recorder()
    seen = []
    fit(
        student, method, TRAIN, TEST, SCHEDULE, [lambda step, model: seen.append(len(method.calls))]
    )
    assert [call[0] for call in method.calls] == ["prepare", *["loss", "after_step"] * 8]
    assert method.calls[0][1:] == (student, TRAIN)
    assert seen == [3, 5, 7, 9, 11, 13, 15, 17]  # observers come after after_step
    assert [call[2] for call in method.calls[2::2]] == [step / 8 for step in range(1, 9)]
    for loss, after in zip(method.calls[1::2], method.calls[2::2], strict=True):
        assert loss[1].dtype == torch.uint8  # raw
        assert len(loss[1]) == 5
        assert torch.equal(loss[1], after[1][0])
        assert torch.equal(loss[2], after[1][1])


def test_an_epoch_draws_without_replacement():
    images = torch.arange(22, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 6, 6)
    data = Split(images.contiguous(), TRAIN.labels, (MEAN,), (STD,))
    method = Recorder()
    fit(tiny(), method, data, TEST, SCHEDULE)
    drawn = [images[:, 0, 0, 0].tolist() for verb, images, _ in method.calls[1:] if verb == "loss"]
    for epoch in (drawn[:4], drawn[4:]):
        assert len(set(chain(*epoch))) == 20
    assert drawn[:4] != drawn[4:]


def numbered(count, first=0):
    """Images that are their own number."""
    images = torch.arange(first, first + count, dtype=torch.uint8)[:, None, None, None]
    images = images.expand(-1, 1, 6, 6).contiguous()
    return Split(images, torch.arange(count) % 3, (MEAN,), (STD,))


@pytest.mark.parametrize(("ratio", "parts"), [(1, 1), (3, 1), (2, 5)])
def test_unlabelled_images_follow_each_part_of_a_batch(ratio, parts):
    method, more = Recorder(), numbered(40, first=100)
    schedule = replace(SCHEDULE, accumulate=parts)
    fit(without_norm(), method, numbered(22), TEST, schedule, unlabelled=more, ratio=ratio)
    calls = [call[1:] for call in method.calls if call[0] == "loss"]
    own = 5 // parts
    drawn = []
    for images, labels in calls:
        numbers = images[:, 0, 0, 0]
        assert len(numbers) == own * (1 + ratio)
        assert (numbers[:own] < 22).all()
        assert torch.equal(labels[:own], numbers[:own].long() % 3)
        assert (labels[own:] == -1).all()
        drawn += (numbers[own:] - 100).tolist()
    # Without replacement in an epoch of 20 · ratio, until all 40 have been seen.
    first = drawn[: 20 * ratio]
    assert len(set(first)) == min(20 * ratio, 40)
    assert set(drawn) <= set(range(40))
    assert len(drawn) == 2 * 20 * ratio
    assert first != drawn[20 * ratio :]


def test_without_unlabelled_images_nothing_else_is_drawn():
    data, other = numbered(22), numbered(9)
    methods = [Recorder() for _ in range(2)]
    fit(tiny(), methods[0], data, TEST, SCHEDULE)
    fit(tiny(), methods[1], data, TEST, SCHEDULE, ratio=3)
    seen = [[call[1] for call in method.calls if call[0] == "loss"] for method in methods]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    with pytest.raises(ValueError, match="ratio is 0; allowed: 1 or more"):
        fit(tiny(), CrossEntropy(), data, TEST, SCHEDULE, unlabelled=other, ratio=0)
    elsewhere = Split(other.images, other.labels, (0.1,), (STD,))
    with pytest.raises(ValueError, match="normalised by other numbers"):
        fit(tiny(), CrossEntropy(), data, TEST, SCHEDULE, unlabelled=elsewhere)


def test_a_batch_larger_than_the_data_is_all_of_it():
    method = Recorder()
    fit(tiny(), method, TRAIN, TEST, Schedule(epochs=2, batch=1000, rate=0.01))
    assert [len(images) for verb, images, _ in method.calls if verb == "loss"] == [22, 22]


def test_validation_curve_and_the_mode_it_leaves():
    student, epochs, modes = tiny(), [], []

    def observer(step, model):
        modes.append(model.training)
        if step % 4 == 0:
            epochs.append(evaluate(model, VALIDATION))

    run = fit(student, CrossEntropy(), TRAIN, TEST, SCHEDULE, [observer], validation=VALIDATION)
    assert run.history.validation.tolist() == epochs
    assert len(run.history) == 2
    assert modes == [True] * 8
    assert fit(tiny(), CrossEntropy(), TRAIN, TEST, SCHEDULE).history.validation.shape == (0,)


def test_the_student_is_left_whole_and_in_evaluation_mode():
    student = tiny()
    keys = set(student.__dict__)
    run = fit(student, CrossEntropy(), TRAIN, TEST, SCHEDULE)
    assert not any(module.training for module in student.modules())
    assert set(student.__dict__) == keys
    for module in student.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert "forward" not in module.__dict__
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(pickle.loads(pickle.dumps(student))(x), student(x))
    assert run.test == evaluate(student, TEST)


def test_the_run_says_what_happened():
    run = fit(tiny(), CrossEntropy(), TRAIN, TEST, SCHEDULE)
    assert run.label == "CrossEntropy"
    assert run.schedule is SCHEDULE
    assert run.machine["torch"] == torch.__version__.split("+")[0]
    assert 0 < run.seconds < 60
    assert fit(tiny(), CrossEntropy(), TRAIN, TEST, SCHEDULE, label="mine").label == "mine"


class Terms(Method):
    """Two terms, one of which may become infinite."""

    def __init__(self, last=10**9):
        super().__init__()
        self.steps, self.last = 0, last

    def loss(self, forward, images, labels):
        good = labelled_cross_entropy(forward(images), labels)
        extra = torch.tensor(math.inf if self.steps >= self.last else 0.5 * self.steps)
        self.steps += 1
        return {"good": good, "extra": extra}


def test_terms_are_summed_and_kept_apart():
    student = tiny()
    plain = copy.deepcopy(student)
    run = fit(student, Terms(), TRAIN, TEST, SCHEDULE)
    reference = fit(plain, CrossEntropy(), TRAIN, TEST, SCHEDULE)
    assert torch.equal(student[0].weight, plain[0].weight)  # a constant term pulls nowhere
    np.testing.assert_allclose(run.history.terms["extra"], [0.75, 2.75])  # 0..1.5, 2..3.5
    np.testing.assert_array_equal(
        run.history.terms["good"], reference.history.terms["cross_entropy"]
    )


def test_a_loss_that_is_not_finite_names_the_step_and_the_terms():
    steps = []
    with pytest.raises(ValueError, match=r"not finite at step 3: good = [\d.]+, extra = inf"):
        fit(tiny(), Terms(last=3), TRAIN, TEST, SCHEDULE, [lambda step, _: steps.append(step)])
    assert steps == [1, 2, 3]


def test_the_random_state_is_restored_after_an_error():
    student = tiny()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="not finite"):
        fit(student, Terms(last=0), TRAIN, TEST, SCHEDULE)
    assert torch.equal(torch.get_rng_state(), before)


class Tempered(Method):
    """Trains a temperature of its own, made as late as in prepare."""

    def prepare(self, student, data):
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def loss(self, forward, images, labels):
        return {"ce": labelled_cross_entropy(forward(images) * self.temperature, labels)}


def test_a_method_s_own_parameters_are_trained():
    student, method = tiny(), Tempered()
    schedule = Schedule(epochs=1, batch=22, rate=0.1, warmup=0.0, momentum=0.0, decay=0.5)
    twin = copy.deepcopy(student).train()
    temperature = torch.tensor(2.0, requires_grad=True)
    logits = twin(TRAIN.normalise(TRAIN.images))
    loss = labelled_cross_entropy(logits * temperature, TRAIN.labels)
    (gradient,) = torch.autograd.grad(loss, temperature)
    fit(student, method, TRAIN, TEST, schedule)
    # One step at half of the cosine: rate 0.05.
    expected = 2 - 0.05 * (gradient + 0.5 * 2)
    torch.testing.assert_close(method.temperature.detach(), expected.detach())


def test_a_method_that_holds_the_student_does_not_step_it_twice():
    class Holds(CrossEntropy):
        def prepare(self, student, data):
            self.layers = nn.ModuleList(student)

    student = tiny()
    plain = copy.deepcopy(student)
    fit(student, Holds(), TRAIN, TEST, SCHEDULE)
    fit(plain, CrossEntropy(), TRAIN, TEST, SCHEDULE)
    for key, value in student.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


def test_frozen_parameters_stay():
    student = tiny()
    student[5].weight.requires_grad_(False)
    before = student[5].weight.clone()
    fit(student, CrossEntropy(), TRAIN, TEST, SCHEDULE)
    assert torch.equal(student[5].weight, before)


def test_the_progress_bar_counts_every_step(monkeypatch):
    bars = []

    class Bar(qatviz.training.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(qatviz.training, "tqdm", Bar)
    fit(tiny(), CrossEntropy(), TRAIN, TEST, SCHEDULE, validation=VALIDATION)
    assert [(bar.total, bar.n) for bar in bars] == [(8, 8)]
    assert "cross_entropy " in bars[0].postfix
    assert "validation " in bars[0].postfix


def spoiled(data):
    """A split whose images went bad after it was made: it refuses them itself before."""
    floats = Split(data.images / 255, data.labels, data.mean, data.std)
    floats.images[0, 0, 0, 0] = math.nan
    return floats


REFUSED = {
    "not calibrated": (False, (TRAIN, TEST, None), r"0\.input_quantizer, 5\.input_quantizer"),
    "channels": (True, (split(22, 3), TEST, None), r"\[3, 6, 6\].*'0' takes 1 channels"),
    "test": (True, (TRAIN, split(12, 2), None), r"\[2, 6, 6\]"),
    "validation": (True, (TRAIN, TEST, split(10, 2)), r"\[2, 6, 6\]"),
    "NaN in the images": (True, (spoiled(TRAIN), TEST, None), "not finite, first in image 0"),
    "NaN in the test": (True, (TRAIN, spoiled(TEST), None), "not finite, first in image 0"),
}


@pytest.mark.parametrize(("calibrated", "splits", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_before_the_first_step_and_leaves_the_student_alone(calibrated, splits, message):
    student, method = tiny(calibrated=calibrated).train(), Recorder()
    before = copy.deepcopy(student.state_dict())
    train, test, validation = splits
    with pytest.raises(ValueError, match=message):
        fit(student, method, train, test, SCHEDULE, validation=validation)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    assert method.calls == []
    assert all(module.training for module in student.modules())


def test_nan_hidden_in_the_data_is_found_by_the_loss():
    data = Split(TRAIN.images / 255, TRAIN.labels.clamp(min=0), TRAIN.mean, TRAIN.std)
    data.images[-1] = math.nan  # beyond the images that are tried on entry
    with pytest.raises(ValueError, match="not finite at step 0: cross_entropy = nan"):
        fit(tiny(), CrossEntropy(), data, TEST, Schedule(epochs=1, batch=22))


# --- Compiled


def test_a_compiled_run_learns_the_same_and_says_what_compiling_took(monkeypatch):
    # Dynamo cannot trace the shape checks that the test run adds to every function; without a
    # C++ compiler the graphs are traced, joined and run as they are.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = tiny(), tiny()
    compiled.load_state_dict(plain.state_dict())
    seen = []
    torch.compiler.reset()
    expected = fit(plain, CrossEntropy(), TRAIN, TEST, SCHEDULE)
    run = fit(
        compiled,
        CrossEntropy(),
        TRAIN,
        TEST,
        SCHEDULE,
        [lambda step, model: seen.append(model)],
        compile=True,
    )
    assert expected.compile_seconds == 0
    assert 0 < run.compile_seconds < run.seconds
    np.testing.assert_allclose(
        run.history.terms["cross_entropy"], expected.history.terms["cross_entropy"], rtol=1e-4
    )
    assert all(model is compiled for model in seen)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


# --- Quantizers that lose their grid


def first_number(quantizer):
    return next(iter((*quantizer.parameters(), *quantizer.buffers())), None)


@pytest.mark.parametrize("cls", list(cases()))
def test_a_quantizer_that_loses_its_grid_is_named_on_entry_and_after_an_epoch(cls):
    signed = not cls.bits_allowed(False)
    quantizer = cls(2, signed=signed)
    quantizer.init_from(torch.rand(4, 1, 3, 3) - 0.5 * signed)
    if first_number(quantizer) is None:
        return  # It has no number of its own that could be lost.
    model = tiny(quantized=False)
    # Held, not used: the loss stays finite.
    model[0].held = quantizer

    def lose(step, model):
        if step == 4:
            first_number(model[0].held).data.view(-1)[0] = math.inf

    with pytest.raises(ValueError, match=r"after epoch 1 .* not finite: 0.held$"):
        fit(model, CrossEntropy(), TRAIN, TEST, SCHEDULE, [lose])
    with pytest.raises(ValueError, match=r"not calibrated .*: 0.held;"):
        fit(model, CrossEntropy(), TRAIN, TEST, SCHEDULE)


def test_a_loss_that_is_not_finite_names_the_quantizer_that_is_not():
    model = tiny()

    def lose(step, model):
        model[5].input_quantizer.step.data.fill_(math.nan)

    with pytest.raises(
        ValueError, match=r"cross_entropy = nan; first layer: 5\.input_quantizer \(its step\)"
    ):
        fit(model, CrossEntropy(), TRAIN, TEST, SCHEDULE, [lose])


def settings(**changes):
    return Schedule(**(SCHEDULE.as_dict() | changes))


def trained(schedule, student=None, method=None, observers=(), seed=0, **more):
    if student is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = tiny()
    method = CrossEntropy(crop_flip) if method is None else method
    return student, fit(student, method, TRAIN, TEST, schedule, observers, **more)


def assert_equal_states(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, value in first.state_dict().items():
        other = second.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


def test_quantizers_move_at_a_rate_of_their_own():
    """One step of plain SGD moves a parameter by rate · gradient."""
    student = tiny()
    one = settings(epochs=1, batch=22, warmup=0.0, momentum=0.0, decay=0.0, quantizer_rate=1e-3)
    twin = copy.deepcopy(student).train()
    loss = labelled_cross_entropy(twin(TRAIN.normalise(TRAIN.images)), TRAIN.labels)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    fit(student, CrossEntropy(), TRAIN, TEST, one)
    for (name, p), q, g in zip(
        twin.named_parameters(), student.parameters(), gradients, strict=True
    ):
        rate = 0.5 * (1e-3 if "_quantizer" in name else 0.1)  # at half of the cosine
        torch.testing.assert_close(q.detach(), p.detach() - rate * g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizers", [("adam", None), ("sgd", "adam"), ("adam", "sgd")])
def test_other_optimizers_are_torch_s_own_under_the_same_loop(optimizers):
    """The same steps by hand, with one optimizer of torch per kind of parameter."""
    kind, other = optimizers
    student = tiny().train()
    twin = copy.deepcopy(student)
    schedule = settings(
        optimizer=kind, quantizer_optimizer=other, quantizer_rate=0.003, quantizer_decay=0.01
    )
    fit(student, CrossEntropy(), TRAIN, TEST, schedule)
    grids = [p for name, p in twin.named_parameters() if "_quantizer" in name]
    weights = [p for name, p in twin.named_parameters() if "_quantizer" not in name]
    make = {
        "sgd": partial(torch.optim.SGD, momentum=schedule.momentum, nesterov=True),
        "adam": torch.optim.Adam,
    }
    first = make[kind](weights, 1.0, weight_decay=schedule.decay)
    second = make[other or kind](grids, 1.0, weight_decay=0.01)
    torch.manual_seed(schedule.seed)
    for step in range(8):
        order = torch.randperm(22) if step % 4 == 0 else order
        chosen = order[step % 4 * 5 :][:5]
        curve = literal_rate(schedule, (step + 0.5) / 8) / schedule.rate
        first.param_groups[0]["lr"], second.param_groups[0]["lr"] = 0.1 * curve, 0.003 * curve
        logits = twin(TRAIN.normalise(TRAIN.images[chosen]))
        twin.zero_grad()
        labelled_cross_entropy(logits, TRAIN.labels[chosen]).backward()
        first.step()
        second.step()
    for key, value in twin.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(student.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_clipping_limits_the_norm_of_a_step():
    """Plain SGD moves all parameters together by rate · the clipped gradient."""
    student = tiny()
    one = settings(epochs=1, batch=22, warmup=0.0, momentum=0.0, decay=0.0)
    before = [p.detach().clone() for p in student.parameters()]
    free, clipped = copy.deepcopy(student), copy.deepcopy(student)
    fit(free, CrossEntropy(), TRAIN, TEST, one)
    fit(clipped, CrossEntropy(), TRAIN, TEST, settings(**(one.as_dict() | {"clip": 0.01})))
    moved = [
        torch.cat([(p.detach() - b).flatten() for p, b in zip(m.parameters(), before, strict=True)])
        for m in (free, clipped)
    ]
    assert moved[0].norm() > 0.05 * 0.02
    assert moved[1].norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(*moved, dim=0).item()
    assert cosine == pytest.approx(1, abs=1e-4)


def without_norm():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    student = quantize(model, partial(LSQ, bits=3), partial(LSQ, bits=4))
    calibrate(student, TRAIN.batches(22))
    return student


LABELLED = Split(TRAIN.images, TRAIN.labels.clamp(min=0), TRAIN.mean, TRAIN.std)


def test_parts_of_a_batch_add_up_to_the_batch():
    whole, parts, method = without_norm(), without_norm(), Recorder()
    run = fit(whole, CrossEntropy(), LABELLED, TEST, settings(batch=6))
    cut = fit(parts, method, LABELLED, TEST, settings(batch=6, accumulate=3))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    verbs = [call[0] for call in method.calls[1:5]]
    assert verbs == ["loss", "loss", "loss", "after_step"]
    assert [len(call[1]) for call in method.calls[1:4]] == [2, 2, 2]
    assert len(method.calls[4][1][0]) == 6
    np.testing.assert_allclose(
        run.history.terms["cross_entropy"], cut.history.terms["cross_entropy"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, r"batch of 5 images cannot be cut into 2 equal parts \(1 proc"),
        ({"accumulate": 3, "batch": 100}, "batch of 22 images cannot be cut into 3"),
        ({"keep": "best"}, "keep is 'best', which needs validation images"),
    ],
)
def test_refuses_what_cannot_be_done_before_the_first_step(changes, message):
    method = Recorder()
    with pytest.raises(ValueError, match=message):
        fit(tiny(), method, TRAIN, TEST, settings(**changes))
    assert method.calls == []


def test_reestimation_changes_what_is_evaluated_and_nothing_else():
    plain, run = trained(SCHEDULE, validation=VALIDATION)
    student, again = trained(settings(reestimate=3), validation=VALIDATION)
    for (name, p), q in zip(plain.named_parameters(), student.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(plain[1].running_var, student[1].running_var)
    reestimate_batchnorm(plain, TRAIN, 3, 5)
    torch.testing.assert_close(plain.state_dict(), student.state_dict())
    assert again.test == evaluate(student, TEST)
    np.testing.assert_array_equal(
        run.history.terms["cross_entropy"], again.history.terms["cross_entropy"]
    )


def test_the_best_epoch_on_the_validation_images_is_kept():
    states, accuracies = [], []

    def observer(step, model):
        if step % 4 == 0:
            states.append(copy.deepcopy(model.state_dict()))
            accuracies.append(evaluate(model, VALIDATION))

    schedule = settings(epochs=6, keep="best")
    student, run = trained(schedule, observers=[observer], seed=1, validation=VALIDATION)
    best = int(np.argmax(accuracies))
    assert best < 5  # so that the last is not the best
    assert run.kept_epoch == best + 1
    assert run.history.validation.tolist() == accuracies
    for key, value in student.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[best][key]), key
    assert evaluate(student, VALIDATION) == max(accuracies)
    assert run.test == evaluate(student, TEST)


def test_the_history_counts_right_answers_on_the_training_images():
    student, right, total = tiny(), [], []

    class Counting(CrossEntropy):
        def loss(self, forward, images, labels):
            twin = copy.deepcopy(student)  # so that BatchNorm is not moved twice
            answers = twin(TRAIN.normalise(images)).argmax(1).tolist()
            pairs = list(zip(answers, labels.tolist(), strict=True))
            right.append(sum(a == b for a, b in pairs if b >= 0))
            total.append(sum(b >= 0 for _, b in pairs))
            return super().loss(forward, images, labels)

    run = fit(student, Counting(), TRAIN, TEST, SCHEDULE)
    expected = [sum(right[:4]) / sum(total[:4]), sum(right[4:]) / sum(total[4:])]
    np.testing.assert_allclose(run.history.accuracy, expected)


def test_without_labels_there_is_no_accuracy():
    data = Split(TRAIN.images, torch.full((22,), -1), TRAIN.mean, TRAIN.std)
    run = fit(tiny(), CrossEntropy(), data, TEST, SCHEDULE)
    assert np.isnan(run.history.accuracy).all()


class Averaging(CrossEntropy):
    """Answers by another module than the student."""

    def prepare(self, student, data):
        self.other = copy.deepcopy(student)

    def evaluated(self, student):
        return self.other


def test_who_answers_is_evaluated_and_becomes_the_student():
    student = tiny()
    before = copy.deepcopy(student)
    run = fit(student, Averaging(crop_flip), TRAIN, TEST, SCHEDULE, validation=VALIDATION)
    assert_equal_states(student, before.eval())
    assert run.history.validation.tolist() == [evaluate(before, VALIDATION)] * 2
    assert run.test == evaluate(before, TEST)


def test_the_test_images_are_touched_once(monkeypatch):
    seen = []

    def counting(model, data):
        seen.append(data)
        return evaluate(model, data)

    monkeypatch.setattr(qatviz.training, "evaluate", counting)
    trained(settings(keep="best"), validation=VALIDATION)
    assert [data is TEST for data in seen] == [False, False, True]


def test_bfloat16_trains_and_leaves_float32(monkeypatch):
    student, run = trained(settings(precision="bf16-mixed"))
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    _, exact = trained(SCHEDULE)
    one, other = run.history.terms["cross_entropy"], exact.history.terms["cross_entropy"]
    np.testing.assert_allclose(one, other, rtol=0.05)
    assert (one != other).any()


def test_no_bar_when_none_is_asked_for(capsys):
    trained(SCHEDULE, progress=False)
    assert capsys.readouterr().err == ""


def test_the_best_of_nothing_is_refused():
    blind = Split(VALIDATION.images, torch.full((10,), -1), (MEAN,), (STD,))
    with pytest.raises(ValueError, match="no validation image has a label to choose by"):
        trained(settings(keep="best"), validation=blind)


def test_a_student_that_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        trained(SCHEDULE, student=tiny().requires_grad_(False))


def test_what_overflows_in_half_precision_only_is_named():
    """3.4e38 is a number in float32, and infinite in bfloat16."""

    def swell(step, model):
        model[5].bias.data[0] = 3.4e38

    message = r"cross_entropy = nan; first layer: 5 \(its output\)"
    with pytest.raises(ValueError, match=message):
        trained(settings(precision="bf16-mixed"), observers=[swell])


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_gradient_scale_that_moves_is_one_for_all_optimizers(clip, monkeypatch):
    """Growing after every step, or never: the same training, but for rounding."""
    students = []
    for interval in (1, 10**6):

        def fabric(accelerator, devices, schedule, interval=interval):
            scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=interval)
            return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))

        monkeypatch.setattr(qatviz.training, "_fabric", fabric)
        changes = {"optimizer": "adam", "quantizer_optimizer": "sgd", "clip": clip, "rate": 0.01}
        students.append(trained(settings(epochs=1, **changes))[0])
    for (name, p), q in zip(students[0].named_parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)
