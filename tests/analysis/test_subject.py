from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qatviz.analysis.subject import check_evaluating, device_of, subject
from qatviz.datasets import Dataset, Split
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged

IMAGES, LABELS = torch.randn(20, 1, 12, 12), torch.arange(20) % 10


@pytest.fixture
def model():
    return small_cnn(width=2).eval()


def test_a_split_a_pair_and_a_loader_give_the_same_images(model):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=6)
    for data in (Split(IMAGES, LABELS), (IMAGES, LABELS), loader):
        with unchanged(model):
            split = subject(model, data, 15)
        assert torch.equal(split.images, IMAGES[:15])
        assert torch.equal(split.labels, LABELS[:15])
        assert len(subject(model, data)) == 20


def test_of_a_data_set_it_takes_the_training_images(model):
    train, other = Split(IMAGES, LABELS), Split(-IMAGES, LABELS)
    assert subject(model, Dataset("made", train, other, other)) is train


def test_a_loader_is_read_only_as_far_as_needed(model):
    read = []

    def batches():
        for start in range(0, 20, 5):
            read.append(start)
            yield IMAGES[start : start + 5], LABELS[start : start + 5]

    subject(model, batches(), 10)
    assert read == [0, 5]


@pytest.mark.parametrize(
    ("data", "samples", "words"),
    [
        (DataLoader(TensorDataset(IMAGES[:0], LABELS[:0])), None, "empty"),
        ([], 3, "empty"),
        ((IMAGES[:0], LABELS[:0]), None, "no images"),
        ((IMAGES, LABELS), 21, "samples is 21, but there are 20"),
        ((IMAGES, LABELS), 0, "samples is 0"),
        ((IMAGES, torch.full((20,), -1)), None, "no label"),
        ((IMAGES.expand(-1, 3, -1, -1), LABELS), None, "cannot take images"),
        ((IMAGES, torch.full((20,), 10)), None, "11 logits are needed"),
        (7, None, "got int"),
    ],
)
def test_bad_data_are_refused(model, data, samples, words):
    with unchanged(model), pytest.raises(ValueError, match=words):
        subject(model, data, samples)


def test_training_mode_is_refused_by_name(model):
    with pytest.raises(ValueError, match="the model is in training mode"):
        subject(model.train(), (IMAGES, LABELS))
    model.eval().bn2.train()
    with pytest.raises(ValueError, match="module 'bn2' is in training mode"):
        check_evaluating(model)


def test_a_quantizer_without_a_grid_is_refused(model):
    student = quantize(model, partial(LSQ, 2), partial(LSQ, 2)).eval()
    with pytest.raises(ValueError, match="not calibrated"):
        subject(student, (IMAGES, LABELS))


def test_the_device_is_that_of_the_first_parameter(model):
    assert device_of(model) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")
