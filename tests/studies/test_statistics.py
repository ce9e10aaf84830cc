"""Means and intervals against the formulas, one number at a time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatviz.studies.statistics import estimate, paired_difference

# 97.5 % quantiles of Student's t, from a printed table (degrees of freedom 1, 2, 3, 4, 9).
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}
numbers = st.floats(-100, 100)


def literal(values):
    n = len(values)
    mean = 0.0
    for v in values:
        mean += v / n
    squares = 0.0
    for v in values:
        squares += (v - mean) ** 2
    deviation = math.sqrt(squares / (n - 1))
    half = QUANTILES[n - 1] * deviation / math.sqrt(n)
    return mean, deviation, mean - half, mean + half


@given(
    st.sampled_from([2, 3, 4, 5, 10]).flatmap(lambda n: st.lists(numbers, min_size=n, max_size=n))
)
def test_mean_deviation_and_interval_are_the_formulas(values):
    e = estimate(values)
    assert e.n == len(values)
    expected = literal(values)
    scale = 1e-6 + 1e-3 * max(map(abs, values))
    assert (e.mean, e.deviation, e.low, e.high) == pytest.approx(expected, rel=5e-4, abs=scale)


def test_the_interval_of_a_known_sample():
    # 1..5: mean 3, s = √2.5, half = 2.776·√2.5/√5 = 1.963
    e = estimate([1, 2, 3, 4, 5])
    assert (e.mean, e.n) == (3.0, 5)
    assert e.high - e.mean == pytest.approx(1.963, abs=1e-3)


def test_one_number_has_no_interval_and_none_has_nothing():
    one = estimate([0.5])
    assert (one.mean, one.n) == (0.5, 1)
    assert all(math.isnan(v) for v in (one.deviation, one.low, one.high))
    none = estimate([float("nan"), None])
    assert none.n == 0
    assert math.isnan(none.mean)


def test_what_is_missing_is_left_out():
    assert estimate([1.0, float("nan"), 3.0]) == estimate([1.0, 3.0])


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=5))
def test_differences_are_of_the_same_seed(pairs):
    ours = {seed: a for seed, (a, _) in enumerate(pairs)}
    theirs = {seed: b for seed, (_, b) in reversed(list(enumerate(pairs)))}
    expected = estimate([a - b for a, b in pairs])
    assert paired_difference(ours | {99: 5.0}, theirs | {77: 5.0}) == expected


def test_a_constant_difference_is_certain_however_much_the_seeds_vary():
    theirs = {0: 0.1, 1: 0.5, 2: 0.9}
    e = paired_difference({s: v + 0.01 for s, v in theirs.items()}, theirs)
    assert (e.low, e.high) == pytest.approx((0.01, 0.01))


def test_without_common_seeds_there_is_no_difference():
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0
