import math

import numpy as np
import pytest

from qatviz.records import BatchNormDrift, OscillationLottery, OscillationToy
from tests.records.common import check_frozen


def toy(targets, **changes):
    count = len(targets)
    values = {
        "targets": np.array(targets),
        "events": np.zeros(count),
        "upper": np.zeros(count),
        "counted": 50,
        "rates": np.array([4.0, 2.0, 1.0, 0.0]),
        "window": 2,
        "window_events": np.zeros((2, count)),
        "window_spread": np.zeros((2, count)),
        "shown": 0,
        "position": np.zeros(5),
        "code": np.zeros(5, int),
        "schedule": "constant",
    }
    return OscillationToy(**(values | changes))


def test_predictions_are_the_formulas():
    record = toy([0.1, 0.5, 0.8])
    np.testing.assert_allclose(record.distance, [0.1, 0.5, 0.2])
    np.testing.assert_allclose(record.predicted_events, [0.2, 1.0, 0.4])
    np.testing.assert_allclose(record.predicted_upper, [0.1, 0.5, 0.8])
    assert record.resolution == 0.02
    np.testing.assert_allclose(record.window_rates, [3.0, 0.5])
    check_frozen(record)


def lottery(accuracy, **changes):
    values = {
        "accuracy": np.array(accuracy),
        "loss": np.ones(len(accuracy)),
        "checkpoint_accuracy": 0.8,
        "checkpoint_loss": 0.6,
        "settled_accuracy": 0.82,
        "settled_loss": 0.55,
        "drawn": 3,
        "weights": 10,
        "moved": np.full(len(accuracy), 0.5),
        "apart": 0.0,
        "above": 0.005,
        "samples": 400,
        "complete": True,
    }
    return OscillationLottery(**(values | changes))


def test_spread_and_standard_error():
    record = lottery([0.7, 0.8, 0.9])
    assert record.spread == pytest.approx(0.1)
    assert record.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 400))
    assert math.isnan(lottery([0.7]).spread)
    check_frozen(record)


def test_a_tie_is_half_a_defeat():
    assert lottery([0.7, 0.8, 0.8, 0.9]).beaten == pytest.approx((1 + 2 / 2) / 4)


def drift():
    return BatchNormDrift(
        layers=("a", "b", "c"),
        kinds=("depthwise", "pointwise", "depthwise"),
        divergence=(np.array([1.0, 3.0]), np.array([0.1]), np.array([2.0, 2.0, 8.0])),
        noise=(np.array([0.1, 0.3]), np.array([0.01]), np.array([0.0, 0.0, 0.3])),
        images=64,
    )


def test_means_by_layer_and_by_kind():
    record = drift()
    np.testing.assert_allclose(record.means, [2.0, 0.1, 4.0])
    np.testing.assert_allclose(record.noise_means, [0.2, 0.01, 0.1])
    # Standard deviations √2 and √12 over √2 and √3 channels.
    np.testing.assert_allclose(record.standard_errors, [1.0, np.nan, 2.0])
    assert record.by_kind == {"depthwise": pytest.approx(16 / 5), "pointwise": pytest.approx(0.1)}
    check_frozen(record)
