import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qatviz.quantize import quantize
from qatviz.quantizers import (
    EWGS,
    LSQ,
    NIPQ,
    AdaRound,
    Affine,
    AffineLSQ,
    DoReFa,
    LSQPlus,
    ReleasedDoReFa,
)
from qatviz.tracking import OscillationTracker, rounds_to_nearest, weight_quantized_layers
from tests.methods.common import CE, float_net, same, tiny, trained


def weights_only(count=1, step=0.2, bits=4):
    """A layer of some weights on a grid of known step, and nothing else."""
    factory = partial(LSQ, bits, signed=True)
    model = quantize(nn.Sequential(nn.Linear(count, 1, bias=False)), factory, None)
    model[0].weight_quantizer.step.data.fill_(step)
    model[0].weight.data.zero_()
    return model


def literal(walks, momentum):
    """Section 7.1 one weight at a time: f, q̄, events, changes and direction after each step."""
    results = []
    for walk in walks:
        previous, direction = walk[0], 0
        frequency, mean, events, changes = 0.0, float(walk[0]), 0, 0
        for code in walk[1:]:
            difference = code - previous
            event = 0
            if difference != 0:
                changes += 1
                sign = 1 if difference > 0 else -1
                if sign == -direction:
                    event = 1
                direction = sign
            events += event
            frequency = momentum * event + (1 - momentum) * frequency
            mean = momentum * code + (1 - momentum) * mean
            previous = code
        results.append((frequency, mean, events, changes, direction))
    return results


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-8, 7), min_size=n, max_size=n), min_size=1, max_size=25
        )
    ),
    st.sampled_from([0.001, 0.01, 0.3, 1.0]),
)
def test_it_is_the_literal_loop(rows, momentum):
    model = weights_only(len(rows[0]))
    weight = model[0].weight.data
    weight.copy_(0.2 * torch.tensor([rows[0]]))
    tracker = OscillationTracker(model, momentum)
    for step, row in enumerate(rows[1:], 1):
        weight.copy_(0.2 * torch.tensor([row]) + 0.09 * (2 * torch.rand(1, len(row)) - 1))
        tracker(step, model)
    for i, wanted in enumerate(literal(zip(*rows, strict=True), momentum)):
        frequency, mean, events, changes, direction = wanted
        assert tracker.frequency[i].item() == pytest.approx(frequency, rel=1e-4, abs=1e-7)
        assert tracker.mean[i].item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert tracker.events[i].item() == events
        assert tracker.changes[i].item() == changes
        assert tracker.direction[i].item() == direction
        assert tracker.codes[i].item() == rows[-1][i]
    assert tracker.steps == len(rows) - 1


def follow(*codes, momentum=0.1):
    model = weights_only()
    model[0].weight.data.fill_(0.2 * codes[0])
    tracker = OscillationTracker(model, momentum)
    for step, code in enumerate(codes[1:], 1):
        model[0].weight.data.fill_(0.2 * code)
        tracker(step, model)
    return tracker.events.item(), tracker.changes.item(), tracker.frequency.item()


def test_the_first_change_is_no_oscillation():
    assert follow(0, 1, 1, 1) == (0, 1, 0)


def test_a_drift_is_no_oscillation():
    assert follow(-3, -2, -2, -1, 0, 3, 3, 4, 7) == (0, 6, 0)


def test_back_after_a_rest_is_one():
    events, changes, frequency = follow(0, 1, 1, 1, 0, 0)
    assert (events, changes) == (1, 2)
    assert frequency == pytest.approx(0.1 * 0.9)


def test_a_jump_back_over_several_codes_is_one():
    assert follow(0, 4, -4)[:2] == (1, 2)


def test_a_weight_between_two_levels_oscillates_at_two_d_over_s():
    # min ½(q(w) − w*)² straight through, w* at distance d from a level: 2d/s events per step.
    distances = torch.tensor([[0.01, 0.02, 0.05, 0.08, 0.1]])
    model, count = weights_only(5, step=0.2), 2000
    target = 0.4 + distances
    model[0].weight.data.copy_(target)
    tracker = OscillationTracker(model)
    for number in range(count):
        with torch.no_grad():
            weight = model[0].weight
            weight -= 0.01 * (model[0].quantized_weight() - target)
        tracker(number, model)
        if number == count // 2 - 1:
            half = tracker.events.clone()
    expected = (2 * distances[0] / 0.2).tolist()
    assert ((tracker.events - half) / (count / 2)).tolist() == pytest.approx(expected, rel=0.02)
    # f is the same number, smoothed over a hundred steps.
    assert tracker.frequency.tolist() == pytest.approx(expected, rel=0.1)


def test_a_step_that_is_trained_changes_codes_too():
    model = weights_only()
    model[0].weight.data.fill_(0.29)
    tracker = OscillationTracker(model)
    for number, step in enumerate((0.2, 0.19, 0.2), 1):
        model[0].weight_quantizer.step.data.fill_(step)
        tracker(number, model)
    assert (tracker.events.item(), tracker.changes.item()) == (1, 2)


@pytest.mark.parametrize(
    "weights",
    [
        partial(LSQ, bits=3, axis=0),
        partial(AffineLSQ, bits=2, axis=0),
        partial(LSQPlus, bits=3),
        partial(EWGS, bits=2),
        partial(DoReFa, bits=3),
    ],
    ids=lambda factory: factory.func.__name__,
)
def test_codes_are_those_of_the_quantizer(weights):
    student = tiny(weights)
    tracker = OscillationTracker(student)
    for seed in range(2):
        torch.manual_seed(seed)
        for layer in weight_quantized_layers(student).values():
            layer.weight.data += 0.3 * torch.randn_like(layer.weight)
        tracker(seed, student)
    parts = tracker.split(tracker.codes)
    for name, layer in weight_quantized_layers(student).items():
        assert torch.equal(parts[name], layer.weight_quantizer.codes(layer.weight).detach())
    assert tracker.changes.sum() > 0


def test_only_weights_of_few_bits_are_tracked():
    student = quantize(float_net(), {"0": partial(LSQ, 8), "5": partial(LSQ, 4)}, None)
    assert OscillationTracker(student).names == ("5",)
    assert OscillationTracker(student, bits=8).names == ("0", "5")
    with pytest.raises(ValueError, match=r"no weight quantizer of at most 3 bits .*: 4, 8"):
        OscillationTracker(student, bits=3)


@pytest.mark.parametrize("inputs", [None, partial(LSQ, 4)])
def test_a_student_with_float_weights_is_refused(inputs):
    student = quantize(float_net(), None, inputs) if inputs else float_net()
    with pytest.raises(ValueError, match="there are: none"):
        OscillationTracker(student)


@pytest.mark.parametrize("momentum", [0.0, 1.1, -1.0, float("nan")])
def test_bad_momentum(momentum):
    with pytest.raises(ValueError, match="momentum must be above 0, up to 1"):
        OscillationTracker(tiny(), momentum)


def test_split_and_share():
    tracker = OscillationTracker(tiny())
    values = torch.arange(len(tracker.codes), dtype=torch.float32)
    parts = tracker.split(values)
    assert {name: part.shape for name, part in parts.items()} == {"0": (4, 1, 3, 3), "5": (3, 16)}
    assert torch.equal(torch.cat([p.flatten() for p in parts.values()]), values)
    tracker.frequency[:21] = 0.006
    tracker.frequency[21] = 0.005
    assert tracker.oscillating() == pytest.approx(21 / 84)
    assert tracker.oscillating(above=0.1) == 0


def test_observing_changes_nothing_and_counts_steps_once():
    student = tiny()
    tracker = OscillationTracker(student)
    state, _ = trained(CE(), student, observers=[tracker])
    assert same(state, trained(CE())[0])
    assert tracker.steps == 12
    assert tracker.changes.sum() > 0
    assert repr(tracker) == "OscillationTracker(2 layers, 84 weights, 12 steps, momentum=0.01)"
    assert len(list(tracker.modules())) == 1
    assert list(tracker.parameters()) == []


def test_evaluation_is_not_tracked():
    student = tiny()
    tracker = OscillationTracker(student)
    before = copy.deepcopy(tracker.state_dict())
    student.eval()(torch.randn(3, 1, 6, 6))
    assert same(tracker.state_dict(), before)


def test_it_goes_on_from_its_state():
    torch.manual_seed(0)
    walk = (0.5 * torch.randn(20, 1, 1)).cumsum(0)
    model = weights_only()
    whole, first = OscillationTracker(model), OscillationTracker(model)
    second = None
    for number, value in enumerate(walk):
        if number == 9:
            second = OscillationTracker(model)
            second.load_state_dict(first.state_dict())
        model[0].weight.data.copy_(value)
        whole(number, model)
        (second or first)(number, model)
    assert same(whole.state_dict(), second.state_dict())
    assert second.steps == 20


def test_half_precision_weights():
    model = weights_only().half()
    model[0].weight.data.fill_(0.4)
    assert OscillationTracker(model).codes.tolist() == [2.0]
    assert OscillationTracker(model).codes.dtype == torch.float32


def test_it_follows_the_student_to_its_device():
    student = tiny()
    tracker = OscillationTracker(student)
    tracker(1, student.to("meta"))
    assert {buffer.device.type for buffer in tracker.buffers()} == {"meta"}


# --- Who rounds to the nearest level


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (partial(LSQ, 2), True),
        (partial(LSQ, 8), True),
        (partial(LSQ, 3, axis=0), True),
        (partial(LSQ, 3, signed=False), True),
        (partial(LSQPlus, 3), True),
        (partial(LSQPlus, 4, axis=0), True),
        (partial(Affine, 3), True),
        (partial(Affine, 1), True),
        (partial(AffineLSQ, 2, axis=0), True),
        (partial(AffineLSQ, 4), True),
        (partial(NIPQ, 3, noise=None, learn_bits=False), True),
        (partial(NIPQ, 3), False),
        (partial(NIPQ, 3, learn_bits=False), False),
        (partial(EWGS, 2), False),
        (partial(EWGS, 3), False),
        (partial(EWGS, 4), False),
        (partial(DoReFa, 1), False),
        (partial(DoReFa, 2), False),
        (partial(DoReFa, 4), False),
        (partial(ReleasedDoReFa, 3), False),
        (partial(AdaRound, 3), False),
        (partial(AdaRound, 3, axis=None), False),
    ],
    ids=lambda value: f"{value.func.__name__}-{value.args[0]}" if callable(value) else str(value),
)
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_rounds_to_nearest(weights, expected, scale):
    model = float_net()
    with torch.no_grad():
        for layer in (model[0], model[5]):
            layer.weight.copy_(scale * torch.randn_like(layer.weight))
    student = quantize(model, weights, None)
    before = copy.deepcopy(student.state_dict())
    random = torch.get_rng_state()
    layers = weight_quantized_layers(student)
    assert [rounds_to_nearest(layer) for layer in layers.values()] == [expected] * 2
    assert same(student.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
