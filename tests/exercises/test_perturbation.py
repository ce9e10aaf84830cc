import math

import pytest
import torch

from qatviz.analysis import input_noise
from qatviz.datasets import Split
from qatviz.exercises.perturbation import check_images, check_noticed, check_output_variance


def right_variance(weight, sigma):
    """Output by output, input by input."""
    total = 0.0
    for row in weight.tolist():
        for w in row:
            total += (sigma * w) ** 2
    return total / len(weight)


def test_the_output_variance_is_right():
    assert check_output_variance(right_variance).right
    assert check_output_variance(lambda w, s: s**2 * w.norm() ** 2 / len(w)).right


def test_the_right_answer_is_what_the_analysis_measures():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4)
    network = torch.nn.Sequential(torch.nn.Flatten(), layer).eval()
    data = Split(torch.randn(500, 1, 1, 3), torch.zeros(500, dtype=torch.int64))
    found = input_noise(network, data, sigmas=[0.1], draws=40, progress=False)
    truth = right_variance(layer.weight.detach(), 0.1)
    assert found.variance.mean() == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda w, s: s**2 * w.norm() ** 2, "sum over outputs"),
        (lambda w, s: s * w.square().sum(1).mean(), "the variance has σ²"),
        (lambda w, s: s**2 * w.norm(dim=1).mean(), "mean of lengths"),
        (lambda w, s: s**2 * w.square().mean(), "sum along these"),
        (lambda w, s: s**2 * w.sum(1).square().mean(), "not weights"),
        (lambda w, s: s**2 * w.square().sum(1), "one number"),
        (lambda w, s: 1.0, "it is 0.17, got 1."),
    ],
)
def test_each_wrong_variance_has_its_hint(function, hint):
    verdict = check_output_variance(function)
    assert verdict.right is False
    assert hint in verdict.message


def phi(z):
    return 0.5 * (1 + math.erf(z / 2**0.5))


def noticed(u, sigma):
    return phi(-(0.5 - u) / sigma) + phi(-(0.5 + u) / sigma)


def test_the_chance_is_right():
    assert check_noticed(noticed).right
    assert check_noticed(lambda u, sigma: torch.tensor(noticed(u, sigma))).right


def test_the_right_chance_is_that_of_rounding():
    torch.manual_seed(0)
    for u, sigma in ((0.0, 0.3), (0.4, 0.2)):
        moved = (u + sigma * torch.randn(100_000)).round() != 0
        assert moved.double().mean().item() == pytest.approx(noticed(u, sigma), abs=0.01)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda u, s: phi(-(0.5 - u) / s), "on either side"),
        (lambda u, s: phi(-(0.5 + u) / s), "one above, too"),
        (lambda u, s: 1 - noticed(u, s), "nothing changes"),
        (lambda u, s: 2 * phi(-0.5 / s), "½ − u above"),
        (lambda u, s: phi(-(1 - u) / s) + phi(-(1 + u) / s), "not a whole one"),
        (lambda u, s: noticed(u, 1.0), "divide the distances by it"),
        (lambda u, s: noticed(u, s**2), "not by the variance"),
        (lambda u, s: 0.0, "it is 0.619, got 0.000"),
    ],
)
def test_each_wrong_chance_has_its_hint(function, hint):
    verdict = check_noticed(function)
    assert verdict.right is False
    assert hint in verdict.message


# The gain is 1 for 3 % of the images and −1 for 2 %: mean 0.01, variance 0.05 − 0.0001.
@pytest.mark.parametrize("answer", [1996, 2000, 1996.0])
def test_the_number_of_images_is_right(answer):
    assert check_images(answer).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (7516, "separate tests"),
        (499, "two standard errors are asked for"),
        (1879, "one standard error, and of separate tests"),
        (9.98, "square it"),
        (3600, "single accuracy"),
        (100, "its variance is"),
    ],
)
def test_each_wrong_number_has_its_hint(answer, hint):
    verdict = check_images(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_output_variance(lambda weight, sigma: ...).right is None
    assert check_noticed(lambda u, sigma: ...).right is None
    assert check_images(None).right is None
