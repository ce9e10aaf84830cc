import math

import pytest
import torch

from qatviz.exercises.the_zoo import check_best_clip, check_clip_and_round, check_scaled_gradient


def test_the_scaled_gradient_by_hand_is_right():
    """x_q = 2/3: −1·(1 + 0.5·(−1)·(0.62 − 2/3))."""
    verdict = check_scaled_gradient(-1.0233)
    assert verdict.right
    assert "longer by 2 %" in verdict.message


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (-1 + 0.5 * (2 / 3 - 0.62), "other sign"),
        (-1.0, "straight-through"),
        (-(1 - 0.5 * (0.62 - 0.5)), "three steps"),
        (-(1 - 0.5 * (1.86 - 2)), "not codes"),
        (1.0233, "keeps its sign"),
        (0.3, "first x_q"),
    ],
)
def test_each_wrong_gradient_has_its_hint(answer, hint):
    verdict = check_scaled_gradient(answer)
    assert verdict.right is False
    assert hint in verdict.message


def right(x, lower, upper, bits):
    """To the nearest of all levels, number by number."""
    levels = [lower + i * (upper - lower) / (2**bits - 1) for i in range(2**bits)]
    return torch.tensor([min(levels, key=lambda level: abs(level - v)) for v in x.tolist()])


def test_the_nearest_level_is_right():
    assert check_clip_and_round(right).right


def test_the_order_of_clip_and_round_does_not_matter():
    def round_then_clip(x, lower, upper, bits):
        step = (upper - lower) / (2**bits - 1)
        return ((x - lower) / step).round().clamp(0, 2**bits - 1) * step + lower

    assert check_clip_and_round(round_then_clip).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda x, lower, upper, bits: x.clamp(lower, upper), "rounding is missing"),
        (
            lambda x, lower, upper, bits: (
                (((x - lower) / (upper - lower) * (2**bits - 1)).round() / (2**bits - 1))
                * (upper - lower)
                + lower
            ),
            "must become the bounds",
        ),
        (
            lambda x, lower, upper, bits: (
                ((x.clamp(lower, upper) - lower) / (upper - lower) * 2**bits).round()
                / 2**bits
                * (upper - lower)
                + lower
            ),
            "8 levels have 7 steps",
        ),
        (
            lambda x, lower, upper, bits: (
                (x.clamp(lower, upper) - lower) / (upper - lower) * (2**bits - 1)
            ).round(),
            "these are codes",
        ),
        (lambda x, lower, upper, bits: right(x, lower, upper, bits) - lower, "add the lower bound"),
        (
            lambda x, lower, upper, bits: (
                (x.clamp(lower, upper) * (2**bits - 1) / (upper - lower)).round()
                * (upper - lower)
                / (2**bits - 1)
            ),
            "subtract it first",
        ),
        (lambda x, lower, upper, bits: x + 1, "should become"),
        (lambda x, lower, upper, bits: x.sum(), "one number per value"),
    ],
)
def test_each_wrong_function_has_its_hint(function, hint):
    verdict = check_clip_and_round(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_a_hint_says_on_which_quantizer_it_was_found():
    """Without a lower bound of its own only LSQ+ can tell."""
    verdict = check_clip_and_round(lambda x, lo, up, bits: right(x, lo, up, bits) - lo)
    assert verdict.message.startswith("LSQPlus, 3 bit, from -0.45 to 3.75")


@pytest.fixture
def activations():
    """max(z, 0) of normal numbers z: at 2 bits a fine search finds the best clip at 1.96."""
    return torch.randn(40_000, generator=torch.Generator().manual_seed(0)).relu()


def test_the_best_clip_is_right(activations):
    verdict = check_best_clip(1.96, activations)
    assert verdict.right
    assert "the start, α = 10" in verdict.message


def test_the_largest_activation_is_no_best_clip(activations):
    largest = activations.max().item()
    for answer, hint in [
        (2 * largest, "levels beyond are wasted"),
        (largest, "nothing is clipped"),
        (3.0, "Try smaller"),
        (1.0, "Try larger"),
        (-2.0, "a positive number"),
        (math.inf, "a positive number"),
    ]:
        verdict = check_best_clip(answer, activations)
        assert verdict.right is False
        assert hint in verdict.message


def test_no_answer_is_no_mistake(activations):
    assert check_scaled_gradient(None).right is None
    assert check_clip_and_round(lambda x, lower, upper, bits: ...).right is None
    assert check_best_clip(None, activations).right is None
