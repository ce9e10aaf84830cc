import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian

from qatviz.analysis.toys import (
    closed_form_loss,
    round_weight,
    staircase_loss,
    surrogate_loss,
    train_weight,
)


@pytest.mark.parametrize(
    ("surrogate", "slopes"),
    [("none", [0, 0, 0, 0]), ("identity", [1, 1, 1, 1]), ("clipped", [0, 1, 1, 0])],
)
def test_levels_and_slopes(surrogate, slopes):
    w = torch.tensor([-2.7, -1.2, 0.6, 1.3], requires_grad=True)
    level = round_weight(w, surrogate=surrogate)
    (slope,) = torch.autograd.grad(level.sum(), w)
    assert level.tolist() == [-2, -1, 1, 1]
    assert slope.tolist() == slopes


def test_unknown_surrogate():
    with pytest.raises(ValueError, match=r"one of \('none', .*, got 'tanh'"):
        round_weight(torch.zeros(1), surrogate="tanh")


def test_without_a_surrogate_nothing_moves():
    path = train_weight(0.3, surrogate="none")
    assert (path.weight == path.weight[0]).all()
    assert not path.gradient.any()


@pytest.mark.parametrize("target", [0.3, -1.4, 0.75])
def test_the_mean_level_is_the_target_as_the_sum_of_updates_says(target):
    path = train_weight(target, updates=2_000, rate=0.05)
    moved = (path.weight[0] - path.weight[-1]) / (2 * 0.05 * 2_000)
    assert path.mean_level() - target == pytest.approx(moved, abs=1e-12)
    assert path.mean_level(after=1_000) == pytest.approx(target, abs=0.01)


def test_the_share_does_not_depend_on_the_rate_but_on_the_power():
    slow = train_weight(0.3, rate=0.01, updates=2_000)
    assert slow.share(1, after=1_000) == pytest.approx(0.3, abs=0.01)
    assert slow.changes(after=1_000) == pytest.approx(0.6, abs=0.01)
    absolute = train_weight(0.3, power=1, updates=1_000)
    assert absolute.share(1, after=500) == pytest.approx(0.5, abs=0.01)


def test_the_clip_stops_a_weight_and_only_decay_brings_it_back():
    options = {"start": 0.2, "updates": 200}
    free, masked, decayed = (
        train_weight([2.5, -0.7], surrogate=s, decay=d, **options)
        for s, d in (("identity", 0), ("clipped", 0), ("clipped", 0.1))
    )
    assert free.weight[100] > 10
    assert masked.weight[100] == masked.weight[-1] >= 1
    assert decayed.weight[100] < 1.2
    assert decayed.weight[-1] < 0


@pytest.mark.parametrize("options", [{"updates": 0}, {"power": 0.5}, {"target": []}])
def test_training_refuses(options):
    with pytest.raises(ValueError, match="are needed, got"):
        train_weight(**({"target": 0.3} | options))


@pytest.mark.parametrize("noise", [0.4, 1.0, 2.5])
def test_blurred_loss_is_the_mean_over_noise(noise):
    record = staircase_loss(0.3, noise=noise, points=40)
    grid = (np.arange(20_000) + 0.5) / 20_000 - 0.5
    levels = np.clip(np.round(record.weight[:, None] + noise * grid), -2, 1)
    np.testing.assert_allclose(record.smoothed, ((levels - 0.3) ** 2).mean(1), atol=2e-3)


def test_blurred_gradient_is_the_derivative_of_the_blurred_loss():
    record = staircase_loss(0.3)
    numeric = np.gradient(record.smoothed, record.weight)
    away = np.abs(record.weight * 2 - np.round(record.weight * 2)) > 0.05  # from the kinks
    np.testing.assert_allclose(numeric[away], record.smoothed_gradient[away], atol=1e-9)


def test_straight_through_is_right_on_average_and_wrong_below_the_threshold():
    record = staircase_loss(0.3, low=-2, high=1, points=30_000)
    claimed, blurred = record.gradients["clipped"], record.smoothed_gradient
    assert claimed.mean() == pytest.approx(blurred.mean(), abs=1e-3)
    wrong = record.weight[claimed * blurred < -1e-9]
    assert (wrong.min(), wrong.max()) == pytest.approx((0, 0.5), abs=1e-3)
    assert not record.gradients["none"].any()


@pytest.mark.parametrize("options", [{"noise": 0}, {"low": 2}, {"points": 1}])
def test_losses_refuse(options):
    with pytest.raises(ValueError, match="are needed, got"):
        staircase_loss(0.3, **options)


def test_the_two_forms_agree_once_and_only_one_is_symmetric():
    at = torch.tensor(0.7, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    assert surrogate_loss(*at) == closed_form_loss(*at)
    first = [torch.autograd.grad(f(*at), at) for f in (surrogate_loss, closed_form_loss)]
    torch.testing.assert_close(*first)
    good, bad = (torch.tensor(hessian(f, at)) for f in (surrogate_loss, closed_form_loss))
    assert good[0, 1] == good[1, 0]
    assert abs(bad[0, 1] - bad[1, 0]) > 1
