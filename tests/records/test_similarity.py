import numpy as np

from qatviz.records import Similarity
from tests.records.common import check_frozen


def similarity(**changes):
    values = {
        "labels": ("float", "student"),
        "samples": 24,
        "batch": 8,
        "pooled": False,
        "rows": ("a", "b", "c"),
        "columns": ("b", "a"),
        "cka": np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]]),
        "cka_error": np.array([[0.01, 0.09], [0.08, 0.02], [0.03, 0.04]]),
        "matched": ("a", "b"),
        "cosine": np.array([0.5, 0.6]),
        "cosine_error": np.array([0.05, 0.06]),
        "distance": np.array([1.5, 1.6]),
        "distance_error": np.array([0.15, 0.16]),
        "complete": True,
    }
    return Similarity(**{**values, **changes})


def test_layers_that_match_are_found_by_name_not_by_place():
    record = similarity()
    np.testing.assert_array_equal(record.matched_cka, [0.9, 0.8])
    np.testing.assert_array_equal(record.matched_cka_error, [0.09, 0.08])
    assert record.batches == 3


def test_nothing_may_match():
    none = np.empty(0)
    record = similarity(
        matched=(), cosine=none, cosine_error=none, distance=none, distance_error=none
    )
    assert record.matched_cka.shape == (0,)


def test_records_are_frozen():
    check_frozen(similarity())
