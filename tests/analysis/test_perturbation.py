import copy
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from qatviz import augment
from qatviz.analysis.perturbation import (
    accuracy_by_samples,
    corruption_accuracy,
    input_noise,
    view_consistency,
    weight_noise,
)
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.corruptions import CORRUPTIONS, corrupt
from qatviz.datasets import Split
from qatviz.evaluation import evaluate, predict, reestimate_batchnorm
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ, NIPQ, AffineLSQ, DoReFa
from tests.analysis.common import unchanged

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(30, 1, 6, 6, generator=GENERATOR)
LABELS = torch.arange(30) % 3
DATA = Split(IMAGES, LABELS, (0.5,), (0.3,))
THREE = partial(LSQ, bits=3)
quiet = {"progress": False}


def linear(outputs=3, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, outputs)).eval()


def student(weights=THREE, seed=1):
    torch.manual_seed(seed)
    model = quantize(small_cnn(width=2, classes=3), weights, partial(LSQ, bits=4)).eval()
    calibrate(model, DATA.batches(30))
    return model


class Spy(nn.Module):
    """What a model was given and what it answered; copies write into the same lists."""

    def __init__(self, inner, stop_at=None):
        super().__init__()
        self.inner, self.seen, self.answers, self.stop_at = inner, [], [], stop_at

    def forward(self, x):
        if len(self.answers) == self.stop_at:
            raise KeyboardInterrupt
        y = self.inner(x)
        if len(x) > 2:  # not what is tried on entry
            self.seen.append(x.clone())
            self.answers.append(y.double())
        return y

    def __deepcopy__(self, memo):
        twin = Spy(copy.deepcopy(self.inner, memo), self.stop_at).train(self.training)
        twin.seen, twin.answers = self.seen, self.answers
        return twin


def softmax(logits):
    powers = [math.exp(z) for z in logits]
    return [p / sum(powers) for p in powers]


def by_hand(clean, logits):
    """Accuracy, cross-entropy, KL from clean and share of flips, image by image."""
    right = loss = divergence = flips = 0
    for known, got, label in zip(clean.tolist(), logits.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(known), softmax(got)
        right += got.index(max(got)) == label
        flips += got.index(max(got)) != known.index(max(known))
        loss -= math.log(q[label])
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    n = len(LABELS)
    return right / n, loss / n, divergence / n, flips / n


# Noise on images


class Breaks(nn.Module):
    """A network whose answers are not finite where a pixel is above 3."""

    def __init__(self, value):
        super().__init__()
        self.inner, self.value = linear(), value

    def forward(self, x):
        logits = self.inner(x)
        logits[(x.flatten(1).amax(1) > 3), 1] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_answers_that_noise_breaks_are_wrong_and_their_loss_is_infinite(value):
    model = Spy(Breaks(value)).eval()
    found = input_noise(model, DATA, sigmas=(0.01, 1.0), draws=2, **quiet)
    clean, *noisy = model.answers
    for index in (0, 1):
        for draw, logits in enumerate(noisy[index::2]):
            broken = [not all(map(math.isfinite, row)) for row in logits.tolist()]
            right = flips = 0
            for known, got, bad, label in zip(
                clean.tolist(), logits.tolist(), broken, LABELS.tolist(), strict=True
            ):
                right += not bad and got.index(max(got)) == label
                flips += bad or got.index(max(got)) != known.index(max(known))
            assert any(broken) == bool(index)
            assert found.accuracy[index, draw] == pytest.approx(right / 30)
            assert found.flips[index, draw] == pytest.approx(flips / 30)
    assert np.isfinite(found.loss).tolist() == [[True] * 2, [False] * 2]
    assert np.isposinf(found.divergence[1]).all()
    assert np.isfinite(found.mean_relative_variance).tolist() == [True, False]
    assert found.draws == 2


def test_a_single_image_gives_no_unit_of_variance():
    found = input_noise(linear(), DATA, samples=1, draws=2, **quiet)
    assert found.clean_variance == 0
    assert np.isnan(found.mean_relative_variance).all()


def test_input_noise_against_loops_over_what_the_model_answered():
    model = Spy(linear()).eval()
    with unchanged(model):
        found = input_noise(model, DATA, sigmas=(0.1, 0.4), draws=3, label="net", **quiet)
    assert (found.label, found.samples, found.draws, found.complete) == ("net", 30, 3, True)
    clean, *noisy = model.answers
    images, *disturbed = model.seen
    assert len(noisy) == 6
    assert (found.clean_accuracy, found.clean_loss) == pytest.approx(by_hand(clean, clean)[:2])
    for index, sigma in enumerate((0.1, 0.4)):
        mine = noisy[index::2]
        for draw, logits in enumerate(mine):
            got = [
                getattr(found, name)[index, draw]
                for name in ("accuracy", "loss", "divergence", "flips")
            ]
            assert got == pytest.approx(by_hand(clean, logits), abs=1e-7)
        # The same noise at every σ, of its size.
        first = (disturbed[index] - images) / sigma
        torch.testing.assert_close(first, (disturbed[0] - images) / 0.1, rtol=1e-3, atol=1e-4)
        for image in range(30):
            logits = np.array([m[image].tolist() for m in mine])
            expected = sum(
                sum((v - sum(column) / 3) ** 2 for v in column) / 2 for column in logits.T
            )
            assert found.variance[index, image] == pytest.approx(expected / 3)
    columns = np.array(clean.tolist()).T
    expected = sum(sum((v - c.mean()) ** 2 for v in c) / 30 for c in columns) / 3
    assert found.clean_variance == pytest.approx(expected)


def test_the_variance_of_a_linear_model_is_that_of_its_weights():
    model = linear()
    found = input_noise(model, DATA, sigmas=(0.05, 0.3), draws=300, **quiet)
    squared = model[1].weight.square().sum().item() / 3
    # 300 draws for each of 30 images: 1 % of chance.
    np.testing.assert_allclose(
        found.variance.mean(1), np.array([0.05, 0.3]) ** 2 * squared, rtol=0.03
    )


def test_the_divergence_of_a_linear_model_under_little_noise_is_that_of_its_fisher_matrix():
    model, sigma = linear(), 0.01
    found = input_noise(model, DATA, sigmas=(sigma,), draws=300, **quiet)
    with torch.no_grad():
        chances = model(DATA.normalise(IMAGES)).softmax(1).double()
        weight = model[1].weight.double()
    expected = 0.0
    for p in chances:
        fisher = torch.diag(p) - torch.outer(p, p)
        expected += 0.5 * sigma**2 * (weight.T @ fisher @ weight).trace().item() / 30
    assert found.divergence.mean() == pytest.approx(expected, rel=0.03)


def test_flips_of_a_line_are_those_of_the_normal_distribution():
    model = linear(outputs=2)
    model[1].weight.data[0] = 0
    model[1].bias.data[0] = 0
    sigma, labels = 0.3, LABELS.clamp(max=1)
    data = Split(IMAGES, labels, (0.5,), (0.3,))
    found = input_noise(model, data, sigmas=(sigma,), draws=400, **quiet)
    margins = model(DATA.normalise(IMAGES))[:, 1]
    distance = (margins.abs() / (sigma * model[1].weight[1].norm())).tolist()
    expected = sum(0.5 * math.erfc(d / math.sqrt(2)) for d in distance) / 30
    assert found.flips.mean() == pytest.approx(expected, abs=0.015)


def test_no_noise_changes_nothing_and_seeds_decide():
    model = student()
    none = input_noise(model, DATA, sigmas=(0.0,), draws=2, **quiet)
    assert none.flips.tolist() == none.divergence.tolist() == [[0, 0]]
    assert none.accuracy.tolist() == [[none.clean_accuracy] * 2]
    assert not none.variance.any()
    one, same, other = (input_noise(model, DATA, draws=2, seed=s, **quiet) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.loss, same.loss)
    assert (one.loss != other.loss).all()
    assert (one.loss[:, 0] != one.loss[:, 1]).all()
    more = input_noise(model, DATA, draws=3, seed=3, **quiet)
    np.testing.assert_array_equal(more.loss[:, :2], one.loss)


def test_the_first_images_and_another_loss_can_be_asked_for():
    def wrong(logits, labels):
        return (logits.argmax(1) != labels).double().mean()

    found = input_noise(student(), DATA, samples=7, draws=1, loss=wrong, **quiet)
    assert found.samples == 7
    np.testing.assert_allclose(found.loss, 1 - found.accuracy)
    assert np.isnan(found.variance).all()  # one draw has none


def test_ctrl_c_keeps_the_draws_that_were_made():
    model = Spy(linear(), stop_at=6).eval()
    with unchanged(model), pytest.warns(UserWarning, match="interrupted after 5 of 12"):
        found = input_noise(model, DATA, sigmas=(0.1, 0.2), draws=6, **quiet)
    assert not found.complete
    assert np.isfinite(found.accuracy).sum(1).tolist() == [3, 2]
    assert found.draws == 2
    whole = input_noise(linear(), DATA, sigmas=(0.1, 0.2), draws=2, **quiet)
    np.testing.assert_allclose(found.loss[:, :2], whole.loss)
    np.testing.assert_allclose(found.variance[1], whole.variance[1])


def test_ctrl_c_before_the_first_draw_is_passed_on():
    model = Spy(linear(), stop_at=1).eval()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        input_noise(model, DATA, **quiet)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 0}, "draws is 0; allowed: 1 or more"),
        ({"sigmas": (0.1, -0.1)}, r"sigmas are \[0.1, -0.1\]; allowed: 0 or more"),
        ({"sigmas": (float("nan"),)}, "sigmas are"),
        ({"sigmas": ()}, "sigmas is empty"),
    ],
)
def test_input_noise_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        input_noise(linear(), DATA, **options, **quiet)


@pytest.mark.parametrize(
    "measure",
    [
        input_noise,
        corruption_accuracy,
        weight_noise,
        partial(view_consistency, view=augment.flip),
        accuracy_by_samples,
    ],
)
def test_a_model_in_training_mode_is_refused(measure):
    model = student().train()
    with unchanged(model), pytest.raises(ValueError, match="training mode"):
        measure(model, DATA)


# Corruptions


def test_corruptions_without_chance_against_the_corrupted_data_set():
    model = student()
    with unchanged(model):
        found = corruption_accuracy(
            model, DATA, kinds=("jpeg", "contrast"), severities=(1, 4), draws=3, **quiet
        )
    assert found.families == ("digital", "weather")
    assert found.severities.tolist() == [1, 4]
    for i, kind in enumerate(("jpeg", "contrast")):
        for j, severity in enumerate((1, 4)):
            changed = Split(corrupt(IMAGES, kind, severity), LABELS, DATA.mean, DATA.std)
            logits, _ = predict(model, changed)
            right, loss, _, _ = by_hand(logits, logits)
            assert found.accuracy[i, j].tolist() == [pytest.approx(right)] * 3
            assert found.loss[i, j].tolist() == [pytest.approx(loss)] * 3
    assert found.clean_accuracy == pytest.approx(evaluate(model, DATA))


def test_random_corruptions_differ_from_draw_to_draw_and_not_from_network_to_network():
    models = [Spy(linear(seed=s)).eval() for s in (1, 2)]
    options = {"kinds": ("gaussian_noise", "jpeg"), "severities": (1, 5), "draws": 3} | quiet
    found = [corruption_accuracy(model, DATA, **options) for model in models]
    for a, b in zip(models[0].seen, models[1].seen, strict=True):
        assert torch.equal(a, b)
    # Clean; then two kinds and severities; then twice the random kind only.
    assert len(models[0].seen) == 1 + 4 + 2 + 2
    noise = [models[0].seen[k] - models[0].seen[0] for k in (1, 5, 7)]
    sigma = CORRUPTIONS["gaussian_noise"].amounts[0] / 0.3
    for one, other in pairwise(noise):
        assert not torch.allclose(one, other, atol=0.1)
        assert 0.8 * sigma < one.std() < sigma  # some of it is clipped
    assert len(set(found[0].loss[0, 0].tolist())) == 3
    assert len(set(found[0].loss[1, 0].tolist())) == 1
    again = corruption_accuracy(models[0], DATA, seed=1, **options)
    assert (again.loss[0] != found[0].loss[0]).all()


def test_uint8_images_are_corrupted_as_they_are_stored():
    bytes_ = Split((255 * IMAGES).round().to(torch.uint8), LABELS, (0.5,), (0.3,))
    model = Spy(linear()).eval()
    corruption_accuracy(model, bytes_, kinds=("posterize",), severities=(5,), **quiet)
    levels = (model.seen[1] * 0.3 + 0.5).unique().tolist()
    assert levels == pytest.approx([0, 128 / 255], abs=1e-6)


def test_ctrl_c_keeps_the_cells_that_were_measured():
    model = Spy(linear(), stop_at=4).eval()
    with unchanged(model), pytest.warns(UserWarning, match="corruption_accuracy: interrupted"):
        found = corruption_accuracy(
            model, DATA, kinds=("jpeg", "rotate"), severities=(1, 2), draws=2, **quiet
        )
    assert not found.complete
    made = np.isfinite(found.accuracy)
    assert made.tolist() == [[[True, True], [True, True]], [[True, False], [False, False]]]


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ((DATA.normalise(IMAGES), LABELS), {}, "before normalisation"),
        (DATA, {"kinds": ("fog",)}, "kind is 'fog'"),
        (DATA, {"severities": (6,)}, "severity is 6"),
        (DATA, {"kinds": ()}, "kinds is empty"),
        (DATA, {"draws": 0}, "draws is 0"),
    ],
)
def test_corruptions_that_cannot_be_are_refused(data, options, words):
    with pytest.raises(ValueError, match=words):
        corruption_accuracy(linear(), data, **options, **quiet)


# Noise on weights


@pytest.fixture
def points(monkeypatch):
    """Every point that a surface was moved to."""
    found, assign = [], Surface.assign

    def watch(self, vector):
        found.append((self, vector.clone()))
        assign(self, vector)

    monkeypatch.setattr(Surface, "assign", watch)
    return found


def test_filters_move_by_a_share_of_their_length(points):
    model = student()
    with unchanged(model):
        found = weight_noise(model, DATA, levels=(0.1, 0.3), draws=2, label="net", **quiet)
    assert (found.kind, found.space, found.batchnorm) == ("filter", "dequantized", "running")
    assert (found.label, found.samples, found.complete) == ("net", 30, True)
    (surface, clean), *moved = points
    for (_, point), level in zip(moved, (0.1, 0.3, 0.1, 0.3), strict=True):
        for name, change in surface.split(point - clean).items():
            base = surface.split(clean)[name]
            assert torch.equal(base, model.get_submodule(name[:-7]).quantized_weight())
            for row, filter_ in zip(change, base, strict=True):
                expected = level * filter_.norm().item()
                assert row.norm().item() == pytest.approx(expected, rel=1e-3)
    (_, small), (_, large), *_ = moved
    torch.testing.assert_close(3 * (small - clean), large - clean, rtol=1e-3, atol=1e-5)


def test_multiplied_weights_change_by_a_normal_share(points):
    weight_noise(linear(), DATA, levels=(0.05, 0.2), kind="multiplicative", draws=20, **quiet)
    (surface, clean), *moved = points
    assert surface.space == "float"
    shares = torch.stack([(point - clean) / clean for _, point in moved])
    assert shares[::2].std().item() == pytest.approx(0.05, rel=0.06)  # 2160 numbers
    assert abs(shares[::2].mean().item()) < 4 * 0.05 / 2160**0.5
    torch.testing.assert_close(shares[::2] * 4, shares[1::2], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("space", ["dequantized", "latent", "float"])
def test_answers_are_those_of_a_copy_with_the_weights_of_the_point(points, space):
    model = student()
    found = weight_noise(model, DATA, levels=(0.3,), draws=2, space=space, **quiet)
    assert found.space == space
    surface = points[0][0]
    twin = copy.deepcopy(model)
    for layer in (twin.conv1, twin.conv2, twin.conv3, twin.fc):
        if space != "latent":
            layer.weight_quantizer = nn.Identity()
        if space == "float":
            layer.input_quantizer = nn.Identity()
    for draw, (_, point) in enumerate(points[1:]):
        for name, weight in surface.split(point).items():
            twin.get_parameter(name).data = weight
        logits, _ = predict(twin, DATA)
        right, loss, _, _ = by_hand(logits, logits)
        assert found.accuracy[0, draw] == pytest.approx(right)
        assert found.loss[0, draw] == pytest.approx(loss, rel=1e-5)


def test_a_quadratic_loss_rises_by_its_curvature():
    def squares(logits, labels):
        return logits.square().mean()

    model = linear()
    model[1].bias.data.zero_()
    found = weight_noise(
        model, DATA, levels=(0.1,), kind="multiplicative", draws=400, loss=squares, **quiet
    )
    # E(Wx + η(W∘ε)x)² − (Wx)² = η² ∑ w²x², over three logits.
    x = DATA.normalise(IMAGES).flatten(1).double()
    expected = 0.01 * (x.square() @ model[1].weight.double().square().T).mean().item()
    assert found.rise[0] == pytest.approx(expected, abs=4 * found.rise_error[0])
    assert found.rise_error[0] < 0.2 * expected


def test_noise_below_half_a_step_does_not_reach_a_rounded_network():
    model = student()
    for layer in (model.conv1, model.conv2, model.conv3, model.fc):
        layer.weight.data = layer.quantized_weight().detach()
    options = {"levels": (0.01,), "kind": "multiplicative", "draws": 2} | quiet
    rounded = weight_noise(model, DATA, space="latent", **options)
    assert rounded.rise.tolist() == [0]
    assert weight_noise(model, DATA, space="dequantized", **options).rise[0] != 0


EVERY = [LSQ, partial(LSQ, axis=0), partial(AffineLSQ, axis=0), NIPQ, DoReFa]


@pytest.mark.parametrize("make", EVERY)
def test_flips_move_codes_by_one(points, make):
    model = student(partial(make, bits=3))
    with unchanged(model):
        found = weight_noise(model, DATA, levels=(0, 0.3, 1), kind="flips", draws=3, **quiet)
    assert found.accuracy[0].tolist() == [found.clean_accuracy] * 3
    assert found.loss[0].tolist() == [found.clean_loss] * 3
    (surface, clean), *moved = points
    sides, changed, inner = [], 0, 0
    for index, (_, point) in enumerate(moved):
        for name, weight in surface.split(point).items():
            layer = model.get_submodule(name[:-7])
            quantizer = layer.weight_quantizer
            old = quantizer.codes(layer.weight).detach().round()
            steps = torch.zeros_like(old)
            for delta in (-1, 1):
                there = (old + delta).clamp(quantizer.low, quantizer.high)
                level = quantizer.dequantize(there).detach()
                close = torch.isclose(level, weight, rtol=1e-4, atol=1e-7)
                steps[close & (there != old)] = delta
            kept = torch.isclose(surface.split(clean)[name], weight, rtol=0, atol=0)
            assert bool((kept == (steps == 0)).all())
            if index % 3 == 0:
                assert kept.all()
            elif index % 3 == 2:
                assert not kept.any()
            else:
                changed += int((~kept).sum())
            free = (old > quantizer.low) & (old < quantizer.high) & (steps != 0)
            inner += int(free.sum())
            sides += steps[free].tolist()
    count = 3 * surface.size
    assert changed / count == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))
    assert abs(sum(sides)) < 4 * math.sqrt(inner)


def test_flips_spare_layers_without_a_grid(points):
    torch.manual_seed(1)
    model = quantize(
        small_cnn(width=2, classes=3), partial(LSQ, 3), partial(LSQ, 4), keep=["fc"]
    ).eval()
    calibrate(model, DATA.batches(30))
    weight_noise(model, DATA, levels=(1,), kind="flips", draws=1, **quiet)
    (surface, clean), (_, moved) = points
    kept = {n: torch.equal(surface.split(clean)[n], w) for n, w in surface.split(moved).items()}
    assert kept == {f"{n}.weight": n == "fc" for n in ("conv1", "conv2", "conv3", "fc")}


def test_only_the_layers_asked_for_move(points):
    weight_noise(student(), DATA, levels=(1,), kind="flips", layers=["conv2"], draws=1, **quiet)
    assert points[0][0].names == ("conv2.weight",)


def test_batchnorm_can_be_estimated_anew(points):
    model = student()
    train = Split(torch.rand(40, 1, 6, 6, generator=GENERATOR), torch.arange(40) % 3)
    with unchanged(model):
        found = weight_noise(model, DATA, levels=(0.3,), draws=1, reestimate=train, **quiet)
    assert found.batchnorm == "re-estimated"
    for (surface, point), expected in zip(
        points, (found.clean_loss, found.loss[0, 0]), strict=True
    ):
        twin = copy.deepcopy(model)
        for name, weight in surface.split(point).items():
            twin.get_submodule(name[:-7]).weight_quantizer = nn.Identity()
            twin.get_parameter(name).data = weight
        reestimate_batchnorm(twin, train)
        logits, _ = predict(twin, DATA)
        assert expected == pytest.approx(by_hand(logits, logits)[1], rel=1e-5)
    assert found.clean_loss != weight_noise(model, DATA, draws=1, **quiet).clean_loss


def test_ctrl_c_keeps_the_noise_that_was_measured():
    model = Spy(student(), stop_at=4).eval()
    with unchanged(model), pytest.warns(UserWarning, match="weight_noise: interrupted after 3 of"):
        found = weight_noise(model, DATA, levels=(0.1, 0.2), draws=2, **quiet)
    assert np.isfinite(found.loss).tolist() == [[True, True], [True, False]]
    assert not found.complete


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (student, {"kind": "additive"}, "kind is 'additive'; allowed: filter, mult"),
        (student, {"levels": (-0.1,)}, "levels are"),
        (student, {"space": "codes"}, "space: got 'codes'"),
        (student, {"kind": "flips", "levels": (1.1,)}, "a probability is at most 1"),
        (student, {"kind": "flips", "space": "latent"}, "4 quantized layers in the space 'lat"),
        (linear, {"kind": "flips"}, "0 quantized layers in the space 'float'"),
        (partial(student, partial(DoReFa, bits=1)), {"kind": "flips"}, "do not say alone"),
        (linear, {"reestimate": DATA}, "no BatchNorm that uses running statistics"),
    ],
)
def test_weight_noise_that_cannot_be_is_refused(make, options, words):
    model = make()
    with unchanged(model), pytest.raises(ValueError, match=words):
        weight_noise(model, DATA, **options, **quiet)


# Views


def mirror(images):
    return images.flip(-1)


def test_a_view_without_chance_against_a_loop():
    model = student()
    with unchanged(model):
        found = view_consistency(model, DATA, mirror, draws=2, label="net", **quiet)
    assert (found.view, found.label, found.samples) == ("mirror", "net", 30)
    clean, _ = predict(model, DATA)
    seen, _ = predict(model, Split(IMAGES.flip(-1), LABELS, DATA.mean, DATA.std))
    right, _, divergence, flips = by_hand(clean, seen)
    assert 0 < flips < 1
    assert found.agreement.tolist() == [pytest.approx(1 - flips)] * 2
    assert found.divergence.tolist() == [pytest.approx(divergence, rel=1e-4)] * 2
    assert found.accuracy.tolist() == [pytest.approx(right)] * 2
    assert found.unanimous == pytest.approx(1 - flips)


def test_images_themselves_always_agree():
    found = view_consistency(student(), DATA, augment.unchanged, draws=2, **quiet)
    assert found.agreement.tolist() == [1, 1]
    assert found.divergence.tolist() == [0, 0]
    assert found.unanimous == 1
    assert found.accuracy.tolist() == [found.clean_accuracy] * 2


def test_random_views_are_seeded_and_leave_the_global_generator_alone():
    model = Spy(linear()).eval()
    with unchanged(model):
        found = view_consistency(model, DATA, augment.flip, draws=6, seed=4, **quiet)
    clean, *views = model.seen
    same = torch.ones(30, dtype=torch.bool)
    mirrored = []
    for view, answers, agreement in zip(views, model.answers[1:], found.agreement, strict=True):
        turned = (view != clean).flatten(1).any(1)
        assert torch.equal(view[turned], clean[turned].flip(-1))
        mirrored.append(turned)
        agrees = answers.argmax(1) == model.answers[0].argmax(1)
        assert agreement == pytest.approx(agrees.double().mean().item())
        same &= agrees
    assert found.unanimous == pytest.approx(same.double().mean().item())
    assert 60 < torch.stack(mirrored).sum() < 120  # of 180 fair coins
    assert not torch.equal(mirrored[0], mirrored[1])
    torch.manual_seed(99)
    again = view_consistency(linear(), DATA, augment.flip, draws=6, seed=4, **quiet)
    np.testing.assert_array_equal(found.divergence, again.divergence)


def test_ctrl_c_keeps_the_views_that_were_seen():
    model = Spy(linear(), stop_at=3).eval()
    with unchanged(model), pytest.warns(UserWarning, match="interrupted after 2 of 5"):
        found = view_consistency(model, DATA, augment.crop_flip, draws=5, **quiet)
    assert np.isfinite(found.agreement).tolist() == [True, True, False, False, False]


def test_an_exception_of_a_view_leaves_everything_as_it_was():
    def fail(images):
        torch.rand(3)
        raise RuntimeError("no view")

    model = student()
    with unchanged(model), pytest.raises(RuntimeError, match="no view"):
        view_consistency(model, DATA, fail, **quiet)


# Accuracy on the first n


def test_accuracy_on_the_first_n_of_every_order():
    models = {"a": student(), "b": linear()}
    with unchanged(models["a"]):
        found = accuracy_by_samples(models, DATA, sizes=(20, 3, 30), permutations=4, seed=2)
    assert found.labels == ("a", "b")
    assert found.sizes.tolist() == [3, 20, 30]
    generator = np.random.default_rng(2)
    orders = [generator.permutation(30).tolist() for _ in range(4)]
    for m, model in enumerate(models.values()):
        predicted = predict(model, DATA)[0].argmax(1).tolist()
        right = [p == y for p, y in zip(predicted, LABELS.tolist(), strict=True)]
        assert found.correct[m].tolist() == right
        for o, order in enumerate(orders):
            for s, size in enumerate((3, 20, 30)):
                expected = sum(right[i] for i in order[:size]) / size
                assert found.accuracy[m, o, s] == pytest.approx(expected)
    np.testing.assert_allclose(found.accuracy[:, :, 2], np.stack([found.full] * 4, 1))


def test_the_spread_is_that_of_drawing_without_replacement():
    labels = (torch.arange(400) % 10 < 3).long()
    images = labels.view(-1, 1, 1, 1).expand(400, 1, 2, 2) * torch.ones(400, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    model[1].weight.data.zero_()
    model[1].bias.data = torch.tensor([1.0, 0.0])  # right for the 70 % of class 0
    data = Split(images, labels)
    found = accuracy_by_samples(model, data, sizes=(40, 200), permutations=3000)
    for index, n in enumerate((40, 200)):
        expected = math.sqrt(0.7 * 0.3 / n * (400 - n) / 399)
        assert found.accuracy[0, :, index].std() == pytest.approx(expected, rel=0.06)
        assert found.standard_error[0, index] == pytest.approx(math.sqrt(0.21 / n))
        assert found.mean[0, index] == pytest.approx(0.7, abs=4 * expected / 3000**0.5)
        low, high = (ends[0, index] for ends in found.band)
        assert high - low == pytest.approx(3.92 * expected, rel=0.15)


def test_sizes_are_those_that_there_are_and_all():
    found = accuracy_by_samples(linear(), DATA)
    assert found.sizes.tolist() == [30]
    assert found.accuracy.shape == (1, 50, 1)
    assert found.labels == ("",)
    many = (IMAGES.repeat(10, 1, 1, 1), LABELS.repeat(10))
    assert accuracy_by_samples(linear(), many).sizes.tolist() == [100, 200, 300]


def test_a_loader_is_read_once_for_all_networks():
    batches = iter([(IMAGES[:10], LABELS[:10]), (IMAGES[10:], LABELS[10:])])
    found = accuracy_by_samples({"a": linear(), "b": linear(seed=2)}, batches)
    assert found.samples == 30


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ({}, {}, "no network"),
        (linear(), {"sizes": (0,)}, r"sizes are \[0\]; allowed: .* from 1 to 30"),
        (linear(), {"sizes": (31,)}, r"sizes are \[31\]"),
        (linear(), {"sizes": ()}, r"sizes are \[\]"),
        (linear(), {"permutations": 0}, "permutations is 0"),
    ],
)
def test_orders_that_cannot_be_are_refused(models, options, words):
    with pytest.raises(ValueError, match=words):
        accuracy_by_samples(models, DATA, **options)
