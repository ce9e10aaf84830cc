import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from qatviz.exercises.consistency_regularization import check_cost, check_gradient, check_window


def differentiated(student, teacher, label, strength):
    """By autograd, from the two terms as they are written."""
    logits = torch.tensor(np.log(student)).requires_grad_()
    said = logits.log_softmax(0)
    loss = cross_entropy(logits, torch.tensor(label))
    loss = loss + strength * kl_div(said, torch.tensor(teacher), reduction="sum")
    return torch.autograd.grad(loss, logits)[0].numpy()


def test_the_gradient_of_autograd_is_right():
    assert check_gradient(differentiated).right
    assert check_gradient(lambda *_: None).right is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda s, t, y, k: s - y, "alone"),
        (lambda s, t, y, k: (s - y + k * (s - t)) / (1 + k), "not averaged"),
        (lambda s, t, y, k: s - y + k * (t - s), "sign"),
        (lambda s, t, y, k: y - s - k * (s - t), "downhill"),
        (lambda s, t, y, k: s - y + s - t, "where is λ"),
        (lambda s, t, y, k: 0.0, "each term alone"),
    ],
)
def test_wrong_gradients_get_a_hint(answer, said):
    verdict = check_gradient(answer)
    assert verdict.right is False
    assert said in verdict.message


@pytest.mark.parametrize("steps", [390, 392])
def test_a_window_of_two_epochs(steps):
    assert check_window(1 - 1 / steps).right


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (1 - 1 / 195, "one epoch"),
        (1 - 1 / 100_000, "steps, not images"),
        (0.999, "1000 steps; two epochs have 390"),
        (1.0, "nothing moves"),
        (-0.5, "from 0 to 1"),
    ],
)
def test_wrong_windows_get_a_hint(answer, said):
    verdict = check_window(answer)
    assert verdict.right is False
    assert said in verdict.message


def test_the_cost():
    def counted(ratio, twice):
        passes = [3, 1] + [3] * twice  # student, teacher, student again
        return (1 + ratio) * sum(passes) / 3

    assert check_cost(counted).right
    assert check_cost(lambda *_: ...).right is None
    assert "those are units" in check_cost(lambda *a: 3 * counted(*a)).message
    assert "no backward" in check_cost(lambda r, t: 2.0).message
    assert check_cost(lambda r, t: 4 / 3).message == "(0, True) takes 2.33 times LSQ."
    assert check_window(None).right is None
