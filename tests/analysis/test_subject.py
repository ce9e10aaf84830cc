import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from qatviz import analysis, augment
from qatviz.analysis.subject import (
    check_evaluating,
    clean_loss,
    device_of,
    subject,
    undisturbed,
)
from qatviz.calibration import calibrate
from qatviz.datasets import Dataset, Split
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.tracking import OscillationTracker
from tests.analysis.common import generators, unchanged

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
        (IMAGES, None, r"give \(images, labels\); got Tensor"),
        ([IMAGES, LABELS], None, r"a loader must give \(images, labels\)"),
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


# Chance, types and numbers that are not finite, wherever a network runs


def low_bit(model):
    student = quantize(model, partial(LSQ, 3), partial(LSQ, 3)).eval()
    calibrate(student, [IMAGES])
    return student


quiet = {"progress": False}
RUNS = {
    "reliability": lambda model, data: analysis.reliability(model, data, resamples=2),
    "fit_temperature": analysis.fit_temperature,
    "input_noise": partial(analysis.input_noise, draws=1, **quiet),
    "weight_noise": partial(analysis.weight_noise, draws=1, **quiet),
    "re-estimated": lambda model, data: analysis.weight_noise(
        model, data, draws=1, reestimate=(IMAGES, LABELS), **quiet
    ),
    "view_consistency": partial(analysis.view_consistency, view=augment.crop, draws=1, **quiet),
    "accuracy_by_samples": partial(analysis.accuracy_by_samples, permutations=1),
    "corruption_accuracy": partial(
        analysis.corruption_accuracy, kinds=("shot_noise",), severities=(1,), draws=1, **quiet
    ),
    "bit_sensitivity": partial(analysis.bit_sensitivity, bits=(2,), part="both", **quiet),
    "linear_cka": lambda model, data: analysis.linear_cka(model, model, data, batch=10, **quiet),
    "layer_sqnr": lambda model, data: analysis.layer_sqnr(model, data),
    "activation_entropy": lambda model, data: analysis.activation_entropy(model, data),
    "batchnorm_drift": analysis.batchnorm_drift,
    "oscillation_lottery": lambda model, data, **options: analysis.oscillation_lottery(
        model, OscillationTracker(model), data, draws=1, **options, **quiet
    ),
}
QUANTIZED = ("layer_sqnr", "activation_entropy", "oscillation_lottery")
RAW = IMAGES.clamp(0, 1)


class Draws(nn.Module):
    """A network that draws from every global generator, even in evaluation mode."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1e-6 * drawn()


def drawn():
    return torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(RAW)

    def __getitem__(self, index):
        return RAW[index] + 0 * drawn(), LABELS[index]


@pytest.mark.parametrize("run", RUNS)
def test_chance_in_a_network_or_a_loader_moves_no_global_generator(model, run):
    model = Draws(model).eval()
    model = low_bit(model) if run in QUANTIZED else model
    with unchanged(model):
        RUNS[run](model, DataLoader(Images(), batch_size=8, shuffle=True))


def test_the_generators_are_put_back_by_every_way_out():
    def after(error):
        before = generators(), random.getstate()
        try:
            with undisturbed():
                drawn()
                raise error
        except type(error):
            pass
        return before == (generators(), random.getstate())

    assert after(KeyboardInterrupt())
    assert after(ZeroDivisionError())
    same = undisturbed()(drawn)
    assert same() == same()
    before = random.getstate()
    assert drawn() != same()
    assert random.getstate() != before


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_takes_the_images(model, run, dtype):
    model = low_bit(model.to(dtype)) if run in QUANTIZED else model.to(dtype)
    with unchanged(model):
        RUNS[run](model, (RAW, LABELS))


CLEAN = [
    "reliability",
    "fit_temperature",
    "input_noise",
    "weight_noise",
    "view_consistency",
    "accuracy_by_samples",
    "corruption_accuracy",
    "bit_sensitivity",
]


@pytest.mark.parametrize("run", CLEAN)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(model, run, value):
    model.fc.bias.data[1] = value
    with (
        unchanged(model),
        pytest.raises(ValueError, match="logits of the model are not finite for"),
    ):
        RUNS[run](model, (RAW, LABELS))


def test_a_layer_that_is_not_finite_has_no_similarity(model):
    model.fc.bias.data[1] = math.nan
    with pytest.raises(ValueError, match="'fc' returns numbers that are not finite"):
        RUNS["linear_cka"](model, (RAW, LABELS))


def infinite(logits, labels):
    return math.inf * cross_entropy(logits, labels)


@pytest.mark.parametrize(
    "run", ["input_noise", "weight_noise", "corruption_accuracy", "oscillation_lottery"]
)
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (partial(cross_entropy, reduction="none"), r"loss must return one number.* got \[20\]"),
        (infinite, "the loss of the model on these images is inf: not finite"),
        (lambda y, t: cross_entropy(y, t) - math.inf, "is -inf: not finite"),
    ],
)
def test_a_loss_that_is_no_finite_number_is_refused(model, run, loss, words):
    model = low_bit(model) if run in QUANTIZED else model
    with unchanged(model), pytest.raises(ValueError, match=words):
        RUNS[run](model, (RAW, LABELS), loss=loss)


def test_the_first_image_without_an_answer_is_named():
    logits = torch.zeros(5, 3)
    logits[2, 1] = logits[4, 0] = math.nan
    with pytest.raises(ValueError, match="for 2 of 5 images, first for image 2"):
        clean_loss(logits, torch.zeros(5, dtype=torch.long))
    known = clean_loss(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    assert known == pytest.approx(math.log(3))
