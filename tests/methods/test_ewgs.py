import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear

import qatviz.training
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.methods import CrossEntropy, HessianScaling, Method, match_outputs
from qatviz.methods import ewgs as module
from qatviz.methods.ewgs import ewgs_quantizers
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ
from qatviz.schedule import Schedule
from tests.methods.common import same as same_state

fit = partial(qatviz.training.fit, accelerator="cpu")


def split(count=12, labelled=True):
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 1, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Split(images, labels if labelled else torch.full_like(labels, -1), (0.5,), (0.3,))


DATA = split()


def tiny(delta=0.001, bits=2):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    make = partial(EWGS, bits=bits, delta=delta)
    student = quantize(model, make, make)
    calibrate(student, DATA.batches(12))
    return student.train()


class Smooth(Method):
    """A loss without labels that is curved everywhere, and not at its minimum."""

    def loss(self, forward, images, labels):
        logits = forward(images)
        return {"wave": (logits + 0.2).sin().sum(1).mean(), "square": logits.square().mean()}


def state_of(*modules):
    return [copy.deepcopy(m.state_dict()) for m in modules]


def same(before, after):
    return all(same_state(a, b) for a, b in zip(before, after, strict=True))


# --- The formula, against the Hessian itself


def levels_as_leaves(student, images, method, labels):
    """The loss as a function of every quantizer's x_q, the network written out by hand."""
    conv, norm, _, _, last = student

    def loss(w1, x1, w2, x2):
        # Each argument is added, as zero, to a normalised level.
        def level(quantizer, numbers, extra):
            l, u, s = quantizer.lower, quantizer.upper, quantizer.scale.abs()  # noqa: E741
            position = ((numbers - l) / (u - l)).clamp(0, 1)
            n = 2**quantizer.bits - 1
            x_q = position + ((n * position).round() / n - position).detach() + extra
            return s * (2 * x_q - 1) if quantizer.signed else s * x_q

        x = level(conv.input_quantizer, (images - 0.5) / 0.3, x1)
        x = conv2d(x, level(conv.weight_quantizer, conv.weight, w1), conv.bias)
        mean = x.mean((0, 2, 3), keepdim=True)
        var = (x - mean).square().mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (var + norm.eps).sqrt()
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = level(last.input_quantizer, x.relu().flatten(1), x2)
        logits = linear(x, level(last.weight_quantizer, last.weight, w2), last.bias)
        return sum(method.loss(lambda _: logits, images, labels).values())

    quantizers = [
        (conv.weight_quantizer, conv.weight.shape),
        (conv.input_quantizer, images.shape),
        (last.weight_quantizer, last.weight.shape),
        (last.input_quantizer, (len(images), 8)),
    ]
    zeros = [torch.zeros(shape, dtype=torch.float64) for _, shape in quantizers]
    return loss, [q for q, _ in quantizers], zeros


@pytest.mark.parametrize("wrapped", [Smooth(), CrossEntropy()], ids=["smooth", "entropy"])
@pytest.mark.parametrize("delta", [0.0, 0.7])
def test_delta_is_trace_over_spread_of_the_exact_hessian(wrapped, delta):
    student = tiny(delta, bits=3).double()
    student[1].weight.data = torch.tensor([0.7, 1.3], dtype=torch.float64)
    samples = 600
    method = HessianScaling(wrapped, batches=1, samples=samples)
    # tolerance 0 in effect: an exact estimate has the variance of all samples.
    images, labels = DATA.images.double(), DATA.labels
    torch.manual_seed(0)
    exact = partial(module.hessian_trace, tolerance=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hessian_trace", exact)
        found = method._of_batch(student, lambda x: (x - 0.5) / 0.3, images, labels)
    loss, owners, zeros = levels_as_leaves(student, images, wrapped, labels)
    assert set(found) == set(owners)
    whole = torch.autograd.functional.hessian(loss, tuple(zeros))
    gradients = torch.autograd.functional.jacobian(loss, tuple(zeros))
    checked = 0
    for k, quantizer in enumerate(owners):
        n = zeros[k].numel()
        block = whole[k][k].reshape(n, n)
        rows = sum(part.square().sum() for part in whole[k])
        # Variance of a sample: twice the off-diagonal of the block, once what couples blocks.
        noise = 2 * (block.square().sum() - block.diag().square().sum())
        noise = noise + rows - block.square().sum()
        spread = 3 * gradients[k].std()
        expected = (block.trace() / n / spread).item()
        tolerance = 4 * (noise / samples).sqrt().item() / n / spread.item()
        assert found[quantizer] == pytest.approx(expected, abs=tolerance + 1e-12)
        checked += abs(expected) > 2 * tolerance
    assert checked >= 2


def test_the_delta_in_force_does_not_enter_the_next():
    found = []
    for delta in (0.0, 3.0):
        torch.manual_seed(0)
        found.append(HessianScaling(Smooth()).deltas(tiny(delta), DATA, DATA.images).values())
    assert list(found[0]) == list(found[1])
    assert any(delta > 0 for delta in found[0])


def test_delta_averages_the_batches_and_is_not_negative(monkeypatch):
    student = tiny()
    values = iter([0.3, -0.1, 0.7, -5.0, 0.1, 0.2])
    first, second, *others = ewgs_quantizers(student).values()
    pairs = [next(values) for _ in range(6)]
    batches = iter([dict(zip((first, second), (a, b), strict=True)) for a, b in
                    zip(pairs[:3], pairs[3:], strict=True)])  # fmt: skip
    method = HessianScaling(Smooth())
    monkeypatch.setattr(method, "_of_batch", lambda *a: next(batches))
    found = method.deltas(student, DATA, DATA.images[:5])
    assert found[first] == pytest.approx((0.3 - 0.1 + 0.7) / 3)
    assert found[second] == 0
    assert [found[other] for other in others] == [0, 0]


def test_the_batches_are_random_training_images_with_their_labels(monkeypatch):
    seen = []
    method = HessianScaling(Smooth(), batches=4)
    monkeypatch.setattr(
        method, "_of_batch", lambda student, normalise, *batch: seen.append(batch) or {}
    )
    method.deltas(tiny(), DATA, DATA.images[:5])
    assert len(seen) == 4
    for images, labels in seen:
        where = [next(i for i in range(12) if image.equal(DATA.images[i])) for image in images]
        assert len(set(where)) == 5
        assert labels.equal(DATA.labels[where])
    assert not seen[0][0].equal(seen[1][0])


def test_a_flat_loss_has_delta_zero():
    class Flat(Method):
        def loss(self, forward, images, labels):
            return {"flat": 0 * forward(images).sum()}

    found = HessianScaling(Flat()).deltas(tiny(), DATA, DATA.images)
    assert len(found) == 4
    assert all(delta == 0 for delta in found.values())


def test_weights_that_are_read_twice_are_one_tensor():
    # The mean of the loss over a batch, taken in one pass or in two halves, is the same function
    # of the weight (here without BatchNorm).
    class Twice(Smooth):
        def loss(self, forward, images, labels):
            halves = (super(Twice, self).loss(forward, half, labels) for half in images.split(6))
            return {f"{i}{k}": v / 2 for i, half in enumerate(halves) for k, v in half.items()}

    student = tiny().double()
    student[1] = nn.Identity()
    weight = student[4].weight_quantizer
    shapes = []
    for wrapped in (Smooth(), Twice()):
        torch.manual_seed(1)
        method = HessianScaling(wrapped, samples=400)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "hessian_trace", partial(module.hessian_trace, tolerance=0.0))
            images = DATA.images.double()
            found = method._of_batch(student, lambda x: x - 0.5, images, DATA.labels)
        shapes.append(found[weight])
    assert shapes[0] == pytest.approx(shapes[1], rel=0.1)
    assert abs(shapes[0]) > 0


# --- When, and what it leaves alone


class Watched(HessianScaling):
    """Writes down after which step δ is computed."""

    updates = ()

    def after_step(self, batch, progress):
        self.now = progress
        super().after_step(batch, progress)

    def deltas(self, student, data, like):
        self.updates += (round(self.now * self.total),)
        return dict.fromkeys(ewgs_quantizers(student).values(), 0.25)


@pytest.mark.parametrize(
    ("epochs", "batch", "every", "expected"),
    [
        (6, 5, 2, [4, 8]),  # two steps an epoch: after epochs 2 and 4; 6 is the last
        (7, 5, 2, [4, 8, 12]),
        (25, 100, 10, [10, 20]),
        (3, 4, 1, [3, 6]),
        (10, 12, 10, []),
    ],
)
def test_the_update_follows_every_tenth_epoch(epochs, batch, every, expected):
    student, method = tiny(0.0), Watched(CrossEntropy(), every=every)
    method.total = epochs * (12 // min(batch, 12))
    history = []
    schedule = Schedule(epochs=epochs, batch=batch, rate=0.01)
    observer = lambda step, model: history.append(model[0].weight_quantizer.delta.item())  # noqa: E731
    fit(student, method, DATA, DATA, schedule, [observer])
    assert list(method.updates) == expected
    first = expected[0] if expected else method.total + 1
    assert history == [0.0] * (first - 1) + [0.25] * (method.total + 1 - first)


def test_a_second_run_counts_from_zero():
    method = Watched(CrossEntropy(), every=2)
    method.total = 3
    for _ in range(2):
        fit(tiny(), method, DATA, DATA, Schedule(epochs=3, batch=12, rate=0.01))
    assert method.updates == (2, 2)


def test_the_count_of_steps_is_state():
    # Two epochs of three steps; cut after the first, the update still follows the sixth.
    batch = (DATA.images[:4], DATA.labels[:4])
    first = Watched(CrossEntropy(), every=2)
    first.total = 12
    first.prepare(tiny(), DATA)
    for step in range(1, 5):
        first.after_step(batch, step / 12)
    second = Watched(CrossEntropy(), every=2)
    second.total = 12
    second.prepare(tiny(), DATA)
    second.load_state_dict(first.state_dict())
    for step in range(5, 13):
        second.after_step(batch, step / 12)
    assert first.updates == ()
    assert second.updates == (6,)


def test_of_two_processes_each_has_half_a_batch_and_both_the_same_delta(monkeypatch):
    # The other process found, for each quantizer, 0.5 more than this one.
    batches = []

    class Two(HessianScaling):
        def _of_batch(self, student, normalise, images, labels):
            batches.append(len(images))
            return dict.fromkeys(ewgs_quantizers(student).values(), 0.25)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.mul_(2).add_(0.5))
    student, method = tiny(0.0), Two(CrossEntropy(), every=1, batches=1)
    method.prepare(student, DATA)
    half = (DATA.images[:3], DATA.labels[:3])  # of batches of 6: two steps an epoch
    method.after_step(half, 0.2)
    assert student[0].weight_quantizer.delta.item() == 0
    method.after_step(half, 0.4)
    assert student[0].weight_quantizer.delta.item() == 0.5
    assert batches == [3]


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_but_the_result_is_left(mode):
    student, wrapped = tiny(0.125).train(mode), CrossEntropy()
    wrapped.register_buffer("mine", torch.ones(2))
    student[4].weight.grad = torch.full((3, 8), 7.0)
    method = HessianScaling(wrapped)
    before = state_of(student, method)
    hooks = [len(m._forward_hooks) for m in student.modules()]
    found = method.deltas(student, DATA, DATA.images[:6])
    assert any(delta > 0 for delta in found.values())
    assert same(before, state_of(student, method))
    assert [m.training for m in student.modules()] == [mode] * len(hooks)
    assert [len(m._forward_hooks) for m in student.modules()] == hooks
    grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert list(grads) == ["4.weight"]
    assert (grads["4.weight"] == 7).all()


def test_a_method_that_fails_leaves_the_student_too():
    class Failing(Method):
        def loss(self, forward, images, labels):
            forward(images)
            raise RuntimeError("stop")

    student = tiny(0.125)
    before = state_of(student)
    with pytest.raises(RuntimeError, match="stop"):
        HessianScaling(Failing()).deltas(student, DATA, DATA.images)
    assert same(before, state_of(student))
    assert not any(m._forward_hooks for m in student.modules())


def test_the_loss_is_that_of_training_with_batch_statistics():
    # With running statistics far from the data, evaluation mode would be another loss.
    values = []
    for shift in (0.0, 50.0):
        student = tiny()
        student[1].running_mean.fill_(shift)
        torch.manual_seed(0)
        values.append(list(HessianScaling(Smooth()).deltas(student, DATA, DATA.images).values()))
    assert values[0] == values[1]


def test_labels_are_not_needed():
    student = tiny(0.0)
    fit(
        student,
        HessianScaling(Smooth(), every=1, samples=5),
        *(split(labelled=False), DATA),
        Schedule(epochs=2, batch=6, rate=0.01),
    )
    deltas = [q.delta.item() for q in ewgs_quantizers(student).values()]
    assert all(math.isfinite(d) and d >= 0 for d in deltas)
    assert any(d > 0 for d in deltas)


def test_training_with_curvature_changes_delta_and_the_rest_of_training():
    results = []
    for wrap in (lambda m: m, partial(HessianScaling, every=1, samples=5)):
        student = tiny(0.0)
        match_outputs(student, next(DATA.batches(12))[0])
        # δ of a layer's inputs bends the gradients of the layers before it, and only then its own.
        fit(student, wrap(Smooth()), DATA, DATA, Schedule(epochs=4, batch=12, rate=0.1))
        results.append(student)
    plain, curved = results
    assert all(q.delta == 0 for q in ewgs_quantizers(plain).values())
    assert any(q.delta > 0 for q in ewgs_quantizers(curved).values())
    assert not torch.equal(plain[4].weight, curved[4].weight)


class Recorder(CrossEntropy):
    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(2, 2), []

    def prepare(self, student, data):
        self.calls.append(("prepare", student, data, student[0].weight_quantizer.scale.item()))

    def after_step(self, batch, progress):
        self.calls.append(("after_step", batch, progress))


def test_it_delegates():
    student, inner = tiny(), Recorder()
    method = HessianScaling(inner)
    method.prepare(student, DATA)
    # The method sees the student as it will be trained: outputs matched.
    scale = student[0].weight_quantizer.scale.item()
    assert inner.calls == [("prepare", student, DATA, scale)]
    batch = (DATA.images[:5], DATA.labels[:5])
    forward = nn.Flatten()
    assert method.loss(forward, *batch) == inner.loss(forward, *batch)
    method.after_step(batch, 0.5)
    assert inner.calls[-1] == ("after_step", batch, 0.5)
    assert [id(p) for p in method.parameters()] == [id(p) for p in inner.parameters()]
    assert not any(m is student for m in method.modules())
    assert method.state_dict().keys() == {
        "method.head.weight",
        "method.head.bias",
        "_extra_state",
    }


def test_the_end_of_training_lets_go_of_student_and_data():
    method = HessianScaling(CrossEntropy())
    fit(tiny(), method, DATA, DATA, Schedule(epochs=1, batch=6, rate=0.01))
    assert method._prepared == ()


def test_other_quantizers_are_left_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    student = quantize(model, {"1": partial(LSQ, 3), "3": partial(EWGS, 2)}, None)
    found = HessianScaling(Smooth()).deltas(student, DATA, DATA.images)
    assert list(found) == [student[3].weight_quantizer]


def test_a_student_without_ewgs_is_refused():
    student = quantize(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), partial(LSQ, 3), None)
    with pytest.raises(ValueError, match="no EWGS quantizer"):
        HessianScaling(CrossEntropy()).prepare(student, DATA)


@pytest.mark.parametrize("name", ["every", "batches", "samples"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        HessianScaling(CrossEntropy(), **{name: 0})


# --- The outputs of the layers


def test_outputs_are_matched_layer_by_layer():
    student = tiny()
    images = next(DATA.batches(12))[0]
    before, twin = state_of(student)[0], copy.deepcopy(student)
    scales = {name: q.scale for name, q in ewgs_quantizers(student).items()}
    match_outputs(student, images)
    # By hand: the second layer sees what the first makes with its new scale.
    conv, norm, _, _, last = twin
    x = conv.input_quantizer(images)
    full = conv2d(images, conv.weight).abs().mean()
    factor = (full / conv2d(x, conv.quantized_weight()).abs().mean()).item()
    out = factor * conv2d(x, conv.quantized_weight()) + conv.bias[:, None, None]
    out = nn.functional.batch_norm(out, None, None, norm.weight, norm.bias, training=True)
    hidden = out.relu().flatten(1)
    x = last.input_quantizer(hidden)
    full = linear(hidden, last.weight).abs().mean()
    second = (full / linear(x, last.quantized_weight()).abs().mean()).item()
    assert abs(factor - 1) > 1e-3
    assert abs(second - 1) > 1e-3
    expected = {"0.weight_quantizer.scale": factor, "4.weight_quantizer.scale": second}
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, before[key] * expected.get(key, 1), rtol=1e-5, atol=0)
    # The parameters are the same objects, for the optimizer; no hook stays.
    assert all(q.scale is scales[n] for n, q in ewgs_quantizers(student).items())
    assert not any(m._forward_hooks for m in student.modules())


def test_matching_twice_changes_nothing_more():
    student, images = tiny(), next(DATA.batches(12))[0]
    match_outputs(student, images)
    first = state_of(student)[0]
    match_outputs(student, images)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, first[key], rtol=1e-5, atol=0)


def test_the_input_is_scaled_where_the_weight_is_no_ewgs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    for weights, inputs, expected in (
        (None, partial(EWGS, 2), ["1.input_quantizer.scale"]),
        (partial(LSQ, 3), partial(EWGS, 2), ["1.input_quantizer.scale"]),
        (partial(EWGS, 2), partial(LSQ, 3), ["1.weight_quantizer.scale"]),
        (partial(LSQ, 3), partial(LSQ, 3), []),
    ):
        student = quantize(model, weights, inputs)
        calibrate(student, DATA.batches(12))
        before = state_of(student)[0]
        match_outputs(student, next(DATA.batches(12))[0])
        after = student.state_dict()
        assert [k for k in after if not torch.equal(after[k], before[k])] == expected


def test_a_dead_layer_stays_as_it_is():
    student = tiny()
    student[0].weight.data.zero_()
    before = state_of(student)[0]
    match_outputs(student, next(DATA.batches(12))[0])
    assert torch.equal(student[0].weight_quantizer.scale, before["0.weight_quantizer.scale"])


def test_functional_call_reaches_delta():
    # δ is a buffer like any other: what the update writes is what training reads.
    student = tiny(0.0)
    x = DATA.images
    found = []
    for delta in (0.0, 0.9):
        buffers = {"0.weight_quantizer.delta": torch.tensor(delta)}
        student.zero_grad()
        functional_call(student, buffers, (x,)).pow(2).sum().backward()
        found.append(student[0].weight.grad.clone())
    assert not torch.equal(*found)
