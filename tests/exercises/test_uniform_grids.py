import pytest
import torch

from qatviz.exercises.uniform_grids import (
    check_enough_bits,
    check_min_max_grid,
    check_round_to_grid,
)

# From −0.4 to 0.7: a 3-bit grid has step 1.1/7 and zero at code round(0.4·7/1.1) = 3.
WEIGHTS = torch.tensor([-0.4, -0.1, 0.0, 0.2, 0.7])


def test_the_min_max_grid_by_hand_is_right():
    assert check_min_max_grid((1.1 / 7, 3), WEIGHTS).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((1.1 / 8, 3), "8 levels have 7 steps"),
        ((1.4 / 7, 3), "symmetric"),
        ((1.1 / 7, -3), "sign"),
        ((1.1 / 7, 2.5), "whole number"),
        ((0.3, 3), "number of levels − 1"),
        (0.157, "two numbers"),
    ],
)
def test_each_wrong_grid_has_its_hint(answer, hint):
    verdict = check_min_max_grid(answer, WEIGHTS)
    assert verdict.right is False
    assert hint in verdict.message


def rounded(x, step, zero_point, bits):
    return (((x / step).round() + zero_point).clamp(0, 2**bits - 1) - zero_point) * step


def test_the_function_that_rounds_is_right():
    assert check_round_to_grid(rounded).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda x, s, z, b: (x / s).round() * s, "nothing is clipped"),
        (lambda x, s, z, b: ((x / s).round() + z).clamp(0, 3), "these are codes"),
        (lambda x, s, z, b: ((x / s).round() + z).clamp(0, 3) * s, "subtract the zero point"),
        (lambda x, s, z, b: (x / s).round().clamp(0, 3) * s, "before you clip"),
        (lambda x, s, z, b: (((x / s).floor() + z).clamp(0, 3) - z) * s, "rounds down"),
        (lambda x, s, z, b: x[:2], "shape"),
        (lambda x, s, z, b: x, "for x ="),
    ],
)
def test_each_wrong_function_has_its_hint(function, hint):
    verdict = check_round_to_grid(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_the_fewest_bits_are_right_and_others_have_hints():
    weights = torch.randn(500)  # about 20.2 dB at 4 bits
    assert check_enough_bits(4, weights, decibels=18).right
    assert "fewer bits" in check_enough_bits(5, weights, decibels=18).message
    assert "slope" in check_enough_bits(3, weights, decibels=18).message
    assert check_enough_bits(2, weights, decibels=18).message.startswith("2 bits give")
    assert "whole number" in check_enough_bits(2.5, weights).message


def test_no_answer_is_no_mistake():
    assert check_min_max_grid(None, WEIGHTS).right is None
    assert check_round_to_grid(lambda x, s, z, b: ...).right is None
    assert check_round_to_grid(lambda x, s, z, b: None).right is None
    assert check_enough_bits(None, WEIGHTS).right is None
