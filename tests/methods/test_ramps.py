import math
from functools import partial

import pytest

from qatviz.methods.ramps import (
    constant,
    cosine_down,
    linear_up,
    sigmoid_up,
    step_on,
    up_down,
)

ALL = (constant, linear_up, sigmoid_up, cosine_down, up_down, step_on)


@pytest.mark.parametrize(
    ("ramp", "points"),
    [
        (constant, {0: 1, 0.5: 1, 1: 1}),
        (partial(linear_up, length=0.4), {0: 0, 0.1: 0.25, 0.4: 1, 1: 1}),
        (
            partial(sigmoid_up, length=0.4),
            {0: math.exp(-5), 0.2: math.exp(-1.25), 0.4: 1, 0.9: 1},
        ),
        (cosine_down, {0: 1, 0.5: 0.5, 1: 0}),
        (
            partial(up_down, length=0.4, last=0.5),
            {0: math.exp(-5), 0.4: 1, 0.5: 1, 0.75: 0.5, 1: 0},
        ),
        (partial(step_on, start=0.25), {0: 0, 0.2499: 0, 0.25: 1, 1: 1}),
    ],
)
def test_the_values_of_each(ramp, points):
    assert {t: ramp(t) for t in points} == pytest.approx(points)


@pytest.mark.parametrize("ramp", ALL)
def test_all_stay_between_nothing_and_all(ramp):
    assert all(0 <= ramp(k / 50) <= 1 for k in range(51))


@pytest.mark.parametrize("ramp", [linear_up, sigmoid_up, up_down])
@pytest.mark.parametrize("length", [0, -1, 1.5, math.nan])
def test_a_share_outside_its_range_is_refused(ramp, length):
    with pytest.raises(ValueError, match="above 0, up to 1"):
        ramp(0.5, length)


def test_a_start_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        step_on(0.5, 1.5)
