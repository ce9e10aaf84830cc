import math

import numpy as np
import pytest

from qatviz.records import Histogram, TransferCurve
from tests.records.common import check_frozen


def histogram(**changes):
    values = {
        "label": "w",
        "counts": np.array([1, 2]),
        "edges": np.array([0.0, 1.0, 2.0]),
        "levels": np.array([0.0, 2.0]),
        "used": np.array([1, 2]),
        "mean_squared_error": 0.01,
        "signal": 1.0,
    }
    return Histogram(**(values | changes))


def test_error_of_a_curve_is_output_less_input():
    x, y = np.array([0.0, 0.4, 0.9]), np.array([0.0, 0.0, 1.0])
    curve = TransferCurve(x, y, np.ones(3), np.array([0.0, 1.0]), "q")
    np.testing.assert_allclose(curve.error, [0, -0.4, 0.1], atol=1e-15)


def test_sqnr_is_in_decibels():
    assert histogram().sqnr == pytest.approx(20)  # a hundredth of the power
    assert histogram(mean_squared_error=0.5).sqnr == pytest.approx(3.0103, abs=1e-4)


def test_sqnr_without_error_is_infinite():
    assert histogram(mean_squared_error=0.0).sqnr == math.inf


def test_a_histogram_is_frozen():
    check_frozen(histogram())
