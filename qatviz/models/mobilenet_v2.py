"""MobileNetV2 with torchvision's names, so that its pretrained weights load."""

import math
from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from .blocks import init_convolutions

# Sandler et al. 2018, table 2: expansion t, channels c, repeats n, stride s of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand with a 1×1 convolution, filter each channel, project without an activation.

    The input is added where stride is 1 and the channels are equal; nothing is rectified after
    the addition. Parameter names as in torchvision.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", sec.
    3.3, table 1 and fig. 4d.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the depthwise convolution, 1 or 2.
        expansion: the hidden layers have expansion × in_channels channels; with 1 the first
            convolution is left out, as in torchvision. Default: 6 (Sandler et al. 2018, sec.
            4).

    Raises:
        ValueError: if stride is neither 1 nor 2, or expansion is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int = 6):
        super().__init__()
        if stride not in {1, 2}:
            raise ValueError(f"stride: got {stride}, allowed: 1, 2")
        if expansion < 1:
            raise ValueError(f"expansion: got {expansion}, allowed: 1 or more")
        hidden = in_channels * expansion
        expand = [_conv_bn_relu6(in_channels, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Add the bottleneck to the input where their shapes agree, else return it alone.

        Args:
            x: features, (batch, in_channels, height, width).

        Returns:
            Features of either sign, (batch, out_channels, ⌈height / stride⌉, ⌈width / stride⌉).
        """
        return x + self.conv(x) if self.adds_input else self.conv(x)


def mobilenet_v2(classes: int = 1000, stem: str = "imagenet", width: float = 1.0) -> nn.Sequential:
    """Make MobileNetV2.

    Images (batch, 3, height, width) to logits (batch, classes). The names of parameters and
    buffers are torchvision's, so `model.load_state_dict(torchvision_model.state_dict())` loads
    strictly. Activations are ReLU6: range [0, 6]. Dropout of 0.2 stands before the linear layer
    (torchvision). 3,504,872 parameters at the defaults.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table
    2.

    Args:
        classes: number of logits. Default: 1000 (Sandler et al. 2018, sec. 6.1).
        stem: "imagenet" reduces the image 32 times; "cifar" 8 times, for images of about 32×32:
            the first convolution and the second stage (24 channels) have stride 1 instead of 2
            (ours; the paper has no network for CIFAR). Both have the same parameters.
            Default: "imagenet" (Sandler et al. 2018, table 2).
        width: multiplies every number of channels, which is then rounded to a multiple of 8;
            below 1 it leaves the last convolution's 1280 as they are (Sandler et al. 2018,
            sec. 6.1). Default: 1.0 (Sandler et al. 2018, table 2).

    Returns:
        The network as a sequence of named units: convolutions by `init_convolutions`, linear
        weights from N(0, 0.01²), biases 0, as in torchvision.

    Raises:
        ValueError: if classes is below 1, the stem unknown, or width not finite and above 0.
    """
    if classes < 1:
        raise ValueError(f"classes: got {classes}, allowed: 1 or more")
    if stem not in {"imagenet", "cifar"}:
        raise ValueError(f"stem: got {stem!r}, allowed: 'imagenet', 'cifar'")
    if not 0 < width < math.inf:
        raise ValueError(f"width: got {width}, allowed: above 0 and finite")
    last_channels = _multiple_of_8(1280 * max(1.0, width))
    linear = nn.Linear(last_channels, classes)
    model = nn.Sequential(
        OrderedDict(
            features=_features(stem, width, last_channels),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Dropout(0.2), linear),
        )
    )
    init_convolutions(model)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return model


def _features(stem: str, width: float, last_channels: int) -> nn.Sequential:
    """Make everything before the pooling.

    Returns:
        19 units named "0" to "18" at any width: a convolution, 17 blocks, a convolution.
    """
    channels = _multiple_of_8(32 * width)
    units = [_conv_bn_relu6(3, channels, 3, stride=1 if stem == "cifar" else 2)]
    for stage, (expansion, base_channels, repeats, table_stride) in enumerate(STAGES, start=1):
        out_channels = _multiple_of_8(base_channels * width)
        first_stride = 1 if stem == "cifar" and stage == 2 else table_stride
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            units.append(InvertedResidual(channels, out_channels, stride, expansion))
            channels = out_channels
    units.append(_conv_bn_relu6(channels, last_channels, 1))
    return nn.Sequential(*units)


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Make a convolution that keeps the image's size up to the stride, BatchNorm and ReLU6.

    Returns:
        The three units, named "0", "1" and "2" as in torchvision.
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


def _multiple_of_8(channels: float) -> int:
    """Round to the nearest multiple of 8, halves up, but lose no more than a tenth.

    Returns:
        8 or more. The rule is that of the published networks; the paper does not state it.
    """
    nearest = max(8, math.floor(channels / 8 + 0.5) * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
