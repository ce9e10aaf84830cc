import copy
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyhessian
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from qatviz.analysis import curvature, krylov
from qatviz.analysis.curvature import eigenvalues, spectral_density, trace
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.quantize import quantize
from qatviz.quantizers import DoReFa
from tests.analysis.common import unchanged
from tests.analysis.hessians import (
    WEIGHTS,
    dense,
    hessian_of,
    network,
    quantized,
    sorted_eigenvalues,
    split,
)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from house import PeakMemory

DATA = split()
QUIET = {"progress": False}


def squared(logits, labels):
    return (logits - nn.functional.one_hot(labels, 5)).square().sum(1).mean()


def linear():
    torch.manual_seed(8)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).eval()


# --- eigenvalues ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "space", "activation", "double"),
    [
        ("float", "float", nn.ReLU, True),
        ("float", "float", nn.Tanh, False),
        ("lsq", "latent", nn.Tanh, False),
        ("lsq", "dequantized", nn.ReLU, True),
        ("pact", "latent", nn.ReLU, True),
        ("dorefa", "dequantized", nn.ReLU, False),
    ],
)
def test_ten_eigenvalues_from_either_end(kind, space, activation, double):
    model = network(activation) if kind == "float" else quantized(kind, activation)
    surface = Surface(model.double() if double else model, space)
    matrix = hessian_of(surface, DATA)
    largest = sorted_eigenvalues(matrix, "magnitude")[0]
    for which in ("magnitude", "largest", "smallest"):
        found = eigenvalues(surface, DATA, 10, which=which, batch=13, **QUIET)
        np.testing.assert_allclose(found.values, sorted_eigenvalues(matrix, which)[:10], rtol=1e-4)
        assert found.complete
        assert found.residuals.max() <= found.tolerance == 1e-4
        assert found.largest == pytest.approx(abs(largest), rel=1e-4)
        vectors = found.vectors.astype(float)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(10), atol=1e-5)
        true = np.linalg.norm(vectors @ matrix - found.values[:, None] * vectors, axis=1)
        rounding = 1e-12 if double else 2e-7
        assert (found.errors >= true - rounding * abs(largest)).all()
        assert (found.which, found.setting.space, found.backend) == (which, space, "qatviz")


@pytest.mark.parametrize("k", [1, 215])
def test_any_number_of_eigenvalues(k):
    model = network(nn.Tanh).double()
    found = eigenvalues(model, DATA, k, tolerance=1e-6, **QUIET)
    matrix = dense(model, WEIGHTS, DATA.images, DATA.labels)
    expected = sorted_eigenvalues(matrix, "magnitude")[:k]
    np.testing.assert_allclose(found.values, expected, atol=1e-6 * abs(expected[0]))
    assert found.complete
    assert found.products <= 216


def test_the_tolerance_decides_how_long_it_takes():
    runs = [eigenvalues(network().double(), DATA, tolerance=t, **QUIET) for t in (0.1, 1e-3, 1e-9)]
    assert [run.complete for run in runs] == [True] * 3
    assert runs[0].products < runs[1].products < runs[2].products
    assert runs[1].residuals.max() <= 1e-3
    assert runs[2].residuals.max() <= 1e-9


def test_a_small_memory_restarts_and_finds_the_same(monkeypatch):
    model = network().double()
    free = eigenvalues(model, DATA, 4, which="smallest", **QUIET)
    monkeypatch.setattr(curvature, "BASIS", 12 * 215 * 8)
    kept = []
    krylov = curvature.Krylov
    monkeypatch.setattr(curvature, "Krylov", lambda *a: kept.append(krylov(*a)) or kept[0])
    tight = eigenvalues(model, DATA, 4, which="smallest", **QUIET)
    assert kept[0].basis.shape == (8, 215)  # beside the four eigenvectors
    assert tight.complete
    assert tight.products > free.products
    np.testing.assert_allclose(tight.values, free.values, rtol=1e-5)


def test_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(curvature, "BASIS", 9 * 215 * 4)
    with pytest.raises(ValueError, match=r"10 vectors of 215 numbers do not fit.*which hold 9"):
        eigenvalues(network(), DATA, 4, **QUIET)
    with pytest.raises(ValueError, match="80 vectors of 215 numbers"):
        spectral_density(network(), DATA, **QUIET)
    with pytest.raises(ValueError, match="10 vectors of 215 numbers"):
        trace(network(), DATA, method="hutch++", products=15, **QUIET)


def test_what_is_not_found_in_time_is_said():
    with pytest.warns(UserWarning, match="^2 of 5 eigenvalues are within tolerance"):
        found = eigenvalues(network(), DATA, products=11, **QUIET)
    assert not found.complete
    assert (found.residuals <= 1e-4).sum() == 2
    assert found.products == 12  # the last measures what rounding adds
    with pytest.warns(UserWarning, match="0 of 5"):
        few = eigenvalues(network(), DATA, products=3, **QUIET)
    assert few.values.shape == (3,)


def test_a_loss_without_curvature():
    found = eigenvalues(linear(), DATA, 3, loss=lambda y, t: y.mean(), **QUIET)
    assert np.array_equal(found.values, np.zeros(3))
    assert np.array_equal(found.residuals, np.zeros(3))
    assert found.complete
    assert found.largest == 0
    flat = trace(linear(), DATA, products=3, loss=lambda y, t: y.mean(), **QUIET)
    assert (flat.value, flat.standard_error) == (0, 0)


@pytest.mark.parametrize("k", [4, 12])
def test_copies_of_eigenvalues_in_float32_are_orthogonal_and_have_their_residuals(k):
    x = DATA.images.flatten(1).double()
    matrix = (2 * x.T @ x / 30).numpy()
    found = eigenvalues(linear(), DATA, k, loss=squared, **QUIET)
    vectors = found.vectors.astype(float)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-4)
    products = (vectors.reshape(k, 5, 36) @ matrix).reshape(k, -1)
    true = np.linalg.norm(products - found.values[:, None] * vectors, axis=1)
    np.testing.assert_array_less(true, found.errors + 2e-6 * found.largest)
    # How many copies there are is not said; no eigenvalue comes more often than it occurs.
    expected = sorted_eigenvalues(matrix, "largest")
    nearest = np.abs(found.values[:, None] - expected).argmin(1)
    assert np.bincount(nearest).max() <= 5
    assert set(nearest) >= {0, 1}


def test_copies_of_eigenvalues_are_late_in_float64():
    # Five outputs, each with the same matrix 2·XᵀX/N.
    x = DATA.images.flatten(1).double()
    expected = sorted_eigenvalues((2 * x.T @ x / 30).numpy(), "largest")
    found = eigenvalues(linear().double(), DATA, 4, loss=squared, tolerance=1e-8, **QUIET)
    np.testing.assert_allclose(found.values, expected[:4], rtol=1e-8)


def test_the_setting_says_where():
    surface = Surface(quantized("lsq"), "latent", layers=["4", "8"], include=["biases"])
    setting = eigenvalues(surface, DATA, 1, samples=25, **QUIET).setting
    assert setting.names == ("4.weight", "4.bias", "8.weight", "8.bias")
    assert setting.sizes == (108, 4, 80, 5)
    norms = [surface.model.get_parameter(n).norm().item() for n in setting.names]
    np.testing.assert_allclose(setting.norms, norms, rtol=1e-6)
    assert (setting.space, setting.samples, setting.batchnorm) == ("latent", 25, "running")
    assert setting.activation_quantizers
    assert not setting.relative
    assert setting.asymmetry < 1e-12
    value = cross_entropy(surface.model(DATA.images[:25]), DATA.labels[:25]).item()
    assert setting.loss == pytest.approx(value, rel=1e-6)


def test_where_a_surface_was_moved_to():
    surface = Surface(network().double())
    scale = 2 * surface.filter_norms().numpy()
    surface.assign(2 * surface.point)
    found = eigenvalues(surface, DATA, 2, relative=True, **QUIET)
    expected = sorted_eigenvalues(scale[:, None] * hessian_of(surface, DATA) * scale, "magnitude")
    np.testing.assert_allclose(found.values, expected[:2], rtol=1e-5)
    assert found.setting.squared_norm == pytest.approx(4 * float(surface.point @ surface.point))


# --- trace ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_the_trace_of_a_linear_model_within_a_per_cent(method):
    # 2·XᵀX/N for each of five outputs.
    expected = 5 * 2 * DATA.images.square().sum().item() / 30
    found = trace(linear(), DATA, method=method, products=600, loss=squared, **QUIET)
    assert found.value == pytest.approx(expected, rel=0.01)
    assert abs(found.value - expected) <= 4 * found.standard_error + 1e-4 * expected
    assert found.complete


def test_the_trace_within_its_standard_error_and_that_is_the_true_one():
    surface = Surface(quantized("lsq"), "latent")
    matrix = hessian_of(surface, DATA)
    found = trace(surface, DATA, products=200, **QUIET)
    spread = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()))
    assert found.standard_error == pytest.approx(spread / np.sqrt(200), rel=0.25)
    assert abs(found.value - np.trace(matrix)) < 4 * spread / np.sqrt(200)
    assert found.products == 200
    assert found.draws.shape == (200, 3)
    start = 0
    for name, size in zip(found.setting.names, found.setting.sizes, strict=True):
        value, error = found.layers[name]
        block = np.trace(matrix[start : start + size, start : start + size])
        assert abs(value - block) < 4 * error
        start += size


def test_a_draw_is_a_product_with_signs():
    surface = Surface(network().double())
    matrix = hessian_of(surface, DATA)
    found = trace(surface, DATA, products=4, seed=7, **QUIET)
    generator = torch.Generator().manual_seed(7)
    for draw in found.draws:
        z = torch.randint(2, (215,), generator=generator).numpy() * 2.0 - 1
        parts = np.split(z * (matrix @ z), np.cumsum(surface_sizes(surface))[:-1])
        np.testing.assert_allclose(draw, [p.sum() for p in parts], atol=1e-10)


def surface_sizes(surface):
    return [p.numel() for p in surface.split(surface.point).values()]


def test_hutch_plus_plus_is_nearer_than_its_draws_alone():
    surface = Surface(network().double())
    expected = np.trace(hessian_of(surface, DATA))
    found = trace(surface, DATA, method="hutch++", products=180, **QUIET)
    assert found.products == 180
    assert found.draws.shape == (60, 1)
    assert found.value == pytest.approx(expected, rel=0.01)
    assert abs(found.value - expected) < 4 * found.standard_error
    plain = trace(surface, DATA, products=180, **QUIET)
    assert found.standard_error < 0.2 * plain.standard_error
    assert found.layers == {}


def test_hutch_plus_plus_with_more_vectors_than_numbers_is_exact():
    surface = Surface(network().double(), layers=["0"])
    found = trace(surface, DATA, method="hutch++", products=90, **QUIET)
    assert found.value == pytest.approx(np.trace(hessian_of(surface, DATA)), rel=1e-10)
    assert found.standard_error < 1e-10
    assert found.products == 30 + 27 + 30  # the space has 27 dimensions


# --- density --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "lsq"])
def test_the_density_has_the_moments_of_the_spectrum(kind):
    surface = Surface(network() if kind == "float" else quantized(kind))
    matrix = hessian_of(surface, DATA)
    found = spectral_density(surface, DATA, draws=6, steps=25, **QUIET)
    assert found.nodes.shape == found.weights.shape == (6, 25)
    assert found.products == 150
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    assert (found.weights >= 0).all()
    values = np.linalg.eigvalsh(matrix)
    assert values[0] - 1e-5 < found.nodes.min()
    assert found.nodes.max() < values[-1] + 1e-5
    assert found.nodes.max() == pytest.approx(values[-1], rel=1e-4)
    value, error = found.trace
    assert abs(value - np.trace(matrix)) < 4 * error
    at = np.linspace(-10, 15, 5001)
    density, _ = found.density(at, 0.3)
    assert np.trapezoid(density, at) == pytest.approx(1, abs=1e-6)
    assert 215 * np.trapezoid(density * at, at) == pytest.approx(value, rel=1e-5)


def test_a_draw_of_the_density_knows_the_moments_of_its_vector():
    # ∑ωθᵖ = vᵀHᵖv for p up to 2·steps − 1: what a Gauss quadrature is.
    surface = Surface(network().double())
    matrix = hessian_of(surface, DATA)
    found = spectral_density(surface, DATA, draws=1, steps=5, seed=3, **QUIET)
    v = torch.randn(215, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    v /= np.linalg.norm(v)
    for power in range(10):
        moment = v @ np.linalg.matrix_power(matrix, power) @ v
        assert (found.weights[0] * found.nodes[0] ** power).sum() == pytest.approx(moment)


def test_as_many_steps_as_numbers_give_the_spectrum():
    surface = Surface(quantized("lsq", nn.Tanh).double(), layers=["4"])
    found = spectral_density(surface, DATA, draws=2, steps=500, **QUIET)
    assert found.nodes.shape == (2, 108)
    values = np.linalg.eigvalsh(hessian_of(surface, DATA))
    for nodes in found.nodes:
        np.testing.assert_allclose(nodes, values, atol=1e-10)


# --- what moves the numbers -----------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_batches_do_not_matter(memory):
    model = quantized("lsq").double()
    runs = [eigenvalues(model, DATA, batch=b, memory=memory, **QUIET) for b in (7, 30)]
    np.testing.assert_allclose(runs[0].values, runs[1].values, rtol=1e-10)
    draws = [trace(model, DATA, products=3, batch=b, memory=memory, **QUIET).draws for b in (7, 30)]
    np.testing.assert_allclose(*draws, atol=1e-10)


def test_the_seed_decides_and_the_same_gives_the_same():
    for function in (trace, spectral_density):
        some = {"products": 3} if function is trace else {"draws": 2, "steps": 3}
        one, same, other = (function(network(), DATA, seed=s, **some, **QUIET) for s in (1, 1, 2))
        field = "draws" if function is trace else "nodes"
        assert np.array_equal(getattr(one, field), getattr(same, field))
        assert not np.array_equal(getattr(one, field), getattr(other, field))
    one, other = (eigenvalues(network().double(), DATA, 2, seed=s, **QUIET).values for s in (1, 2))
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_loader_and_a_pair_give_the_same():
    loader = DataLoader(TensorDataset(DATA.images, DATA.labels), batch_size=8)
    pair = (DATA.images, DATA.labels)
    values = [eigenvalues(network(), d, 2, **QUIET).values for d in (DATA, pair, loader)]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])


def test_batchnorm_of_the_images_is_another_curvature():
    model = network(nn.Tanh).double()
    surface = Surface(model, batchnorm="batch")
    found = [eigenvalues(s, DATA, 3, batch=13, **QUIET) for s in (surface, surface, model)]
    assert [f.setting.batchnorm for f in found] == ["batch", "batch", "running"]
    training = copy.deepcopy(model).train()
    expected = dense(training, WEIGHTS, DATA.images, DATA.labels)
    for each in found[:2]:  # the surface can be asked again
        np.testing.assert_allclose(
            each.values, sorted_eigenvalues(expected, "magnitude")[:3], rtol=1e-4
        )
    assert abs(found[2].values[0] / found[0].values[0] - 1) > 0.1


def rescaled(model, factors):
    """The same function: a filter times a factor, and BatchNorm that takes it out again."""
    model = copy.deepcopy(model)
    conv, norm = model[0], model[1]
    with torch.no_grad():
        conv.weight *= factors.view(-1, 1, 1, 1)
        norm.running_mean *= factors
        norm.running_var.copy_((norm.running_var + norm.eps) * factors**2 - norm.eps)
    return model


@pytest.mark.parametrize("batchnorm", ["running", "batch"])
def test_relative_curvature_does_not_know_the_size_of_a_filter(batchnorm):
    model = network(nn.Tanh).double()
    model[1].eps = 1e-12
    twin = rescaled(model, torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64))
    images = DATA.images.double()
    torch.testing.assert_close(twin(images), model(images), rtol=1e-9, atol=1e-9)
    pair = [Surface(m, batchnorm=batchnorm) for m in (model, twin)]
    values = [eigenvalues(s, DATA, 4, relative=True, **QUIET).values for s in pair]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    plain = [eigenvalues(s, DATA, 4, **QUIET).values for s in pair]
    assert abs(plain[0][0] / plain[1][0] - 1) > 0.1
    traces = [trace(s, DATA, products=5, relative=True, **QUIET).draws for s in pair]
    np.testing.assert_allclose(*traces, rtol=1e-6, atol=1e-8)
    nodes = [
        spectral_density(s, DATA, draws=1, steps=6, relative=True, **QUIET).nodes for s in pair
    ]
    np.testing.assert_allclose(*nodes, rtol=1e-6, atol=1e-8)


def test_relative_is_the_matrix_between_the_norms_of_the_filters():
    surface = Surface(quantized("lsq").double(), include=["biases"])
    norms = []
    for p in surface.split(surface.point).values():
        rows = p.flatten(1) if p.ndim > 1 else p[None]
        norms += [float(np.linalg.norm(row)) for row in rows.numpy() for _ in row]
    norms = np.array(norms)
    expected = norms[:, None] * hessian_of(surface, DATA) * norms[None, :]
    found = eigenvalues(surface, DATA, 5, relative=True, **QUIET)
    np.testing.assert_allclose(
        found.values, sorted_eigenvalues(expected, "magnitude")[:5], rtol=1e-5
    )
    assert found.setting.relative


def test_scale_free_does_not_know_a_common_factor():
    model = network().double()
    model[1].eps = 1e-12
    twin = rescaled(model, torch.full((3,), 4.0, dtype=torch.float64))
    one, other = (eigenvalues(Surface(m, layers=["0"]), DATA, 4, **QUIET) for m in (model, twin))
    np.testing.assert_allclose(one.values, 16 * other.values, rtol=1e-5)
    np.testing.assert_allclose(one.scale_free, other.scale_free, rtol=1e-5)


# --- what is left behind --------------------------------------------------------------------

CALLS = {
    "eigenvalues": (eigenvalues, {"k": 6}),
    "trace": (trace, {"products": 12}),
    "hutch++": (trace, {"products": 12, "method": "hutch++"}),
    "density": (spectral_density, {"draws": 3, "steps": 5}),
}
# One loss for the check of symmetry, three for the batches, three more for every product.
START, EACH = 1 + 3, 3
NOTHING_KEPT = {"batch": 13, "memory": 0, **QUIET}


class Failing:
    """Cross-entropy that raises at one of its calls."""

    def __init__(self, error, call):
        self.error, self.call, self.calls = error, call, 0

    def __call__(self, logits, labels):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return cross_entropy(logits, labels)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["float", "lsq"])
def test_the_model_is_as_it_was(name, kind):
    function, arguments = CALLS[name]
    model = network() if kind == "float" else quantized(kind)
    model(DATA.images).sum().backward()
    surface = Surface(model, batchnorm="batch")
    with unchanged(model), unchanged(surface.model):
        function(model, DATA, **arguments, **QUIET)
        function(surface, DATA, **arguments, **QUIET)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("call", [1, 3, 5, 16])
def test_the_model_is_as_it_was_after_an_exception(name, call):
    function, arguments = CALLS[name]
    model = quantized("lsq")
    loss = Failing(ZeroDivisionError("in the middle"), call)
    with pytest.raises(ZeroDivisionError, match="in the middle"), unchanged(model):
        function(model, DATA, loss=loss, **arguments, **NOTHING_KEPT)


def interrupted_after(products, name):
    function, arguments = CALLS[name]
    model, loss = quantized("lsq"), Failing(KeyboardInterrupt(), START + EACH * products + 2)
    with unchanged(model):
        return function(model, DATA, loss=loss, **arguments, **NOTHING_KEPT)


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_before_anything_is_found_goes_through(name):
    before = {"density": 4}.get(name, 0)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        interrupted_after(before, name)


def test_ctrl_c_keeps_the_eigenvalues():
    with pytest.warns(UserWarning, match=r"interrupted: \d of 6 eigenvalues are within tol"):
        found = interrupted_after(8, "eigenvalues")
    assert not found.complete
    assert found.values.shape == (6,)
    whole = eigenvalues(quantized("lsq"), DATA, 6, batch=13, **QUIET)
    assert abs(found.values[0] - whole.values[0]) <= found.errors[0] + 1e-6
    with pytest.warns(UserWarning, match="interrupted: 0 of 6"):
        assert interrupted_after(2, "eigenvalues").values.shape == (2,)


def test_ctrl_c_while_rounding_is_measured_keeps_the_eigenvalues():
    whole = eigenvalues(quantized("lsq"), DATA, 6, batch=13, **QUIET)
    with pytest.warns(UserWarning, match="interrupted: 6 of 6"):
        found = interrupted_after(whole.products - 1, "eigenvalues")
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-6)


@pytest.mark.parametrize(("name", "products", "draws"), [("trace", 5, 5), ("hutch++", 10, 2)])
def test_ctrl_c_keeps_the_draws_of_a_trace(name, products, draws):
    total = {"trace": 12, "hutch++": 4}[name]
    with pytest.warns(UserWarning, match=f"interrupted: {draws} of {total} draws are done"):
        found = interrupted_after(products, name)
    function, arguments = CALLS[name]
    whole = function(quantized("lsq"), DATA, **arguments, batch=13, **QUIET)
    np.testing.assert_allclose(found.draws, whole.draws[:draws], rtol=1e-3, atol=1e-5)
    assert not found.complete
    assert whole.complete


@pytest.mark.parametrize(("products", "draws"), [(1, 1), (3, 3), (5, 4), (8, 4)])
def test_ctrl_c_early_in_hutch_plus_plus_keeps_what_hutchinson_would_have(products, draws):
    words = f"interrupted: {draws} of 4 draws are done, by hutchinson"
    with pytest.warns(UserWarning, match=words):
        found = interrupted_after(products, "hutch++")
    whole = trace(quantized("lsq"), DATA, products=12, batch=13, **QUIET)
    np.testing.assert_allclose(found.draws, whole.draws[:draws], rtol=1e-3, atol=1e-5)
    assert (found.method, found.exact, found.complete) == ("hutchinson", 0, False)
    assert tuple(found.layers) == WEIGHTS


def test_ctrl_c_during_a_restart_keeps_the_eigenvalues(monkeypatch):
    monkeypatch.setattr(curvature, "BASIS", 14 * 215 * 8)
    restart, restarts = krylov.Krylov._replace, []

    def interrupted(self, *arguments):
        restarts.append(None)
        if len(restarts) == 3:
            signal.raise_signal(signal.SIGINT)
        restart(self, *arguments)

    monkeypatch.setattr(krylov.Krylov, "_replace", interrupted)
    surface = Surface(network().double())
    with pytest.warns(UserWarning, match="interrupted: . of 4 eigenvalues"):
        found = eigenvalues(surface, DATA, 4, which="smallest", tolerance=1e-9, **QUIET)
    assert len(restarts) == 3
    matrix = hessian_of(surface, DATA)
    true = np.linalg.norm(found.vectors @ matrix - found.values[:, None] * found.vectors, axis=1)
    np.testing.assert_allclose(found.errors, true, rtol=1e-4, atol=1e-10)
    assert not found.complete


def test_hutch_plus_plus_holds_the_vectors_that_it_announces(capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2000)).eval()
    block = 41 * 36 * 2000 * 4
    data = (DATA.images[:2], DATA.labels[:2])
    with PeakMemory() as few:
        trace(model, data, method="hutch++", products=3)
    with PeakMemory() as many:
        trace(model, data, method="hutch++", products=123)
    assert 2 * block < many.peak < 2 * block + few.peak < 2.5 * block
    assert "at most 82 vectors" in capsys.readouterr().err


class Draws(nn.Module):
    """A network that draws in evaluation mode, where that has no curvature."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x) + torch.randn(1).item()


@pytest.mark.parametrize("name", CALLS)
def test_a_network_that_draws_does_not_move_the_generator(name):
    function, arguments = CALLS[name]
    model = Draws().eval()
    with unchanged(model):
        function(model, DATA, **arguments, **NOTHING_KEPT)


@pytest.mark.parametrize("batch", [5, 13, 30])
@pytest.mark.parametrize("backend", ["qatviz", "pyhessian"])
def test_a_grid_of_the_batch_is_one_of_all_images(batch, backend):
    model = quantize(network(nn.Tanh), None, partial(DoReFa, 3)).double().eval()
    calibrate(model, [DATA.images.double()])
    surface = Surface(model)
    found = eigenvalues(surface, DATA, 1, batch=batch, backend=backend, **QUIET)
    wanted = sorted_eigenvalues(hessian_of(surface, DATA), "magnitude")[0]
    assert found.values[0] == pytest.approx(wanted, rel=2e-3)


def test_ctrl_c_keeps_the_draws_of_a_density():
    with pytest.warns(UserWarning, match="interrupted: 2 of 3 draws are done"):
        found = interrupted_after(13, "density")
    assert found.nodes.shape == (2, 5)
    assert not found.complete


def test_a_bar_only_if_wanted(capsys):
    trace(network(), DATA, products=3, progress=False)
    assert capsys.readouterr().err == ""
    eigenvalues(network(), DATA, 2)
    told = capsys.readouterr().err
    assert "top 2 by magnitude: 215 numbers, at most 217 vectors of them" in told
    assert "graphs of 1 batches kept" in told


# --- what is refused ------------------------------------------------------------------------

WRONG = [
    (eigenvalues, {"k": 0}, "k is 0; allowed: 1 to the 215 numbers that move"),
    (eigenvalues, {"k": 216}, "k is 216"),
    (eigenvalues, {"which": "LM"}, "which: got 'LM', allowed: magnitude, largest, smallest"),
    (eigenvalues, {"tolerance": 0.0}, "tolerance must be above 0 .*, got 0.0"),
    (eigenvalues, {"tolerance": float("nan")}, "got nan"),
    (eigenvalues, {"products": 0}, "products 1 or more, got 0.0001 and 0"),
    (trace, {"method": "xtrace"}, r"method: got 'xtrace', allowed: hutchinson, hutch\+\+"),
    (trace, {"products": 0}, "products is 0; allowed for hutchinson: 1 or more"),
    (trace, {"method": "hutch++", "products": 2}, r"for hutch\+\+: a multiple of 3"),
    (trace, {"method": "hutch++", "products": 100}, "a multiple of 3"),
    (spectral_density, {"draws": 0}, "draws and steps must be 1 or more, got 0 and 80"),
    (spectral_density, {"steps": 0}, "got 10 and 0"),
]
EVERYWHERE = [
    ({"backend": "scipy"}, "backend: got 'scipy', allowed: qatviz, pyhessian"),
    ({"memory": -1}, "memory ≥ 0, got 128 and -1"),
    ({"batch": 0}, "batch must be ≥ 1"),
    ({"samples": 31}, "samples is 31, but there are 30"),
    ({"data": []}, "the loader is empty"),
    ({"loss": lambda y, t: cross_entropy(y, t) * float("inf")}, "the loss is inf on batch 0"),
    ({"loss": lambda y, t: cross_entropy(y, t, reduction="none")}, "must return one number"),
]


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [*WRONG, *((f, *w) for w in EVERYWHERE for f in (eigenvalues, trace, spectral_density))],
)
def test_arguments_that_are_refused(function, arguments, words):
    model = network()
    with unchanged(model), pytest.raises(ValueError, match=words):
        function(model, **{"data": DATA, **QUIET, **arguments})


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"parameters are torch.bfloat16; allowed: torch.float32"):
        eigenvalues(network().bfloat16(), DATA, **QUIET)


@pytest.mark.parametrize("function", [eigenvalues, trace, spectral_density])
def test_a_model_in_training_mode_is_refused(function):
    model = network().train()
    with unchanged(model), pytest.raises(ValueError, match="the model is in training mode"):
        function(model, DATA, **QUIET)


# --- PyHessian ------------------------------------------------------------------------------


@pytest.fixture
def theirs(monkeypatch):
    """Counts the products that PyHessian makes."""
    count = []

    def counting(product):
        def counted(*arguments):
            count.append(None)
            return product(*arguments)

        return counted

    released = sys.modules["pyhessian.hessian"]  # the package has a class of that name
    for where, name in (
        (released, "hessian_vector_product"),
        (pyhessian.hessian, "dataloader_hv_product"),
    ):
        monkeypatch.setattr(where, name, counting(getattr(where, name)))
    return count


@pytest.mark.parametrize(("kind", "batch"), [("float", 13), ("lsq", 13), ("lsq", 100)])
def test_pyhessian_agrees_and_its_products_are_counted(theirs, kind, batch):
    model = network() if kind == "float" else quantized(kind)
    surface, settings = Surface(model), {"batch": batch, "backend": "pyhessian", **QUIET}
    ours = eigenvalues(surface, DATA, 2, **QUIET)
    with unchanged(model), unchanged(surface.model):
        pairs = eigenvalues(surface, DATA, 2, **settings)
    np.testing.assert_allclose(pairs.values, ours.values, rtol=2e-3)
    assert (pairs.backend, pairs.complete) == ("pyhessian", True)
    assert pairs.products == len(theirs) > 4
    matrix = hessian_of(surface, DATA)
    vectors = pairs.vectors.astype(float)
    true = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.errors, true, atol=1e-5 * ours.largest)

    theirs.clear()
    with unchanged(model):
        traces = trace(surface, DATA, products=30, **settings)
    assert traces.products == len(traces.draws) == len(theirs)
    assert abs(traces.value - np.trace(matrix)) < 4 * traces.standard_error
    assert traces.complete
    assert traces.layers == {}

    theirs.clear()
    with unchanged(model):
        density = spectral_density(surface, DATA, draws=2, steps=12, **settings)
    assert density.products == len(theirs) == 24
    np.testing.assert_allclose(density.weights.sum(1), 1, rtol=1e-4)
    assert density.nodes.max() == pytest.approx(ours.values[0], rel=1e-3)


PYHESSIAN = [
    (eigenvalues, {"k": 5}, "values"),
    (trace, {"products": 50}, "draws"),
    (spectral_density, {"draws": 3, "steps": 10}, "nodes"),
]


@pytest.mark.parametrize(("function", "arguments", "name"), PYHESSIAN)
def test_ctrl_c_keeps_what_pyhessian_has_found(function, arguments, name):
    settings = {"backend": "pyhessian", "batch": 13, **QUIET}
    counting = Failing(None, 0)
    whole = function(network(), DATA, loss=counting, **arguments, **settings)
    model, loss = network(), Failing(KeyboardInterrupt(), int(0.8 * counting.calls))
    with unchanged(model), pytest.warns(UserWarning, match="interrupted: "):
        found = function(model, DATA, loss=loss, **arguments, **settings)
    few, all_of_them = getattr(found, name), getattr(whole, name)
    assert 0 < len(few) < len(all_of_them)
    np.testing.assert_array_equal(few, all_of_them[: len(few)])
    assert not found.complete
    assert whole.complete
    with pytest.raises(KeyboardInterrupt):
        function(network(), DATA, loss=Failing(KeyboardInterrupt(), 6), **arguments, **settings)


def test_ctrl_c_while_residuals_of_pyhessian_are_measured(monkeypatch):
    product, count = curvature._Run.product, []

    def failing(self, vector):
        count.append(None)
        if len(count) == 2:
            raise KeyboardInterrupt
        return product(self, vector)

    monkeypatch.setattr(curvature._Run, "product", failing)
    with pytest.warns(UserWarning, match="interrupted: "):
        found = eigenvalues(network(), DATA, 3, backend="pyhessian", **QUIET)
    assert np.isfinite(found.values).all()
    assert np.isnan(found.residuals).tolist() == [False, True, True]
    assert not found.complete


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (eigenvalues, {"which": "largest"}),
        (eigenvalues, {"relative": True}),
        (trace, {"method": "hutch++", "products": 3}),
        (trace, {"relative": True}),
        (spectral_density, {"relative": True}),
    ],
)
def test_what_pyhessian_does_not_have(function, arguments):
    with pytest.raises(ValueError, match="PyHessian has"):
        function(network(), DATA, backend="pyhessian", **arguments, **QUIET)
