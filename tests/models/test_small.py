import pytest
import torch
from torch import nn

from qatviz.models import small_cnn, small_resnet


@pytest.mark.parametrize("constructor", [small_cnn, small_resnet])
@pytest.mark.parametrize("size", [28, 32])
def test_takes_any_image_and_number_of_classes(constructor, size):
    model = constructor(width=4, classes=3, in_channels=2)
    assert model(torch.randn(2, 2, size, size)).shape == (2, 3)


@pytest.mark.parametrize("constructor", [small_cnn, small_resnet])
@pytest.mark.parametrize("argument", ["width", "classes", "in_channels"])
def test_refuses_sizes_below_one(constructor, argument):
    with pytest.raises(ValueError, match=f"{argument}: got 0, allowed: 1 or more"):
        constructor(**{argument: 0})


def test_small_cnn_has_these_units():
    names = [name for name, _ in small_cnn().named_children()]
    assert names == [
        *("conv1", "bn1", "relu1", "pool1"),
        *("conv2", "bn2", "relu2", "pool2"),
        *("conv3", "bn3", "relu3", "pool3"),
        *("flatten", "fc"),
    ]


def test_small_cnn_takes_images_of_four_pixels_a_side():
    assert small_cnn().eval()(torch.randn(1, 1, 4, 4)).shape == (1, 10)


def test_small_resnet_halves_the_image_twice():
    model = small_resnet(width=16)
    x = torch.randn(1, 1, 28, 28)
    shapes = []
    for unit in model[:6]:
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 28, 28)] * 4 + [(32, 14, 14), (64, 7, 7)]


def test_small_resnet_projects_where_the_shape_changes():
    model = small_resnet()
    assert isinstance(model.layer1[0].downsample, nn.Identity)
    for stage in (model.layer2, model.layer3):
        assert [type(m) for m in stage[0].downsample] == [nn.Conv2d, nn.BatchNorm2d]
