import numpy as np

from qatviz.records import LearnedGrid, TransferCurve, ZooCurve
from tests.records.common import check_frozen


def curve(opposed):
    empty = np.empty(0)
    line = TransferCurve(np.arange(2.0), np.arange(2.0), np.ones(2), np.arange(2.0), "q")
    return ZooCurve("q", line, np.asarray(opposed), (empty, empty), "", 1.0, True)


def test_a_curve_is_asymmetric_where_the_gradient_depends_on_the_sign():
    assert not curve([1.0, 1.0]).asymmetric
    assert curve([1.0, 1.1]).asymmetric


def test_learned_counts_numbers_not_parameters():
    none = np.empty(0)
    grid = LearnedGrid(
        "q", "weight", 2, none, 1.0, 1.0, none, none, {}, {"a": np.ones((2, 3)), "b": np.ones(1)},
        (1.0, 1.0), 0.0,
    )  # fmt: skip
    assert grid.learned == 7


def test_zoo_records_are_frozen():
    check_frozen(curve([1.0, 1.0]))
