import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qatviz import plots


@pytest.fixture
def axes():
    return Figure().subplots(2, 3)


@pytest.mark.parametrize("as_array", [np.asarray, lambda tensor: tensor])
def test_shows_the_first_images_of_each_class_in_its_column(axes, as_array):
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 1, 2, 2)
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, -1])
    plots.image_grid(axes, as_array(images), as_array(labels), ("a", "b", "c"))
    shown = [[int(ax.get_images()[0].get_array()[0, 0]) for ax in row] for row in axes]
    assert shown == [[1, 2, 0], [3, 5, 4]]
    assert [ax.get_title() for ax in axes[0]] == ["a", "b", "c"]


def test_colour_images_keep_their_channels_last(axes):
    images = np.zeros((3, 3, 4, 5), dtype=np.uint8)
    images[:, 1] = 200
    plots.image_grid(axes, images, np.array([0, 1, 2]), ("a", "b", "c"))
    shown = axes[0, 0].get_images()[0].get_array()
    assert shown.shape == (4, 5, 3)
    assert (shown[..., 1] == 200).all()


def test_a_class_with_too_few_images_leaves_its_axes_empty(axes):
    images = np.zeros((1, 1, 2, 2), dtype=np.uint8)
    plots.image_grid(axes, images, np.array([0]), ("a", "b", "c"))
    assert [len(ax.get_images()) for ax in axes.flat] == [1, 0, 0, 0, 0, 0]
