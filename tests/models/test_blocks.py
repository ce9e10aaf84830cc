import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from qatviz.models.blocks import (
    BasicBlock,
    PadShortcut,
    conv_shortcut,
    init_convolutions,
    residual_stage,
)


def option_a(x, out_channels, stride):
    # Subsample and append zeros, one number at a time.
    batch, in_channels, height, width = x.shape
    rows, columns = range(0, height, stride), range(0, width, stride)
    y = np.zeros((batch, out_channels, len(rows), len(columns)), x.dtype)
    for b in range(batch):
        for c in range(in_channels):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    y[b, c, i, j] = x[b, c, row, column]
    return y


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "size"),
    [
        (3, 6, 2, (8, 8)),
        (2, 5, 2, (7, 5)),
        (4, 4, 1, (3, 4)),
        (1, 3, 3, (8, 7)),
        (2, 2, 2, (6, 1)),
    ],
)
def test_pad_shortcut_equals_the_literal_loop(in_channels, out_channels, stride, size):
    x = torch.randn(2, in_channels, *size)
    y = PadShortcut(in_channels, out_channels, stride)(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.numpy(), option_a(x.numpy(), out_channels, stride))


def test_pad_shortcut_has_no_state_and_passes_gradient_to_kept_pixels_alone():
    shortcut = PadShortcut(2, 4)
    assert not shortcut.state_dict()
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    shortcut(x).sum().backward()
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, :, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


def test_pad_shortcut_shows_its_shape():
    assert repr(PadShortcut(16, 32)) == "PadShortcut(16, 32, stride=2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "in_channels: got 0, allowed: 1 or more"),
        ((4, 3), "out_channels: got 3, allowed: 4 or more"),
        ((4, 8, 0), "stride: got 0, allowed: 1 or more"),
    ],
)
def test_pad_shortcut_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PadShortcut(*arguments)


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (8, 2), (8, 1), (4, 2)])
def test_basic_block_equals_torchvision(out_channels, stride):
    same_shape = (out_channels, stride) == (4, 1)
    reference = TorchvisionBlock(
        4, out_channels, stride, None if same_shape else conv_shortcut(4, out_channels, stride)
    )
    block = BasicBlock(
        4, out_channels, stride, None if same_shape else conv_shortcut(4, out_channels, stride)
    )
    assert list(block.state_dict()) == list(reference.state_dict())
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-5)


def test_basic_block_with_option_a_equals_its_formula():
    torch.manual_seed(0)
    block = BasicBlock(2, 4, 2, PadShortcut(2, 4)).eval()
    x = torch.randn(1, 2, 6, 6)
    # A BatchNorm that has seen nothing only divides by √(1 + 1e-5).
    scale = (1 + 1e-5) ** -0.5
    hidden = F.relu(scale * F.conv2d(x, block.conv1.weight, stride=2, padding=1))
    hidden = scale * F.conv2d(hidden, block.conv2.weight, padding=1)
    expected = F.relu(hidden + torch.from_numpy(option_a(x.numpy(), 4, 2)))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_basic_block_leaves_its_input_alone():
    x = torch.randn(1, 4, 5, 5)
    before = x.clone()
    BasicBlock(4, 4)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (4, 2)])
def test_basic_block_refuses_an_identity_that_does_not_fit(out_channels, stride):
    with pytest.raises(ValueError, match=r"downsample: got None .* allowed: None only"):
        BasicBlock(4, out_channels, stride)


def test_stage_changes_shape_in_its_first_block_alone():
    stage = residual_stage(4, 8, blocks=3, stride=2)
    assert [name for name, _ in stage.named_children()] == ["0", "1", "2"]
    assert [type(block.downsample) for block in stage] == [
        nn.Sequential,
        nn.Identity,
        nn.Identity,
    ]
    assert stage(torch.randn(2, 4, 9, 9)).shape == (2, 8, 5, 5)
    assert isinstance(residual_stage(4, 4, blocks=1, stride=1)[0].downsample, nn.Identity)
    assert isinstance(residual_stage(4, 8, 1, 1, PadShortcut)[0].downsample, PadShortcut)


def test_stage_refuses_to_be_empty():
    with pytest.raises(ValueError, match="blocks: got 0, allowed: 1 or more"):
        residual_stage(4, 4, blocks=0, stride=1)


@pytest.mark.parametrize("groups", [1, 64])
def test_convolutions_are_drawn_by_fan_out(groups):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 256, 3, groups=groups), nn.Linear(4, 4))
    linear = model[1].weight.clone()
    init_convolutions(model)
    weight = model[0].weight
    expected = (2 / (9 * 256)) ** 0.5
    # A deviation estimated from n numbers has a relative error of 1/√(2n): 1.5 % at 2304.
    assert weight.std().item() == pytest.approx(expected, rel=0.06)
    assert abs(weight.mean().item()) < 4 * expected / weight.numel() ** 0.5
    assert torch.equal(model[1].weight, linear)
