import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.analysis import averaging as module
from qatviz.analysis import averaging_toy


def literal(targets, rate, decay, weights, total, seed):
    """Each weight by itself, one update at a time: codes of it and of its averages."""
    generator = np.random.default_rng(seed)
    draws = generator.random((total, len(targets), weights))  # the same stream, drawn at once
    found = np.empty((3, len(targets), weights, total + 1), int)
    for place in np.ndindex(len(targets), weights):
        weight, mean_weight, mean_code = module.START, module.START, 1.0
        for index in range(total + 1):
            found[(slice(None), *place, index)] = (
                round(weight),
                round(mean_weight),
                round(mean_code),
            )
            if index == total:
                break
            x = draws[(index, *place)]
            weight -= rate * x * (x * round(weight) - x * targets[place[0]])
            mean_weight = decay * mean_weight + (1 - decay) * weight
            mean_code = decay * mean_code + (1 - decay) * round(weight)
    return found


def test_the_toy_is_the_literal_loop():
    targets, weights = [0.07, 0.5, 0.81], 2
    record = averaging_toy(
        targets, rate=0.03, decay=0.9, weights=weights, updates=240, settle=60, windows=6, seed=3
    )
    codes = literal(targets, 0.03, 0.9, weights, 300, 3)
    flips = np.diff(codes, axis=-1) != 0
    np.testing.assert_allclose(record.flips, flips[..., 60:].mean(-1), atol=1e-12)
    assert (record.flips[:, 1] > 0).all(), "with so short an average all three oscillate"
    for window in range(6):
        part = flips[..., 50 * window : 50 * window + 50].mean((2, 3))
        np.testing.assert_allclose(record.window_flips[window], part, atol=1e-12)
    assert (record.counted, record.settled, record.window) == (240, 60, 50)
    assert (record.rate, record.decay, record.seed) == (0.03, 0.9, 3)


@pytest.fixture(scope="module")
def toy():
    return averaging_toy(weights=16)


# The specification's numbers, section 10, anchor 7: s = 0.2, η = 0.01, α = 0.999, and d = 0.01,
# 0.03, 0.05, 0.08, 0.1. One run of a length that it does not say, three digits, and perhaps with
# the way to the threshold, which ours does not have.
MEASURED = {
    "student": [0.086, 0.238, 0.358, 0.475, 0.499],
    "average of weights": [0, 0, 0, 0, 0.009],
    "average of codes": [0, 0, 0, 0, 0.020],
}


def test_the_rates_are_those_that_were_measured(toy):
    assert toy.codes == tuple(MEASURED)
    np.testing.assert_allclose(toy.distance * 0.2, [0.01, 0.03, 0.05, 0.08, 0.1])
    student = np.array(MEASURED["student"])
    # Four binomial standard errors of 10,000 updates: 0.011 to 0.02.
    assert (np.abs(toy.mean[0] - student) < 4 * np.sqrt(student * (1 - student) / 1e4)).all()
    for index in (1, 2):
        wanted, spread = MEASURED[toy.codes[index]], toy.flips[index, -1].std(ddof=1)
        # Off the middle not one change of code in 640,000 updates.
        assert toy.mean[index, :4].tolist() == wanted[:4] == [0, 0, 0, 0]
        # Changes come in clusters as long as the average: four deviations of single weights.
        assert 0 < spread < 0.005
        assert toy.mean[index, 4] == pytest.approx(wanted[4], abs=4 * spread)


def test_the_rates_are_those_that_are_predicted(toy):
    np.testing.assert_array_less(abs(toy.mean - predictions(toy))[[0, 2]], bound(toy)[[0, 2]])
    assert (toy.standard_error[0] < 0.001).all(), "so that the comparison says something"
    # Without noise it would be 2d/s: 0.1 to 1.
    assert (abs(toy.mean[0] - 2 * toy.distance) > 20 * toy.standard_error[0]).all()


def predictions(toy):
    nothing = np.zeros_like(toy.targets)
    return np.stack([toy.predicted_student, nothing, toy.predicted_integer])


def bound(toy):
    """Five standard errors, and at least five changes."""
    return 5 * toy.standard_error + 5 / toy.updates


@settings(deadline=None, max_examples=12)
@given(st.floats(0.03, 0.97), st.floats(0.001, 0.5))
def test_the_rate_of_the_weight_does_not_hang_on_the_learning_rate(target, rate):
    record = averaging_toy([target], rate=rate, updates=4000, settle=0, windows=1, weights=16)
    assert record.mean[0, 0] == pytest.approx(
        record.predicted_student[0], abs=5 * math.sqrt(0.25 / record.updates)
    )


def test_a_shorter_average_oscillates_more(toy):
    # At the middle (1 − α)/2 over √(1 − α): √10 times as often at α = 0.99.
    record = averaging_toy([0.5], decay=0.99, updates=20000, settle=1000, windows=1, weights=8)
    expected = math.sqrt(10) * toy.predicted_integer[-1]
    assert record.predicted_integer[0] == pytest.approx(expected)
    assert record.mean[2, 0] == pytest.approx(expected, abs=5 * record.standard_error[2, 0])
    # And where it never did with the longer one: 0.4 is 3.2 deviations of it from the middle.
    near = averaging_toy([0.4], decay=0.99, updates=20000, settle=1000, windows=1, weights=8)
    assert near.mean[2, 0] > 0


def test_no_average_is_the_weight():
    record = averaging_toy([0.2, 0.5], decay=0.0, updates=900, settle=100, windows=10, weights=3)
    assert (record.flips == record.flips[:1]).all()


def test_the_way_of_the_averages_is_not_counted(toy):
    # They begin at the threshold and at the upper code, and go down through it once at least.
    early = toy.window * toy.window_flips[:10].sum(0)
    assert (early[1:, :4] >= 1).all()
    assert toy.window_flips[10:, 1:, :4].max() == 0
    # The average of codes passes ½ when αᵗ = (½ − p)/(1 − p): at 1790 for p = 0.4, 750 for 0.05.
    for index, target in enumerate([0.05, 0.15, 0.25, 0.4]):
        when = math.log((0.5 - target) / (1 - target)) / math.log(0.999)
        shares = toy.window_flips[:, 2, index] * toy.window
        assert int(shares.argmax()) == int(when / toy.window), target
    np.testing.assert_allclose(toy.window_flips[10:].mean(0), toy.mean, atol=1e-12)


def test_the_same_seed_draws_the_same():
    first, again, other = (
        averaging_toy([0.3], updates=200, settle=0, windows=1, seed=seed).flips.tolist()
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [0.0, 0.5]}, "strictly between 0 and 1"),
        ({"targets": []}, "strictly between 0 and 1"),
        ({"targets": [math.nan]}, "strictly between 0 and 1"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": 1.5}, "rate must be above 0"),
        ({"decay": 1.0}, "decay must be from 0 below 1"),
        ({"decay": -0.1}, "decay must be from 0 below 1"),
        ({"weights": 1}, "weights must be at least 2"),
        ({"updates": 101, "settle": 0}, "multiple of windows"),
        ({"updates": 0}, "multiple of windows"),
        ({"settle": -50}, "multiple of windows"),
        ({"windows": 0}, "multiple of windows"),
    ],
)
def test_toys_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        averaging_toy(**options)
