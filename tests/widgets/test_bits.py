import numpy as np
import pytest
import torch

from qatviz.widgets import bit_explorer
from qatviz.widgets.bits import draw_bits


@pytest.fixture
def weights():
    return 0.1 * torch.randn(20, 30)


def test_shows_lsq_at_its_first_step(weights):
    curve, histogram = bit_explorer(weights, label="weights").result
    step = 2 * weights.abs().mean().item() / np.sqrt(1)
    np.testing.assert_allclose(curve.levels, [-2 * step, -step, 0, step], rtol=1e-6)
    np.testing.assert_allclose(histogram.levels, curve.levels)
    assert histogram.used.sum() == 600


def test_the_step_slider_multiplies_the_step(weights):
    explorer = bit_explorer(weights, label="weights")
    before = explorer.result[0].levels
    explorer.controls["step"].value = 0.5
    np.testing.assert_allclose(explorer.result[0].levels, before / 2, rtol=1e-6)


def test_more_bits_less_error_and_another_picture(weights):
    explorer = bit_explorer(weights, label="weights")
    coarse, picture = explorer.result[1], explorer.image
    explorer.controls["bits"].value = 4
    assert explorer.result[1].sqnr > coarse.sqnr + 6
    assert explorer.image != picture


def test_one_signed_bit_says_why_not(weights):
    explorer = bit_explorer(weights, label="weights")
    explorer.controls["bits"].value = 1
    assert explorer.result is None
    explorer.controls["signed"].value = False
    assert len(explorer.result[0].levels) == 2


def test_signedness_starts_as_the_data_are(weights):
    assert bit_explorer(weights, label="w").controls["signed"].value is True
    assert bit_explorer(weights.relu(), label="a").controls["signed"].value is False


def test_draws_staircase_left_and_values_right(weights):
    from matplotlib.figure import Figure

    figure = Figure()
    draw_bits(figure, bit_explorer(weights, label="weights").result)
    left, right = figure.axes
    assert left.get_xlabel() == "input x"
    assert right.get_title().startswith("weights")


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_bits_outside_the_slider(weights, bits):
    with pytest.raises(ValueError, match=f"bits must be from 1 to 8, got {bits}"):
        bit_explorer(weights, label="weights", bits=bits)


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.tensor([1.0, float("nan")])])
def test_refuses_what_has_no_histogram(tensor):
    with pytest.raises(ValueError, match="'weights', not all finite"):
        bit_explorer(tensor, label="weights")
