"""Float networks as `nn.Sequential` of named units: a slice of a model is a model."""

from .cifar_resnet import cifar_resnet, resnet20, resnet32
from .mobilenet_v2 import mobilenet_v2
from .resnet import resnet18
from .small import small_cnn, small_resnet

__all__ = [
    "cifar_resnet",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "small_cnn",
    "small_resnet",
]
