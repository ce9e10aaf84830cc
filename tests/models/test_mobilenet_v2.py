import math

import pytest
import torch
import torchvision
from torch import nn

from qatviz.models import mobilenet_v2
from qatviz.models.mobilenet_v2 import InvertedResidual


@pytest.fixture(scope="module")
def pair():
    # Ours under the weights of an untrained one of torchvision.
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2(weights=None)
    model = mobilenet_v2()
    model.load_state_dict(reference.state_dict(), strict=True)
    return model, reference


def shapes(model):
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def test_names_shapes_and_order_are_torchvisions(pair):
    model, reference = pair
    assert shapes(model) == shapes(reference)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in reference.named_parameters()
    ]


@pytest.mark.parametrize("width", [0.1, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_names_and_shapes_are_torchvisions_at_other_widths(width):
    with torch.device("meta"):
        reference = torchvision.models.mobilenet_v2(num_classes=7, width_mult=width)
        assert shapes(mobilenet_v2(7, width=width)) == shapes(reference)


def test_weights_go_back_to_torchvision(pair):
    model, reference = pair
    reference.load_state_dict(model.state_dict(), strict=True)


def test_training_outputs_and_statistics_are_torchvisions(pair):
    model, reference = (network.train() for network in pair)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    logits = []
    for network in (model, reference):
        torch.manual_seed(2)  # both draw the same dropout
        with torch.no_grad():
            logits.append(network(x))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 224])
def test_eval_outputs_are_torchvisions(pair, size):
    model, reference = (network.eval() for network in pair)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (1, 1000)
        torch.testing.assert_close(logits, reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "image", "expected"),
    [
        ("imagenet", 64, [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2]),
        ("cifar", 32, [32, 32, 32, 32, 16, 16, 16, 8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4]),
    ],
)
def test_stems_reduce_the_image_as_documented(stem, image, expected):
    features = mobilenet_v2(10, stem, width=0.1).eval().features
    x = torch.randn(1, 3, image, image)
    sizes = []
    with torch.no_grad():
        for unit in features:
            x = unit(x)
            sizes.append(x.shape[-1])
    assert sizes == expected


def test_cifar_stem_has_the_same_names_and_shapes(pair):
    assert shapes(mobilenet_v2(stem="cifar")) == shapes(pair[0])


def test_blocks_add_their_input_where_the_shapes_agree():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6)
    for arguments in [(8, 8, 1), (8, 8, 2), (8, 16, 1), (8, 16, 2), (8, 8, 1, 1)]:
        block = InvertedResidual(*arguments).eval()
        with torch.no_grad():
            added = block(x).sub(block.conv(x)) if block(x).shape == x.shape else None
        assert (added is not None) == (arguments[1:3] == (8, 1)), arguments
        if added is not None:
            torch.testing.assert_close(added, x, rtol=1e-5, atol=1e-5)


def test_a_block_without_expansion_begins_with_the_depthwise_convolution():
    kinds = [type(m) for m in InvertedResidual(8, 8, 1, expansion=1).conv]
    assert kinds == [nn.Sequential, nn.Conv2d, nn.BatchNorm2d]


def test_initial_weights_are_spread_as_torchvisions():
    torch.manual_seed(1)
    ours = mobilenet_v2().state_dict()
    theirs = torchvision.models.mobilenet_v2(weights=None).state_dict()
    for name, tensor in theirs.items():
        if tensor.dim() > 1:
            # Each deviation is estimated from n numbers, with a relative error of 1/√(2n).
            tolerance = 6 / math.sqrt(tensor.numel())
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=tolerance)
        else:
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
def test_refuses_widths_that_are_no_factor(width):
    with pytest.raises(ValueError, match=r"width: got .*, allowed: above 0 and finite"):
        mobilenet_v2(width=width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 3), "stride: got 3, allowed: 1, 2"),
        ((8, 8, 1, 0), "expansion: got 0, allowed: 1 or more"),
    ],
)
def test_blocks_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        InvertedResidual(*arguments)
