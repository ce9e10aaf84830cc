"""Two networks for small grey images (28×28), trained in minutes on a CPU."""

from collections import OrderedDict

from torch import nn

from .blocks import init_convolutions, residual_stage


def small_cnn(width: int = 16, classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Make a plain network of three convolutions with BatchNorm and ReLU, and a linear layer.

    Images (batch, in_channels, height, width), each side 4 or more, to logits (batch, classes).
    The three convolutions have w, 2w and 4w channels; maximum pooling halves the image after
    the first and the second. 24,058 parameters at the defaults. Architecture: ours.

    Args:
        width: channels w of the first convolution. Default: 16 (ours).
        classes: number of logits. Default: 10 (Fashion-MNIST).
        in_channels: channels of the images. Default: 1 (Fashion-MNIST).

    Returns:
        The network as a sequence of named units, initialised by `init_convolutions`.

    Raises:
        ValueError: if width, classes or in_channels is below 1.
    """
    for name, value in (("width", width), ("classes", classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, allowed: 1 or more")
    units = OrderedDict()
    channels = in_channels
    for i, out_channels in enumerate((width, 2 * width, 4 * width), start=1):
        units[f"conv{i}"] = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        units[f"bn{i}"] = nn.BatchNorm2d(out_channels)
        units[f"relu{i}"] = nn.ReLU()
        units[f"pool{i}"] = nn.MaxPool2d(2) if i < 3 else nn.AdaptiveAvgPool2d(1)
        channels = out_channels
    units["flatten"] = nn.Flatten()
    units["fc"] = nn.Linear(channels, classes)
    model = nn.Sequential(units)
    init_convolutions(model)
    return model


def small_resnet(width: int = 16, classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Make a residual network of three basic blocks, the smallest here with shortcuts.

    Images (batch, in_channels, height, width) to logits (batch, classes). The three stages have
    w, 2w and 4w channels and strides 1, 2 and 2, with torchvision's names and convolutional
    shortcuts. 77,754 parameters at the defaults. Depth and width: ours.

    Source: blocks of He et al. 2016, "Deep Residual Learning for Image Recognition", sec. 3.3.

    Args:
        width: channels w of the stem and the first stage. Default: 16 (He et al. 2016, sec.
            4.2).
        classes: number of logits. Default: 10 (Fashion-MNIST).
        in_channels: channels of the images. Default: 1 (Fashion-MNIST).

    Returns:
        The network as a sequence of named units, initialised by `init_convolutions`.

    Raises:
        ValueError: if width, classes or in_channels is below 1.
    """
    for name, value in (("width", width), ("classes", classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, allowed: 1 or more")
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
            layer1=residual_stage(width, width, blocks=1, stride=1),
            layer2=residual_stage(width, 2 * width, blocks=1, stride=2),
            layer3=residual_stage(2 * width, 4 * width, blocks=1, stride=2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * width, classes),
        )
    )
    init_convolutions(model)
    return model
