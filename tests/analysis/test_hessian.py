import copy
import gc
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from qatviz.analysis.hessian import Hessian, joins_images
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.models import small_resnet
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, NIPQ, DoReFa, Quantizer
from tests.analysis.common import unchanged
from tests.analysis.hessians import WEIGHTS, dense, hessian_of, network, quantized, split

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from house import PeakMemory

DATA = split()


def check_products(hessian, expected, rounding=1e-12):
    """Products with random vectors beside those of a dense matrix."""
    like, generator = hessian._surface.point, torch.Generator().manual_seed(6)
    for _ in range(6):
        vector = torch.randn(hessian.size, generator=generator).to(like)
        close(hessian(vector).double().numpy(), expected @ vector.double().numpy(), rounding)


def close(found, expected, rounding):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * np.abs(expected).max())


# --- what it is the Hessian of --------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_float_network(activation):
    model = network(activation).double()
    with unchanged(model):
        hessian = Hessian(Surface(model), DATA, batch=13)
        check_products(hessian, dense(model, WEIGHTS, DATA.images, DATA.labels))
    assert (hessian.size, hessian.products) == (215, 6)
    assert hessian.loss == pytest.approx(
        cross_entropy(model(DATA.images.double()), DATA.labels).item()
    )


def literal_lsq(quantizer):
    """LSQ with a fixed step: its values forward, one or zero backward."""
    step, low, high = quantizer.step.detach(), quantizer.low, quantizer.high

    def apply(x):
        ratio = x / step
        value = ratio.clamp(low, high).round() * step
        inside = ((ratio > low) & (ratio < high)).to(x.dtype)
        return value.detach() + (x - x.detach()) * inside

    return apply


def levels_and_mask(layer):
    """ŵ, and M: one where the weight is inside the grid."""
    step, low, high = layer.weight_quantizer.step.detach(), -4, 3
    ratio = layer.weight.detach() / step
    return ratio.clamp(low, high).round() * step, (ratio > low) & (ratio < high)


class ByHand(nn.Module):
    """The float network with weights ŵ, and literal quantizers of its inputs."""

    def __init__(self, student, activation_quantizers):
        super().__init__()
        self.net = copy.deepcopy(network()).double()
        self.quantizers = {}
        for i in (0, 4, 8):
            self.net[i].weight.data = levels_and_mask(student[i])[0]
            if activation_quantizers:
                self.quantizers[i] = literal_lsq(student[i].input_quantizer)

    def forward(self, x):
        for i, module in enumerate(self.net):
            x = module(self.quantizers.get(i, lambda x: x)(x))
        return x


@pytest.mark.parametrize("on", [True, False])
def test_dequantized_is_the_hessian_of_a_float_network_with_those_weights(on):
    student = quantized("lsq").double()
    names = [f"net.{name}" for name in WEIGHTS]
    expected = dense(ByHand(student, on), names, DATA.images, DATA.labels)
    surface = Surface(student, activation_quantizers=on)
    check_products(Hessian(surface, DATA, batch=7), expected)


def test_latent_is_that_with_zeros_where_weights_are_clipped():
    student = quantized("lsq").double()
    with torch.no_grad():
        student[4].weight *= 2  # more of them clipped
    names = [f"net.{name}" for name in WEIGHTS]
    expected = dense(ByHand(student, True), names, DATA.images, DATA.labels)
    mask = torch.cat([levels_and_mask(student[i])[1].flatten() for i in (0, 4, 8)]).numpy()
    assert 10 < (~mask).sum() < 100
    found = Hessian(Surface(student, "latent"), DATA)
    check_products(found, expected * mask[:, None] * mask[None, :])


def test_float_is_the_network_without_quantizers():
    student = quantized("lsq").double()
    found = Hessian(Surface(student, "float"), DATA)
    check_products(found, dense(network(), WEIGHTS, DATA.images, DATA.labels))


@pytest.mark.parametrize("kind", ["lsq", "channels", "pact", "dorefa", "weights"])
@pytest.mark.parametrize("space", ["dequantized", "latent"])
def test_every_kind_of_grid_in_both_precisions(kind, space):
    model = quantized(kind, nn.Tanh if kind in ("channels", "weights") else nn.ReLU)
    expected = hessian_of(Surface(model, space), DATA)
    check_products(Hessian(Surface(model, space), DATA, batch=11), expected, 2e-6)
    doubled = copy.deepcopy(model).double()
    check_products(Hessian(Surface(doubled, space), DATA, batch=11), expected, 1e-6)


@pytest.mark.parametrize(
    ("layers", "include"),
    [(["4"], []), (["0", "8"], ["biases"]), (["8"], ["batchnorm"]), ([], ["steps"])],
)
def test_a_part_is_a_block_of_the_whole(layers, include):
    model = quantized("lsq", nn.Tanh).double()
    whole = Surface(model, "latent", include=["biases", "batchnorm", "steps"])
    part = Surface(model, "latent", layers=layers, include=include)
    expected = hessian_of(whole, DATA)
    places = whole.split(torch.arange(float(whole.size)))
    places = torch.cat([places[name].flatten() for name in part.names]).int().numpy()
    check_products(Hessian(part, DATA, batch=9), expected[np.ix_(places, places)])


def test_a_model_that_takes_only_contiguous_images():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(48, 5)

        def forward(self, x):
            return self.head(self.conv(x).tanh().view(len(x), -1))

    surface = Surface(Viewing().double().eval())
    check_products(Hessian(surface, DATA, batch=11), hessian_of(surface, DATA))


def test_where_the_surface_stands():
    surface = Surface(network().double())
    elsewhere = surface.point + 0.1
    surface.assign(elsewhere)
    hessian = Hessian(surface, DATA)
    expected = hessian_of(surface, DATA)
    surface.assign(surface.point)  # it does not follow
    check_products(hessian, expected)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_gradient_and_loss(memory):
    model = quantized("lsq").double()
    surface = Surface(model)
    hessian = Hessian(surface, DATA, batch=8, memory=memory)
    value = cross_entropy(model(DATA.images.double()), DATA.labels)
    assert hessian.loss == pytest.approx(value.item(), rel=1e-12)
    twin = copy.deepcopy(surface.model)
    cross_entropy(twin(DATA.images.double()), DATA.labels).backward()
    expected = torch.cat([twin.get_parameter(n).grad.flatten() for n in surface.names])
    torch.testing.assert_close(hessian.gradient(), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(hessian.gradient(), expected, rtol=1e-11, atol=1e-14)


def test_another_loss():
    def squared(logits, labels):
        return (logits - nn.functional.one_hot(labels, 5)).square().mean()

    surface = Surface(network(nn.Tanh).double())
    check_products(Hessian(surface, DATA, squared, batch=7), hessian_of(surface, DATA, squared))


def test_a_loss_without_curvature_or_without_the_weights_has_none():
    surface = Surface(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).double().eval())
    for loss in (lambda logits, _: logits.mean(), lambda logits, _: logits.detach().mean()):
        hessian = Hessian(surface, DATA, loss)
        assert hessian.asymmetry == 0
        assert not hessian(torch.ones(180, dtype=torch.float64)).any()


# --- BatchNorm ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 30])
def test_batchnorm_of_the_images_is_that_of_the_whole_batch(batch):
    model = network(nn.Tanh).double()
    surface = Surface(model, batchnorm="batch")
    training = copy.deepcopy(model).train()
    expected = dense(training, WEIGHTS, DATA.images, DATA.labels)
    check_products(Hessian(surface, DATA, batch=batch), expected)
    running = dense(model, WEIGHTS, DATA.images, DATA.labels)
    assert np.abs(running - expected).max() > 0.1 * np.abs(expected).max()


def test_batchnorm_without_running_statistics_sees_all_images_at_once():
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(48, 5)),
    )
    surface = Surface(model.double().eval())
    check_products(Hessian(surface, DATA, batch=4), hessian_of(surface, DATA))


# --- batches and memory ---------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("batch", [1, 7, 16, 29, 30, 100])
def test_any_batch_gives_the_same(batch, memory):
    surface = Surface(quantized("lsq").double())
    whole = Hessian(surface, DATA, batch=30)
    cut = Hessian(surface, DATA, batch=batch, memory=memory)
    assert cut.kept == (0 if memory == 0 else -(-30 // batch))
    assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
    for vector in torch.randn(3, surface.size, dtype=torch.float64):
        expected = whole(vector)
        close(cut(vector), expected.numpy(), 1e-12)
        assert torch.equal(cut(vector), cut(vector))  # nothing is used up


def test_memory_bounds_the_graphs_that_are_kept():
    surface = Surface(quantized("lsq"))
    one = Hessian(surface, DATA, batch=6).graph_bytes
    assert one > 6 * 3 * 36 * 4  # at least what the first convolution makes of six images
    for graphs in range(6):
        assert Hessian(surface, DATA, batch=6, memory=graphs * one).kept == graphs
        assert Hessian(surface, DATA, batch=6, memory=graphs * one + one - 1).kept == graphs
    assert Hessian(surface, DATA, batch=6, memory=9 * one).kept == 5


def living():
    gc.collect()
    return {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}


def test_the_bytes_of_a_graph_are_those_that_it_takes_and_gives_back():
    surface, data = Surface(quantized("lsq")), split(256)
    before = living()
    with PeakMemory() as memory:
        hessian = Hessian(surface, data, batch=64, memory=1 << 40)
    assert hessian.kept == 4
    assert 4 * hessian.graph_bytes == pytest.approx(memory.live, rel=0.5)
    hessian(surface.point)
    del hessian
    assert living() <= before


def peak(samples, **arguments):
    surface, data = Surface(quantized("lsq")), split(samples)
    with PeakMemory() as memory:
        hessian = Hessian(surface, data, **arguments)
        for _ in range(2):
            hessian(surface.point)
    return memory.peak


@pytest.mark.parametrize("graphs", [0, 2])
def test_memory_does_not_grow_with_the_images(graphs):
    room = graphs * Hessian(Surface(quantized("lsq")), DATA, batch=30).graph_bytes
    few, many = (peak(n, batch=30, memory=room) for n in (60, 300))
    assert many < 1.05 * few
    assert peak(300, batch=30, memory=1 << 30) > 2 * many


@pytest.mark.parametrize("batch", [5, 13, 30])
def test_a_grid_of_the_batch_is_one_of_all_images(batch):
    model = quantize(network(nn.Tanh), None, partial(DoReFa, 3)).double().eval()
    calibrate(model, [DATA.images.double()])
    surface = Surface(model)
    hessian = Hessian(surface, DATA, batch=batch)
    assert hessian.batch == 30
    check_products(hessian, hessian_of(surface, DATA))


@pytest.mark.parametrize(
    ("quantizer", "joined"),
    [(DoReFa, True), (partial(DoReFa, signed=False), False), (LSQ, False), (NIPQ, False)],
)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_whose_grid_is_that_of_the_batch(quantizer, bits, joined):
    model = quantize(network(nn.Tanh), partial(DoReFa, 3), partial(quantizer, bits)).eval()
    calibrate(model, [DATA.images])
    assert joins_images(model) == joined


# --- symmetry -------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["dequantized", "latent"])
@pytest.mark.parametrize("kind", ["lsq", "channels", "pact"])
def test_the_hessian_with_steps_is_symmetric(kind, space):
    surface = Surface(quantized(kind).double(), space, include=["steps", "biases"])
    assert any("quantizer" in name for name in surface.names)
    hessian, vectors = Hessian(surface, DATA), torch.randn(8, surface.size, dtype=torch.float64)
    products = torch.stack([hessian(v) for v in vectors])
    matrix = (vectors @ products.T).numpy()
    close(matrix, matrix.T, 1e-12)
    assert hessian.asymmetry < 1e-12
    steps = [part for n, part in surface.split(products[0]).items() if "quantizer" in n]
    assert max(part.abs().max() for part in steps) > 1e-3


class ClosedForm(Quantizer):
    """LSQ with equation 3 written as a backward pass: no derivative of that derivative."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, step, low, high):
            ctx.save_for_backward(x, step)
            ctx.ends = low, high
            return (x / step).clamp(low, high).round() * step

        @staticmethod
        def backward(ctx, g):
            x, step = ctx.saved_tensors
            low, high = ctx.ends
            ratio = x / step
            inside = (ratio > low) & (ratio < high)
            to_step = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
            return g * inside, (g * to_step).sum(), None, None

    def __init__(self, bits, **kwargs):
        super().__init__(bits, **kwargs)
        self.step = nn.Parameter(torch.tensor(float("nan")))

    def codes(self, x):
        return (x / self.step).clamp(self.low, self.high).round()

    def dequantize(self, codes):
        return codes * self.step

    def _quantize(self, x):
        return self.Round.apply(x, self.step, self.low, self.high)

    @torch.no_grad()
    def init_from(self, x):
        self._begin(x)
        self.step.data = 2 * x.abs().mean() / self.high**0.5


@pytest.mark.parametrize("include", [[], ["steps"]])
def test_steps_with_a_gradient_written_by_hand_are_refused(include):
    model = quantize(network(), partial(ClosedForm, 3), partial(ClosedForm, 3)).eval()
    calibrate(model, [DATA.images])
    for space in ("dequantized", "latent"):
        surface = Surface(model, space, include=include)
        if include:
            with unchanged(model), pytest.raises(ValueError, match="not symmetric") as error:
                Hessian(surface, DATA)
            assert "cannot be included" in str(error.value)
        else:
            assert Hessian(surface, DATA).asymmetry < 1e-12


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 0.1])
def test_ewgs_is_refused_by_name_while_its_quantizers_are_on(delta):
    grid = partial(EWGS, 3, delta=delta)
    weights = quantize(network(), grid, None).eval()
    both = quantize(network(), grid, grid).eval()
    calibrate(both, [DATA.images])
    for surface in (Surface(weights, "latent"), Surface(both)):
        with pytest.raises(ValueError, match="because of EWGS") as error:
            Hessian(surface, DATA)
        assert "activation_quantizers=False" in str(error.value)
    for surface in (
        Surface(weights),
        Surface(both, activation_quantizers=False),
        Surface(both, "float"),
    ):
        assert Hessian(surface, DATA).asymmetry < 1e-12


def test_ewgs_without_its_scaling_is_a_derivative():
    grid = partial(EWGS, 3, delta=0.0)
    model = quantize(network(), grid, grid).eval()
    calibrate(model, [DATA.images])
    assert Hessian(Surface(model, "latent"), DATA).asymmetry < 1e-12


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_loss_in_single_precision_is_no_asymmetry(activation):
    for seed in range(5):
        surface = Surface(network(activation, seed))
        Hessian(surface, DATA, lambda logits, labels: cross_entropy(logits.float(), labels))


class Once(torch.autograd.Function):
    """tanh, whose backward pass torch cannot differentiate, and says so to nobody who asks."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class OnceActivation(nn.Module):
    def forward(self, x):
        return Once.apply(x)


@pytest.mark.parametrize("activation", [OnceActivation, nn.Hardsigmoid])
@pytest.mark.parametrize("layers", [["*"], ["0"]])
def test_what_differentiates_only_once_is_refused(activation, layers):
    surface = Surface(network(activation), layers=layers)
    with pytest.raises(ValueError, match="differentiates only once"):
        Hessian(surface, DATA)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 0}, "batch must be ≥ 1 and memory ≥ 0, got 0 and 1073741824"),
        ({"memory": -1}, "got 128 and -1"),
        ({"loss": lambda y, t: cross_entropy(y, t, reduction="none")}, r"one number.*\[16\]"),
        ({"loss": lambda y, t: y.mean() * float("nan")}, "the loss is nan on batch 0"),
        ({"loss": lambda y, t: y.mean().exp().exp() * 1e300}, "the loss is inf on batch 0"),
        (
            {"loss": lambda y, t: cross_entropy(y, t) + (y - y.detach()).square().sum().sqrt()},
            "the loss is finite, but its second derivatives are not",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, words):
    model = network()
    with unchanged(model), pytest.raises(ValueError, match=words):
        Hessian(Surface(model), DATA, **arguments)


def test_a_loss_that_is_not_finite_later_on_is_named_by_its_batch():
    def loss(logits, labels):
        return cross_entropy(logits, labels) / (0 if labels[0] == 4 else 1)

    with pytest.raises(ValueError, match="the loss is inf on batch 2"):
        Hessian(
            Surface(network()),
            Split(DATA.images, torch.tensor([0] * 20 + [4] * 10)),
            loss,
            batch=10,
        )


def test_a_product_that_is_not_finite_is_said():
    hessian = Hessian(Surface(network()), DATA)
    with pytest.raises(ValueError, match="product 1 with the Hessian is not finite"):
        hessian(torch.full((215,), float("inf")))


@pytest.mark.slow
def test_a_residual_network_as_it_is_used():
    model = quantize(small_resnet(width=2, classes=5), partial(LSQ, 4), partial(LSQ, 4)).eval()
    calibrate(model, [DATA.images])
    surface = Surface(model.double(), layers=["layer2*", "fc"])
    assert 200 < surface.size < 1500
    check_products(Hessian(surface, DATA, batch=13), hessian_of(surface, DATA))
