import numpy as np

from qatviz.records import History
from tests.records.common import check_frozen


def test_length_of_a_history_is_its_epochs():
    assert len(History()) == 0
    assert len(History({"ce": np.ones(3)}, np.ones(3))) == 3


def test_a_history_is_frozen():
    check_frozen(History())


def test_histories_do_not_share_their_terms():
    assert History().terms is not History().terms
