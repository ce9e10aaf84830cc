"""PyHessian's numbers against the dense Hessian of networks of less than a hundred weights."""

import ast
import functools
import gc
import inspect
import sys
import warnings
import weakref
from functools import partial

import numpy as np
import pyhessian as released
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from qatviz.analysis import pyhessian as room
from qatviz.analysis.pyhessian import eigenpairs, ritz, trace_samples
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged

CASES = ["float", "frozen", "unused", "dequantized", "latent"]


@functools.cache
def images_and_labels():
    torch.manual_seed(4)
    return torch.randn(12, 1, 5, 5) + torch.eye(5), torch.arange(12) % 3


@pytest.fixture
def split():
    return Split(*images_and_labels())


def network():
    """Trained a little, so that few eigenvalues stand out, as they do in networks."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)]
    model = nn.Sequential(*layers).double()
    images, labels = images_and_labels()
    for _ in range(30):
        loss = cross_entropy(model(images.double()), labels)
        gradients = torch.autograd.grad(loss, model.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    return model.eval()


class WithSpare(nn.Module):
    """A network with a layer that takes no part, in the middle of the vector."""

    def __init__(self):
        super().__init__()
        body = network()
        self.front, self.spare, self.head = body[:3], nn.Linear(2, 2).double(), body[3]

    def forward(self, x):
        return self.head(self.front(x))


def make_surface(case, split):
    if case == "unused":
        return Surface(WithSpare().eval(), include=("biases",))
    if case == "frozen":
        return Surface(network(), layers=("3",))
    if case == "float":
        return Surface(network())
    grids = {"0": partial(LSQ, 4), "3": partial(LSQ, 2)}
    student = quantize(network(), grids, partial(LSQ, 3)).double().eval()
    calibrate(student, [split.images.double()])
    return Surface(student, case)


def dense(surface, split, loss=cross_entropy):
    """Every second derivative, one row after the other, on all images at once."""
    model, images = surface.model, split.images.double()

    def value(vector):
        return loss(functional_call(model, surface.split(vector), (images,)), split.labels)

    return torch.autograd.functional.hessian(value, surface.point)


def signs(surface, count, seed):
    """PyHessian's random vectors: drawn parameter by parameter from the global generator."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(count):
            parts = [torch.randint(2, shape).double() * 2 - 1 for shape in surface.shapes]
            found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


@pytest.fixture(params=CASES)
def surface(request, split):
    return make_surface(request.param, split)


@pytest.mark.parametrize("batch", [12, 5])
def test_eigenpairs_are_those_of_the_dense_hessian(surface, split, batch):
    h = dense(surface, split)
    exact = torch.linalg.eigvalsh(h)
    exact = exact[exact.abs().argsort(descending=True)].numpy()
    values, vectors = eigenpairs(
        surface, split, cross_entropy, 2, batch=batch, tol=1e-6, max_iter=400
    )
    assert vectors.shape == (2, surface.size)
    np.testing.assert_allclose(values, exact[:2], rtol=1e-4)
    residual = vectors @ h - torch.from_numpy(values)[:, None] * vectors
    assert residual.norm(dim=1).max() < 1e-2 * abs(exact[0])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=0.02)


@pytest.mark.parametrize("batch", [12, 5])
def test_samples_of_the_trace_are_products_with_the_dense_hessian(surface, split, batch):
    h, v = dense(surface, split), signs(surface, 6, 5)
    found = trace_samples(surface, split, cross_entropy, batch=batch, max_iter=6, seed=5)
    np.testing.assert_allclose(found, ((v @ h) * v).sum(1), rtol=1e-9)


@pytest.mark.parametrize("batch", [12, 5])
def test_few_lanczos_steps_have_the_moments_of_the_dense_hessian(surface, split, batch):
    # ∑ ω·θ^p = vᵀH^p v / vᵀv for p up to 2m − 1: Gauss quadrature is exact for those.
    h, v = dense(surface, split), signs(surface, 2, 1)
    nodes, weights = ritz(surface, split, cross_entropy, batch=batch, steps=4, runs=2, seed=1)
    assert nodes.shape == weights.shape == (2, 4)
    for power in range(8):
        exact = ((v @ torch.linalg.matrix_power(h, power)) * v).sum(1) / surface.size
        np.testing.assert_allclose((weights * nodes**power).sum(1), exact, rtol=1e-6, atol=1e-12)


def test_all_lanczos_steps_find_nothing_but_eigenvalues(surface, split):
    exact = torch.linalg.eigvalsh(dense(surface, split)).numpy()
    nodes, weights = ritz(surface, split, cross_entropy, batch=12, steps=surface.size)
    nodes, weights = nodes[0], weights[0]
    assert np.abs(nodes[:, None] - exact).min(1).max() < 1e-5 * exact[-1]
    np.testing.assert_allclose(nodes[[0, -1]], exact[[0, -1]], rtol=1e-9, atol=1e-9)
    assert weights.sum() == pytest.approx(1)


def test_the_hessian_is_not_zero(surface, split):
    # What the tests above compare with.
    h = dense(surface, split)
    assert h.diagonal().abs().max() > 1e-3
    torch.testing.assert_close(h, h.T)


def test_one_batch_and_several_take_the_two_ways_of_pyhessian(split, monkeypatch):
    surface, used = make_surface("float", split), []
    loader_way = released.hessian.dataloader_hv_product
    monkeypatch.setattr(
        released.hessian,
        "dataloader_hv_product",
        lambda self, v: used.append(len(self.data)) or loader_way(self, v),
    )
    trace_samples(surface, split, cross_entropy, batch=12, max_iter=2)
    assert used == []
    trace_samples(surface, split, cross_entropy, batch=5, max_iter=2)
    assert used == [3, 3]


def test_an_eigenvalue_is_older_than_its_eigenvector(split):
    surface = make_surface("float", split)
    h, tol = dense(surface, split).numpy(), 1e-2
    with torch.random.fork_rng():
        torch.manual_seed(2)
        v = torch.cat([torch.randn(shape).flatten() for shape in surface.shapes]).double().numpy()
    seen = []
    while len(seen) < 2 or abs(seen[-1] - seen[-2]) >= tol * abs(seen[-2]):
        v = v / np.linalg.norm(v)
        seen.append(v @ h @ v)
        v = h @ v
    values, vectors = eigenpairs(surface, split, cross_entropy, 1, batch=12, tol=tol, seed=2)
    assert len(seen) > 3
    np.testing.assert_allclose(values, seen[-2], rtol=1e-6)
    np.testing.assert_allclose(vectors[0], v / np.linalg.norm(v), atol=1e-6)


def test_small_curvature_is_as_good_as_large(split):
    surface = make_surface("float", split)

    def small(outputs, targets):
        return 1e-9 * cross_entropy(outputs, targets)

    nodes, weights = ritz(surface, split, cross_entropy, batch=12, steps=10)
    small_nodes, small_weights = ritz(surface, split, small, batch=12, steps=10)
    np.testing.assert_allclose(1e9 * small_nodes, nodes, rtol=1e-6)
    np.testing.assert_allclose(small_weights, weights, rtol=1e-6)
    # Two eigenvectors need lengths of 1 and a clean deflation.
    values, vectors = eigenpairs(surface, split, small, 2, batch=12, tol=1e-12, max_iter=400)
    exact = torch.linalg.eigvalsh(dense(surface, split)).numpy()
    np.testing.assert_allclose(1e9 * values, exact[:-3:-1], rtol=1e-3)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=0.02)


def test_a_negative_trace_stops_where_a_positive_one_does(split):
    surface = make_surface("frozen", split)  # one layer: every vᵀHv is positive

    def negative(outputs, targets):
        return -cross_entropy(outputs, targets)

    options = {"batch": 12, "tol": 0.02, "seed": 4}
    plus = trace_samples(surface, split, cross_entropy, **options)
    assert (plus > 0).all()
    np.testing.assert_allclose(trace_samples(surface, split, negative, **options), -plus)
    assert len(trace_samples(surface, split, cross_entropy, batch=12)) == 100
    # And where PyHessian's own loop stops, if the trace is positive.
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(4)
        data = (split.images.double(), split.labels)
        problem = released.hessian(surface.model, cross_entropy, data=data, cuda=False)
        own = problem.trace(tol=0.02)
    assert 2 < len(own) < 100
    np.testing.assert_allclose(plus, own)


def test_single_precision(split):
    surface = Surface(network().float())
    exact = torch.linalg.eigvalsh(dense(make_surface("float", split), split))
    values, vectors = eigenpairs(surface, split, cross_entropy, 1, batch=5, tol=1e-5)
    assert vectors.dtype == torch.float32
    assert values[0] == pytest.approx(exact[-1].item(), rel=1e-3)
    nodes, _ = ritz(surface, split, cross_entropy, batch=5, steps=30)
    assert nodes[0, -1] == pytest.approx(exact[-1].item(), rel=1e-4)


def test_the_seed_decides_and_the_global_generator_stays(split):
    surface = make_surface("float", split)
    options = {"batch": 12, "max_iter": 3}
    with unchanged(surface.model):
        one, again, other = (
            trace_samples(surface, split, cross_entropy, seed=seed, **options) for seed in (0, 0, 1)
        )
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


CALLS = [
    partial(eigenpairs, k=2, max_iter=5),
    partial(trace_samples, max_iter=3),
    partial(ritz, steps=3),
]


def call(function, surface, split, loss, batch):
    return function(surface=surface, split=split, loss=loss, batch=batch)


@pytest.mark.parametrize("batch", [12, 5])
@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.func.__name__)
def test_nothing_is_left_behind(function, batch, split):
    surface, alive = make_surface("latent", split), []

    def watched(outputs, targets):
        loss = cross_entropy(outputs, targets)
        alive.append(weakref.ref(outputs))
        return loss

    gc.collect()
    gc.disable()  # what only the collector frees is a graph in a circle
    try:
        with unchanged(surface.model):
            call(function, surface, split, watched, batch)
        assert alive
        assert [ref for ref in alive if ref() is not None] == []
    finally:
        gc.enable()
    assert all(p.grad is None for p in surface.model.parameters())
    surface.model.get_parameter(surface.names[0]).grad = torch.ones(surface.shapes[0]).double()
    with unchanged(surface.model):
        call(function, surface, split, cross_entropy, batch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.func.__name__)
def test_nothing_is_left_behind_by_an_interruption(function, error, split):
    surface, calls = make_surface("float", split), []

    def failing(outputs, targets):
        calls.append(len(targets))
        if len(calls) == 5:
            raise error("stop")
        return cross_entropy(outputs, targets)

    with pytest.raises(error, match="stop"), unchanged(surface.model), torch.no_grad():
        call(function, surface, split, failing, 5)
    assert calls == [5, 5, 2, 5, 5]


def test_without_the_package_the_extra_is_named(split, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    surface = make_surface("float", split)
    for function in CALLS:
        with pytest.raises(ValueError, match=r"qatviz\[pyhessian\]"):
            call(function, surface, split, cross_entropy, 12)


def test_importing_the_room_does_not_import_the_package():
    tree = ast.parse(inspect.getsource(room))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(n, "module", None) or a.name for n in top for a in n.names}
    assert "numpy" in names
    assert "pyhessian" not in names


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (eigenpairs, {"k": 0}, "k is 0; allowed: 1 to 72"),
        (eigenpairs, {"k": 73}, "k is 73; allowed: 1 to 72"),
        (eigenpairs, {"k": 1, "max_iter": 0}, "max_iter is 0; allowed: 1 or more"),
        (trace_samples, {"max_iter": 0}, "max_iter is 0"),
        (trace_samples, {"batch": 0}, "batch is 0"),
        (ritz, {"steps": 73}, "steps is 73; allowed: 1 to 72"),
        (ritz, {"steps": 5, "runs": 0}, "runs is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(function, options, words, split):
    # 2·9 weights of the convolution and 3·18 of the linear layer.
    with pytest.raises(ValueError, match=words):
        function(make_surface("float", split), split, cross_entropy, **{"batch": 12, **options})


def test_what_pyhessian_cannot_take_is_refused(split):
    body = network()
    norm = nn.Sequential(body[0], nn.BatchNorm2d(2).double(), *body[1:]).eval()
    with pytest.raises(ValueError, match="statistics of the images"):
        trace_samples(Surface(norm, batchnorm="batch"), split, cross_entropy, batch=12)
    surface = make_surface("float", split)
    surface.model[0].bias.requires_grad_()
    with pytest.raises(ValueError, match=r"'0.bias'.* but the surface names"):
        trace_samples(surface, split, cross_entropy, batch=12)
