import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz import quantizers
from qatviz.analysis import moved as room
from qatviz.analysis.moved import Moved
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.evaluation import evaluate, reestimate_batchnorm
from qatviz.quantize import quantize
from tests.analysis.common import unchanged
from tests.analysis.wide import (
    cnn,
    cnn_data,
    low_bit,
    plainly,
    standing_in,
    tanh_data,
    tanh_net,
)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from house import PeakMemory


def moved_by_hand(model, space, surface, vector):
    twin = standing_in(model, space)
    with torch.no_grad():
        for name, part in surface.split(vector).items():
            twin.get_parameter(name).copy_(part)
    return twin


@pytest.mark.parametrize("space", ["dequantized", "latent", "float"])
@pytest.mark.parametrize("batch", [7, 23, None])
def test_a_point_is_what_a_plain_evaluation_says(space, batch):
    model, (images, labels) = low_bit(cnn()), cnn_data()
    surface = Surface(model, space)
    shift = torch.randn(surface.size, generator=torch.Generator().manual_seed(1)).double()
    with unchanged(model), unchanged(surface.model):
        moved = Moved(surface, (images, labels), batch=batch)
        for length in (0.0, 0.1):
            vector = surface.point + length * shift
            wanted = plainly(moved_by_hand(model, space, surface, vector), images, labels)
            assert moved(vector) == pytest.approx(wanted, rel=1e-12)
    assert moved.passes == 2


@pytest.mark.parametrize("name", ["LSQ", "LSQPlus", "DoReFa", "EWGS", "NIPQ", "Affine"])
def test_weights_of_any_quantizer_are_rounded_again_in_any_layout(name):
    data, channels = cnn_data(), {"axis": 0} if name == "Affine" else {}
    weights = partial(getattr(quantizers, name), 3, signed=True, **channels)
    inputs = "LSQ" if name == "DoReFa" else name
    inputs = partial(getattr(quantizers, inputs), 4)
    student = quantize(cnn(), weights, inputs).double().eval()
    calibrate(student, [data[0]])
    surface = Surface(student, "latent")
    moved, vector = Moved(surface, data), 1.1 * surface.point
    with unchanged(student):
        wanted = plainly(moved_by_hand(student, "latent", surface, vector), *data)
        assert moved(vector) == pytest.approx(wanted, rel=1e-10)
        loss, gradient = moved.gradient(vector)
    assert loss == pytest.approx(wanted[0], rel=1e-10)
    assert gradient.isfinite().all()


def test_a_float_network_of_three_channels_whatever_the_layout():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten()).eval()
    images, labels = torch.randint(256, (11, 3, 8, 8), dtype=torch.uint8), torch.arange(11) % 5
    split = Split(images, labels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    moved = Moved(model, split, batch=4)
    loss, accuracy = moved(moved.surface.point)
    wanted, _ = plainly(model, split.normalise(images), labels)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert accuracy == pytest.approx(evaluate(model, split))


def test_the_gradient_weighs_an_unequal_last_batch_by_its_images():
    model, (images, labels) = tanh_net(), tanh_data()
    moved = Moved(model, (images, labels), batch=9)
    vector = moved.surface.point + 0.3
    loss, gradient = moved.gradient(vector)
    twin = moved_by_hand(model, "float", moved.surface, vector)
    mean = cross_entropy(twin(images), labels)
    weights = [p for p in twin.parameters() if p.ndim > 1]
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(mean, weights)])
    assert loss == pytest.approx(mean.item(), rel=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)
    assert len(wanted) == 6 * 5 + 5 * 3


def test_the_gradient_of_latent_weights_passes_straight_through():
    model, (images, labels) = low_bit(cnn()), cnn_data()
    moved = Moved(Surface(model, "latent"), (images, labels))
    _, gradient = moved.gradient(moved.surface.point)
    named = [p for name, p in model.named_parameters() if name in moved.surface.names]
    wanted = torch.autograd.grad(cross_entropy(model(images), labels), named)
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in wanted]))
    assert gradient.any()


def test_batchnorm_is_estimated_anew_from_training_images():
    model, data, training = cnn(), cnn_data(), Split(*cnn_data(40, seed=9))
    moved = Moved(model, data, reestimate=2, training=training)
    vector = 1.5 * moved.surface.point
    found = moved(vector)
    moved(vector * 2)
    assert moved(vector) == found  # nothing is left of the point before
    twin = moved_by_hand(model, "float", moved.surface, vector)
    reestimate_batchnorm(twin, training, 2)
    assert found == pytest.approx(plainly(twin, *data), rel=1e-12)
    assert found[0] != pytest.approx(Moved(model, data)(vector)[0], rel=1e-2)
    assert moved.conditions().batchnorm == "re-estimated"
    assert moved.conditions().reestimate == 2


def test_batchnorm_of_the_images_takes_all_of_them_at_once():
    model, (images, labels) = cnn(), cnn_data()
    surface = Surface(model, batchnorm="batch")
    with unchanged(surface.model):
        loss, _ = Moved(surface, (images, labels), batch=5)(surface.point)
    twin = cnn().train()
    assert loss == pytest.approx(cross_entropy(twin(images), labels).item(), rel=1e-12)


def test_a_network_in_float64_takes_images_in_float32():
    wide, data, training = cnn(), cnn_data(), Split(*cnn_data(40, seed=9))
    plain = wide[1]  # without the module that widens its images
    with unchanged(plain):
        for options in ({}, {"reestimate": 2, "training": training}):
            moved, wanted = (Moved(m, data, **options) for m in (plain, wide))
            assert moved(moved.surface.point) == wanted(wanted.surface.point)
        moved.gradient(moved.surface.point)


@pytest.mark.parametrize("batch", [5, 13, 23, None])
def test_a_grid_of_the_batch_is_one_of_all_images(batch):
    student = quantize(tanh_net(), None, partial(quantizers.DoReFa, 3)).eval()
    images, labels = tanh_data()
    images[:-1] *= 0.1  # the last one makes the grid
    calibrate(student, [images])
    wanted = cross_entropy(student(images), labels).item()
    assert not torch.equal(student(images[:5]), student(images)[:5])
    moved = Moved(student, (images, labels), batch=batch)
    assert moved(moved.surface.point)[0] == pytest.approx(wanted, rel=1e-12)


def test_a_surface_is_looked_at_where_it_stands():
    surface, data = Surface(tanh_net()), tanh_data()
    point = surface.point.clone()
    surface.assign(2 * point)
    moved = Moved(surface, data)
    wanted = plainly(moved_by_hand(tanh_net(), "float", surface, 2 * point), *data)
    assert torch.equal(moved.surface.point, 2 * point)
    assert moved.here() == moved(moved.surface.point) == pytest.approx(wanted, rel=1e-12)
    assert torch.equal(surface.point, point)


def bytes_of_passes(count):
    split = Split(torch.zeros(count, 1, 2, 3, dtype=torch.uint8), torch.arange(count) % 3)
    with PeakMemory() as memory:
        measure = Moved(tanh_net(), split, batch=10)
        for _ in range(2):
            measure(measure.surface.point)
            measure.gradient(measure.surface.point)
    return memory.live, memory.peak


def test_images_are_kept_only_if_they_are_few(monkeypatch):
    size = 2 * 3 * 8  # bytes of a normalised image of float64
    few, _ = bytes_of_passes(20)
    many, _ = bytes_of_passes(2000)
    assert many - few >= 1980 * size
    monkeypatch.setattr(room, "KEPT", 100 * size)
    few, least = bytes_of_passes(101)
    many, most = bytes_of_passes(2001)
    assert many - few <= 10 * size
    assert most - least < 1900 * size / 3  # labels, beside the images as given


def test_passes_are_the_same_if_images_are_not_kept(monkeypatch):
    found = []
    for kept in (1 << 20, 0):
        monkeypatch.setattr(room, "KEPT", kept)
        measure = Moved(low_bit(cnn()), cnn_data(), batch=7)
        vector = 1.1 * measure.surface.point
        loss, gradient = measure.gradient(vector)
        found.append((measure(vector), measure.here(), loss, gradient.tolist()))
    assert found[0] == found[1]


def test_an_image_of_nan_logits_is_not_classified():
    model, data = tanh_net(), tanh_data()
    moved = Moved(model, data)
    loss, accuracy = moved(moved.surface.point * float("nan"))
    assert loss != loss
    assert accuracy == 0


@pytest.mark.parametrize(
    ("space", "quantizers", "again"),
    [("dequantized", True, False), ("latent", True, True), ("float", False, False)],
)
def test_conditions_say_what_was_measured(space, quantizers, again):
    surface = Surface(low_bit(cnn()), space)
    record = Moved(surface, cnn_data(), samples=10).conditions()
    assert (record.space, record.samples, record.batchnorm) == (space, 10, "running")
    assert (record.activation_quantizers, record.requantized) == (quantizers, again)
    assert record.size == surface.size
    assert record.norm == pytest.approx(surface.point.square().sum().sqrt().item())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"reestimate": -1, "training": cnn_data()}, "reestimate is -1"),
        ({"reestimate": 3}, "pass training="),
        ({"samples": 24}, "samples is 24"),
    ],
)
def test_refuses_bad_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        Moved(cnn(), cnn_data(), **options)


def test_refuses_reestimation_where_there_is_nothing_to_estimate():
    for model, data in (
        (tanh_net(), tanh_data()),
        (Surface(cnn(), batchnorm="batch"), cnn_data()),
    ):
        with pytest.raises(ValueError, match="no BatchNorm that uses running"):
            Moved(model, data, reestimate=2, training=data)


def test_refuses_a_loss_that_is_no_mean():
    moved = Moved(tanh_net(), tanh_data(), loss=lambda z, y: cross_entropy(z, y, reduction="none"))
    for measure in (moved, moved.gradient):
        with pytest.raises(ValueError, match=r"one number, the mean over the images, got \[23\]"):
            measure(moved.surface.point)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        Moved(cnn().train(), cnn_data())
