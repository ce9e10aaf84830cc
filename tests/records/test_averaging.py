import math

import numpy as np
import pytest

from qatviz.records import AveragingToy
from tests.records.common import check_frozen


def toy(targets, flips, **changes):
    values = {
        "codes": ("student", "average of weights", "average of codes"),
        "targets": np.array(targets),
        "flips": np.array(flips),
        "counted": 1000,
        "settled": 100,
        "window": 550,
        "window_flips": np.zeros((2, 3, len(targets))),
        "rate": 0.01,
        "decay": 0.999,
        "seed": 0,
    }
    return AveragingToy(**(values | changes))


def test_means_over_weights_and_their_standard_errors():
    record = toy([0.3], [[[0.1, 0.3, 0.2, 0.2]], [[0.0] * 4], [[0.0, 0.0, 0.0, 0.4]]])
    np.testing.assert_allclose(record.mean, [[0.2], [0.0], [0.1]])
    # √(Σ(x − mean)²/3/4): 0.02/12 and 0.12/12.
    np.testing.assert_allclose(record.standard_error[:, 0], [math.sqrt(0.02 / 12), 0, 0.1])
    assert record.updates == 4000
    check_frozen(record)


def expected_minimum(near, far, points=200_000):
    """E[min(a·x², b·x′²)], x and x′ even from 0 to 1, as the integral of both tails."""
    t = (np.arange(points) + 0.5) / points * near
    return near * np.mean((1 - np.sqrt(t / near)) * (1 - np.sqrt(t / far)))


@pytest.mark.parametrize("target", [0.05, 0.3, 0.5, 0.8])
def test_the_weight_changes_its_code_as_the_tails_say(target):
    record = toy([target], np.zeros((3, 1, 2)))
    near = min(target, 1 - target)
    assert record.distance == pytest.approx(near)
    # E[x²] = ⅓ and both jumps together 1.
    assert record.predicted_student[0] == pytest.approx(
        2 * expected_minimum(near, 1 - near) / (1 / 3), rel=1e-4
    )


def test_the_average_of_codes_changes_as_its_density_says():
    record = toy([0.5, 0.49, 0.4], np.zeros((3, 3, 2)))
    # Variance 0.0005·0.8·0.25 = 10⁻⁴: a deviation of 0.01, a density of 39.894 at ½.
    assert record.predicted_integer[0] == pytest.approx(0.0005 * 39.8942, rel=1e-5)
    assert record.predicted_integer[1] == pytest.approx(0.0005 * 39.8942 * math.exp(-0.5), rel=1e-3)
    assert record.predicted_integer[2] < 1e-20
