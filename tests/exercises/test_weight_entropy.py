import itertools
import math
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch

from qatviz.analysis import code_entropy
from qatviz.exercises.weight_entropy import check_bytes, check_entropy, check_initial
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ


def right(counts):
    """Code by code."""
    total, found = sum(counts), 0.0
    for count in counts:
        if count:
            found += count / total * math.log2(total / count)
    return found


def test_the_entropy_is_right():
    assert check_entropy(right).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda c: right(c) * math.log(2), "nats"),
        (lambda c: -right(c), "sign"),
        (lambda c: right(c) / math.log2(len(c)), "utilisation"),
        (lambda c: math.log2(len(c)), "do they all occur"),
        (lambda c: math.log2(sum(1 for n in c if n)), "codes in use"),
        (lambda c: right(c) * sum(c), "per number"),
        (lambda c: -sum(n * math.log2(n) for n in c if n), "divide the counts"),
        (lambda c: -(c / c.sum() * np.log2(c / c.sum())).sum(), "0·log₂ 0"),
        (lambda c: 1.0, "counts [8, 4, 2, 2] have 1.7500 bits, got 1.0000"),
    ],
)
def test_each_wrong_entropy_has_its_hint(function, hint):
    verdict = check_entropy(function)
    assert verdict.right is False
    assert hint in verdict.message


def rounded(step, low, high):
    """The entropy of a standard normal number rounded to step·k, k from low to high."""
    cdf = NormalDist().cdf
    edges = [0.0, *(cdf((k + 0.5) * step) for k in range(low, high)), 1.0]
    return right([b - a for a, b in itertools.pairwise(edges)])


MEAN = (2 / math.pi) ** 0.5


def test_the_entropy_of_normal_weights_is_right():
    answer = rounded(2 * MEAN / 3**0.5, -4, 3)
    assert answer == pytest.approx(2.211, abs=5e-4)
    assert check_initial(answer).right
    assert check_initial(2.211).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (2.2109 * math.log(2), "nats"),
        (3, "available"),
        (2.2109 / 3, "utilisation"),
        (rounded(2 * MEAN / 2, -4, 3), "highest code, 3"),
        (rounded(2 * MEAN / 3, -4, 3), "root"),
        (rounded(2 / 3**0.5, -4, 3), "√(2/π)"),
        (rounded(MEAN / 3**0.5, -4, 3), "factor of 2"),
        (1.459, "2-bit grid"),
        (1.0, "first s"),
    ],
)
def test_each_wrong_entropy_of_normal_weights_has_its_hint(answer, hint):
    verdict = check_initial(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_thresholds_on_levels_have_their_hint():
    step, cdf = 2 * MEAN / 3**0.5, NormalDist().cdf
    edges = [0.0, *(cdf(k * step) for k in range(-3, 4)), 1.0]
    verdict = check_initial(right([b - a for a, b in itertools.pairwise(edges)]))
    assert verdict.right is False
    assert "half-way" in verdict.message


@pytest.fixture(scope="module")
def record():
    """Layers of several sizes, the first of more bits."""
    torch.manual_seed(0)
    model = small_cnn(width=4)
    name = next(n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))
    student = quantize(model, partial(LSQ, 2), None, keep=[name])
    return code_entropy(quantize(student, partial(LSQ, 8), None, only=[name]))


def test_the_bytes_are_right(record):
    assert check_bytes(sum(sum(c) * right(c) for c in record.counts) / 8, record).right


def test_each_wrong_number_of_bytes_has_its_hint(record):
    weights = [sum(c) for c in record.counts]
    bits = sum(n * right(c) for n, c in zip(weights, record.counts, strict=True))
    pool = {}
    for low, counts in zip(record.low, record.counts, strict=True):
        for place, count in enumerate(counts):
            pool[low + place] = pool.get(low + place, 0) + count
    mean = sum(right(c) for c in record.counts) / len(weights)
    answers = {
        "a byte has eight": bits,
        "without compression": sum(n * b for n, b in zip(weights, record.bits, strict=True)) / 8,
        "do not average H": sum(weights) * mean / 8,
        "pooled over layers": sum(weights) * right(list(pool.values())) / 8,
        "that is per weight": bits / 8 / sum(weights),
        "kilobytes": bits / 8000,
        "LZMA": (record.compressed * record.sizes).sum() / 8,
        "∑ n·H": 1.0,
    }
    for hint, answer in answers.items():
        verdict = check_bytes(answer, record)
        assert verdict.right is False
        assert hint in verdict.message


def test_no_answer_is_no_mistake(record):
    assert check_entropy(lambda counts: ...).right is None
    assert check_entropy(lambda counts: None).right is None
    assert check_initial(None).right is None
    assert check_bytes(None, record).right is None
