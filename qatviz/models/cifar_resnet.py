"""The thin residual networks for 32×32 images of He et al. 2016, sec. 4.2."""

from collections import OrderedDict

from torch import nn

from .blocks import PadShortcut, init_convolutions, residual_stage


def cifar_resnet(depth: int, classes: int = 10) -> nn.Sequential:
    """Make the CIFAR residual network of a given depth.

    Images (batch, 3, height, width) to logits (batch, classes). Three stages of n blocks have
    16, 32 and 64 channels and strides 1, 2 and 2: depth = 6n + 2 layers with weights. Shortcuts
    have no parameters (option A).

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", sec. 4.2.

    Args:
        depth: convolutions and linear layers on the longest path: 8, 14, 20, 26, 32, ...
        classes: number of logits. Default: 10 (He et al. 2016, sec. 4.2).

    Returns:
        The network as a sequence of named units, initialised by `init_convolutions`.

    Raises:
        ValueError: if depth is not 6n + 2 with n ≥ 1, or classes is below 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: got {depth}, allowed: 6n + 2 with n ≥ 1 (8, 14, 20, ...)")
    if classes < 1:
        raise ValueError(f"classes: got {classes}, allowed: 1 or more")
    blocks = (depth - 2) // 6
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            layer1=residual_stage(16, 16, blocks, stride=1, shortcut=PadShortcut),
            layer2=residual_stage(16, 32, blocks, stride=2, shortcut=PadShortcut),
            layer3=residual_stage(32, 64, blocks, stride=2, shortcut=PadShortcut),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )
    init_convolutions(model)
    return model


def resnet20(classes: int = 10) -> nn.Sequential:
    """Make the CIFAR residual network of 20 layers: 269,722 parameters with 10 classes.

    Images (batch, 3, height, width) to logits (batch, classes).

    Source: He et al. 2016, sec. 4.2 and table 6 (0.27 M parameters).

    Args:
        classes: number of logits. Default: 10 (He et al. 2016, sec. 4.2).

    Returns:
        The network as a sequence of named units.

    Raises:
        ValueError: if classes is below 1.
    """
    return cifar_resnet(20, classes)


def resnet32(classes: int = 10) -> nn.Sequential:
    """Make the CIFAR residual network of 32 layers: 464,154 parameters with 10 classes.

    Images (batch, 3, height, width) to logits (batch, classes).

    Source: He et al. 2016, sec. 4.2 and table 6 (0.46 M parameters).

    Args:
        classes: number of logits. Default: 10 (He et al. 2016, sec. 4.2).

    Returns:
        The network as a sequence of named units.

    Raises:
        ValueError: if classes is below 1.
    """
    return cifar_resnet(32, classes)
