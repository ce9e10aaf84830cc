from functools import partial

import numpy as np
import pytest
import torch

from qatviz.analysis.gradients import descent, gradient_agreement, without_surrogate
from qatviz.calibration import calibrate
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ

LAYERS = ("conv1", "conv2", "conv3", "fc")


@pytest.fixture
def images():
    return torch.randn(16, 1, 12, 12)


@pytest.fixture
def labels():
    return torch.arange(16) % 10


@pytest.fixture
def model():
    return small_cnn(width=4).eval()


@pytest.fixture
def student(model, images):
    student = quantize(model, partial(LSQ, 8), partial(LSQ, 8)).eval()
    calibrate(student, [images])
    return student


def test_a_network_agrees_with_itself(model, images, labels):
    record = gradient_agreement(model, model, images, labels, label="float")
    assert record.layers == LAYERS
    np.testing.assert_allclose(record.cosine, 1, atol=1e-6)
    assert record.parameters == sum(p.numel() for p in model.parameters())


def test_eight_bits_agree_with_float(model, student, images, labels):
    record = gradient_agreement(model, student, images, labels)
    assert record.cosine.min() > 0.7
    assert record.parameters == sum(p.numel() for p in model.parameters())


def test_without_surrogate_only_the_last_bias_is_reached(model, student, images, labels):
    honest = without_surrogate(student)
    torch.testing.assert_close(honest(images), student(images), rtol=0, atol=0)
    record = gradient_agreement(model, honest, images, labels)
    assert record.reached == 10
    assert (record.zeros == 1).all()
    assert np.isnan(record.cosine).all()


def test_the_gradient_descends_and_its_shuffles_do_less(student, images, labels):
    record = descent(student, images, labels, lengths=(0.0, 0.01, 0.02), draws=2)
    assert record.shuffled.shape == (2, 3)
    assert record.along[0] == record.shuffled[0, 0]
    assert record.along[-1] < record.shuffled[:, -1].min()
    assert record.along[-1] < record.along[0]


def test_shuffles_follow_the_seed(student, images, labels):
    options = {"lengths": (0.02,), "draws": 2}
    first, again, other = (
        descent(student, images, labels, seed=seed, **options).shuffled for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_nothing_is_changed(model, student, images, labels):
    before = {k: v.clone() for k, v in student.state_dict().items()}
    student.train()
    gradient_agreement(model, student, images, labels)
    descent(student, images, labels, draws=1)
    without_surrogate(student)
    assert student.training
    assert all(p.grad is None for p in student.parameters())
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)


def test_refuses(model, student, images, labels):
    raw = quantize(model, partial(LSQ, 8), partial(LSQ, 8))
    with pytest.raises(ValueError, match="not calibrated"):
        gradient_agreement(model, raw, images, labels)
    with pytest.raises(ValueError, match="no direction"):
        descent(without_surrogate(student), images, labels)
    with pytest.raises(ValueError, match="no layer in common"):
        gradient_agreement(model, torch.nn.Sequential(torch.nn.ReLU()), images, labels)
