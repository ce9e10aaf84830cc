import pytest
import torch
from torch import nn

from qatviz.models import cifar_resnet, resnet20, resnet32
from qatviz.models.blocks import PadShortcut


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_sizes_are_those_of_the_paper(depth, millions):
    """He et al. 2016, table 6; the second digit of 1.7 is the last that it prints."""
    with torch.device("meta"):
        model = cifar_resnet(depth)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(parameters, 1 if millions == 1.7 else 2) == millions


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_depth_counts_the_layers_with_weights(depth):
    with torch.device("meta"):
        model = cifar_resnet(depth)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_names_are_depths():
    with torch.device("meta"):
        assert repr(resnet20()) == repr(cifar_resnet(20))
        assert repr(resnet32(classes=100)) == repr(cifar_resnet(32, classes=100))


def test_shortcuts_pad_where_the_shape_changes():
    model = resnet20()
    shortcuts = [block.downsample for stage in model[3:6] for block in stage]
    assert [type(s) for s in shortcuts] == (
        [nn.Identity] * 3 + [PadShortcut, nn.Identity, nn.Identity] * 2
    )
    assert [repr(s) for s in shortcuts if isinstance(s, PadShortcut)] == [
        "PadShortcut(16, 32, stride=2)",
        "PadShortcut(32, 64, stride=2)",
    ]


def test_stages_halve_the_image_twice():
    model = resnet20()
    x = torch.randn(1, 3, 32, 32)
    shapes = []
    for unit in model[:6]:
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32)] * 4 + [(32, 16, 16), (64, 8, 8)]


def test_takes_other_images_and_classes():
    assert resnet20(classes=100)(torch.randn(2, 3, 28, 28)).shape == (2, 100)


@pytest.mark.parametrize("depth", [-4, 2, 18, 21])
def test_refuses_depths_the_paper_has_not(depth):
    with pytest.raises(ValueError, match=rf"depth: got {depth}, allowed: 6n \+ 2"):
        cifar_resnet(depth)
