import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from qatviz.methods import CrossEntropy, IterativeFreezing
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, Affine, AffineLSQ, LSQPlus
from qatviz.tracking import OscillationTracker
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

BATCH = (TRAIN.images[:4], TRAIN.labels[:4])
eager = partial(IterativeFreezing, threshold=0.05, begin=0.05, momentum=0.3, start=0.0)


def literal_walk(student, steps, method):
    """Random steps of weights and grid; the rules of the docstring, one weight at a time."""
    layer = student[5]
    quantizer = layer.weight_quantizer
    method.prepare(student, TRAIN)
    flat = layer.weight.data.view(-1)
    q = quantizer.codes(layer.weight).detach().flatten().tolist()
    state = [{"q": c, "d": 0, "f": 0.0, "m": c, "at": None} for c in q]
    for number in range(1, steps + 1):
        layer.weight.data += 0.3 * torch.randn_like(layer.weight)
        if isinstance(quantizer, LSQ):
            quantizer.step.data *= 1 + 0.02 * torch.randn(())
        codes = quantizer.codes(layer.weight).detach().flatten().tolist()
        expected = flat.tolist()
        progress = number / steps
        f0, f1, t0 = method.begin, method.threshold, method.start
        share = (progress - t0) / (1 - t0)
        bound = f1 + (f0 - f1) * (1 + math.cos(math.pi * share)) / 2
        for i, (own, code) in enumerate(zip(state, codes, strict=True)):
            change = (code > own["q"]) - (code < own["q"])
            event = change != 0 and change == -own["d"]
            own["d"] = change or own["d"]
            own["q"] = code
            own["f"] = method.momentum * event + (1 - method.momentum) * own["f"]
            own["m"] = method.momentum * code + (1 - method.momentum) * own["m"]
            if progress >= t0 and own["at"] is None and own["f"] > bound:
                own["at"] = round(own["m"])
            if own["at"] is not None:
                level = quantizer.dequantize(torch.full_like(layer.weight, own["at"])).flatten()[i]
                expected[i] = level.item()
        method.after_step(BATCH, progress)
        assert flat.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    return state


@pytest.mark.parametrize(
    "weights",
    [
        partial(LSQ, bits=2),
        partial(LSQ, bits=3, axis=0),
        partial(AffineLSQ, bits=3, axis=0),
        partial(LSQPlus, bits=2),
        partial(Affine, bits=2),
    ],
    ids=lambda f: f.func.__name__,
)
def test_it_is_the_literal_loop(weights):
    torch.manual_seed(2)
    student = quantize(float_net(), {"5": weights}, None)
    method = IterativeFreezing(
        CrossEntropy(), threshold=0.1, begin=0.4, momentum=0.2, start=0.25, bits=4
    )
    state = literal_walk(student, 24, method)
    frozen = [own["at"] is not None for own in state]
    assert method.frozen.tolist() == frozen
    assert 0.1 < method.share_frozen < 1
    assert method.share_frozen == pytest.approx(sum(frozen) / len(frozen))


def test_frozen_for_good_on_the_level_of_the_code_as_the_step_learns():
    student, method, seen = tiny(partial(LSQ, bits=2)), eager(CE()), []

    def observer(step, model):
        layer = model[0]
        mask = method.tracker.split(method.frozen)["0"].clone()
        codes = layer.weight_quantizer.codes(layer.weight).detach()
        ratio = (layer.weight / layer.weight_quantizer.step).detach()
        seen.append((mask, codes, ratio, layer.weight_quantizer.step.item()))

    trained(method, student, longer(8), [observer])
    masks = [mask for mask, *_ in seen]
    assert masks[-1].any()
    assert not masks[-1].all()
    for (mask, codes, *_), (later, new, ratio, _) in pairwise(seen):
        assert (later | ~mask).all()
        assert torch.equal(codes[mask], new[mask])
        torch.testing.assert_close(ratio[mask], new[mask])
    assert len({step for *_, step in seen}) == len(seen)
    # The others go on moving.
    free = ~masks[-1]
    assert not torch.equal(seen[-1][2][free], seen[-2][2][free])


def test_frozen_at_the_mean_code():
    student = quantize(float_net(), {"5": partial(LSQ, 4)}, None)
    layer = student[5]
    layer.weight_quantizer.step.data.fill_(1.0)
    layer.weight.data.fill_(2.0)
    method = IterativeFreezing(CrossEntropy(), threshold=0.1, begin=0.1, momentum=0.2, start=0.0)
    method.prepare(student, TRAIN)
    for number, value in enumerate((3.0, 2.0), 1):
        layer.weight.data.fill_(2.0)
        layer.weight.data[0, 0] = value
        method.after_step(BATCH, number / 4)
    # Mean 2 → 2.2 → 2.16; the frequency after 3 → 2 is 0.2.
    assert method.tracker.frequency[0].item() == pytest.approx(0.2)
    assert method.frozen.tolist() == [True] + [False] * 47
    assert method.frozen_codes[0].item() == 2
    layer.weight.data.fill_(-5.0)
    method.after_step(BATCH, 0.75)
    assert layer.weight[0, 0].item() == 2
    assert (layer.weight.flatten()[1:] == -5).all()


@pytest.mark.parametrize(
    "never",
    [
        {"threshold": math.inf},
        {"begin": math.inf},
        {"threshold": 1.0, "begin": 1.0},
        {"threshold": 1.0, "begin": 2.0, "start": 0.0, "momentum": 1.0},
    ],
)
@pytest.mark.parametrize("weights", [LSQ, AffineLSQ])
def test_a_threshold_that_is_never_reached_is_the_method_to_the_bit(never, weights):
    method = IterativeFreezing(CE(), **never)
    make = partial(weights, bits=2)
    state, _ = trained(method, tiny(make))
    assert method.share_frozen == 0
    assert same(state, trained(CE(), tiny(make))[0])


def test_before_the_start_nothing_is_frozen():
    method, shares = IterativeFreezing(CE(), 1e-6, 1e-6, momentum=0.5, start=0.5), []
    trained(
        method,
        tiny(partial(LSQ, bits=2)),
        longer(5),
        [lambda step, model: shares.append(method.share_frozen)],
    )
    assert shares[:9] == [0.0] * 9
    assert shares[9] > 0
    assert sorted(shares) == shares


def test_the_threshold_falls_along_a_cosine():
    method = IterativeFreezing(CE())
    assert method.threshold_at(0.2) == math.inf
    assert method.threshold_at(0.25) == pytest.approx(0.1)
    assert method.threshold_at(0.625) == pytest.approx(0.055)
    assert method.threshold_at(1.0) == pytest.approx(0.01)


def test_resumed_like_whole():
    make = partial(tiny, partial(LSQ, bits=2))
    whole, resumed = resumed_like_whole(lambda: eager(CrossEntropy()), make, cut=7, total=16)
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())
    assert 0 < resumed[1].share_frozen < 1


def test_its_tracker_is_the_tracker():
    # With nothing frozen, what it tracks is what an observer sees.
    student = tiny(partial(LSQ, bits=2))
    observer = OscillationTracker(student, momentum=0.05)
    method = IterativeFreezing(CE(), math.inf, momentum=0.05)
    trained(method, student, observers=[observer])
    assert same(method.tracker.state_dict(), observer.state_dict())


def test_a_second_run_begins_anew():
    method = eager(CE())
    make = partial(tiny, partial(LSQ, bits=2))
    first = trained(method, make())[0]
    mask = method.frozen.clone()
    assert same(first, trained(method, make())[0])
    assert torch.equal(mask, method.frozen)
    assert method._prepared == ()


def test_only_few_bits_are_frozen_and_others_may_be_of_any_kind():
    student = quantize(float_net(), {"0": partial(EWGS, 8), "5": partial(LSQ, 4)}, None)
    method = IterativeFreezing(CE())
    method.prepare(student, TRAIN)
    assert method.tracker.names == ("5",)
    assert not any(m is student for m in method.modules())
    keys = copy.deepcopy(method.state_dict()).keys()
    assert {key for key in keys if not key.startswith("tracker.")} == {"frozen", "frozen_codes"}
    assert {"tracker.codes", "tracker.frequency", "tracker.mean", "tracker._extra_state"} <= keys
    assert list(method.parameters()) == []


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (float_net, "no weight quantizer of at most 4 bits"),
        (partial(tiny, partial(LSQ, bits=5)), "of at most 4 bits to track; there are: 5"),
        (partial(tiny, partial(EWGS, bits=2)), r"IterativeFreezing needs .*0 \(EWGS\)"),
    ],
)
def test_students_that_are_refused(student, message):
    with pytest.raises(ValueError, match=message):
        IterativeFreezing(CE()).prepare(student(), TRAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0, got 0.0"),
        ({"begin": -1.0}, "begin must be above 0"),
        ({"begin": math.nan}, "begin must be above 0"),
        ({"momentum": 0.0}, "momentum must be above 0"),
        ({"momentum": 1.5}, "momentum must be from 0 to 1"),
        ({"start": 1.0}, "start must be from 0 below 1"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        IterativeFreezing(CE(), **arguments)
