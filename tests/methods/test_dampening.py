import copy
import math
from functools import partial

import pytest
import torch

from qatviz.methods import CrossEntropy, Dampening, HessianScaling, HintonKD
from qatviz.methods.dampening import distance
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, NIPQ, Affine, AffineLSQ, LSQPlus
from tests.methods.common import (
    CE,
    TRAIN,
    float_net,
    longer,
    resumed_like_whole,
    same,
    tiny,
    trained,
)

FACTORIES = [
    partial(LSQ, bits=2),
    partial(LSQ, bits=3, axis=0),
    partial(AffineLSQ, bits=2, axis=0),
    partial(LSQPlus, bits=3),
    partial(Affine, bits=2),
]
named = pytest.mark.parametrize("weights", FACTORIES, ids=lambda f: f.func.__name__)


def literal(layer):
    """The penalty and its gradient, one weight at a time, from the levels of the grid."""
    grid = layer.weight_quantizer.levels()
    weight = layer.weight.detach()
    per_channel = weight[0].numel()
    total, gradient = 0.0, torch.zeros_like(weight)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)).tolist():
        levels = (grid[index[0]] if grid.ndim == 2 else grid).tolist()
        w = weight[tuple(index)].item()
        nearest = min(levels, key=lambda level: abs(level - w))
        clipped = min(max(w, min(levels)), max(levels))
        total += (nearest - clipped) ** 2 / per_channel
        if min(levels) < w < max(levels):
            gradient[tuple(index)] = 2 * (w - nearest) / per_channel
    return total, gradient


@named
def test_the_penalty_and_what_it_moves(weights):
    student = tiny(weights)
    for layer in (student[0], student[5]):
        # Some of the weights outside of the range.
        layer.weight.data *= 4
        loss = distance(layer)
        wanted, gradient = literal(layer)
        assert wanted > 0
        assert loss.item() == pytest.approx(wanted, rel=1e-4)
        loss.backward()
        torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-6)
        assert (gradient == 0).any()
        assert all(p.grad is None for p in layer.weight_quantizer.parameters())


def test_weights_on_their_levels_cost_nothing():
    student = tiny()
    layer = student[0]
    layer.weight.data = layer.quantized_weight().detach()
    assert distance(layer).item() < 1e-12


def after(method, progress):
    method.after_step((TRAIN.images[:2], TRAIN.labels[:2]), progress)


@pytest.mark.parametrize("progress", [0.25, 0.4, 0.625, 0.9])
def test_the_term_is_added_to_those_of_the_method(progress):
    student, inner = tiny(), CrossEntropy()
    method = Dampening(inner, strength=0.5)
    method.prepare(student, TRAIN)
    after(method, progress)
    forward = lambda images: student(TRAIN.normalise(images))  # noqa: E731
    student.eval()
    terms = method.loss(forward, TRAIN.images, TRAIN.labels)
    assert list(terms) == ["cross_entropy", "dampening"]
    assert torch.equal(
        terms["cross_entropy"], inner.loss(forward, TRAIN.images, TRAIN.labels)["cross_entropy"]
    )
    rise = (1 - math.cos(math.pi * (progress - 0.25) / 0.75)) / 2
    wanted = 0.5 * rise * sum(literal(student[i])[0] for i in (0, 5))
    assert terms["dampening"].item() == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_the_range_learns_from_the_method_alone():
    steps = []
    for wrap in (lambda m: m, partial(Dampening, strength=3.0, start=0.0)):
        student, method = tiny(), wrap(CrossEntropy())
        method.prepare(student, TRAIN)
        after(method, 0.9)
        terms = method.loss(lambda x, s=student: s(TRAIN.normalise(x)), TRAIN.images, TRAIN.labels)
        torch.stack(list(terms.values())).sum().backward()
        steps.append([p.grad for n, p in student.named_parameters() if "quantizer" in n])
        weight = student[0].weight.grad
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert weight.abs().sum() > 0


def test_the_schedule():
    method = Dampening(CE())
    assert [method.strength_at(t) for t in (0, 0.1, 0.25)] == [0, 0, 0]
    assert method.strength_at(0.625) == pytest.approx(0.05)
    assert method.strength_at(1) == pytest.approx(0.1)


@named
def test_strength_zero_is_the_method_to_the_bit(weights):
    first, run = trained(Dampening(CE(), strength=0.0), tiny(weights))
    assert same(first, trained(CE(), tiny(weights))[0])
    assert run.history.terms["dampening"].tolist() == [0.0] * 3


def test_until_the_start_it_is_the_method_to_the_bit():
    seen = [[], []]
    for method, states in zip((Dampening(CE(), 50.0, start=0.5), CE()), seen, strict=True):
        trained(method, observers=[lambda _, m, s=states: s.append(m[0].weight.detach().clone())])
    equal = [torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    # Of 12 steps, the sixth ends at the start; the seventh still has λ(½) = 0.
    assert equal == [True] * 7 + [False] * 5


def test_it_pulls_weights_to_their_levels():
    gaps = []
    for strength in (0.0, 20.0):
        student = tiny(partial(LSQ, bits=3))
        trained(Dampening(CE(), strength, start=0.0), student, longer(8))
        gaps.append(sum(distance(student[i]).item() for i in (0, 5)))
    assert gaps[1] < 0.2 * gaps[0]


def test_it_goes_around_any_method():
    state, run = trained(Dampening(HintonKD(float_net())))
    assert sorted(run.history.terms) == ["cross_entropy", "dampening", "distillation"]
    assert all(v.isfinite().all() for v in state.values())


def test_resumed_like_whole():
    whole, resumed = resumed_like_whole(lambda: Dampening(CrossEntropy(), 2.0))
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())
    # The share of the steps matters: without it the second half would begin undamped.
    assert whole[1].state_dict() == {"_extra_state": 1.0}


def test_layers_of_any_bits_count_and_float_ones_do_not():
    student = quantize(float_net(), {"5": partial(LSQ, 8)}, None)
    method = Dampening(CrossEntropy(), start=0.0)
    method.prepare(student, TRAIN)
    assert method._prepared == (student[5],)
    assert len(list(method.modules())) == 2
    after(method, 1.0)
    assert method._prepared == ()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (float_net, "Dampening: the student has no weight quantizer"),
        (partial(tiny, partial(EWGS, bits=3)), r"nearest level.*these are not: 0 \(EWGS\), 5"),
        (partial(tiny, partial(NIPQ, 4)), r"0 \(NIPQ\), 5 \(NIPQ\)"),
    ],
)
def test_students_that_are_refused(student, message):
    with pytest.raises(ValueError, match=message):
        Dampening(CE()).prepare(student(), TRAIN)


def test_inside_of_curvature():
    # HessianScaling on the inputs, dampening on the weights.
    student = tiny(partial(LSQ, bits=3), partial(EWGS, bits=3))
    method = HessianScaling(Dampening(CE(), start=0.0), every=1, samples=3)
    state, _ = trained(method, student)
    assert all(v.isfinite().all() for v in copy.copy(state).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength must be from 0 below inf, got -1.0"),
        ({"strength": math.inf}, "strength must be"),
        ({"start": 1.0}, "start must be from 0 below 1, got 1.0"),
        ({"start": -0.1}, "start must be"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dampening(CE(), **arguments)
