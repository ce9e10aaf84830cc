import math

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.exercises.curvature_and_flatness import (
    check_hutchinson,
    check_rescaled,
    check_surrogate,
    valley,
)


def loss_at(weights, data, loss):
    toy = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    toy[1].weight.data = torch.tensor([weights])
    return loss(toy(data[0]), data[1]).item()


@pytest.mark.parametrize("degrees", [0, 30, -50])
def test_the_valley_is_the_quadratic_of_its_formula(degrees):
    data, loss = valley((10.0, 1.0), degrees, (0.35, 0.8))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for w in ([0.35, 0.8], [0.0, 0.0], [1.0, -0.5], [-0.3, 2.0]):
        x, y = w[0] - 0.35, w[1] - 0.8
        expected = 0.5 * 10 * (cos * x + sin * y) ** 2 + 0.5 * 1 * (-sin * x + cos * y) ** 2
        assert loss_at(w, data, loss) == pytest.approx(expected, abs=1e-5)


def test_the_surrogate_is_right():
    # Rows and columns 1 and 3 of the matrix are 4, 2 / 2, 4.
    assert check_surrogate(6).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (6.5616, "space A"),
        (0, "straight-through claim"),
        (4.618, "wrong weight"),
        (4, "coupled"),
        (3, "own entry"),
        (8, "trace"),
        (11, "cross out"),
    ],
)
def test_each_wrong_surrogate_has_its_hint(answer, hint):
    verdict = check_surrogate(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_the_rescaled_curvature_is_right():
    assert check_rescaled(7.2 / 9, 7.2).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (7.2, "smaller share"),
        (2.4, "second order"),
        (64.8, "other way round"),
        (21.6, "squared"),
        (1.0, "differentiate"),
    ],
)
def test_each_wrong_rescaling_has_its_hint(answer, hint):
    verdict = check_rescaled(answer, 7.2)
    assert verdict.right is False
    assert hint in verdict.message


def hutchinson(product, size, draws, generator, *, make=None):
    make = make or (lambda: torch.randint(2, (size,), generator=generator).double() * 2 - 1)
    found = []
    for _ in range(draws):
        z = make()
        found.append((z @ product(z)).item())
    return np.mean(found), np.std(found, ddof=1) / math.sqrt(draws)


def test_hutchinson_is_right():
    assert check_hutchinson(hutchinson).right


def with_error(change):
    def changed(product, size, draws, generator):
        mean, error = hutchinson(product, size, draws, generator)
        return change(mean, error, draws, size)

    return changed


def with_vectors(make):
    return lambda product, size, draws, generator: hutchinson(
        product, size, draws, generator, make=lambda: make(size, generator).double()
    )


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (with_error(lambda m, e, n, p: (m, e * n**0.5)), "√n less"),
        (with_error(lambda m, e, n, p: (m, e / n**0.5)), "divides by √n"),
        (with_error(lambda m, e, n, p: (m, (e * n**0.5) ** 2)), "variance"),
        (with_error(lambda m, e, n, p: (m, e**2)), "take the root"),
        (with_error(lambda m, e, n, p: (m, 0)), "standard error is about"),
        (with_error(lambda m, e, n, p: (m / p, e)), "mean eigenvalue"),
        (with_error(lambda m, e, n, p: (2 * m, e)), "the trace is"),
        (with_error(lambda m, e, n, p: m), "two numbers"),
        (with_vectors(lambda p, g: torch.randn(p, generator=g)), "normal numbers"),
        (with_vectors(lambda p, g: torch.randint(2, (p,), generator=g)), "0 and 1"),
        (with_vectors(lambda p, g: torch.ones(p)), "drawn anew"),
        (with_vectors(lambda p, g: torch.randn(p, generator=g).sign() / p**0.5), "length 1"),
        (lambda product, size, n, g: hutchinson(product, size, n // 2, g), "there were"),
        (
            lambda product, size, n, g: hutchinson(lambda z: product(z[:, None])[:, 0], size, n, g),
            "got",
        ),
    ],
)
def test_each_wrong_trace_has_its_hint(function, hint):
    verdict = check_hutchinson(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_surrogate(None).right is None
    assert check_rescaled(None, 1.0).right is None
    assert check_hutchinson(lambda *arguments: ...).right is None
