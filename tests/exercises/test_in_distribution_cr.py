import math

import pytest
import torch

from qatviz.exercises.in_distribution_cr import (
    check_images,
    check_soft_target,
    check_weight_change,
)


def test_the_soft_target_is_right():
    # Of λ = 3: a quarter of the label and three of the teacher.
    assert check_soft_target(lambda y, p, s: (0.25 * y + 0.75 * p, 4)).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda y, p, s: (y + s * p, 1 + s), "add up to 1"),
        (lambda y, p, s: ((s * y + p) / (1 + s), 1 + s), "other way round"),
        (lambda y, p, s: (y, 1 + s), "that is the label"),
        (lambda y, p, s: (p, s), "that is the teacher"),
        (lambda y, p, s: ((y + p) / 2, 2), "λ = 1 only"),
        (lambda y, p, s: (1 - p, 2), "read q off"),
        (lambda y, p, s: ((y + s * p) / (1 + s), s), "target is right"),
        (lambda y, p, s: ((y + s * p) / (1 + s), 1), "target is right"),
        (lambda y, p, s: 4.0, "two things"),
        (lambda y, p, s: (0.5, 4), "3 probabilities"),
    ],
)
def test_each_wrong_target_has_its_hint(function, hint):
    verdict = check_soft_target(function)
    assert verdict.right is False
    assert hint in verdict.message


def literal(weight, x, delta):
    change = torch.zeros_like(weight)
    square = sum(v * v for v in x)
    for row in range(len(weight)):
        wanted = sum(w * d for w, d in zip(weight[row], delta, strict=True))
        for column in range(len(x)):
            change[row, column] = wanted * x[column] / square
    return change


def test_the_change_is_right():
    assert check_weight_change(literal).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda w, x, d: torch.outer(w @ d, x) / x.norm(), "not by ‖x‖"),
        (lambda w, x, d: torch.outer(w @ d, x), "times as much"),
        (lambda w, x, d: torch.outer(w @ d, x) / d @ d, "as large as W"),
        (lambda w, x, d: torch.outer(w @ d, x) / (d @ d), "divides by ‖δ‖²"),
        (lambda w, x, d: torch.outer(w @ x, d) / (x @ x), "mixed up"),
        (lambda w, x, d: w * (d / x), "only makes it longer"),
        (lambda w, x, d: 0 * w, "should be (1.9, 0), it is (0, 0)"),
    ],
)
def test_each_wrong_change_has_its_hint(function, hint):
    verdict = check_weight_change(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_the_images_are_right():
    # By trying every number: the first n at which the bound is below 1.
    for n in range(40_000, 60_000):
        divergence = 7**2 / (2 * 0.02**2)
        bound = 0.2 + math.sqrt((divergence + math.log(2 * math.sqrt(n) / 0.05)) / (2 * n))
        if bound < 1:
            break
    assert check_images(n).right
    assert check_images(1.019 * n).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (30_630, "training error"),
        (95_710, "twice too many"),
        (38_290, "square it"),
        (10_000, "KL = 61,250"),
    ],
)
def test_each_wrong_number_of_images_has_its_hint(answer, hint):
    verdict = check_images(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_soft_target(lambda *_: ...).right is None
    assert check_weight_change(lambda *_: None).right is None
    assert check_images(None).right is None
