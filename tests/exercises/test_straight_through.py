import pytest
import torch
from torch.nn.functional import hardtanh

from qatviz import analysis
from qatviz.exercises.straight_through import check_interval, check_share, check_sign
from qatviz.quantizers import straight_through


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def unanswered(x): ...


def test_sign_right():
    assert check_sign(lambda x: straight_through(sign(x), hardtanh(x))).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: straight_through(sign(x), x), "1 everywhere"),
        (lambda x: straight_through(sign(x), 0 * x), "zero everywhere"),
        (lambda x: straight_through(sign(x), x.tanh()), "1 where |x| < 1 and 0 beyond"),
        (lambda x: straight_through(x.sign(), hardtanh(x)), "no room for a third"),
        (sign, "nothing joins y to x"),
        (hardtanh, "forward value should be +1"),
        (lambda x: 1.0, "return a tensor"),
    ],
)
def test_sign_wrong(answer, hint):
    verdict = check_sign(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_share_right_as_measured():
    path = analysis.train_weight(0.3, power=1, updates=400)
    assert check_share(path.share(1, after=200)).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.3, "for the square"),
        (0, "never settles"),
        (50, "between 0 and 1, got 50"),
        (0.8, "time × size"),
    ],
)
def test_share_wrong(answer, hint):
    verdict = check_share(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_interval_right_as_measured():
    record = analysis.staircase_loss(0.8)
    wrong = record.weight[record.gradients["clipped"] * record.smoothed_gradient < -1e-9]
    assert check_interval((float(wrong.min()), float(wrong.max()))).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((0, 0.5), "the place for t = 0.3"),
        ((0, 1), "one side of the threshold"),
        ((1, 0.5), "the lower one first"),
        (0.5, "two numbers"),
        ((-2, -1), "draw it"),
    ],
)
def test_interval_wrong(answer, hint):
    verdict = check_interval(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_unanswered():
    verdicts = (check_sign(None), check_sign(unanswered), check_share(None), check_interval(None))
    assert [v.right for v in verdicts] == [None] * 4
