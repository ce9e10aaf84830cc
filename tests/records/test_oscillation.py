import numpy as np
import pytest

from qatviz.records import BinDistances, Trajectories
from tests.oscillations import oscillation
from tests.records.common import check_frozen


def distances(counts, clipped=(0, 0)):
    names = tuple("ab"[: len(counts)])
    return BinDistances(names, np.array(counts), np.array(clipped[: len(counts)]), ())


def test_bins_lie_between_thresholds():
    record = distances([np.zeros(100, int)])
    np.testing.assert_allclose(record.edges[[0, 50, 100]], [-0.5, 0, 0.5], atol=1e-15)
    assert len(record.edges) == 101
    check_frozen(record)


def test_folding_adds_what_is_as_far_on_either_side():
    assert distances([[1, 2, 3, 4, 5, 6]]).folded.tolist() == [[7, 7, 7]]
    row = np.arange(100)
    assert distances([row]).folded.tolist() == [[row[50 + i] + row[49 - i] for i in range(50)]]


def test_pooled_is_the_sum_over_layers():
    assert distances([[1, 2], [10, 20]]).pooled.tolist() == [11, 22]


def test_a_tenth_of_evenly_spread_weights_is_near_a_threshold():
    record = distances([np.full(100, 7), np.zeros(100, int)])
    assert record.near_threshold[0] == pytest.approx(0.1)
    assert np.isnan(record.near_threshold[1])
    assert record.near_threshold_overall == pytest.approx(0.1)


def test_near_means_beyond_045():
    row = np.zeros(100, int)
    row[[4, 95]] = 1  # u from −0.46 to −0.45, and from 0.45 to 0.46
    row[[5, 94]] = 2  # nearer to the level
    assert distances([row]).near_threshold[0] == pytest.approx(2 / 6)


def test_changes_of_a_trajectory():
    codes = np.array([[0, 1], [0, 2], [1, 2], [0, 2]])
    record = Trajectories("a", np.array([3, 9]), np.arange(4), codes * 1.0, codes, -2, 1, 0)
    assert record.changes.tolist() == [2, 1]
    check_frozen(record)


def test_the_overall_mean_counts_weights():
    record = oscillation()
    assert record.overall(record.oscillating) == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    check_frozen(record)
