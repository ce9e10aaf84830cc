import math

import numpy as np
import pytest

from qatviz.records import Reliability, Temperature
from tests.records.common import check_frozen

NAN = float("nan")


def record(**changes):
    """Ten images in two of four bins: too sure by 0.1 in the one, too modest by 0.05 above."""
    values = {
        "label": "net",
        "samples": 10,
        "temperature": 1.0,
        "edges": np.linspace(0, 1, 5),
        "counts": np.array([0, 0, 4, 6]),
        "bin_accuracy": np.array([NAN, NAN, 0.5, 1.0]),
        "bin_confidence": np.array([NAN, NAN, 0.6, 0.95]),
        "adaptive_ece": 0.08,
        "nll": 0.5,
        "nll_error": 0.1,
        "brier": 0.3,
        "brier_error": 0.05,
        "accuracy": 0.8,
        "mean_confidence": 0.81,
        "resampled": np.linspace(0.05, 0.25, 201),
        "adaptive_resampled": np.linspace(0.1, 0.2, 201),
    }
    return Reliability(**(values | changes))


def test_errors_are_sums_over_bins():
    net = record()
    np.testing.assert_allclose(net.gaps[2:], [0.1, -0.05])
    assert net.ece == pytest.approx(0.4 * 0.1 + 0.6 * 0.05)
    assert net.mce == pytest.approx(0.1)


def test_only_empty_bins_are_left_out_of_the_error():
    assert math.isnan(record(bin_confidence=np.array([NAN, NAN, NAN, 0.95])).ece)


def test_intervals_are_percentiles_and_the_bias_is_the_shift():
    net = record()
    assert net.interval == pytest.approx((0.055, 0.245))
    assert net.adaptive_interval == pytest.approx((0.1025, 0.1975))
    assert net.bias == pytest.approx(0.15 - 0.07)


def test_accuracies_have_binomial_errors():
    net = record()
    assert net.accuracy_error == pytest.approx(math.sqrt(0.16 / 10))
    np.testing.assert_allclose(net.bin_error, [NAN, NAN, 0.25, 0])


def test_confidence_records_are_frozen():
    check_frozen(record())
    check_frozen(Temperature("net", 3, 1.5, 0.4, 0.3))
