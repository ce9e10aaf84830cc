import numpy as np
import pytest

from tests.landscapes import a_sharpness
from tests.records.common import check_frozen


def test_a_maximum_has_no_error():
    record = a_sharpness([0.5])
    check_frozen(record)
    assert record.value == 0.5
    assert record.standard_error == 0
    assert record.percent == pytest.approx(100 * 0.5 / 2)
    assert "+0.5 on a loss of 1" in repr(record)


def test_an_average_has_one():
    record = a_sharpness([0.1, 0.2, 0.3, 0.4], average=True)
    assert record.value == pytest.approx(0.25)
    spread = np.sqrt(sum((r - 0.25) ** 2 for r in (0.1, 0.2, 0.3, 0.4)) / 3)
    assert record.standard_error == pytest.approx(spread / 2)
    assert "± 0.06 (4 pairs)" in repr(record)


def test_too_few_draws():
    assert np.isnan(a_sharpness([], average=True).value)
    assert np.isnan(a_sharpness([0.1], average=True).standard_error)


def test_what_was_interrupted_says_so():
    assert "INCOMPLETE" in repr(a_sharpness([0.5], complete=False))
    assert "INCOMPLETE" not in repr(a_sharpness([0.5]))
