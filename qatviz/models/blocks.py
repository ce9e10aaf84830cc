"""The parts that every residual network here is made of, and their initialisation."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around both.

    Computes relu2(bn2(conv2(relu1(bn1(conv1(x))))) + downsample(x)), with parameter names as in
    torchvision. The two ReLUs are two modules, because each of them may get its own activation
    quantizer, and neither works in place, because an analysis may look at what goes in.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", sec. 3 and fig. 5
    (left).

    Args:
        in_channels: channels of the input.
        out_channels: channels of both convolutions and of the output.
        stride: stride of the first convolution. Default: 1 (He et al. 2016, sec. 3.3).
        downsample: what stands on the shortcut; None is the identity. Default: None (He et al.
            2016, eq. 1).

    Raises:
        ValueError: if the shortcut is the identity and the block changes the shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
    ):
        super().__init__()
        if downsample is None and (stride != 1 or in_channels != out_channels):
            raise ValueError(
                f"downsample: got None with stride {stride}, {in_channels} to {out_channels} "
                "channels; allowed: None only with stride 1 and equal channels"
            )
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Identity() if downsample is None else downsample
        self.relu2 = nn.ReLU()

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Add what the two convolutions made to what the shortcut carried.

        Args:
            x: images of features, (batch, in_channels, height, width).

        Returns:
            Features ≥ 0, (batch, out_channels, ⌈height / stride⌉, ⌈width / stride⌉).
        """
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.downsample(x))


class PadShortcut(nn.Module):
    """A shortcut without parameters: every stride-th pixel, and channels of zeros at the end.

    y[:, c, i, j] = x[:, c, stride·i, stride·j] for c < in_channels, and 0 for the others. The
    paper does not say where the zeros stand; after the carried channels is ours.

    Source: He et al. 2016, sec. 3.3 and 4.2, option A.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, in_channels or more.
        stride: step between the pixels kept. Default: 2 (He et al. 2016, sec. 3.3).

    Raises:
        ValueError: if in_channels < 1, out_channels < in_channels or stride < 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2):
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels: got {in_channels}, allowed: 1 or more")
        if out_channels < in_channels:
            raise ValueError(f"out_channels: got {out_channels}, allowed: {in_channels} or more")
        if stride < 1:
            raise ValueError(f"stride: got {stride}, allowed: 1 or more")
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Keep every stride-th pixel and append channels of zeros.

        Args:
            x: features, (batch, in_channels, height, width).

        Returns:
            Features, (batch, out_channels, ⌈height / stride⌉, ⌈width / stride⌉).
        """
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.out_channels - self.in_channels))

    def extra_repr(self) -> str:
        """Say the shape in the model's repr.

        Returns:
            Channels in and out, and the stride.
        """
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Make a shortcut that projects with a strided 1×1 convolution and BatchNorm.

    Source: He et al. 2016, sec. 3.3, option B; names as in torchvision.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the convolution.

    Returns:
        A convolution and its BatchNorm: (batch, in_channels, height, width) to (batch,
        out_channels, ⌈height / stride⌉, ⌈width / stride⌉).
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def residual_stage(
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
    shortcut: Callable[[int, int, int], nn.Module] = conv_shortcut,
) -> nn.Sequential:
    """Make a row of basic blocks, of which the first changes the shape.

    Source: He et al. 2016, sec. 3.3.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every block's output.
        blocks: number of blocks, 1 or more.
        stride: stride of the first block.
        shortcut: makes, from (in_channels, out_channels, stride), the first block's shortcut
            where the shape changes. Default: conv_shortcut (option B of He et al. 2016,
            sec. 4.1; torchvision).

    Returns:
        The blocks, named "0", "1", ... as in torchvision.

    Raises:
        ValueError: if blocks < 1.
    """
    if blocks < 1:
        raise ValueError(f"blocks: got {blocks}, allowed: 1 or more")
    same_shape = stride == 1 and in_channels == out_channels
    downsample = None if same_shape else shortcut(in_channels, out_channels, stride)
    first = BasicBlock(in_channels, out_channels, stride, downsample)
    rest = [BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def init_convolutions(model: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, in place.

    Weights come from N(0, 2 / fan_out), fan_out = kernel area × out_channels in a grouped
    convolution too, as in torchvision. BatchNorm and linear layers keep what PyTorch gave them
    (γ = 1, β = 0; uniform).

    Source: He et al. 2015, "Delving Deep into Rectifiers", sec. 2.2, eq. 14.

    Args:
        model: any network; its `nn.Conv2d` weights are overwritten.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
