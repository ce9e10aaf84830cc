import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from qatviz.analysis import transfer_curve
from qatviz.quantizers import LSQ, Affine, min_max_range


def lsq(step=0.5, bits=2, signed=True):
    quantizer = LSQ(bits, signed=signed)
    quantizer.step.data = torch.tensor(step)
    return quantizer


def test_the_curve_of_a_two_bit_grid_point_by_point():
    curve = transfer_curve(lsq(), low=-1.5, high=1.0, points=11)
    # step ½, codes −2 to 1; halves go to the even code: −0.75 → −2, −0.25 → 0, 0.25 → 0.
    rows = [
        (-1.5, -1.0, 0),
        (-1.25, -1.0, 0),
        (-1.0, -1.0, 0),
        (-0.75, -1.0, 1),
        (-0.5, -0.5, 1),
        (-0.25, 0.0, 1),
        (0.0, 0.0, 1),
        (0.25, 0.0, 1),
        (0.5, 0.5, 0),
        (0.75, 0.5, 0),
        (1.0, 0.5, 0),
    ]
    np.testing.assert_array_equal(np.stack([curve.x, curve.y, curve.gradient], 1), rows)
    assert curve.levels.tolist() == [-1, -0.5, 0, 0.5]
    assert curve.error.tolist() == [y - x for x, y, _ in rows]


def test_the_curve_of_a_fixed_grid():
    quantizer = Affine(2, find_range=min_max_range)
    quantizer.init_from(torch.tensor([-1.0, 2.0]))
    curve = transfer_curve(quantizer, low=-2.0, high=3.0, points=101)
    # Step 1, zero point 1: the levels are −1, 0, 1, 2.
    np.testing.assert_array_equal(curve.y, np.clip(np.round(curve.x), -1, 2))
    np.testing.assert_array_equal(curve.gradient, (curve.x > -1) & (curve.x < 2))
    assert curve.levels.tolist() == [-1, 0, 1, 2]


def test_defaults_and_labels():
    curve = transfer_curve(lsq(bits=3), low=0.0, high=1.0)
    assert len(curve.x) == 1001
    assert (curve.x[0], curve.x[-1]) == (0, 1)
    assert curve.label == "LSQ, 3 bit"
    assert transfer_curve(lsq(), low=0.0, high=1.0, label="mine").label == "mine"
    assert {a.dtype for a in (curve.x, curve.y, curve.gradient, curve.levels)} == {np.dtype(float)}


def test_the_quantizer_is_left_as_it_was():
    quantizer = lsq().train()
    before = copy.deepcopy(quantizer.state_dict())
    transfer_curve(quantizer, low=-1.0, high=1.0)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert quantizer.training
    assert quantizer.step.grad is None
    assert quantizer.step.requires_grad


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: LSQ(2), {}, "not calibrated"),
        (lambda: per_channel(), {}, "one grid is needed, got one per axis 0"),
        (lsq, {"low": 1.0}, "low < high and points ≥ 2, got 1.0, 1.0, 1001"),
        (lsq, {"low": math.nan}, "got nan, 1.0, 1001"),
        (lsq, {"points": 1}, "got -1.0, 1.0, 1$"),
    ],
)
def test_refuses_what_has_no_curve(make, arguments, message):
    trace = partial(transfer_curve, make())
    with pytest.raises(ValueError, match=message):
        trace(**({"low": -1.0, "high": 1.0} | arguments))


def per_channel():
    quantizer = LSQ(2, axis=0)
    quantizer.init_from(torch.randn(3, 4))
    return quantizer
