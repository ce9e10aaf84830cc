import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d, cross_entropy

from qatviz.analysis.surface import Surface
from qatviz.analysis.twice import _Convolution, hasten, piecewise_linear
from qatviz.calibration import calibrate
from qatviz.layers import QuantActivation, QuantConv2d
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, NIPQ, PACT, Affine, DoReFa, LSQPlus
from tests.analysis.hessians import quantized, split

CONVOLUTIONS = [
    {},
    {"stride": (2, 2)},
    {"padding": (1, 2)},
    {"stride": (2, 1), "padding": (2, 1)},
    {"dilation": (2, 2), "padding": (1, 1)},
    {"stride": (3, 2), "dilation": (1, 2), "padding": (2, 2)},
    {"groups": 2},
    {"groups": 4, "stride": (2, 2), "padding": (1, 1)},
]


def tensors(groups=1, images=2, side=6):
    torch.manual_seed(5)
    x = torch.randn(images, 4, side, side - 1, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4 // groups, side // 2, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    return x, w, b


def ours(settings):
    shape = [settings.get(n, d) for n, d in (("stride", (1, 1)), ("padding", (0, 0)))]
    shape += [settings.get("dilation", (1, 1)), settings.get("groups", 1)]
    return lambda x, w, b=None: _Convolution.apply(x, w, b, *shape)


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolution_by_finite_differences(settings):
    arguments = tensors(settings.get("groups", 1), images=1, side=4)
    assert gradcheck(ours(settings), arguments)
    assert gradgradcheck(ours(settings), arguments)


@pytest.mark.parametrize("asking", ["x", "w", "xw", "xwb"])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolution_beside_that_of_torch(settings, asking):
    x, w, b = tensors(settings.get("groups", 1))
    wanted = [t for name, t in zip("xwb", (x, w, b), strict=True) if name in asking]
    for tensor in (x, w, b):
        tensor.requires_grad_(any(tensor is t for t in wanted))
    bias = b if "b" in asking else None
    found = []
    for convolution in (ours(settings), partial(conv2d, **settings)):
        y = convolution(x, w, bias)
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        along = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in wanted]
        found.append([y, *first, *torch.autograd.grad(first, wanted, along)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def derivatives(model, names, images, labels):
    """Logits, gradient and one product with the Hessian."""
    parameters = [model.get_parameter(name) for name in names]
    logits = model(images)
    gradient = torch.autograd.grad(cross_entropy(logits, labels), parameters, create_graph=True)
    generator = torch.Generator().manual_seed(4)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    products = torch.autograd.grad(gradient, parameters, along, materialize_grads=True)
    return [logits, *gradient, *products]


@pytest.mark.parametrize(
    ("activation", "layers", "include"),
    [
        (nn.ReLU, ["*"], []),
        (nn.Tanh, ["8"], ["biases"]),
        (nn.Tanh, ["0", "4"], []),
        (nn.ReLU, ["*"], ["batchnorm", "steps"]),
    ],
)
@pytest.mark.parametrize("kind", ["lsq", "channels", "pact", "dorefa"])
@pytest.mark.parametrize("space", ["dequantized", "latent"])
def test_a_whole_network_has_the_same_derivatives(space, kind, activation, layers, include):
    data = split()
    model = copy.deepcopy(quantized(kind, activation)).double()
    model(data.images.double())
    surface = Surface(model, space, layers=layers, include=include)
    twin = copy.deepcopy(surface.model)
    hasten(twin)
    images = data.images.double()
    both = [derivatives(m, surface.names, images, data.labels) for m in (twin, surface.model)]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def changed(model):
    """Which modules are of another class after ``hasten``."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    twin.get_parameter(next(n for n, p in model.named_parameters() if p.ndim > 1)).requires_grad_()
    hasten(twin)
    before = dict(model.named_modules())
    return [n for n, m in twin.named_modules() if n in before and type(m) is not type(before[n])]


class OwnConvolution(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_replaced():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="valid")),
        *(nn.BatchNorm2d(4, affine=False), QuantActivation(LSQ(2, signed=False)), nn.Flatten()),
        *(nn.BatchNorm1d(16), nn.Linear(16, 5)),
    ).eval()
    calibrate(model, [split().images])
    assert changed(model) == ["0", "1", "2", "3", "4.quantizer", "6"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3),
        OwnConvolution(4, 4, 3),
        OwnNorm(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.MaxPool2d(2),
        nn.GELU(),
    ],
    ids=lambda layer: str(layer),
)
def test_what_is_not_supported_stays(layer):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.LazyLinear(5)).eval()
    model(split().images)
    assert changed(model) == ["0"]


def test_batchnorm_stays_where_it_moves_or_has_hooks():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    for surface in (Surface(model, include=["batchnorm"]), Surface(model, batchnorm="batch")):
        hasten(surface.model)
        assert type(surface.model[1]) is nn.BatchNorm2d
    model[1].register_forward_hook(lambda module, inputs, output: 3 * output)
    images = split().images
    twin = Surface(model).model
    hasten(twin)
    assert type(twin[1]) is nn.BatchNorm2d
    torch.testing.assert_close(twin(images), model(images))


class Reader(nn.Module):
    """Reads numbers of its layers, as code of users does."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.quantizer = self.again = LSQ(3, signed=True)
        self.quantizer.batched, self.quantizer.step.data = True, torch.tensor(0.4)
        self.head = nn.Linear(48, 5)
        self.norm.running_mean.normal_(generator=torch.Generator().manual_seed(3))

    def forward(self, x):
        x = self.norm(self.conv(x)) - self.norm.running_mean[:, None, None] * self.norm.eps
        assert isinstance(self.norm, nn.BatchNorm2d)
        assert isinstance(self.quantizer, LSQ)
        return self.head((self.quantizer(x) + self.again(x) * self.quantizer.step).flatten(1))


def test_what_is_replaced_keeps_its_attributes_and_class():
    torch.manual_seed(4)
    model, data = Reader().double().eval(), split()
    surface = Surface(model)
    twin = copy.deepcopy(surface.model)
    hasten(twin)
    assert type(twin.norm) is not nn.BatchNorm2d
    assert type(twin.quantizer) is not LSQ
    assert twin.again is twin.quantizer
    images = data.images.double()
    both = [derivatives(m, surface.names, images, data.labels) for m in (twin, surface.model)]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_quantizers_stay_where_they_move_or_bend():
    def names(quantizer, include=()):
        model = quantize(nn.Sequential(nn.Conv2d(1, 2, 3)), None, quantizer).eval()
        calibrate(model, [split().images])
        surface = Surface(model, include=include)
        hasten(surface.model)
        return type(surface.model[0].input_quantizer).__name__

    assert names(partial(LSQ, 3)) == "_Sloped"
    assert names(partial(LSQ, 3), ["steps"]) == "LSQ"
    assert names(partial(LSQ, 3, axis=1)) == "LSQ"
    assert names(partial(DoReFa, 3)) == "DoReFa"  # signed: a tanh
    assert names(partial(EWGS, 3)) == "EWGS"


def ready(quantizer, signed):
    quantizer.init_from(torch.randn(500) if signed else torch.randn(500).abs())
    return quantizer


@pytest.mark.parametrize(
    ("quantizer", "signed", "expected"),
    [
        (LSQ(3), True, True),
        (LSQ(1), False, True),
        (LSQPlus(3), True, True),
        (Affine(3), True, True),
        (PACT(3), False, True),
        (NIPQ(3, noise=None), True, True),
        (DoReFa(3), False, True),
        (DoReFa(3), True, False),
        (EWGS(3), False, False),
        (LSQ(3, axis=0), True, False),
    ],
    ids=str,
)
def test_which_quantizers_are_piecewise_linear(quantizer, signed, expected):
    assert piecewise_linear(ready(quantizer.eval(), signed)) is expected


def test_an_unbatched_image_passes():
    float_layer = nn.Conv2d(1, 2, 3)
    both = [float_layer, QuantConv2d.from_float(copy.deepcopy(float_layer), *[nn.Identity()] * 2)]
    image = torch.randn(1, 6, 6)
    for layer in both:
        twin = copy.deepcopy(layer)
        hasten(twin)
        assert type(twin) is not type(layer)
        assert torch.equal(twin(image), layer(image))


class InPlace(nn.Module):
    """Changes in place whatever a replaced layer returns."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 5)
        self.quantizer = QuantActivation(PACT(3, signed=False, clip=1.0))

    def forward(self, x):
        x = self.conv(x).mul_(1.5)
        x = self.quantizer(self.norm(x).relu_()).mul_(0.5)
        return self.head(x.flatten(1))


def test_outputs_may_be_changed_in_place():
    data = split()
    model = InPlace().eval()
    calibrate(model, [data.images])
    model = Surface(model.double()).model
    twin = copy.deepcopy(model)
    hasten(twin)
    names = ["conv.weight", "head.weight"]
    both = [derivatives(m, names, data.images.double(), data.labels) for m in (twin, model)]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_without_gradients_nothing_is_kept():
    model = Surface(quantized("lsq")).model
    hasten(model)
    with torch.no_grad():
        assert not model(split().images).requires_grad
