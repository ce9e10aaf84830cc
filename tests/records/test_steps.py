import numpy as np

from qatviz.records import StepErrors
from tests.records.common import check_frozen


def test_step_errors_are_frozen():
    values = np.array([1.0, 2.0])
    check_frozen(StepErrors(("a", "b"), np.array([True, False]), values, values, 2.4))
