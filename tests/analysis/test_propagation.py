import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from qatviz.analysis.propagation import error_propagation
from qatviz.models import mobilenet_v2, resnet18, resnet20, small_cnn, small_resnet
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged
from tests.analysis.test_propositions import IMAGES, Stops, cnn, drawn, low_bit, mlp

# Proposition 4

LAYERS = ("conv1", "conv2", "conv3", "fc")


def outputs(model, x):
    """The output of every convolution and linear layer of a plain network, one after another."""
    found = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append(x)
    return found


def norm(tensor):
    return math.sqrt(math.fsum(v * v for v in tensor.flatten().tolist()))


def as_matrix(function, *shape):
    """A linear map as a matrix, one column per number of its input."""
    size = math.prod(shape)
    return torch.stack([function(e.view(1, *shape)).flatten() for e in torch.eye(size).double()], 1)


def test_what_arrives_at_every_layer_against_a_loop():
    model, x = cnn(), IMAGES.double()
    delta = 0.05 * drawn(*IMAGES.shape)
    with unchanged(model):
        found = error_propagation(model, x, delta, label="net")
    assert (found.label, found.samples, found.layers) == ("net", 12, LAYERS)
    with torch.no_grad():
        before, after = outputs(model, x), outputs(model, x + delta)
    for image in range(12):
        assert found.disturbance[image] == pytest.approx(norm(delta[image]) / norm(x[image]))
        jacobians = torch.func.jacrev(lambda v: outputs(model, v))(x[image : image + 1])
        for layer in range(4):
            h, change = before[layer][image], after[layer][image] - before[layer][image]
            jacobian = jacobians[layer].reshape(h.numel(), -1)
            first = (jacobian @ delta[image].flatten()).view(h.shape)
            assert found.change[layer, image] == pytest.approx(norm(change) / norm(h))
            assert found.predicted[layer, image] == pytest.approx(norm(first) / norm(h))
            missed = norm(change - first) / norm(change)
            assert found.mismatch[layer, image] == pytest.approx(missed, rel=1e-6, abs=1e-9)
    assert np.isnan(found.steps).all()


def test_the_products_of_a_plain_network_against_singular_values_of_whole_matrices():
    model = cnn()
    found = error_propagation(model, IMAGES, 0.01 * IMAGES, iterations=5000)
    product, side = 1.0, 6
    with torch.no_grad():
        for index, (channels, name) in enumerate(((1, "conv1"), (2, "conv2"), (4, "conv3"))):
            conv, bn = getattr(model, name), getattr(model, f"bn{index + 1}")
            alone = as_matrix(conv, channels, side, side)
            shift = bn(torch.zeros(1, conv.out_channels, side, side).double()).flatten()
            with_bn = as_matrix(lambda v: bn(conv(v)), channels, side, side) - shift[:, None]  # noqa: B023
            # Without its mean BatchNorm is linear; the shift of each column is taken off.
            own = torch.linalg.matrix_norm(alone, 2).item()
            assert found.spectral[index] == pytest.approx(own, rel=1e-4)
            assert found.lipschitz[index] == pytest.approx(product * own, rel=1e-4)
            product *= torch.linalg.matrix_norm(with_bn, 2).item()
            side = side // 2 if index < 2 else 1
        # The average over the pixels that are left: 6 → 3 → 1.
        own = torch.linalg.matrix_norm(model.fc.weight, 2).item()
    assert found.spectral[3] == pytest.approx(own, rel=1e-4)
    assert found.lipschitz[3] == pytest.approx(product * own, rel=1e-4)
    sizes = [norm(0.01 * image) for image in IMAGES]
    with torch.no_grad():
        norms = [[norm(h) for h in layer] for layer in outputs(model, IMAGES.double())]
    np.testing.assert_allclose(
        found.bound, found.lipschitz[:, None] * np.array(sizes) / np.array(norms), rtol=1e-6
    )


def test_no_change_exceeds_the_product_and_a_small_one_is_what_the_first_order_says():
    model = small_resnet(width=2, classes=3).double().eval()
    delta = drawn(*IMAGES.shape)
    with unchanged(model):
        large, found = (error_propagation(model, IMAGES, s * delta) for s in (1.0, 1e-4))
    assert len(found.layers) == 10
    for record in (large, found):
        assert (record.change <= record.bound).all()
        assert (record.predicted <= record.bound).all()
    np.testing.assert_allclose(found.mean_predicted, found.mean_change, rtol=0.005)
    assert (large.mean_mismatch[1:] > 10 * found.mean_mismatch[1:]).all()  # kinks of ReLU


def test_the_first_order_holds_through_seven_smooth_layers():
    # As the specification measured: within half a percent at σ = 0.01.
    torch.manual_seed(0)
    layers = [nn.Flatten()]
    for _ in range(6):
        layers += [nn.Linear(36, 36), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(36, 3)).eval()
    found = error_propagation(model, IMAGES, 0.01 * drawn(*IMAGES.shape))
    assert len(found.layers) == 7
    np.testing.assert_allclose(found.mean_predicted, found.mean_change, rtol=0.005)


@pytest.mark.parametrize("make", [resnet18, resnet20, mobilenet_v2])
def test_every_step_of_the_networks_here_has_a_norm(make):
    model = make().eval()
    images = drawn(1, 3, 32, 32).float()
    found = error_propagation(model, images, 0.01 * images, iterations=2)
    assert np.isfinite(found.lipschitz).all()
    assert len(found.layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


class Block(nn.Module):
    """1 + ‖branch‖, and what is not known."""

    def __init__(self, unknown=False):
        super().__init__()
        self.branch = nn.Linear(36, 36, bias=False)
        self.last = nn.Linear(36, 3, bias=False)
        self.unknown = unknown

    def forward(self, x):
        x = x.flatten(1)
        y = x + self.branch(x).relu()
        return self.last(y * 2 if self.unknown else y)


def test_a_shortcut_is_one_and_the_norm_of_the_branch():
    torch.manual_seed(0)
    model = Block().eval()
    found = error_propagation(model, IMAGES, IMAGES, iterations=5000)
    branch, last = (
        np.linalg.svd(layer.weight.detach().double())[1][0] for layer in (model.branch, model.last)
    )
    np.testing.assert_allclose(found.spectral, [branch, last], rtol=1e-4)
    np.testing.assert_allclose(found.lipschitz, [branch, (1 + branch) * last], rtol=1e-4)
    unknown = error_propagation(Block(unknown=True).eval(), IMAGES, IMAGES)
    assert np.isnan(unknown.lipschitz).tolist() == [False, True]
    assert np.isfinite(unknown.spectral).all()


@pytest.mark.parametrize(
    ("pool", "factor"),
    [
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(3, stride=2), 2.0),  # a pixel is read by up to 2 × 2 windows
        (nn.AvgPool2d(2), 0.5),
        (nn.AdaptiveAvgPool2d(3), 0.5),
        (nn.MaxPool2d(2, dilation=2), float("nan")),
        (nn.BatchNorm2d(1, affine=False), 1 / math.sqrt(1 + 1e-5)),
        (nn.ZeroPad2d(1), 1.0),
        (nn.ReflectionPad2d(1), float("nan")),
        (nn.SiLU(), float("nan")),
        (nn.ReLU(inplace=True), 1.0),
    ],
)
def test_what_stands_between_layers(pool, factor):
    with torch.no_grad():
        width = pool.eval()(IMAGES.clone()).flatten(1).shape[1]
    model = nn.Sequential(nn.Identity(), pool, nn.Flatten(), nn.Linear(width, 3)).eval()
    with torch.no_grad():
        model[3].weight.zero_()[0, 0] = 1  # the norm is 1
    found = error_propagation(model, IMAGES, 0.1 * IMAGES)
    np.testing.assert_allclose(found.lipschitz, [factor], rtol=1e-6)


def test_in_a_quantized_network_the_first_order_misses_the_jumps_of_rounding():
    model = low_bit()
    delta = drawn(*IMAGES.shape).float()
    with unchanged(model):
        small, large = (error_propagation(model, IMAGES, s * delta) for s in (1e-4, 1.0))
    assert small.layers == LAYERS
    # The change of an image in steps of its own quantizer: known before the forward pass.
    levels = model.conv1.input_quantizer.levels()
    step = (levels[-1] - levels[0]).item() / (len(levels) - 1)
    rms = [norm(d) / 6 for d in delta]
    np.testing.assert_allclose(large.steps[0], np.array(rms) / step, rtol=1e-4)
    # Far below a step, an image hardly ever crosses a threshold: nothing changes, or much.
    assert (small.change[0] == 0).any()
    smooth = error_propagation(low_bit(inputs=None), IMAGES, 1e-4 * delta)
    assert smooth.mean_mismatch[0] < 1e-9
    assert np.isfinite(large.lipschitz).all()
    # The first layer to first order: its weights on the unclipped pixels.
    weight = model.conv1.quantized_weight().detach()
    inside = IMAGES.gt(levels[0]) & IMAGES.lt(levels[-1])
    first = conv2d(inside * delta, weight, padding=1)
    with torch.no_grad():
        h = model.conv1(IMAGES)
    expected = [norm(f) / norm(o) for f, o in zip(first, h, strict=True)]
    np.testing.assert_allclose(large.predicted[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "delta", "options", "words"),
    [
        (IMAGES, IMAGES[:3], {}, "delta"),
        (IMAGES[:0], IMAGES[:0], {}, "1 image or more"),
        (IMAGES, 0 * IMAGES, {}, "delta of an image is zero"),
        (IMAGES, IMAGES + float("inf"), {}, "delta has numbers"),
        (IMAGES + float("nan"), IMAGES, {}, "images has numbers"),
        (IMAGES, IMAGES, {"iterations": 0}, "iterations is 0"),
    ],
)
def test_what_error_propagation_refuses(images, delta, options, words):
    model = mlp()
    with unchanged(model), pytest.raises(ValueError, match=words):
        error_propagation(model, images, delta, **options)


def test_networks_that_error_propagation_refuses():
    with pytest.raises(ValueError, match="training mode"):
        error_propagation(cnn().train(), IMAGES, IMAGES)
    with pytest.raises(ValueError, match="no convolution"):
        error_propagation(nn.Sequential(nn.Flatten()).eval(), IMAGES, IMAGES)
    student = quantize(small_cnn(width=2), partial(LSQ, bits=3), partial(LSQ, bits=3)).eval()
    with pytest.raises(ValueError, match="calibrat"):
        error_propagation(student, IMAGES, IMAGES)


def test_an_exception_in_error_propagation_leaves_the_model_as_it_was():
    model = Stops(mlp(), 1, RuntimeError).eval()
    with unchanged(model), pytest.raises(RuntimeError):
        error_propagation(model, IMAGES, IMAGES)
