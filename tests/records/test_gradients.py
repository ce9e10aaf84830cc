import numpy as np
import pytest

from qatviz.records import OneWeight
from tests.records.common import check_frozen

PATH = OneWeight(
    weight=np.array([0.4, 0.6, 0.4, 0.6]),
    level=np.array([0.0, 1.0, 0.0, 1.0]),
    target=np.full(3, 0.3),
    gradient=np.array([-0.3, 0.7, -0.3]),
    thresholds=np.array([0.5]),
    surrogate="straight through",
)


def test_share_mean_and_changes_of_one_weight_count_what_the_updates_saw():
    assert PATH.share(0.0) == pytest.approx(2 / 3)  # the last level was seen by no update
    assert PATH.share(0.0, after=1) == pytest.approx(1 / 2)
    assert PATH.mean_level() == pytest.approx(1 / 3)
    assert PATH.changes() == 1


def test_one_weight_is_frozen():
    check_frozen(PATH)
