import itertools

import pytest
import torch

from qatviz.analysis import oscillation_toy
from qatviz.exercises.oscillation import (
    MOMENTUM,
    PATHS,
    STEP,
    TARGET,
    UPDATES,
    check_events,
    check_memory,
    check_toy,
)
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.tracking import OscillationTracker


def right(codes):
    """Walk along, keep the last direction."""
    count, last = 0, None
    for i in range(1, len(codes)):
        if codes[i] == codes[i - 1]:
            continue
        up = codes[i] > codes[i - 1]
        if last is not None and up != last:
            count += 1
        last = up
    return count


def test_counting_reversals_is_right():
    assert check_events(right).right


@pytest.mark.parametrize("path", PATHS)
def test_the_paths_are_counted_as_the_tracker_does(path):
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    student = quantize(layer, lambda: LSQ(3), None)
    student[0].weight_quantizer.step.data.fill_(1.0)
    student[0].weight_quantizer.init_from(student[0].weight.detach())
    student[0].weight_quantizer.step.data.fill_(1.0)
    student[0].weight.data.fill_(float(path[0]))
    tracker = OscillationTracker(student)
    for step, code in enumerate(path[1:]):
        student[0].weight.data.fill_(float(code))
        tracker(step, student)
    assert int(tracker.events.sum()) == right(path)


def changes(codes):
    return sum(a != b for a, b in itertools.pairwise(codes))


def each_step(codes):
    signs = [(b > a) - (b < a) for a, b in itertools.pairwise(codes)]
    return sum(a * b == -1 for a, b in itertools.pairwise(signs))


def with_jumps(codes):
    count, last = 0, 0
    for a, b in itertools.pairwise(codes):
        if (b - a) * last < 0:
            count += abs(b - a)
        last = b - a or last
    return count


def came_back(codes):
    distinct = [codes[0]]
    for code in codes[1:]:
        if code != distinct[-1]:
            distinct.append(code)
    return sum(distinct[i] == distinct[i - 2] for i in range(2, len(distinct)))


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (changes, "drift"),
        (lambda codes: right(codes) + (changes(codes) > 0), "first change"),
        (each_step, "stood still"),
        (with_jumps, "one change"),
        (came_back, "the direction decides"),
        (lambda codes: 0, "turn back 2 times, got 0"),
    ],
)
def test_each_wrong_count_has_its_hint(function, hint):
    verdict = check_events(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_two_d_over_s_is_right():
    # 0.37 lies 0.03 below 0.4: 2·0.03/0.2 = 0.3 an update.
    assert check_toy(600).right
    toy = oscillation_toy([(TARGET - STEP) / STEP], updates=2 * UPDATES)
    assert check_toy(toy.events[0] * UPDATES).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.3, "per update"),
        (300, "two changes"),
        (3400, "not from the one below"),
        (120, "divide d"),
        (6, "rate has no part"),
        (1700, "not of changes"),
        (5, "nearest to 0.37"),
    ],
)
def test_each_wrong_number_of_changes_has_its_hint(answer, hint):
    verdict = check_toy(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_the_memory_of_an_event_is_right():
    # 0.03·0.97^58 = 0.00513 and 0.03·0.97^59 = 0.00497: k = 0 to 58 are 59 steps.
    assert MOMENTUM * (1 - MOMENTUM) ** 58 > 0.005 > MOMENTUM * (1 - MOMENTUM) ** 59
    assert check_memory(59).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (58, "counts too"),
        (60, "one too many"),
        (58.8, "whole number"),
        (0, "f = m = 0.03"),
        (174, "not at 1"),
        (28, "share of itself"),
        (1000, "after k steps"),
    ],
)
def test_each_wrong_memory_has_its_hint(answer, hint):
    verdict = check_memory(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_events(lambda codes: ...).right is None
    assert check_toy(None).right is None
    assert check_memory(None).right is None
