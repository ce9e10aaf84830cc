import math

import numpy as np
import pytest

from qatviz.records import InputChange
from tests.records.common import check_frozen


def record(**changes):
    values = {
        "label": "rounding",
        "unknowns": 36,
        "equations": 100,
        "change": np.zeros((2, 36)),
        "residual": np.array([0.4, 0.6]),
        "size": np.array([0.1, 0.3]),
        "weight_size": 0.2,
        "settled": np.array([True, False]),
        "iterations": 7,
    }
    return InputChange(**(values | changes))


def test_means_over_inputs():
    found = record()
    assert found.samples == 2
    assert found.mean_residual == pytest.approx(0.5)
    assert found.residual_error == pytest.approx(0.1)
    assert found.mean_size == pytest.approx(0.2)
    assert found.size_error == pytest.approx(0.1)


def test_what_to_expect_of_chance():
    assert record().white == pytest.approx(0.8)  # √(1 − 36/100)
    assert record(equations=36).white == 0
    assert record(equations=10).white == 0


def test_one_input_has_no_error():
    alone = {n: np.ones(1) for n in ("residual", "size")}
    one = record(**alone, change=np.zeros((1, 36)), settled=np.ones(1, bool))
    assert math.isnan(one.residual_error)
    assert math.isnan(one.size_error)


def test_it_is_frozen():
    check_frozen(record())
