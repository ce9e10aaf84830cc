import numpy as np
import pytest

from qatviz.exercises.cr_open_questions import check_interaction, check_seeds, check_window


def test_the_interaction_is_what_is_missing_to_the_sum():
    together = 86.0 + (87.0 - 86.0) + (88.0 - 86.0)
    assert check_interaction(87.4 - together, "Redundant ").right
    assert check_interaction(None, "additive").right is None
    assert check_interaction(-1.6, None).right is None


@pytest.mark.parametrize(
    ("value", "word", "said"),
    [
        (1.6, "redundant", "turned round"),
        (1.4, "redundant", "both minus neither"),
        (-0.6, "redundant", "both minus distillation"),
        (-87.6, "redundant", "add it again"),
        (3.0, "redundant", "(both)"),
        (-1.6, "additive", "below zero"),
    ],
)
def test_wrong_interactions_get_a_hint(value, word, said):
    verdict = check_interaction(value, word)
    assert verdict.right is False
    assert said in verdict.message


def test_the_seeds_by_counting_intervals_that_are_short_enough():
    """A table of t quantiles, read by hand."""
    quantiles = {13: 2.179, 14: 2.160, 15: 2.145, 16: 2.131}  # n − 1 degrees of freedom
    short = [n for n, q in quantiles.items() if q * 0.9 / np.sqrt(n) <= 0.5]
    assert min(short) == 15
    assert check_seeds(15).right
    assert check_seeds(...).right is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [(13, "take t"), (4, "standard error"), (14, "± 0.52"), (1, "at least 2"), (15.5, "whole")],
)
def test_wrong_seeds_get_a_hint(answer, said):
    verdict = check_seeds(answer)
    assert verdict.right is False
    assert said in verdict.message


def test_what_is_left_of_the_start_step_by_step():
    left = 1.0
    for _ in range(4 * 78):
        left *= 0.99936
    assert check_window(left).right
    assert check_window(0.82).right
    assert check_window(None).right is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [(0.181, "after the start"), (0.99936, "one step"), (82.0, "a share"), (0.5, "multiplies")],
)
def test_wrong_shares_get_a_hint(answer, said):
    verdict = check_window(answer)
    assert verdict.right is False
    assert said in verdict.message
