import pytest
import torch

from qatviz.exercises.learned_steps import (
    check_by_hand,
    check_gradient_scale,
    check_step_gradient,
)
from qatviz.quantizers import LSQ


def test_the_sum_by_hand_is_right():
    assert check_by_hand(-0.9).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.4, "outside of the grid"),
        (-1.1, "other way round"),
        (-1.0, "PACT"),
        (0.1, "one code more"),
        (7.0, "add up"),
    ],
)
def test_each_wrong_sum_has_its_hint(answer, hint):
    verdict = check_by_hand(answer)
    assert verdict.right is False
    assert hint in verdict.message


def right(v, s, low, high):
    """Equation 3, value by value."""
    found = []
    for ratio in (v / s).tolist():
        if ratio <= low:
            found.append(low)
        elif ratio >= high:
            found.append(high)
        else:
            found.append(round(ratio) - ratio)
    return torch.tensor(found)


def test_equation_3_is_right():
    assert check_step_gradient(right).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda v, s, low, high: (v / s).round() - v / s, "beyond the ends"),
        (lambda v, s, low, high: (v / s).clamp(low, high).round(), "subtracts v/s"),
        (
            lambda v, s, low, high: (v / s).clamp(low, high).round() - (v / s).clamp(low, high),
            "outside nothing depends",
        ),
        (
            lambda v, s, low, high: torch.where(
                (v / s > low) & (v / s < high), 0, right(v, s, low, high)
            ),
            "PACT",
        ),
        (
            lambda v, s, low, high: torch.where(
                (v / s > low) & (v / s < high), v / s - (v / s).round(), right(v, s, low, high)
            ),
            "mind the sign",
        ),
        (
            lambda v, s, low, high: torch.where(
                (v / s > low) & (v / s < high), v.round() - v, right(v, s, low, high)
            ),
            "divide v by s",
        ),
        (lambda v, s, low, high: v, "it should be"),
        (lambda v, s, low, high: v.sum(), "one number per value"),
    ],
)
def test_each_wrong_gradient_has_its_hint(function, hint):
    verdict = check_step_gradient(function)
    assert verdict.right is False
    assert hint in verdict.message


@pytest.fixture
def arriving():
    """An unsigned 2-bit quantizer of the input of a layer, and eight images of 5×6×7."""
    x = torch.rand(8, 5, 6, 7)
    quantizer = LSQ(2)
    quantizer.batched = True
    quantizer.init_from(x)
    return quantizer, x


def test_the_gradient_scale_is_right(arriving):
    assert check_gradient_scale((5 * 6 * 7 * 3) ** -0.5, *arriving).right


@pytest.mark.parametrize(
    ("inside", "hint"),
    [
        (8 * 5 * 6 * 7 * 3, "batch"),
        (5 * 6 * 7 * 4, "Q_P is 3"),
        (5 * 6 * 7, "signed"),
        (6 * 7 * 3, "all channels"),
        ((5 * 6 * 7 * 3) ** 2, "root"),
        (1, "g = 1/√(N · Q_P)"),
    ],
)
def test_each_wrong_scale_has_its_hint(arriving, inside, hint):
    verdict = check_gradient_scale(inside**-0.5, *arriving)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake(arriving):
    assert check_by_hand(None).right is None
    assert check_step_gradient(lambda v, s, low, high: ...).right is None
    assert check_gradient_scale(None, *arriving).right is None
