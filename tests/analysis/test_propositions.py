import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from qatviz.analysis import moved
from qatviz.analysis.landscape import Direction, random_directions
from qatviz.analysis.propositions import (
    convolution_mismatch,
    divergence_as_sharpness,
    equivalent_weight_change,
    multiplicative_weight_change,
    pac_bayes_bound,
    tolerated_noise,
)
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(12, 1, 6, 6, generator=GENERATOR)
LABELS = torch.arange(12) % 3
DATA = IMAGES, LABELS
QUIET = {"progress": False}


def mlp():
    torch.manual_seed(1)
    layers = nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(*layers).double().eval()


def cnn():
    torch.manual_seed(1)
    model = small_cnn(width=2, classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model.double().eval()


def low_bit(weights=partial(LSQ, bits=3), inputs=partial(LSQ, bits=3)):  # noqa: B008
    torch.manual_seed(1)
    model = quantize(small_cnn(width=2, classes=3), weights, inputs).eval()
    if inputs is not None:
        calibrate(model, [IMAGES])
    return model


class Stops(nn.Module):
    """Passes so many batches of more than two images, then interrupts."""

    def __init__(self, inner, passes, error=KeyboardInterrupt):
        super().__init__()
        self.inner, self.left, self.error = inner, [passes], error

    def forward(self, x):
        if len(x) > 2:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise self.error
        return self.inner(x)

    def __deepcopy__(self, memo):
        twin = Stops(copy.deepcopy(self.inner, memo), 0, self.error).train(self.training)
        twin.left = self.left
        return twin


def softmax(logits):
    powers = [math.exp(z - max(logits)) for z in logits]
    return [p / math.fsum(powers) for p in powers]


# Proposition 1


def by_hand(known, got, slope, labels, length):
    """KL, expected rise, ½δᵀFδ and rise, image by image, term by term."""
    rows = []
    for z, z_moved, s, label in zip(known, got, slope, labels, strict=True):
        p, q = softmax(z), softmax(z_moved)
        divergence = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected = math.fsum(a * (-math.log(b) - -math.log(a)) for a, b in zip(p, q, strict=True))
        fisher = [[(a if i == j else 0) - a * b for j, b in enumerate(p)] for i, a in enumerate(p)]
        half = 0.5 * length**2 * np.array(s) @ np.array(fisher) @ np.array(s)
        rows.append((divergence, expected, half, math.log(p[label]) - math.log(q[label])))
    return np.array(rows).T


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("of", ["weights", "images"])
def test_all_four_numbers_against_loops_with_the_jacobian_in_full(make, of):
    model, images = make(), IMAGES.double()
    surface = Surface(model)
    generator = torch.Generator().manual_seed(3)
    shape = (surface.size,) if of == "weights" else IMAGES.shape
    given = torch.randn(shape, generator=generator, dtype=torch.float64)
    with unchanged(model):
        found = divergence_as_sharpness(model, DATA, given, of=of, lengths=(0.3, 0.01), label="net")
    assert (found.label, found.of, found.space, found.samples) == ("net", of, "float", 12)

    def logits(shift):
        if of == "images":
            return model(images + shift)
        parts = surface.split(surface.point + shift)
        return torch.func.functional_call(model, parts, (images,))

    if of == "weights":
        unit = given / math.sqrt(sum(v * v for v in given.tolist()))
        jacobian = torch.func.jacrev(logits)(torch.zeros_like(unit))  # images, classes, size
        slope = (jacobian @ unit).detach()
    else:
        unit = torch.stack([image / image.square().sum().sqrt() for image in given])
        jacobian = torch.func.jacrev(logits)(torch.zeros_like(unit))
        slope = torch.stack([
            (jacobian[i, :, i] * unit[i]).sum((1, 2, 3)).detach() for i in range(12)
        ])  # fmt: skip
    for index, length in enumerate((0.3, 0.01)):
        with torch.no_grad():
            got = logits(length * unit).tolist()
        known = logits(0 * unit).tolist()
        wanted = by_hand(known, got, slope.tolist(), LABELS.tolist(), length)
        rows = found.divergence, found.expected_rise, found.quadratic, found.rise
        for row, expected in zip(rows, wanted, strict=True):
            np.testing.assert_allclose(row[index], expected, rtol=1e-7, atol=1e-12)
    assert found.identity_error < 1e-10


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("of", ["weights", "images"])
def test_the_ratio_goes_to_one_with_the_length_and_the_rise_need_not_be_positive(make, of):
    found = divergence_as_sharpness(make(), DATA, of=of, lengths=(0.1, 0.01, 0.001, 1e-4))
    off = np.abs(found.ratio - 1)
    assert off[2] < 0.01
    assert off[3] < 1e-3
    if make is mlp:  # smooth: ten times closer at a tenth of the length, by the third order
        assert (off[1:] < 0.3 * off[:-1]).all()
    assert (found.divergence >= 0).all()
    assert (found.rise < 0).any()


def test_an_own_direction_may_come_with_a_name_and_only_where_it_points_counts():
    model = mlp()
    (direction,) = random_directions(model, 1, seed=0)
    long = Direction(7 * direction.vector, "mine", "norm")
    a, b = (divergence_as_sharpness(model, DATA, d, lengths=(0.1,)) for d in (None, long))
    np.testing.assert_allclose(a.divergence, b.divergence, rtol=1e-9)
    assert (a.direction, b.direction) == ("random direction 1", "mine")
    other = divergence_as_sharpness(model, DATA, lengths=(0.1,), seed=1)
    assert not np.allclose(a.divergence, other.divergence)


def test_the_fisher_form_of_a_quantized_network_is_that_of_the_straight_through_gradient():
    model = low_bit()
    surface = Surface(model)
    surface.model.double()
    point = surface.point.double()
    direction = torch.randn(surface.size, generator=torch.Generator().manual_seed(0)).double()
    unit = direction / direction.norm()
    with unchanged(model):
        found = divergence_as_sharpness(model, DATA, direction, lengths=(0.1,))
    assert found.space == "dequantized"
    for index in range(12):
        surface.assign(point)
        logits = surface.model(IMAGES[index : index + 1].double())[0]
        slope = []
        for z in logits:
            parts = torch.autograd.grad(
                z, surface.parameters, retain_graph=True, materialize_grads=True
            )
            slope.append(surface.flatten(parts) @ unit)
        expected = by_hand(
            [logits.tolist()], [logits.tolist()], [[s.item() for s in slope]], [0], 0.1
        )
        assert found.quadratic[0, index] == pytest.approx(expected[2, 0], rel=1e-6)


def test_with_rounded_activations_the_jumps_of_rounding_do_not_shrink_with_the_length():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3)).eval()
    model = quantize(model, None, partial(LSQ, bits=3, signed=False))
    model[1].input_quantizer.init_from(torch.ones(1))
    model[1].input_quantizer.step.data.fill_(1.0)
    images = torch.full((1, 1, 1, 1), 2.5001)  # rounds to 3; a little less, to 2
    found = divergence_as_sharpness(
        model, (images, torch.zeros(1).long()), -images, of="images", lengths=(1e-2, 1e-3)
    )
    with torch.no_grad():
        known, got = (model[1](torch.tensor([[v]]))[0].double().tolist() for v in (3.0, 2.0))
    jump = by_hand([known], [got], [[0.0] * 3], [0], 1)[0, 0]
    np.testing.assert_allclose(found.divergence[:, 0], [jump, jump], rtol=1e-5)
    assert found.ratio[1] == pytest.approx(100 * found.ratio[0])


def test_without_rounded_activations_a_quantized_network_has_the_ratio_one_too():
    surface = Surface(low_bit(), activation_quantizers=False)
    found = divergence_as_sharpness(surface, DATA, lengths=(1e-4,))
    assert found.ratio[0] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("of", ["weights", "images"])
def test_images_that_are_not_kept_give_the_same_numbers(of, monkeypatch):
    options = {"of": of, "lengths": [0.1]}
    kept = divergence_as_sharpness(cnn(), DATA, **options)
    monkeypatch.setattr(moved, "KEPT", 0)
    again = divergence_as_sharpness(cnn(), DATA, **options)
    np.testing.assert_array_equal(again.divergence, kept.divergence)


def test_many_images_pass_in_parts():
    model, images = mlp(), torch.randn(130, 1, 6, 6, generator=GENERATOR)
    labels = torch.arange(130) % 3
    noise = torch.randn(images.shape, generator=GENERATOR)
    found = divergence_as_sharpness(model, (images, labels), noise, of="images", lengths=(0.5,))
    last = divergence_as_sharpness(
        model, (images[120:], labels[120:]), noise[120:], of="images", lengths=(0.5,)
    )
    np.testing.assert_allclose(found.rise[:, 120:], last.rise, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "biases"}, "of is 'biases'; allowed: weights, images"),
        ({"lengths": ()}, "lengths"),
        ({"lengths": (0.0,)}, "each above 0"),
        ({"lengths": (float("inf"),)}, "each above 0"),
        ({"direction": torch.ones(3)}, r"direction has shape \(3,\)"),
        ({"direction": torch.zeros(195)}, "points nowhere"),
        ({"direction": torch.full((195,), float("nan"))}, "points nowhere"),
        ({"direction": torch.ones(195), "of": "images"}, r"allowed: \(12, 1, 6, 6\)"),
        ({"samples": 99}, "samples is 99"),
    ],
)
def test_what_divergence_as_sharpness_refuses(options, words):
    model = mlp()
    with unchanged(model), pytest.raises(ValueError, match=words):
        divergence_as_sharpness(model, DATA, **options)


def test_batchnorm_of_the_images_and_training_mode_are_refused():
    with pytest.raises(ValueError, match="statistics of the images"):
        divergence_as_sharpness(Surface(cnn(), batchnorm="batch"), DATA)
    with pytest.raises(ValueError, match="training mode"):
        divergence_as_sharpness(cnn().train(), DATA)


def test_an_exception_in_the_middle_leaves_the_model_as_it_was():
    model = Stops(mlp(), 2, RuntimeError).eval()
    with unchanged(model), pytest.raises(RuntimeError):
        divergence_as_sharpness(model, DATA)


# Proposition 2


def test_the_bound_against_its_formula():
    found = pac_bayes_bound(0.1, 3.0, 0.5, 400, 0.05)
    # KL = 9/0.5 = 18; ln(2·20/0.05) = ln 800.
    assert found.divergence == pytest.approx(18)
    assert found.complexity == pytest.approx(math.sqrt((18 + math.log(800)) / 800))
    assert found.bound == pytest.approx(0.1 + found.complexity)
    assert not found.vacuous
    assert pac_bayes_bound(0.1, 300.0, 0.5, 400).vacuous


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("error", 1.1),
        ("error", -0.1),
        ("error", float("nan")),
        ("distance", -1.0),
        ("distance", float("inf")),
        ("sigma", 0.0),
        ("images", 0),
        ("confidence", 1.0),
        ("confidence", 0.0),
    ],
)
def test_the_bound_of_impossible_numbers_is_refused(name, value):
    given = {"error": 0.1, "distance": 1.0, "sigma": 0.1, "images": 10, "confidence": 0.1}
    with pytest.raises(ValueError, match=f"{name} is"):
        pac_bayes_bound(**(given | {name: value}))


def test_tolerated_noise_against_a_loop():
    model, sigmas = cnn(), (0.01, 0.3, 3.0)
    with torch.no_grad():
        labels = model(IMAGES.double()).argmax(1)  # all right without noise
    with unchanged(model):
        found = tolerated_noise(
            model, (IMAGES, labels), sigmas=sigmas, draws=4, points=20, label="net", **QUIET
        )
    assert (found.label, found.samples, found.space, found.draws) == ("net", 12, "float", 4)
    assert (found.clean_accuracy, found.complete, found.points) == (1.0, True, 20)
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert found.size == sum(w.numel() for w in weights)
    for draw in range(4):
        seed = int(np.random.SeedSequence([0, draw]).generate_state(1)[0])
        noise = torch.randn(found.size, generator=torch.Generator().manual_seed(seed)).double()
        for index, sigma in enumerate(sigmas):
            twin, start = copy.deepcopy(model), 0
            with torch.no_grad():
                for w in (p for p in twin.parameters() if p.ndim > 1):
                    w += sigma * noise[start : start + w.numel()].view(w.shape)
                    start += w.numel()
                right = (twin(IMAGES.double()).argmax(1) == labels).tolist()
            assert found.accuracy[index, draw] == pytest.approx(sum(right) / 12)
    lost = [1 - sum(row) / 4 for row in found.accuracy.tolist()]
    assert lost[0] <= 0.2 < lost[2]
    fine = [s for s, drop in zip(sigmas, lost, strict=True) if drop <= 0.2 + 1e-12]
    assert found.tolerated == max(fine)


def test_an_interrupted_search_keeps_what_it_has():
    model = Stops(mlp(), 4).eval()  # the clean one and three more
    with unchanged(model), pytest.warns(UserWarning, match="after 3 of 4"):
        found = tolerated_noise(model, DATA, sigmas=(0.1, 0.2), draws=2, **QUIET)
    assert not found.complete
    assert np.isnan(found.accuracy).tolist() == [[False, False], [False, True]]
    model = Stops(mlp(), 1).eval()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        tolerated_noise(model, DATA, **QUIET)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (-1.0,)}, "each above 0"),
        ({"draws": 0}, "draws is 0"),
        ({"points": -1.0}, "points is -1"),
        ({"points": float("nan")}, "points is nan"),
    ],
)
def test_what_tolerated_noise_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        tolerated_noise(mlp(), DATA, **options, **QUIET)


# Proposition 3


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_change_of_a_weight_for_one_input_is_exact_of_rank_one_and_the_smallest():
    weight, x, delta = drawn(7, 11), drawn(11, seed=1), drawn(11, seed=2)
    found = equivalent_weight_change(weight, x, delta)
    for row in range(7):
        for column in range(11):
            wanted = sum(weight[row, k] * delta[k] for k in range(11)) * x[column]
            expected = (wanted / sum(v * v for v in x)).item()
            assert found.change[row, column] == pytest.approx(expected)
    np.testing.assert_allclose(
        (weight + torch.tensor(found.change)) @ x, weight @ (x + delta), atol=1e-12
    )
    assert found.residual < 1e-12
    assert np.linalg.matrix_rank(found.change) == 1
    assert found.norm <= found.bound
    # The least squares of minimum norm: W·δ times the pseudo-inverse of the column x.
    smallest = (weight @ delta)[:, None].numpy() @ np.linalg.pinv(x[:, None].numpy())
    np.testing.assert_allclose(found.change, smallest, atol=1e-12)
    widest = np.linalg.svd(weight.numpy())[1][0]
    assert found.bound == pytest.approx((widest * delta.norm() / x.norm()).item())


def test_scaling_features_is_exact_for_all_inputs():
    weight, x, u = drawn(3, 5), drawn(8, 5, seed=1), drawn(5, seed=2)
    found = multiplicative_weight_change(weight, x, u)
    np.testing.assert_allclose(found.change, [[w * f for w, f in zip(r, u)] for r in weight])  # noqa: B905
    np.testing.assert_allclose(
        x.numpy() @ (weight.numpy() + found.change).T, (x * (1 + u)).numpy() @ weight.numpy().T
    )
    assert found.residual < 1e-12
    assert math.isnan(found.bound)


def test_scaling_channels_is_exact_for_a_convolution():
    weight, x, u = drawn(4, 2, 3, 3), drawn(3, 2, 6, 6, seed=1), drawn(2, seed=2)
    found = multiplicative_weight_change(weight, x, u, stride=2, padding=1)
    scaled = x.clone()
    for channel in range(2):
        scaled[:, channel] *= 1 + u[channel]
    one = conv2d(x, weight + torch.tensor(found.change), stride=2, padding=1)
    torch.testing.assert_close(one, conv2d(scaled, weight, stride=2, padding=1))
    assert found.residual < 1e-12
    assert found.wanted.shape == (3, 4, 3, 3)


def patches_of(image, size, stride, padding):
    """One row per position, by slicing."""
    channels, height, width = image.shape
    framed = np.zeros((channels, height + 2 * padding, width + 2 * padding))
    framed[:, padding : padding + height, padding : padding + width] = image
    return np.array([
        framed[:, i : i + size, j : j + size].flatten()
        for i in range(0, framed.shape[1] - size + 1, stride)
        for j in range(0, framed.shape[2] - size + 1, stride)
    ])  # fmt: skip


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_the_mismatch_of_a_convolution_against_the_pseudo_inverse(stride, padding):
    weight, images, moved = drawn(4, 2, 3, 3), drawn(3, 2, 9, 9, seed=1), drawn(3, 2, 9, 9, seed=2)
    found = convolution_mismatch(
        weight, images, moved, stride=stride, padding=padding, label="noise"
    )
    kernel = weight.numpy().reshape(4, -1)
    before = [patches_of(i.numpy(), 3, stride, padding) for i in images]
    after = [patches_of(i.numpy(), 3, stride, padding) for i in moved]

    def residual(p, q):
        wanted = (q - p) @ kernel.T
        change = np.linalg.pinv(p) @ wanted
        return np.linalg.norm(p @ change - wanted) / np.linalg.norm(wanted)

    expected = [residual(p, q) for p, q in zip(before, after, strict=True)]
    np.testing.assert_allclose(found.alone, expected, atol=1e-10)
    assert found.together == pytest.approx(residual(np.concatenate(before), np.concatenate(after)))
    assert (found.unknowns, found.positions) == (18, len(before[0]))
    assert (found.height, found.width, found.samples, found.label) == (9, 9, 3, "noise")


@pytest.mark.parametrize(("side", "expected"), [(8, 0.75), (16, 0.94), (32, 0.99)])
def test_white_noise_on_white_images_is_no_change_of_a_kernel(side, expected):
    # The numbers of the specification: three channels, 3×3 kernels, padding 1.
    weight, draws = drawn(16, 3, 3, 3), 24
    images = drawn(draws, 3, side, side, seed=1)
    noise = drawn(draws, 3, side, side, seed=2)
    found = convolution_mismatch(weight, images, images + 0.1 * noise, padding=1)
    assert found.mean == pytest.approx(expected, abs=0.012)
    # A random subspace of 27 of side² dimensions holds that share.
    assert found.mean == pytest.approx(math.sqrt(1 - 27 / side**2), abs=0.012)
    assert found.white == pytest.approx(math.sqrt(1 - 27 / side**2))
    # A kernel for all images has as many positions as they have together.
    assert found.together == pytest.approx(math.sqrt(1 - 27 / (draws * side**2)), abs=0.012)


def test_a_brighter_image_is_a_change_of_a_kernel_and_so_is_a_single_pixel():
    weight, images = drawn(4, 2, 3, 3), drawn(2, 2, 8, 8, seed=1)
    brighter = convolution_mismatch(weight, images, 1.3 * images, padding=1)
    assert brighter.alone.max() < 1e-12
    assert brighter.together < 1e-12
    # A linear layer: images of one pixel; one is exact, five are not with four features.
    weight, images, moved = drawn(3, 4, 1, 1), drawn(5, 4, 1, 1, seed=1), drawn(5, 4, 1, 1, seed=2)
    found = convolution_mismatch(weight, images, moved)
    assert found.alone.max() < 1e-12
    assert found.together > 0.01
    assert convolution_mismatch(weight, images[:4], moved[:4]).together < 1e-10


def test_an_image_that_does_not_change_has_nothing_left():
    weight, images = drawn(4, 2, 3, 3), drawn(2, 2, 8, 8, seed=1)
    moved = images.clone()
    moved[1] += drawn(2, 8, 8, seed=2)
    found = convolution_mismatch(weight, images, moved)
    assert found.alone[0] == 0
    assert found.alone[1] > 0.1


W2, W4, X = torch.ones(2, 3), torch.ones(2, 3, 2, 2), torch.ones(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("function", "given", "words"),
    [
        (equivalent_weight_change, (W4, torch.ones(3), torch.ones(3)), "weight has shape"),
        (equivalent_weight_change, (W2, torch.ones(2), torch.ones(2)), r"x \(2,\)"),
        (equivalent_weight_change, (W2, torch.ones(3), torch.ones(2)), "delta"),
        (equivalent_weight_change, (W2, torch.zeros(3), torch.ones(3)), "x is zero"),
        (equivalent_weight_change, (W2, torch.ones(3) / 0, torch.ones(3)), "x has numbers"),
        (multiplicative_weight_change, (W2, X, torch.ones(3)), "weight has shape"),
        (multiplicative_weight_change, (W4, X, torch.ones(4)), r"factors \(4,\)"),
        (convolution_mismatch, (W4, X[:, :2], X[:, :2]), "weight has shape"),
        (convolution_mismatch, (W4, X, X[..., :3]), "moved has shape"),
        (convolution_mismatch, (W4, X, X), "does not change"),
        (convolution_mismatch, (W4, X, X / 0), "moved has numbers"),
    ],
)
def test_what_the_third_proposition_refuses(function, given, words):
    with pytest.raises(ValueError, match=words):
        function(*given)


def test_a_surface_stays_where_it_was():
    surface = Surface(low_bit(), layers=("conv2",))
    point = surface.point.clone()
    with unchanged(surface.model):
        found = divergence_as_sharpness(surface, DATA, lengths=(0.1,))
        noise = tolerated_noise(surface, DATA, sigmas=(1.0,), draws=1, **QUIET)
    assert (found.space, noise.space, noise.size) == ("dequantized", "dequantized", surface.size)
    assert surface.point.dtype == torch.float32
    assert torch.equal(surface.point, point)
