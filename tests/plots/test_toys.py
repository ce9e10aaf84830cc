import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz.plots import loss_gradients, one_weight, staircase_loss
from qatviz.records import OneWeight, StaircaseLoss


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def loss():
    x = np.linspace(-1, 1, 5)
    gradients = {"none": 0 * x, "identity": x, "clipped": x / 2}
    return StaircaseLoss(x, x**2, x**2 + 1, 2 * x, gradients, 0.3, 1.0)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_path_shows_weight_level_target_and_thresholds(ax):
    record = OneWeight(
        np.array([-1.0, 0.4, 0.6]),
        np.array([-1.0, 0.0, 1.0]),
        np.array([0.3, 0.3]),
        np.array([-2.6, -0.6]),
        np.array([-0.5, 0.5]),
        "clipped",
    )
    assert one_weight(ax, record) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("update", "weight (steps)")
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(drawn["latent weight w"], record.weight)
    np.testing.assert_array_equal(drawn["level ŵ"], record.level)
    np.testing.assert_array_equal(drawn["target t"], record.target)
    assert drawn["threshold between levels"][0] == -0.5


def test_losses(ax, loss):
    assert staircase_loss(ax, loss) is ax
    assert labels(ax) == ["true loss", "blurred by noise 1 step wide", "target t"]
    assert "(steps²)" in ax.get_ylabel()


def test_gradients(ax, loss):
    assert loss_gradients(ax, loss) is ax
    assert len(labels(ax)) == len(ax.lines) == 4
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), loss.gradients["clipped"])
    assert "(steps)" in ax.get_ylabel()
