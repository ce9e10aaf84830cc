import copy
import math
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qatviz.checkpoints import load_tree, save_tree
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
from qatviz.records import Oscillation, Trajectories
from qatviz.studies.building import kept
from qatviz.studies.cells import _packed, _unpacked
from qatviz.tracking import (
    OscillationTracker,
    WeightTrajectories,
    grid_positions,
    rounds_to_nearest,
    weight_quantized_layers,
)
from tests.methods.common import CE, TEST, TRAIN, fit, float_net, longer, same, tiny, trained


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
    assert not {id(m) for m in tracker.modules()} & {id(m) for m in student.modules()}
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


# --- What changed the code: the weight, or the grid


def lsq_code(weight, step, low=-8, high=7):
    """Equation 1 of LSQ for one number, in float32."""
    ratio = np.float32(weight) / np.float32(step)
    return int(np.round(min(max(ratio, np.float32(low)), np.float32(high))))


def causes(walk, steps):
    """How often the weight and how often the step changed the code, one step at a time."""
    by_weight = by_step = changes = 0
    code = lsq_code(walk[0], steps[0])
    for before, weight, step in zip(steps, walk[1:], steps[1:], strict=False):
        between, after = lsq_code(weight, before), lsq_code(weight, step)
        by_weight += between != code
        by_step += after != between
        changes += after != code
        code = after
    return by_weight, by_step, changes


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(2, 15),
    st.sampled_from(["both", "weight only", "step only"]),
)
def test_causes_are_those_of_the_literal_loop(seed, length, moving):
    generator = np.random.default_rng(seed)
    walks = (0.3 * generator.standard_normal((length, 3))).astype(np.float32)
    steps = (0.2 * np.exp(0.4 * generator.standard_normal(length))).astype(np.float32)
    if moving == "weight only":
        steps[:] = steps[0]
    if moving == "step only":
        walks[:] = walks[0]
    model = weights_only(3)
    tracker = None
    for number, (row, step) in enumerate(zip(walks, steps, strict=True)):
        model[0].weight.data.copy_(torch.tensor(row[None]))
        model[0].weight_quantizer.step.data.fill_(float(step))
        if number:
            tracker(number, model)
        else:
            tracker = OscillationTracker(model)
    for i in range(3):
        by_weight, by_step, changes = causes(walks[:, i], steps)
        assert tracker.by_weight[i].item() == by_weight
        assert tracker.by_step[i].item() == by_step
        assert tracker.changes[i].item() == changes
        assert by_weight + by_step >= changes
    assert moving != "weight only" or not tracker.by_step.any()
    assert moving != "step only" or not tracker.by_weight.any()


def test_two_causes_that_cancel_are_both_counted():
    model = weights_only(step=0.2)
    model[0].weight.data.fill_(0.2)
    tracker = OscillationTracker(model)
    model[0].weight.data.fill_(0.4)  # code 2 on the old grid
    model[0].weight_quantizer.step.data.fill_(0.4)  # and 1 again on the new one
    tracker(1, model)
    assert (tracker.by_weight.item(), tracker.by_step.item(), tracker.changes.item()) == (1, 1, 0)


@pytest.mark.parametrize(
    "weights",
    [
        partial(LSQ, bits=3, axis=0),
        partial(AffineLSQ, bits=2, axis=0),
        partial(LSQPlus, bits=3),
        partial(EWGS, bits=2),
        partial(DoReFa, bits=3),
        partial(ReleasedDoReFa, bits=3),
        partial(NIPQ, bits=3),
    ],
    ids=lambda factory: factory.func.__name__,
)
def test_causes_on_any_grid(weights):
    # Beside the literal thing: a copy of the whole student, one step old.
    student = tiny(weights)
    tracker = OscillationTracker(student)
    wanted = {name: [0, 0] for name in tracker.names}
    for seed in range(4):
        torch.manual_seed(seed)
        old = copy.deepcopy(student)
        for layer in weight_quantized_layers(student).values():
            layer.weight.data += 0.2 * torch.randn_like(layer.weight)
            for number in layer.weight_quantizer.parameters():
                number.data *= 1 + 0.2 * torch.rand_like(number)
        tracker(seed, student)
        for name, layer in weight_quantized_layers(student).items():
            was = old.get_submodule(name)
            start = was.weight_quantizer.codes(was.weight)
            between = was.weight_quantizer.codes(layer.weight)
            wanted[name][0] += (between != start).int()
            wanted[name][1] += (layer.weight_quantizer.codes(layer.weight) != between).int()
    for position, vector in enumerate((tracker.by_weight, tracker.by_step)):
        for name, counts in tracker.split(vector).items():
            assert torch.equal(counts, wanted[name][position])
    # DoReFa's grid follows from the weight: nothing is learned, nothing is the grid's doing.
    learned = bool(list(student[0].weight_quantizer.parameters()))
    assert bool(tracker.by_step.any()) == learned
    assert tracker.by_weight.any()


# --- Series, and what is kept


def observed(count=40, weights=6, capacity=None):
    """A tracker, and the codes it saw: a random walk on a grid."""
    generator = torch.Generator().manual_seed(3)
    walk = torch.randint(-1, 2, (count + 1, weights), generator=generator).cumsum(0).clamp(-8, 7)
    walk = (walk * torch.tensor([1, 0, 1, 1, 1, 1])[:weights]).float()
    model = weights_only(weights)
    model[0].weight.data.copy_(0.2 * walk[:1])
    tracker = OscillationTracker(model)
    for number, row in enumerate(walk[1:], 1):
        model[0].weight.data.copy_(0.2 * row[None])
        tracker(number, model)
    return tracker, walk.int().tolist()


def test_series_are_the_literal_counts():
    tracker, walk = observed()
    history = [literal(zip(*walk[: n + 1], strict=True), 0.01) for n in range(len(walk))]
    record = tracker.record()
    assert record.steps == 40
    assert record.moments.tolist() == list(range(1, 41))
    for number in range(1, 41):
        now, before = history[number], history[number - 1]
        changed = sum(a[3] - b[3] for a, b in zip(now, before, strict=True)) / 6
        events = sum(a[2] - b[2] for a, b in zip(now, before, strict=True)) / 6
        above = sum(a[0] > 0.005 for a in now) / 6
        row = (record.changed, record.oscillated, record.above)
        assert [x[number - 1] for x in row] == pytest.approx([changed, events, above])


def test_the_record_is_made_of_the_literal_numbers():
    tracker, walk = observed()
    record = tracker.record()
    wanted = literal(zip(*walk, strict=True), 0.01)
    frequency, _, events, changes, _ = zip(*wanted, strict=True)
    assert (record.layers, record.weights.tolist()) == (("0",), [6])
    assert record.frequency[0] == pytest.approx(sum(frequency) / 6)
    assert record.oscillating[0] == pytest.approx(sum(f > 0.005 for f in frequency) / 6)
    assert record.events[0] == pytest.approx(sum(events) / 6)
    assert record.changes[0] == pytest.approx(sum(changes) / 6)
    assert (record.by_weight[0], record.by_step[0]) == (record.changes[0], 0)
    assert record.windows.tolist() == [1, 10, 40]
    for column, window in enumerate(record.windows):
        still = sum(len(set(w[40 - window :])) == 1 for w in zip(*walk, strict=True))
        assert record.survival[0, column] == pytest.approx(still / 6)
    assert record.frequency_counts.sum() == 6
    for low, high, count in zip(
        record.frequency_edges, record.frequency_edges[1:], record.frequency_counts[0], strict=False
    ):
        assert count == sum(low <= f < high for f in frequency)
    assert (record.threshold, record.momentum) == (0.005, 0.01)


def test_depthwise_layers_are_told_apart():
    model = nn.Sequential(
        *(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4)),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 4, 3), nn.Linear(1, 4)),
    )
    record = OscillationTracker(quantize(model, partial(LSQ, 2), None)).record()
    assert record.depthwise.tolist() == [False, True, True, False, False, False]


def test_long_series_become_means(monkeypatch):
    monkeypatch.setattr("qatviz.tracking.POINTS", 12)
    monkeypatch.setattr("qatviz.tracking.ROWS", 4)
    tracker, walk = observed()
    record = tracker.record()
    assert len(tracker.counts) == 64  # 4 doubled until 40 fit
    assert record.moments.tolist() == [*range(4, 41, 4)]
    for column, end in enumerate(record.moments):
        rows = zip(walk[end - 4 : end], walk[end - 3 : end + 1], strict=True)
        changed = [sum(x != y for x, y in zip(a, b, strict=True)) / 6 for a, b in rows]
        assert record.changed[column] == pytest.approx(sum(changed) / 4)


def test_a_record_before_the_first_step():
    record = OscillationTracker(tiny()).record()
    assert record.steps == 0
    assert len(record.moments) == len(record.changed) == 0
    assert record.survival.tolist() == [[1.0], [1.0]]


def test_distances_are_those_of_the_last_step():
    # 4 bits: codes −8 to 7. Positions in steps of the grid, and where they belong.
    positions = [0.0, 1.0, 0.305, -0.305, 2.495, 6.995, 7.4, -8.3]
    model = weights_only(8)
    tracker = OscillationTracker(model)
    model[0].weight.data.copy_(0.2 * torch.tensor([positions]))
    tracker(1, model)
    found = tracker.record().distances
    wanted = [0] * 100
    for u in (0.001, 0.001, 0.305, -0.305, 0.495, -0.005):
        wanted[math.floor((u + 0.5) * 100)] += 1
    # On a level: between the two bins in the middle, as float32 has it.
    counts = found.counts[0].tolist()
    assert counts[49] + counts[50] == wanted[49] + wanted[50]
    assert counts[:49] + counts[51:] == wanted[:49] + wanted[51:]
    assert found.clipped.tolist() == [2]


@pytest.mark.parametrize("observer", ["tracker", "trajectories"])
def test_records_are_kept_and_small(observer, tmp_path):
    student = tiny()
    seen = (
        OscillationTracker(student) if observer == "tracker" else WeightTrajectories(student, "0")
    )
    trained(CE(), student, observers=[seen])
    record = kept(seen)
    assert isinstance(record, Oscillation | Trajectories)
    save_tree(_packed(record), tmp_path / "tree")
    assert (tmp_path / "tree").stat().st_size < 20_000
    check_same(_unpacked(load_tree(tmp_path / "tree")), record)


def check_same(one, two):
    assert type(one) is type(two)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if is_dataclass(a):
            check_same(a, b)
        elif isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        else:
            assert a == b
            assert type(a) is type(b)


@pytest.mark.parametrize("make", [OscillationTracker, partial(WeightTrajectories, layer="5")])
def test_observers_are_resumed_to_the_bit(make, tmp_path, monkeypatch):
    monkeypatch.setattr("qatviz.tracking.ROWS", 3)
    weights = partial(LSQ, bits=2, axis=0)
    student = tiny(weights)
    whole = make(student)
    fit(student, CE(), TRAIN, TEST, longer(4), [whole], progress=False)

    def stop(step, model):
        if step == 10:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "c", "resume": True, "progress": False}
    student = tiny(weights)
    with pytest.raises(KeyboardInterrupt):
        fit(student, CE(), TRAIN, TEST, longer(4), [make(student), stop], **options)
    student = tiny(weights)
    resumed = make(student)

    def watch(step, model):
        pass

    fit(student, CE(), TRAIN, TEST, longer(4), [resumed, watch], **options)
    assert same(whole.state_dict(), resumed.state_dict())
    assert resumed.steps == 16
    check_same(whole.record(), resumed.record())


# --- Trajectories


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("every", [1, 3])
def test_trajectories_are_a_literal_recording(axis, every, monkeypatch):
    monkeypatch.setattr("qatviz.tracking.ROWS", 2)
    student = tiny(partial(LSQ, bits=3, axis=axis))
    observer = WeightTrajectories(student, "0", count=5, every=every, seed=2)
    layer = student[0]
    rows = []
    for number in range(8):
        torch.manual_seed(number)
        if number:
            layer.weight.data += 0.1 * torch.randn_like(layer.weight)
            layer.weight_quantizer.step.data *= 1 + 0.3 * torch.rand(())
            observer(number, student)
        if number % every == 0:
            step = layer.weight_quantizer.step.detach().expand(layer.weight.shape)
            places = [np.unravel_index(i, layer.weight.shape) for i in observer.indices.tolist()]
            ratios = [layer.weight[p].item() / step[p].item() for p in places]
            rows.append((number, ratios, [round(min(max(r, -4), 3)) for r in ratios]))
    record = observer.record()
    assert record.steps.tolist() == [row[0] for row in rows]
    for found, codes, (_, ratios, wanted) in zip(record.positions, record.codes, rows, strict=True):
        assert found.tolist() == pytest.approx(ratios, rel=1e-5)
        assert codes.tolist() == wanted
    assert (record.low, record.high, record.layer, record.seed) == (-4, 3, "0", 2)
    differs = [sum(a[2][i] != b[2][i] for a, b in pairwise(rows)) for i in range(5)]
    assert record.changes.tolist() == differs


def test_trajectories_choose_weights_by_their_seed():
    student = tiny()
    state = torch.get_rng_state()
    chosen = [WeightTrajectories(student, "5", seed=seed).indices.tolist() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 12
    assert len(WeightTrajectories(student, "5", count=1000).indices) == 48


def test_only_the_last_looks_are_kept():
    student = tiny()
    observer = WeightTrajectories(student, "0", last=4)
    for number in range(1, 10):
        observer(number, student)
    assert observer.record().steps.tolist() == [6, 7, 8, 9]
    assert repr(observer) == "WeightTrajectories('0', 12 weights, 9 steps)"
    whole = WeightTrajectories(student, "0", last=None)
    assert whole.record().steps.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "1"}, "no weight of a layer '1' is quantized; there are: 0, 5"),
        ({"count": 0}, "count must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"last": 0}, "last must be at least 1"),
        ({"indices": ()}, r"indices are \[\]; allowed: one or more, each once"),
        ({"indices": (3, 1, 3)}, r"indices are \[3, 1, 3\]"),
        ({"indices": (-1,)}, "each once, from 0 to"),
        ({"indices": (10**6,)}, "each once, from 0 to"),
    ],
)
def test_trajectories_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        WeightTrajectories(tiny(), **{"layer": "0", **options})


def test_trajectories_of_chosen_weights():
    student = tiny()
    observer = WeightTrajectories(student, "0", indices=np.array([7, 2, 5]))
    student[0].weight.data.add_(0.1)
    observer(1, student)
    record = observer.record()
    assert record.indices.tolist() == [2, 5, 7]
    layer = student[0]
    wanted = grid_positions(layer.weight_quantizer, layer.weight).flatten()[[2, 5, 7]]
    np.testing.assert_allclose(record.positions[1], wanted.numpy())
    with pytest.raises(TypeError):
        WeightTrajectories(student, "0", indices=(1.5,))


def test_trajectories_follow_the_student_to_its_device():
    student = tiny()
    observer = WeightTrajectories(student, "0")
    observer(1, student.to("meta"))
    assert {buffer.device.type for buffer in observer.buffers()} == {"meta"}


# --- Where a weight is on its grid


@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize(
    ("weights", "formula"),
    [
        (partial(LSQ, 3, axis=0), lambda w, q: w / q.step),
        (partial(LSQPlus, 3), lambda w, q: (w - q.offset) / q.step),
        (partial(Affine, 3), lambda w, q: w / q.step + q.zero_point),
        (partial(AffineLSQ, 2, axis=0), lambda w, q: w / q.step + q.zero_point),
        (partial(NIPQ, 3), lambda w, q: 3 * w / q.alpha),
        (partial(EWGS, 2), lambda w, q: 3 * (w - q.lower) / (q.upper - q.lower)),
        (partial(DoReFa, 2), lambda w, q: 3 * (w.tanh() / w.tanh().abs().max() / 2 + 0.5)),
        (partial(ReleasedDoReFa, 3), lambda w, q: w.tanh() / w.tanh().abs().max() / q.step),
    ],
    ids=lambda value: getattr(getattr(value, "func", None), "__name__", ""),
)
def test_grid_positions(weights, formula, scale):
    torch.manual_seed(1)
    weight = scale * torch.randn(4, 5)
    quantizer = weights()
    quantizer.init_from(weight)
    position = grid_positions(quantizer, 1.3 * weight)
    assert torch.allclose(position, formula(1.3 * weight, quantizer).detach(), rtol=1e-4, atol=1e-4)
    nearest = position.round().clamp(quantizer.low, quantizer.high)
    sure = (position - position.round()).abs() < 0.499
    assert torch.equal(nearest[sure], quantizer.codes(1.3 * weight)[sure])
    assert not position.requires_grad


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (partial(AdaRound, 3), "learns whether to round up or down"),
        (partial(DoReFa, 1), "takes the sign"),
    ],
)
def test_no_grid_positions(weights, message):
    student = tiny(weights)
    with pytest.raises(ValueError, match=message):
        grid_positions(student[0].weight_quantizer, student[0].weight)
    tracker = OscillationTracker(student)
    assert tracker.record().distances.without == ("0", "5")
    assert tracker.record().distances.counts.shape == (0, 100)


def test_a_grid_of_ones_own_that_is_not_uniform_has_none():
    class Powers(LSQ):
        def codes(self, x):
            return (x.abs() / self.step + 1).log2().round() * x.sign()

    quantizer = Powers(4, signed=True)
    weight = torch.linspace(-1, 1, 50)
    quantizer.init_from(weight)
    with pytest.raises(ValueError, match="nearest code of a uniform grid"):
        grid_positions(quantizer, weight)


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
