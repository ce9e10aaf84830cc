import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.analysis.sharpness import (
    average_sharpness,
    box_sharpness,
    sharpness_measures,
    worst_sharpness,
)
from qatviz.analysis.surface import Surface
from tests.analysis.common import unchanged
from tests.analysis.wide import cnn, cnn_data, low_bit, plainly, tanh_data, tanh_net

QUIET = {"progress": False}
DATA = tanh_data()


def settled():
    """A network at a minimum of its weights, where the gradient is nearly zero."""
    model = tanh_net()
    images, labels = DATA
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        # A pull towards zero, so that there is a minimum; a little of the gradient is left.
        loss = cross_entropy(model(images), labels) + 0.02 * sum(w.square().sum() for w in weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


class Dense:
    """Loss, gradient and Hessian over all weights, in full."""

    def __init__(self, model, data):
        self.surface, (self.images, self.labels) = Surface(model), data
        self.point, self.model = self.surface.point.clone(), self.surface.model
        self.gradient = torch.func.grad(self.loss)(self.point)
        self.hessian = torch.func.hessian(self.loss)(self.point)

    def loss(self, vector):
        parts = self.surface.split(vector)
        return cross_entropy(
            torch.func.functional_call(self.model, parts, (self.images,)), self.labels
        )

    def rise(self, step):
        return (self.loss(self.point + step) - self.loss(self.point)).item()

    def largest_quadratic_rise(self, radius, scale):
        """The maximum of gᵀz + ½zᵀHz over ‖z/T‖ ≤ ρ, from the secular equation."""
        g = (scale * self.gradient).numpy()
        values, vectors = np.linalg.eigh((scale[:, None] * self.hessian * scale).numpy())
        g = vectors.T @ g

        def length(shift):
            return np.linalg.norm(g / (values[-1] + shift - values)) - radius

        shift = brentq(length, 1e-12, 1e6)
        u = g / (values[-1] + shift - values)
        return g @ u + 0.5 * u @ (values * u)


# Averages.


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_average_is_that_of_pairs_of_draws(adaptive):
    model = tanh_net()
    with unchanged(model):
        record = average_sharpness(
            model, DATA, radius=0.3, draws=3, adaptive=adaptive, seed=4, batch=9, **QUIET
        )
    dense, generator, wanted = Dense(model, DATA), torch.Generator().manual_seed(4), []
    for _ in range(3):
        noise = torch.randn(dense.point.shape, generator=generator, dtype=torch.float64)
        step = 0.3 * noise * (dense.point.abs() if adaptive else 1)
        wanted.append((dense.rise(step) + dense.rise(-step)) / 2)
    np.testing.assert_allclose(record.rises, wanted, rtol=1e-9)
    assert record.value == pytest.approx(np.mean(wanted))
    assert record.standard_error == pytest.approx(np.std(wanted, ddof=1) / 3**0.5)
    assert record.loss == pytest.approx(plainly(model, *DATA)[0])
    assert record.passes == 7
    assert record.region == f"{'adaptive ' if adaptive else ''}noise of σ = 0.3"


def test_a_small_average_is_half_the_trace():
    model = tanh_net()
    dense = Dense(model, DATA)
    for radius in (1e-3, 1e-2):
        record = average_sharpness(model, DATA, radius=radius, draws=300, **QUIET)
        wanted = 0.5 * radius**2 * dense.hessian.trace().item()
        assert abs(record.value - wanted) < 4 * record.standard_error
        assert record.standard_error < 0.15 * abs(wanted)
    scaled = average_sharpness(model, DATA, radius=1e-2, draws=300, adaptive=True, **QUIET)
    wanted = 0.5e-4 * (dense.point**2 * dense.hessian.diag()).sum().item()
    assert abs(scaled.value - wanted) < 4 * scaled.standard_error


# The worst in a ball.


def test_one_step_is_that_of_sam():
    model = tanh_net()
    dense = Dense(model, DATA)
    with unchanged(model):
        record = worst_sharpness(model, DATA, radius=0.2, steps=1, batch=9, **QUIET)
    step = 0.2 * dense.gradient / dense.gradient.norm()
    assert record.value == pytest.approx(dense.rise(step), rel=1e-9)
    assert record.standard_error == 0
    assert record.passes == 2


def test_one_adaptive_step_is_that_of_asam():
    model = tanh_net()
    dense = Dense(model, DATA)
    record = worst_sharpness(model, DATA, radius=0.2, steps=1, adaptive=True, eta=0.05, **QUIET)
    scale = [abs(w) + 0.05 for w in dense.point.tolist()]
    length = sum((t * g) ** 2 for t, g in zip(scale, dense.gradient.tolist(), strict=True)) ** 0.5
    step = torch.tensor(
        [0.2 * t**2 * g / length for t, g in zip(scale, dense.gradient.tolist(), strict=True)]
    )
    assert record.value == pytest.approx(dense.rise(step.double()), rel=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("make", [tanh_net, settled])
def test_climbing_finds_the_worst_of_a_small_ball(make, adaptive):
    model = make()
    dense = Dense(model, DATA)
    scale = dense.point.abs() + 0.01 if adaptive else torch.ones_like(dense.point)
    options = {"radius": 0.02, "adaptive": adaptive, **QUIET}
    one, many = (worst_sharpness(model, DATA, steps=n, **options).value for n in (1, 40))
    wanted = dense.largest_quadratic_rise(0.02, scale)
    assert one <= many * (1 + 1e-12)
    assert many == pytest.approx(wanted, rel=0.02)
    slope = (scale * dense.gradient).norm().item()
    top = torch.linalg.eigvalsh(scale[:, None] * dense.hessian * scale)[-1].item()
    assert many <= 1.02 * (0.02 * slope + 0.5 * 0.02**2 * top)


@pytest.mark.parametrize("adaptive", [False, True])
def test_climbing_is_projected_ascent_in_a_round_ball(adaptive):
    model = settled()
    dense, rises = Dense(model, DATA), []
    scale = [abs(w) + 0.01 if adaptive else 1.0 for w in dense.point.tolist()]
    u = [0.0] * len(scale)
    for step in range(6):
        z = torch.tensor([t * v for t, v in zip(scale, u, strict=True)], dtype=torch.float64)
        slope = torch.func.grad(dense.loss)(dense.point + z).tolist()
        slope = [t * g for t, g in zip(scale, slope, strict=True)]
        length = sum(s**2 for s in slope) ** 0.5
        reach = 0.7 if step == 0 else 0.7 / 4
        u = [v + reach * s / length for v, s in zip(u, slope, strict=True)]
        size = sum(v**2 for v in u) ** 0.5
        u = [v * min(1, 0.7 / size) for v in u]
        z = torch.tensor([t * v for t, v in zip(scale, u, strict=True)], dtype=torch.float64)
        rises.append(dense.rise(z))
    record = worst_sharpness(model, DATA, radius=0.7, steps=6, adaptive=adaptive, **QUIET)
    assert record.value == pytest.approx(max(rises), rel=1e-9)
    assert max(rises) > 1.05 * rises[0]


def test_at_a_minimum_more_steps_find_more():
    model = settled()
    one, many = (worst_sharpness(model, DATA, radius=0.5, steps=n, **QUIET) for n in (1, 20))
    assert many.value > one.value
    assert many.passes == 21
    assert "20 steps" in many.measure


def test_adaptive_sharpness_does_not_see_the_scale_of_layers():
    def net(factor):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.ReLU())
        model.append(nn.Linear(5, 3, bias=False)).eval()
        model[1].weight.data *= factor
        model[3].weight.data /= factor
        return model

    options = {"eta": 0.0, "radius": 0.1, **QUIET}
    plain, adaptive = (
        [worst_sharpness(net(f), DATA, adaptive=a, **options).value for f in (1, 4)]
        for a in (False, True)
    )
    assert adaptive[0] == pytest.approx(adaptive[1], rel=1e-3)
    assert abs(plain[0] / plain[1] - 1) > 0.3
    options = {"radius": 0.1, "adaptive": True, **QUIET}
    noise = [average_sharpness(net(f), DATA, **options).value for f in (1, 4)]
    assert noise[0] == pytest.approx(noise[1], rel=1e-3)


# The worst in a box.


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1])
def test_the_worst_of_a_box_is_at_a_corner_where_the_loss_is_convex(epsilon):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    data = tanh_data(inputs=4, classes=2)
    with unchanged(model):
        record = box_sharpness(model, data, epsilon=epsilon, **QUIET)
    dense = Dense(model, data)
    bound = epsilon * (dense.point.abs() + 1)
    corners = itertools.product((-1.0, 1.0), repeat=8)
    wanted = max(dense.rise(torch.tensor(corner) * bound) for corner in corners)
    assert record.value == pytest.approx(wanted, rel=1e-3)
    assert record.percent == pytest.approx(100 * record.value / (1 + record.loss))


def test_a_small_box_is_climbed_along_all_slopes():
    model = tanh_net()
    dense = Dense(model, DATA)
    record = box_sharpness(model, DATA, epsilon=1e-5, **QUIET)
    wanted = 1e-5 * ((dense.point.abs() + 1) * dense.gradient.abs()).sum().item()
    assert record.value == pytest.approx(wanted, rel=1e-3)


def test_a_box_is_climbed_where_slopes_are_small_too():
    model = settled()
    dense = Dense(model, DATA)
    record = box_sharpness(model, DATA, epsilon=1e-2, **QUIET)
    bound = 1e-2 * (dense.point.abs() + 1)
    # Better than the first order, and than any of 2000 corners at random.
    signs = torch.randint(2, (2000, len(bound))).double() * 2 - 1
    others = max(dense.rise(s * bound) for s in (*signs, dense.gradient.sign()))
    assert record.value >= 0.98 * others


# What holds of all.


@pytest.fixture(scope="module")
def student():
    return low_bit(cnn())


MEASURES = (box_sharpness, worst_sharpness, average_sharpness)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("space", ["dequantized", "latent", "float"])
def test_a_quantized_network_in_every_space(student, space, measure):
    surface, data = Surface(student, space), cnn_data()
    with unchanged(student), unchanged(surface.model):
        record = measure(surface, data, **QUIET)
    assert record.conditions.space == space
    assert record.conditions.requantized == (space == "latent")
    assert record.complete
    assert np.isfinite(record.value)


def test_steps_that_leave_all_codes_raise_nothing(student):
    data = cnn_data()
    for measure, options in (
        (box_sharpness, {"epsilon": 1e-9}),
        (worst_sharpness, {"radius": 1e-9}),
        (average_sharpness, {"radius": 1e-9}),
    ):
        latent = measure(Surface(student, "latent"), data, **options, **QUIET)
        free = measure(Surface(student), data, **options, **QUIET)
        assert not latent.rises.any()
        assert free.rises.any()


def test_all_measures_are_those_of_their_functions(student):
    data = cnn_data()
    with unchanged(student):
        found = sharpness_measures(student, data, draws=3, **QUIET)
    options = {"steps": 1, "adaptive": True}
    alone = {
        "box 0.001": box_sharpness(student, data, **QUIET),
        "box 0.0005": box_sharpness(student, data, epsilon=5e-4, **QUIET),
        "step": worst_sharpness(student, data, steps=1, **QUIET),
        "ball": worst_sharpness(student, data, **QUIET),
        "adaptive step": worst_sharpness(student, data, **options, **QUIET),
        "adaptive ball": worst_sharpness(student, data, adaptive=True, **QUIET),
        "noise": average_sharpness(student, data, draws=3, **QUIET),
        "adaptive noise": average_sharpness(student, data, draws=3, adaptive=True, **QUIET),
    }
    assert list(found) == list(alone)
    for name, record in alone.items():
        np.testing.assert_allclose(found[name].rises, record.rises, rtol=1e-9)
        assert (found[name].measure, found[name].region) == (record.measure, record.region)
        assert found[name].passes == record.passes
    radii = [record.radius for record in alone.values()]
    assert radii == [1e-3, 5e-4, 0.05, 0.05, 0.5, 0.5, 0.01, 0.1]


class Stops:
    def __init__(self, calls, error=KeyboardInterrupt):
        self.calls, self.error = calls, error

    def __call__(self, logits, labels):
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("measure", "words"),
    [(box_sharpness, "box: interrupted"), (worst_sharpness, "ball: interrupted after 3 of 20")],
)
def test_an_interrupted_search_keeps_the_largest_so_far(measure, words):
    model = tanh_net()
    with unchanged(model), pytest.warns(UserWarning, match=words):
        record = measure(model, DATA, loss=Stops(4), **QUIET)
    assert not record.complete
    assert 0 < record.value <= measure(model, DATA, **QUIET).value
    assert "INCOMPLETE" in repr(record)


def test_an_interrupted_average_keeps_its_pairs():
    model = tanh_net()
    with unchanged(model), pytest.warns(UserWarning, match="noise: interrupted after 3 of 20"):
        record = average_sharpness(model, DATA, loss=Stops(8), **QUIET)
    whole = average_sharpness(model, DATA, **QUIET)
    np.testing.assert_array_equal(record.rises, whole.rises[:3])
    with pytest.warns(UserWarning, match="after 0 of 20"):
        nothing = average_sharpness(model, DATA, loss=Stops(2), **QUIET)
    assert np.isnan(nothing.value)


def test_interrupted_measures_are_the_last():
    boxes = [box_sharpness(tanh_net(), DATA, epsilon=e, **QUIET) for e in (1e-3, 5e-4)]
    calls = sum(record.passes for record in boxes) + 2 + 3
    with pytest.warns(UserWarning, match="ball: interrupted after 2 of 20"):
        found = sharpness_measures(tanh_net(), DATA, loss=Stops(calls), **QUIET)
    assert list(found) == ["box 0.001", "box 0.0005", "step", "ball"]
    assert not found["ball"].complete


def test_measures_interrupted_before_a_search_keep_those_before():
    boxes = [box_sharpness(tanh_net(), DATA, epsilon=e, **QUIET) for e in (1e-3, 5e-4)]
    calls = sum(record.passes for record in boxes)
    with pytest.warns(UserWarning, match="step: interrupted; 2 of 8 measures are done"):
        found = sharpness_measures(tanh_net(), DATA, loss=Stops(calls), **QUIET)
    assert list(found) == ["box 0.001", "box 0.0005"]
    assert [f.value for f in found.values()] == [b.value for b in boxes]
    with pytest.raises(KeyboardInterrupt):
        sharpness_measures(tanh_net(), DATA, loss=Stops(0), **QUIET)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_surface_is_measured_where_it_stands(measure):
    surface, twin = Surface(tanh_net()), tanh_net()
    surface.assign(2 * surface.point)
    for p in twin.parameters():
        p.data *= 2 if p.ndim > 1 else 1
    found, wanted = (measure(model, DATA, **QUIET) for model in (surface, twin))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    np.testing.assert_allclose(found.rises, wanted.rises, rtol=1e-9)


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tanh_net()

    def forward(self, x):
        return self.net(x) * (1 + 0.01 * torch.randn(1).item())


@pytest.mark.parametrize("measure", [*MEASURES, sharpness_measures])
def test_a_network_that_draws_does_not_move_the_generator(measure):
    model = Draws().eval()
    with unchanged(model):
        measure(model, DATA, **QUIET)


@pytest.mark.parametrize("measure", MEASURES)
def test_another_error_passes(measure):
    model = tanh_net()
    with unchanged(model), pytest.raises(RuntimeError):
        measure(model, DATA, loss=Stops(3, RuntimeError), **QUIET)


@pytest.mark.parametrize(
    ("measure", "options", "words"),
    [
        (box_sharpness, {"epsilon": 0.0}, "epsilon is 0.0; allowed: above 0"),
        (box_sharpness, {"iterations": 0}, "iterations is 0; allowed: 1 or more"),
        (worst_sharpness, {"radius": -1.0}, "radius is -1.0"),
        (worst_sharpness, {"steps": 0}, "steps is 0"),
        (worst_sharpness, {"eta": -0.1}, "eta is -0.1"),
        (average_sharpness, {"radius": float("nan")}, "radius is nan"),
        (average_sharpness, {"draws": 1}, "draws is 1; allowed: 2 or more"),
    ],
)
def test_refuses_bad_numbers(measure, options, words):
    with pytest.raises(ValueError, match=words):
        measure(tanh_net(), DATA, **options, **QUIET)


@pytest.mark.parametrize("measure", MEASURES)
def test_refuses_a_network_without_a_loss(measure):
    model = tanh_net()
    model[-1].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="the loss of the network itself is nan"):
        measure(model, DATA, **QUIET)


@pytest.mark.parametrize("measure", [box_sharpness, worst_sharpness])
def test_refuses_a_flat_loss(measure):
    with pytest.raises(ValueError, match="every gradient is zero"):
        measure(tanh_net(), DATA, loss=lambda z, y: 0 * z.sum(), **QUIET)


def test_batchnorm_of_the_images_stays_so():
    surface = Surface(cnn(), batchnorm="batch")
    with unchanged(surface.model):
        record = worst_sharpness(surface, cnn_data(), steps=2, **QUIET)
    assert record.conditions.batchnorm == "batch"
