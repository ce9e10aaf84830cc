import random
import warnings
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.analysis import landscape
from qatviz.analysis.landscape import (
    Direction,
    between,
    eigenvector_directions,
    line,
    plane,
    random_directions,
)
from qatviz.analysis.surface import Surface
from qatviz.datasets import Split
from qatviz.evaluation import reestimate_batchnorm
from qatviz.records import Eigenvalues, Setting
from tests.analysis.common import unchanged
from tests.analysis.wide import cnn, cnn_data, low_bit, plainly, standing_in, tanh_data, tanh_net

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def student():
    return low_bit(cnn())


@pytest.fixture(scope="module")
def data():
    return cnn_data()


def at(model, space, surface, vector):
    """A fresh copy with the weights of a vector."""
    twin = standing_in(model, space)
    with torch.no_grad():
        for name, part in surface.split(vector).items():
            twin.get_parameter(name).copy_(part)
    return twin


# Directions.


def test_filters_are_as_large_as_those_of_the_weights():
    surface = Surface(cnn(), include=("biases", "batchnorm"))
    here = surface.point.clone()
    here[:9] = 0  # the first filter of the first convolution
    surface.assign(here)
    drawn = torch.Generator().manual_seed(3)
    for direction in random_directions(surface, 2, seed=3):
        parts = surface.split(direction.vector)
        for name, weight in surface.split(here).items():
            noise = torch.randn(weight.shape, generator=drawn, dtype=torch.float64)
            if weight.ndim == 1:
                assert not parts[name].any()
                continue
            for index in range(len(weight)):
                length = sum(float(n) ** 2 for n in noise[index].flatten()) ** 0.5
                norm = sum(float(w) ** 2 for w in weight[index].flatten()) ** 0.5
                torch.testing.assert_close(parts[name][index], noise[index] * norm / length)
        assert not direction.vector[:9].any()
        assert direction.unit == "filter norms"


def test_layers_and_plain_noise():
    surface = Surface(cnn(), include=("biases",))
    weights = surface.split(surface.point)
    (by_layer,) = random_directions(surface, 1, normalise="layer")
    (plain,) = random_directions(surface, 1, normalise="none")
    parts, noise = surface.split(by_layer.vector), surface.split(plain.vector)
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert not parts[name].any()
            assert not noise[name].any()
            continue
        assert parts[name].norm() == pytest.approx(weight.norm().item(), rel=1e-12)
        torch.testing.assert_close(
            parts[name] / parts[name].norm(), noise[name] / noise[name].norm()
        )
    free = torch.cat([n.flatten() for n in noise.values() if n.ndim > 1])
    assert 0.9 < free.std() < 1.1
    assert "normal" in plain.unit


def test_seeds_and_counts():
    surface = Surface(cnn())
    one, two = random_directions(surface, 2)
    assert torch.equal(random_directions(surface, 1)[0].vector, one.vector)
    assert not torch.equal(random_directions(surface, 1, seed=1)[0].vector, one.vector)
    assert abs(torch.cosine_similarity(one.vector, two.vector, dim=0)) < 0.3
    assert [one.name, two.name] == ["random direction 1", "random direction 2"]


def test_a_model_will_do_and_does_not_change(student):
    with unchanged(student):
        (direction,) = random_directions(student, 1)
    (same,) = random_directions(Surface(student), 1)
    assert torch.equal(direction.vector, same.vector)


def test_a_scalar_step_stays_where_it_is(student):
    surface = Surface(student, "latent", include=("steps",))
    (direction,) = random_directions(surface, 1)
    parts = surface.split(direction.vector)
    assert any(not p.shape for p in parts.values())
    assert all(part.any() == (part.ndim > 1) for part in parts.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"count": 0}, "count is 0"), ({"normalise": "weight"}, "got 'weight', allowed: filter")],
)
def test_refuses_other_directions(options, words):
    with pytest.raises(ValueError, match=words):
        random_directions(cnn(), **options)


def test_a_network_of_zeros_has_no_directions():
    model = tanh_net()
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="nothing would move"):
        random_directions(model)


def dense(model, surface, images, labels):
    """Gradient and Hessian over the weights of a surface, in full."""

    def loss(vector):
        parts = surface.split(vector)
        return cross_entropy(torch.func.functional_call(model, parts, (images,)), labels)

    point = surface.point.clone()
    return torch.func.grad(loss)(point), torch.func.hessian(loss)(point), loss


def eigen(surface, hessian, order, relative=False):
    values, vectors = torch.linalg.eigh(hessian.detach())
    values, vectors = values[order], vectors.T[order]
    setting = Setting(
        surface.space, surface.names, (1,), (1.0,), 23, 1.0, False, "running", relative, 0.0
    )
    known = {
        "setting": setting,
        "which": "magnitude",
        "values": values.numpy(),
        "residuals": np.zeros(len(order)),
        "vectors": vectors.numpy(),
        "products": 1,
        "complete": True,
        "backend": "qatviz",
    }
    return Eigenvalues(**{field.name: 1.0 for field in fields(Eigenvalues)} | known)


def test_along_an_eigenvector_the_loss_is_its_parabola():
    model, (images, labels) = tanh_net(), tanh_data()
    surface = Surface(model)
    gradient, hessian, _ = dense(model, surface, images, labels)
    record = eigen(surface, hessian, [-1, 0, -2])
    for index, direction in enumerate(eigenvector_directions(surface, record, 3)):
        found = line(surface, (images, labels), direction, reach=0.03, points=7, **QUIET)
        vector, value = direction.vector, record.values[index]
        assert vector.norm() == pytest.approx(abs(value) ** -0.5)
        alpha = found.x / abs(value) ** 0.5
        slope = (gradient @ vector / vector.norm()).item()
        wanted = found.centre + slope * alpha + 0.5 * value * alpha**2
        cubic = 30 * np.abs(alpha).max() ** 3
        np.testing.assert_allclose(found.loss, wanted, atol=cubic)
        bent = found.loss[0] + found.loss[-1] - 2 * found.centre
        assert bent == pytest.approx(value * alpha[-1] ** 2, rel=0.02)
        assert bent == pytest.approx(np.sign(value) * found.x[-1] ** 2, rel=0.02)
        assert f"λ = {value:.3g}" in found.direction
        assert found.unit == "1/√|λ|"


def test_relative_eigenvectors_are_turned_into_weights():
    model, (images, labels) = tanh_net(), tanh_data()
    surface = Surface(model)
    _, hessian, _ = dense(model, surface, images, labels)
    norms = torch.cat(
        [
            w.norm(dim=1, keepdim=True).expand_as(w).flatten()
            for w in model.parameters()
            if w.ndim > 1
        ]
    ).detach()
    record = eigen(surface, norms[:, None] * hessian * norms, [-1], relative=True)
    (direction,) = eigenvector_directions(surface, record, 1)
    found = line(surface, (images, labels), direction, reach=0.03, points=3, **QUIET)
    bent = found.loss[0] + found.loss[-1] - 2 * found.centre
    assert bent == pytest.approx(0.03**2, rel=0.02)


def test_a_unit_may_be_the_norm_of_the_weights():
    surface = Surface(tanh_net())
    record = eigen(surface, torch.eye(surface.size).double(), [0])
    (direction,) = eigenvector_directions(surface, record, 1, unit="norm")
    assert direction.vector.norm() == pytest.approx(surface.point.norm().item())
    assert direction.unit == "‖w‖"


def test_refuses_eigenvectors_of_something_else(student):
    surface = Surface(tanh_net())
    record = eigen(surface, torch.eye(surface.size).double(), [0])
    for other in (Surface(student), Surface(student, "float"), Surface(tanh_net(), layers=("2",))):
        with pytest.raises(ValueError, match="are no directions for"):
            eigenvector_directions(other, record, 1)
    with pytest.raises(ValueError, match="count is 2; allowed: 1 to 1"):
        eigenvector_directions(surface, record)
    with pytest.raises(ValueError, match="'inches', allowed: curvature, norm"):
        eigenvector_directions(surface, record, 1, unit="inches")
    flat = eigen(surface, torch.zeros(surface.size, surface.size).double(), [0])
    with pytest.raises(ValueError, match="eigenvalue 1 is zero"):
        eigenvector_directions(surface, flat, 1)


# Lines and planes.


@pytest.mark.parametrize("space", ["dequantized", "latent", "float"])
def test_a_plane_is_a_plain_evaluation_at_every_point(student, data, space):
    surface = Surface(student, space)
    with unchanged(student), unchanged(surface.model):
        record = plane(surface, data, reach=0.5, points=5, batch=9, **QUIET)
    first, second = random_directions(surface)
    np.testing.assert_allclose(record.x, [-0.5, -0.25, 0, 0.25, 0.5])
    for i, y in enumerate([-0.5, -0.25, 0, 0.25, 0.5]):
        for j, x in enumerate([-0.5, -0.25, 0, 0.25, 0.5]):
            vector = surface.point + x * first.vector + y * second.vector
            loss, accuracy = plainly(at(student, space, surface, vector), *data)
            assert record.loss[i, j] == pytest.approx(loss, rel=1e-10)
            assert record.accuracy[i, j] == pytest.approx(accuracy)
    assert record.complete
    assert record.conditions.space == space
    assert record.conditions.requantized == (space == "latent")
    assert record.lengths[0] == pytest.approx(first.vector.norm().item())
    cosine = (first.vector @ second.vector / first.vector.norm() / second.vector.norm()).item()
    assert record.cosine == pytest.approx(cosine)
    assert record.units == ("filter norms", "filter norms")


def test_a_line_is_the_middle_row_of_the_plane(student, data):
    direction = random_directions(student, 1)[0]
    row = plane(student, data, points=5, **QUIET).row(2)
    for found in (line(student, data, points=5, **QUIET), line(student, data, direction, points=5)):
        np.testing.assert_allclose(found.loss, row.loss, rtol=1e-12)
        np.testing.assert_array_equal(found.accuracy, row.accuracy)
        assert found.direction == row.direction == "random direction 1"
        assert found.centre == pytest.approx(plainly(student, *data)[0], rel=1e-10)


def test_latent_weights_make_a_staircase(data):
    # One weight, one step of 1: the loss can only change where w crosses a threshold.
    model = low_bit(cnn())
    surface = Surface(model, "latent", layers=("1.fc",))
    layer = model[1].fc
    vector = torch.zeros(surface.size, dtype=torch.float64)
    vector[0] = layer.weight_quantizer.step.item()
    record = line(surface, data, vector, reach=0.5, points=101, **QUIET)
    assert len(set(np.round(record.loss, 12))) == 2  # half a step either way: one threshold
    ratio = (layer.weight.flatten()[0] / layer.weight_quantizer.step).item()
    codes = np.clip(np.round(ratio + record.x), -2, 1)
    changes = np.flatnonzero(np.diff(codes))
    np.testing.assert_array_equal(np.flatnonzero(np.abs(np.diff(record.loss)) > 1e-12), changes)
    free = line(Surface(model, layers=("1.fc",)), data, vector, reach=0.5, points=11, **QUIET)
    assert len(set(np.round(free.loss, 12))) == 11


def test_a_vector_of_ones_own_says_its_length(data):
    surface = Surface(cnn())
    vector = torch.ones(surface.size).double()
    record = line(surface, data, vector, points=3, **QUIET)
    assert record.unit == f"‖d‖ = {surface.size**0.5:.3g}"
    assert record.length == pytest.approx(surface.size**0.5)


def test_batchnorm_may_be_estimated_anew(student, data):
    training = Split(*cnn_data(40, seed=9))
    record = line(student, data, points=3, reestimate=2, training=training, **QUIET)
    surface = Surface(student)
    (direction,) = random_directions(surface, 1)
    for x, loss in zip(record.x, record.loss, strict=True):
        twin = at(student, "dequantized", surface, surface.point + x * direction.vector)
        reestimate_batchnorm(twin, training, 2)
        assert loss == pytest.approx(plainly(twin, *data)[0], rel=1e-10)
    assert record.conditions.batchnorm == "re-estimated"


class Overflows(nn.Module):
    """Logits that are infinite where the weights have grown."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return torch.exp(60 * self.fc(x.flatten(1)))


def test_a_loss_that_is_not_finite_far_away_is_a_value():
    torch.manual_seed(0)
    record = line(Overflows().eval(), tanh_data(), reach=30, points=5, **QUIET)
    assert np.isfinite(record.centre)
    assert not np.isfinite(record.loss[[0, -1]]).any()
    assert record.complete


def test_a_loss_that_is_not_finite_at_the_centre_is_refused():
    model = tanh_net()
    model[-1].bias.data[0] = float("nan")
    for measure in (line, plane):
        with pytest.raises(ValueError, match="the loss of the network itself is nan"):
            measure(model, tanh_data(), points=3, **QUIET)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 4}, "points is 4; allowed: odd"),
        ({"points": 1}, "points is 1"),
        ({"reach": 0.0}, "reach is 0"),
        ({"reach": float("nan")}, "reach is nan"),
    ],
)
def test_refuses_grids_without_their_centre(options, words):
    for measure in (line, plane):
        with pytest.raises(ValueError, match=words):
            measure(tanh_net(), tanh_data(), **options, **QUIET)


def test_refuses_bad_directions():
    surface = Surface(tanh_net())
    ones = torch.ones(surface.size)
    for bad in (torch.ones(3), 0 * ones, ones * float("inf")):
        with pytest.raises(ValueError, match="direction 1 must be 45 finite numbers"):
            line(surface, tanh_data(), bad, **QUIET)
    with pytest.raises(ValueError, match="parallel"):
        plane(surface, tanh_data(), [ones, -2 * ones], **QUIET)
    with pytest.raises(ValueError, match=r"2 direction\(s\) are needed, got 1"):
        plane(surface, tanh_data(), [ones], **QUIET)


def test_a_surface_is_pictured_where_it_stands():
    surface, data = Surface(tanh_net()), tanh_data()
    surface.assign(2 * surface.point)
    wanted = cross_entropy(surface.model(data[0]), data[1]).item()
    picture = plane(surface, data, points=3, **QUIET)
    for record in (line(surface, data, points=3, **QUIET), picture):
        assert record.loss[(1,) * record.loss.ndim] == pytest.approx(wanted, rel=1e-12)
    drawn, whole = random_directions(surface, 1), random_directions(tanh_net(), 1)
    torch.testing.assert_close(drawn[0].vector, 2 * whole[0].vector)
    found = between(surface, tanh_net(), data, points=3, beyond=0, **QUIET)
    assert found.loss[0] == pytest.approx(wanted, rel=1e-12)


class Draws(nn.Module):
    """Draws in evaluation mode, from all three generators."""

    def __init__(self):
        super().__init__()
        self.net = tanh_net()

    def forward(self, x):
        noise = torch.randn(1).item() + np.random.rand() + random.random()  # noqa: NPY002
        return self.net(x) * (1 + 0.01 * noise)


@pytest.mark.parametrize("measure", [partial(line, points=3), partial(plane, points=3)])
def test_a_network_that_draws_does_not_move_the_generators(measure):
    model, data = Draws().eval(), tanh_data()
    numpy, python = np.random.get_state()[2], random.getstate()  # noqa: NPY002
    with unchanged(model):
        measure(model, data, **QUIET)
    assert numpy == np.random.get_state()[2]  # noqa: NPY002
    assert python == random.getstate()


def test_a_direction_is_shown_with_its_own_words():
    surface = Surface(tanh_net())
    mine = Direction(torch.ones(surface.size), "towards B", "steps")
    record = line(surface, tanh_data(), mine, points=3, **QUIET)
    assert (record.direction, record.unit) == ("towards B", "steps")


# Interruptions.


class Stops:
    """A loss that stops after some calls."""

    def __init__(self, calls, error=KeyboardInterrupt):
        self.calls, self.error = calls, error

    def __call__(self, logits, labels):
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return cross_entropy(logits, labels)


def test_an_interrupted_plane_is_one_of_the_middle():
    model, data = tanh_net(), tanh_data()
    with unchanged(model), pytest.warns(UserWarning, match="interrupted after 9 of 49 points"):
        record = plane(model, data, points=7, loss=Stops(9), **QUIET)
    assert not record.complete
    middle = np.zeros((7, 7), bool)
    middle[2:5, 2:5] = True
    np.testing.assert_array_equal(record.computed, middle)
    np.testing.assert_array_equal(np.isnan(record.loss), ~middle)
    whole = plane(model, data, points=7, **QUIET)
    np.testing.assert_array_equal(record.loss[middle], whole.loss[middle])
    assert "INCOMPLETE: 9 of 49 points" in repr(record)


def test_another_error_passes_and_the_model_is_as_it_was():
    model = tanh_net()
    with unchanged(model), pytest.raises(RuntimeError):
        plane(model, tanh_data(), points=7, loss=Stops(9, RuntimeError), **QUIET)


def test_interrupted_and_resumed_is_the_same_as_at_once(tmp_path):
    model, data, path = tanh_net(), tanh_data(), tmp_path / "plane.npz"
    whole = plane(model, data, points=7, **QUIET)
    counting = Stops(10**9)
    # One function by one name: a loss of another name is another loss.
    for calls, error in ((9, KeyboardInterrupt), (6, RuntimeError), (10**9, None)):
        stopping = Stops(calls, error)
        if error is KeyboardInterrupt:
            with pytest.warns(UserWarning, match="interrupted after 9 of 49"):
                plane(model, data, points=7, loss=stopping, cache=path, **QUIET)
        elif error:
            with pytest.raises(error):  # the centre, and five more
                plane(model, data, points=7, loss=stopping, cache=path, **QUIET)
        else:
            found = plane(model, data, points=7, loss=stopping, cache=path, **QUIET)
            assert 10**9 - stopping.calls == 49 - 9 - 5 + 1
    np.testing.assert_array_equal(found.loss, whole.loss)
    np.testing.assert_array_equal(found.accuracy, whole.accuracy)
    assert found.complete
    assert found.seconds > 0
    before = path.stat().st_mtime_ns
    again = plane(model, data, points=7, loss=counting, cache=path, **QUIET)
    assert 10**9 - counting.calls == 1  # the centre, always
    np.testing.assert_array_equal(again.loss, whole.loss)
    assert path.stat().st_mtime_ns == before


def test_values_are_kept_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "SAVE_EVERY", 0.0)
    path, seen = tmp_path / "plane.npz", []

    def loss(logits, labels):
        if path.exists():
            with np.load(path) as file:
                seen.append(int(file["computed"].sum()))
        return cross_entropy(logits, labels)

    plane(tanh_net(), tanh_data(), points=3, loss=loss, cache=path, **QUIET)
    assert seen == list(range(1, 9))


def test_what_was_kept_of_something_else_is_refused(tmp_path, student, data):
    path = tmp_path / "plane.npz"
    plane(student, data, points=3, cache=path, **QUIET)
    content = path.read_bytes()
    other = low_bit(cnn(seed=1))
    training = Split(*cnn_data(40, seed=9))
    cases = [
        (other, data, {}, "another model, another directions"),
        (Surface(student, "latent"), data, {}, "another model, another space, another directions"),
        (student, cnn_data(23, seed=8), {}, "another images"),
        (student, data, {"samples": 20}, "another images"),
        (student, data, {"reach": 2.0}, "another grid"),
        (student, data, {"points": 5}, "another grid"),
        (student, data, {"seed": 1}, "another directions"),
        (student, data, {"loss": Stops(10**9)}, "another loss"),
        (student, data, {"reestimate": 2, "training": training}, "another BatchNorm"),
    ]
    for model, images, options, words in cases:
        with pytest.raises(ValueError, match=rf"plane\.npz was made with {words}:"):
            plane(model, images, cache=path, **{"points": 3, **options}, **QUIET)
    assert path.read_bytes() == content
    one, two = (lambda z, y, s=s: s * cross_entropy(z, y) for s in (1, 2))
    path.unlink()
    plane(student, data, points=3, loss=one, cache=path, **QUIET)
    with pytest.raises(ValueError, match="for the network itself, which is"):
        plane(student, data, points=3, loss=two, cache=path, **QUIET)


def test_a_batch_of_another_size_is_the_same_landscape(tmp_path, student, data):
    path = tmp_path / "plane.npz"
    first = plane(student, data, points=3, cache=path, **QUIET)
    second = plane(student, data, points=3, batch=4, cache=path, **QUIET)
    np.testing.assert_array_equal(first.loss, second.loss)


# From one network to another.


def mix(a, b, t):
    twin, state = cnn(), {}
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        state[name] = (1 - t) * value + t * theirs[name] if value.is_floating_point() else value
    twin.load_state_dict(state)
    return twin.eval()


def test_a_path_moves_everything(data):
    a, b = cnn(0), cnn(1)
    with unchanged(a), unchanged(b):
        record = between(a, b, data, points=5, beyond=0.25, ends=("one", "two"), **QUIET)
    np.testing.assert_allclose(record.t, [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25])
    for t, loss, accuracy in zip(record.t, record.loss, record.accuracy, strict=True):
        wanted = plainly(mix(a, b, t), *data)
        assert (loss, accuracy) == pytest.approx(wanted, rel=1e-10)
    first, last = plainly(a, *data)[0], plainly(b, *data)[0]
    inside = record.t[1:6]
    excess = record.loss[1:6] - (1 - inside) * first - inside * last
    assert record.barrier == pytest.approx(max(excess))
    weights = [
        (p - q).square().sum().item()
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
        if p.ndim > 1
    ]
    assert record.distance == pytest.approx(sum(weights) ** 0.5)
    assert record.ends == ("one", "two")
    assert record.conditions.size == sum(
        v.numel() for v in a.state_dict().values() if v.is_floating_point()
    )


def test_a_path_of_latent_weights_moves_the_steps_and_rounds_anew(data):
    a, b = low_bit(cnn(0)), low_bit(cnn(1))
    record = between(Surface(a, "latent"), Surface(b, "latent"), data, points=3, beyond=0, **QUIET)
    middle = low_bit(cnn(0))
    middle.load_state_dict(
        {
            name: (value + b.state_dict()[name]) / 2 if value.is_floating_point() else value
            for name, value in a.state_dict().items()
        }
    )
    wanted = [plainly(m, *data)[0] for m in (a, middle, b)]
    np.testing.assert_allclose(record.loss, wanted, rtol=1e-10)
    assert record.conditions.requantized


def test_a_path_of_dequantized_weights_does_not_round(data):
    a, b = low_bit(cnn(0)), low_bit(cnn(1))
    record = between(a, b, data, points=3, beyond=0, **QUIET)
    one, two = (standing_in(m, "dequantized") for m in (a, b))
    middle = standing_in(a, "dequantized")
    middle.load_state_dict(
        {
            name: (value + two.state_dict()[name]) / 2 if value.is_floating_point() else value
            for name, value in one.state_dict().items()
        }
    )
    wanted = [plainly(m, *data)[0] for m in (one, middle, two)]
    np.testing.assert_allclose(record.loss, wanted, rtol=1e-10)
    assert not record.conditions.requantized


class Parabola(nn.Module):
    """Two weights that are the logits; with the loss below L = (w₀² − 1)²/4 + w₁."""

    def __init__(self, *weights):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights]))
        self.shift = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x):
        return (self.weight + self.shift).expand(len(x), 2)


def double_well(logits, labels):
    return ((logits[:, 0] ** 2 - 1) ** 2 / 4 + logits[:, 1]).mean()


def test_the_barrier_of_a_double_well():
    a, b = Parabola(-1.0, 0.0).eval(), Parabola(1.0, 0.5).eval()
    data = tanh_data(classes=2)
    record = between(a, b, data, loss=double_well, points=21, **QUIET)
    # On the way L = ((2t − 1)² − 1)²/4 + t/2, above the chord t/2 by ¼ at t = ½.
    assert record.barrier == pytest.approx(0.25, rel=1e-6)
    np.testing.assert_allclose(
        record.loss, ((2 * record.t - 1) ** 2 - 1) ** 2 / 4 + record.t / 2, atol=1e-6
    )
    assert len(record.t) == 31
    one_valley = between(a, Parabola(-1.0, 3.0).eval(), data, loss=double_well, **QUIET)
    assert one_valley.barrier == pytest.approx(0, abs=1e-6)
    assert one_valley.distance == pytest.approx(3)


def test_a_float_network_and_a_quantized_one_without_its_activation_quantizers(data):
    model = cnn()
    student = Surface(low_bit(model), activation_quantizers=False)
    record = between(model, student, data, points=3, beyond=0, **QUIET)
    assert record.conditions.space == "float to dequantized"
    assert record.loss[0] == pytest.approx(plainly(model, *data)[0])
    twin = standing_in(low_bit(model), "dequantized")
    for layer in (twin[1].conv1, twin[1].conv2, twin[1].conv3, twin[1].fc):
        layer.input_quantizer = nn.Identity()
    assert record.loss[2] == pytest.approx(plainly(twin, *data)[0])


def test_statistics_are_estimated_anew_on_the_way(data):
    a, b, training = cnn(0), cnn(1), Split(*cnn_data(40, seed=9))
    options = {"points": 3, "beyond": 0, **QUIET}
    record = between(a, b, data, reestimate=2, training=training, **options)
    for t, loss in zip(record.t, record.loss, strict=True):
        twin = mix(a, b, t)
        reestimate_batchnorm(twin, training, 2)
        assert loss == pytest.approx(plainly(twin, *data)[0], rel=1e-10)


def other_shape():
    model = cnn()
    model[1].fc = nn.Linear(8, 12).double()
    return model.eval()


def other_bits():
    return low_bit(cnn(), bits=4)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (cnn, lambda: low_bit(cnn()), "one network has float weights, the other dequantized"),
        (
            lambda: Surface(low_bit(cnn())),
            lambda: Surface(low_bit(cnn()), "latent"),
            "one network has dequantized weights, the other latent",
        ),
        (cnn, other_shape, r"1\.fc\.bias is \[10\] and \[12\]"),
        (lambda: low_bit(cnn()), other_bits, "their quantizers have other bits"),
        (
            cnn,
            lambda: Surface(cnn(), batchnorm="batch"),
            "BatchNorm of the images, the other not",
        ),
        (
            lambda: Surface(low_bit(cnn())),
            lambda: Surface(low_bit(cnn()), activation_quantizers=False),
            "only one has 1.conv1.input_quantizer.step",
        ),
    ],
)
def test_refuses_networks_that_are_no_pair(data, first, second, words):
    with pytest.raises(ValueError, match=words):
        between(first(), second(), data, points=3, **QUIET)


def test_refuses_an_end_without_a_loss():
    good, bad = tanh_net(), tanh_net()
    bad[-1].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="the network itself is nan"):
        between(bad, good, tanh_data(), **QUIET)
    with pytest.raises(ValueError, match="the second network is nan"):
        between(good, bad, tanh_data(), **QUIET)
    for options in ({"points": 1}, {"beyond": -0.1}):
        with pytest.raises(ValueError, match="points must be ≥ 2 and beyond ≥ 0"):
            between(good, good, tanh_data(), **options)


def test_an_interrupted_path_has_its_ends_first():
    a, b = tanh_net(), tanh_net(seed=1)
    with unchanged(a), unchanged(b), pytest.warns(UserWarning, match="after 3 of 7 points"):
        # The second end takes two: on the way, and as itself.
        record = between(a, b, tanh_data(), points=5, loss=Stops(4), **QUIET)
    assert record.computed.tolist() == [False, True, False, True, False, True, False]
    whole = between(a, b, tanh_data(), points=5, **QUIET)
    np.testing.assert_array_equal(record.loss[[1, 3, 5]], whole.loss[[1, 3, 5]])
    assert not record.complete


def test_no_warning_without_an_interruption(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line(cnn(), data, points=3)
