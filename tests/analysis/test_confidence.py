import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis.confidence import fit_temperature, reliability
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged


class Answers(nn.Module):
    """Its images are its logits."""

    def forward(self, x):
        return x.flatten(1)


def answers(chances, labels):
    """Images for which ``Answers`` predicts these probabilities."""
    images = torch.tensor(chances).log().view(len(chances), -1, 1, 1)
    return Split(images, torch.tensor(labels))


def random_answers(count=400, classes=5, seed=0, sharp=2.0):
    """Labels drawn from other probabilities than those predicted."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial((logits / sharp).softmax(1), 1, generator=generator).flatten()
    return Split(logits.view(count, classes, 1, 1), labels)


MODEL = Answers().eval()


def test_a_case_by_hand():
    # Two classes, five bins: confidences 0.7, 0.7, 0.9, 0.9, 0.9; right: yes no yes yes no.
    data = answers([[0.7, 0.3], [0.3, 0.7], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]], [0, 0, 0, 1, 0])
    found = reliability(MODEL, data, bins=5, label="net")
    assert (found.label, found.samples, found.temperature) == ("net", 5, 1.0)
    assert found.counts.tolist() == [0, 0, 0, 2, 3]
    np.testing.assert_allclose(found.bin_accuracy[3:], [1 / 2, 2 / 3])
    np.testing.assert_allclose(found.bin_confidence[3:], [0.7, 0.9], rtol=1e-6)
    assert np.isnan(found.bin_accuracy[:3]).all()
    assert found.ece == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (0.9 - 2 / 3))
    assert found.mce == pytest.approx(0.9 - 2 / 3)
    assert found.accuracy == pytest.approx(0.6)
    assert found.mean_confidence == pytest.approx((2 * 0.7 + 3 * 0.9) / 5)
    losses = [-math.log(p) for p in (0.7, 0.3, 0.9, 0.9, 0.1)]
    assert found.nll == pytest.approx(sum(losses) / 5)
    squares = [2 * e**2 for e in (0.3, 0.7, 0.1, 0.1, 0.9)]
    assert found.brier == pytest.approx(sum(squares) / 5)
    for error, values in ((found.nll_error, losses), (found.brier_error, squares)):
        assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    # Of equally many: three at the lower confidences, two at the higher.
    adaptive = reliability(MODEL, data, bins=2).adaptive_ece
    assert adaptive == pytest.approx(abs(0.7 + 0.7 + 0.9 - 2) / 5 + abs(0.9 + 0.9 - 1) / 5)


def ece_by_hand(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(right) * abs(accuracy - mean)
    return total


def adaptive_by_hand(confidence, right, bins):
    order = sorted(range(len(right)), key=lambda i: confidence[i])
    small, rest, start, total = len(order) // bins, len(order) % bins, 0, 0.0
    for b in range(bins):
        inside = order[start : start + small + (b < rest)]
        start += len(inside)
        gap = sum(right[i] - confidence[i] for i in inside) / len(inside)
        total += len(inside) / len(right) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_everything_against_loops(bins):
    data = random_answers()
    found = reliability(MODEL, data, bins=bins, temperature=1.3, resamples=3)
    chances = (data.images.flatten(1).double() / 1.3).softmax(1)
    confidence = chances.amax(1).tolist()
    right = (chances.argmax(1) == data.labels).int().tolist()
    assert found.ece == pytest.approx(ece_by_hand(confidence, right, bins))
    assert found.adaptive_ece == pytest.approx(adaptive_by_hand(confidence, right, bins))
    assert found.counts.sum() == 400
    assert found.temperature == 1.3
    brier = sum(
        sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        for row, label in zip(chances.tolist(), data.labels.tolist(), strict=True)
    )
    assert found.brier == pytest.approx(brier / 400)


def test_resampled_images_against_loops():
    data = random_answers(count=60)
    found = reliability(MODEL, data, bins=5, resamples=250, seed=7)
    chances = data.images.flatten(1).double().softmax(1)
    confidence = chances.amax(1).numpy()
    right = (chances.argmax(1) == data.labels).numpy()
    order = confidence.argsort(kind="stable")
    confidence, right = confidence[order], right[order]
    generator = np.random.default_rng(7)
    expected, adaptive = [], []
    for rows in (100, 100, 50):
        for drawn in generator.integers(60, size=(rows, 60), dtype=np.int32):
            chosen = confidence[drawn].tolist(), right[drawn].astype(int).tolist()
            expected.append(ece_by_hand(*chosen, 5))
            adaptive.append(adaptive_by_hand(*chosen, 5))
    np.testing.assert_allclose(found.resampled, expected)
    # Images of one confidence may be sorted either way into a bin: none here, but repeats.
    np.testing.assert_allclose(found.adaptive_resampled, adaptive)
    low, high = found.interval
    assert low < found.ece < high


def test_a_network_that_tells_the_truth_has_an_error_that_vanishes_with_more_images():
    truth = [random_answers(count=n, sharp=1.0) for n in (500, 20_000)]
    few, many = (reliability(MODEL, data, resamples=200) for data in truth)
    assert many.ece < 0.012
    assert few.ece > many.ece
    assert few.bias > many.bias > 0
    sure = reliability(MODEL, random_answers(count=20_000, sharp=2.0), resamples=200)
    # Too sure in every bin, so that the gaps add up to that of the means.
    assert sure.ece == pytest.approx(sure.mean_confidence - sure.accuracy, rel=0.01)
    assert sure.ece > 10 * many.ece
    assert sure.interval[0] < sure.ece < sure.interval[1]
    assert sure.interval[1] - sure.interval[0] < 0.02


def test_the_temperature_is_found_that_the_labels_were_drawn_at():
    data = random_answers(count=20_000, sharp=2.5)
    found = fit_temperature(MODEL, data, label="net")
    assert (found.label, found.samples) == ("net", 20_000)
    assert found.value == pytest.approx(2.5, rel=0.03)
    assert found.after < found.before
    logits = data.images.flatten(1).double()

    def nll(t):
        return nn.functional.cross_entropy(logits / t, data.labels).item()

    assert found.before == pytest.approx(nll(1.0))
    assert found.after == pytest.approx(nll(found.value))
    assert found.after <= min(nll(found.value * 1.001), nll(found.value / 1.001))
    report = reliability(MODEL, data, temperature=found, resamples=1)
    assert report.temperature == found.value
    assert report.ece < 0.02
    plain = reliability(MODEL, data, resamples=1)
    assert plain.ece > 0.2
    assert plain.accuracy == report.accuracy


def student():
    torch.manual_seed(1)
    model = quantize(small_cnn(width=2), partial(LSQ, 3), partial(LSQ, 3)).eval()
    calibrate(model, [torch.randn(20, 1, 8, 8)])
    return model


def test_the_model_is_left_as_it_was():
    data = (torch.randn(20, 1, 8, 8), torch.arange(20) % 10)
    model = student()
    with unchanged(model):
        found = reliability(model, data, resamples=10, samples=12)
        fit_temperature(model, data, samples=12)
    assert found.samples == 12
    same = reliability(model, data, resamples=10, samples=12)
    np.testing.assert_array_equal(found.resampled, same.resampled)
    other = reliability(model, data, resamples=10, samples=12, seed=1)
    assert (found.resampled != other.resampled).any()
    model.train()
    for measure in (reliability, fit_temperature):
        with unchanged(model), pytest.raises(ValueError, match="training mode"):
            measure(model, data)


def test_an_exception_in_the_middle_leaves_the_model_as_it_was():
    model, calls = student(), []
    data = (torch.randn(20, 1, 8, 8), torch.arange(20) % 10)

    def fail(*args):
        calls.append(0)
        if len(calls) > 1:
            raise KeyboardInterrupt

    handle = model.fc.register_forward_hook(fail)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        reliability(model, data)
    handle.remove()


def test_one_image_has_no_error():
    found = reliability(MODEL, answers([[0.7, 0.3]], [0]), resamples=2)
    assert math.isnan(found.nll_error)
    assert found.ece == pytest.approx(0.3)
    assert found.resampled.tolist() == pytest.approx([0.3, 0.3])
    assert found.adaptive_ece == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 0}, "bins is 0; allowed: 1 or more"),
        ({"resamples": 0}, "resamples is 0"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: a finite number above 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        reliability(MODEL, random_answers(), **options)


def test_a_bin_holds_its_upper_border():
    found = reliability(MODEL, answers([[0.5, 0.5]], [0]), bins=2, resamples=1)
    assert found.counts.tolist() == [1, 0]
