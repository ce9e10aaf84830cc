import copy
import math
import pickle
from functools import partial
from itertools import chain, pairwise

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import qatviz.training
from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.evaluation import evaluate
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

    with pytest.raises(ValueError, match=r"cross_entropy = nan; 5\.input_quantizer holds a number"):
        fit(model, CrossEntropy(), TRAIN, TEST, SCHEDULE, [lose])
