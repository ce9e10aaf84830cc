import numpy as np
import pytest
import torch
from torch import nn

from qatviz.exercises.loss_landscape import (
    check_barrier,
    check_levels,
    check_normalised,
    interrupted_after,
)


def test_a_copy_stops_after_its_passes_and_the_model_does_not():
    model = nn.Linear(3, 2)
    stopping, x = interrupted_after(model, 2), torch.randn(4, 3)
    for _ in range(2):
        assert torch.equal(stopping(x), model(x))
    with pytest.raises(KeyboardInterrupt):
        stopping(x)
    assert not model._forward_pre_hooks
    model(x)


def test_the_number_of_terraces_is_right():
    assert check_levels(16).right


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (4, "there are two"),
        (8, "goes with every"),
        (9, "crossings"),
        (3, "thresholds of one"),
        (6, "cut the plane"),
        (2, "4 levels"),
        (15, "pairs"),
    ],
)
def test_each_wrong_number_has_its_hint(answer, hint):
    verdict = check_levels(answer)
    assert verdict.right is False
    assert hint in verdict.message


def normalised(direction, weight):
    """Filter by filter."""
    found = torch.zeros_like(direction)
    for i, (d, w) in enumerate(zip(direction, weight, strict=True)):
        found[i] = d * w.square().sum().sqrt() / d.square().sum().sqrt()
    return found


def test_the_normalised_direction_is_right():
    assert check_normalised(normalised).right


def norms(tensor):
    return tensor.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda d, w: d * w.norm() / d.norm(), "whole layer"),
        (lambda d, w: d / norms(d), "length 1 each"),
        (lambda d, w: d * norms(w), "own norm first"),
        (lambda d, w: d * norms(d) / norms(w), "not NaN"),
        (lambda d, w: d * norms(d) / norms(w).clamp_min(1e-10), "other way round"),
        (lambda d, w: d * w.norm(dim=0) / d.norm(dim=0), "first axis"),
        (
            lambda d, w: d * (w.flatten(2).norm(dim=2) / d.flatten(2).norm(dim=2)).view(5, 3, 1, 1),
            "input channel",
        ),
        (lambda d, w: w, "return the direction"),
        (lambda d, w: 2 * normalised(d, w), "d_f"),
        (lambda d, w: normalised(d, w).flatten(), "got [135]"),
    ],
)
def test_each_wrong_direction_has_its_hint(function, hint):
    verdict = check_normalised(function)
    assert verdict.right is False
    assert hint in verdict.message


def barrier(t, loss):
    """Point by point."""
    highest = -np.inf
    for share, height in zip(t, loss, strict=True):
        highest = max(highest, height - (1 - share) * loss[0] - share * loss[-1])
    return highest


def test_the_barrier_is_right():
    assert check_barrier(barrier).right


def chord(t, loss):
    return (1 - t) * loss[0] + t * loss[-1]


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda t, loss: loss.max(), "highest loss"),
        (lambda t, loss: (loss - loss[0]).max(), "first network only"),
        (lambda t, loss: loss.max() - max(loss[0], loss[-1]), "worse of the two"),
        (lambda t, loss: loss.max() - (loss[0] + loss[-1]) / 2, "mean of the two"),
        (lambda t, loss: (loss - chord(t, loss))[loss.argmax()], "highest above the chord"),
        (lambda t, loss: (loss - chord(t, loss)[::-1]).max(), "the other way"),
        (lambda t, loss: np.abs(loss - chord(t, loss)).max(), "either sign"),
        (lambda t, loss: 0.5, "it is 0.820"),
        (lambda t, loss: max(barrier(t, loss), 0.1), "it is 0.000"),
    ],
)
def test_each_wrong_barrier_has_its_hint(function, hint):
    verdict = check_barrier(function)
    assert verdict.right is False
    assert hint in verdict.message


def test_no_answer_is_no_mistake():
    assert check_levels(None).right is None
    assert check_normalised(lambda *arguments: ...).right is None
    assert check_barrier(lambda *arguments: ...).right is None
