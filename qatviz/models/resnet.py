"""ResNet-18 with torchvision's names, so that its pretrained weights load."""

from collections import OrderedDict

from torch import nn

from .blocks import init_convolutions, residual_stage


def _stem(stem: str) -> OrderedDict[str, nn.Module]:
    """Make the units before the first stage.

    Returns:
        Units by name, with 64 output channels.
    """
    if stem == "imagenet":
        conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    else:
        conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    units = OrderedDict(conv1=conv1, bn1=nn.BatchNorm2d(64), relu=nn.ReLU())
    if stem == "imagenet":
        units["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return units


def resnet18(classes: int = 1000, stem: str = "imagenet") -> nn.Sequential:
    """Make the residual network of 18 layers.

    Images (batch, 3, height, width) to logits (batch, classes). The names of parameters and
    buffers are torchvision's: `model.load_state_dict(torchvision_model.state_dict())` loads
    strictly where the stem is "imagenet". Shortcuts that change
    the shape are convolutions (option B; torchvision). 11,689,512 parameters at the defaults.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1 (18-layer).

    Args:
        classes: number of logits. Default: 1000 (He et al. 2016, table 1).
        stem: "imagenet" begins with a 7×7 convolution of stride 2 and maximum pooling of stride
            2; "cifar" with a 3×3 convolution of stride 1 and no pooling, for images of about
            32×32 (ours; the paper's own CIFAR networks are in `cifar_resnet`).
            Default: "imagenet" (He et al. 2016, table 1).

    Returns:
        The network as a sequence of named units, initialised by `init_convolutions`.

    Raises:
        ValueError: if classes is below 1 or the stem unknown.
    """
    if classes < 1:
        raise ValueError(f"classes: got {classes}, allowed: 1 or more")
    if stem not in {"imagenet", "cifar"}:
        raise ValueError(f"stem: got {stem!r}, allowed: 'imagenet', 'cifar'")
    units = _stem(stem)
    units["layer1"] = residual_stage(64, 64, blocks=2, stride=1)
    units["layer2"] = residual_stage(64, 128, blocks=2, stride=2)
    units["layer3"] = residual_stage(128, 256, blocks=2, stride=2)
    units["layer4"] = residual_stage(256, 512, blocks=2, stride=2)
    units["avgpool"] = nn.AdaptiveAvgPool2d(1)
    units["flatten"] = nn.Flatten()
    units["fc"] = nn.Linear(512, classes)
    model = nn.Sequential(units)
    init_convolutions(model)
    return model
