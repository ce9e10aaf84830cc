"""Divergences and their gradients, by the formulas written out."""

import math
from functools import partial

import pytest
import torch

from qatviz.losses import distillation
from qatviz.losses.consistency import (
    feature_distance,
    jensen_shannon,
    logit_distance,
    probability_distance,
    pseudo_label,
    reverse_divergence,
)

CLASSES, ROWS = 5, 4


def logits(seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, CLASSES, generator=generator)


def softmax(row):
    powers = [math.exp(z - max(row)) for z in row]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(name, s, t):
    """The value for one row, and its gradient."""
    p, q, classes = softmax(s), softmax(t), len(s)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    if name == "divergence":
        return kl(q, p), [a - b for a, b in zip(p, q, strict=True)]
    if name == "reverse":
        value = kl(p, q)
        return value, [a * (math.log(a / b) - value) for a, b in zip(p, q, strict=True)]
    if name == "jensen-shannon":
        value = kl(q, middle) / 2 + kl(p, middle) / 2
        mean = sum(a * math.log(a / m) for a, m in zip(p, middle, strict=True))
        gradient = [a * (math.log(a / m) - mean) / 2 for a, m in zip(p, middle, strict=True)]
        return value, gradient
    if name == "probabilities":
        apart = [a - b for a, b in zip(p, q, strict=True)]
        mean = sum(a * d for a, d in zip(p, apart, strict=True))
        value = sum(d * d for d in apart) / classes
        return value, [2 / classes * a * (d - mean) for a, d in zip(p, apart, strict=True)]
    apart = [a - b for a, b in zip(s, t, strict=True)]
    return sum(d * d for d in apart) / classes, [2 * d / classes for d in apart]


KINDS = {
    "divergence": partial(distillation, temperature=1.0),
    "reverse": reverse_divergence,
    "jensen-shannon": jensen_shannon,
    "probabilities": probability_distance,
    "logits": logit_distance,
}


@pytest.mark.parametrize("name", KINDS)
def test_value_and_gradient_are_the_formulas(name):
    student, teacher = logits(0).requires_grad_(), logits(1)
    rows = [by_hand(name, s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    value = KINDS[name](student, teacher)
    value.backward()
    assert value.item() == pytest.approx(sum(v for v, _ in rows) / ROWS, rel=1e-5)
    wanted = torch.tensor([gradient for _, gradient in rows]) / ROWS
    torch.testing.assert_close(student.grad, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_zero_where_they_agree_and_finite_where_they_could_not_differ_more(name):
    same = logits(2)
    assert KINDS[name](same, same.clone()).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[60.0, -60.0], [0.0, 0.0]])
    apart = far.clone().requires_grad_()
    KINDS[name](apart, far.flip(1)).backward()
    assert apart.grad.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_half_types_are_widened(name):
    a, b = logits(3).bfloat16(), logits(4).bfloat16()
    torch.testing.assert_close(KINDS[name](a, b), KINDS[name](a.float(), b.float()))


def test_jensen_shannon_is_symmetric_and_bounded():
    a, b = logits(5), logits(6)
    torch.testing.assert_close(jensen_shannon(a, b), jensen_shannon(b, a))
    far = torch.tensor([[50.0, -50.0]])
    assert jensen_shannon(far, far.flip(1)).item() == pytest.approx(math.log(2))


def test_the_divergence_of_soft_predictions_tends_to_half_the_distance_of_centred_logits():
    a, b = logits(7, 1.0), logits(8, 1.0)
    centred = [z - z.mean(1, keepdim=True) for z in (a, b)]
    limit = logit_distance(*centred).item() / 2
    gaps = [abs(distillation(a, b, t).item() / limit - 1) for t in (1.0, 4.0, 16.0, 64.0, 256.0)]
    assert gaps[:4] == sorted(gaps[:4], reverse=True)
    assert gaps[2] < 0.01
    assert gaps[3] < 0.003
    assert gaps[4] < 0.005  # 1/τ and, in single precision, τ² roundings of numbers next to 1/5


def test_pseudo_labels_count_only_where_the_teacher_is_sure():
    teacher = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    student = logits(9)[:2, :3].requires_grad_()
    loss = pseudo_label(student, teacher, threshold=0.9)
    sure = -math.log(softmax(student[0].tolist())[0])
    assert loss.item() == pytest.approx(sure / 2, rel=1e-5)
    loss.backward()
    assert student.grad[1].eq(0).all()
    wanted = torch.tensor(softmax(student[0].tolist())) - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(student.grad[0], wanted / 2)


def test_features_are_compared_by_their_angle():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, -2.0]])
    assert feature_distance(a, b).item() == pytest.approx((0 + 1 + 2) / 3, abs=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 10.0])
def test_with_labels_it_is_cross_entropy_on_a_softer_target_at_a_higher_rate(strength):
    student, teacher = (z.double().requires_grad_() for z in (logits(10), logits(11)))
    labels = torch.tensor([0, 3, 2, 2])
    p, q = student.softmax(1), teacher.detach().softmax(1)
    onehot = torch.nn.functional.one_hot(labels, CLASSES)
    divergence = (q * (q / p).log()).sum(1).mean()
    loss = torch.nn.functional.cross_entropy(student, labels) + strength * divergence
    (gradient,) = torch.autograd.grad(loss, student)
    wanted = ((1 + strength) * p - onehot - strength * q) / ROWS
    assert (gradient - wanted).abs().max() < 1e-15
    target = (onehot + strength * q) / (1 + strength)
    soft = torch.nn.functional.cross_entropy(student, target)
    (softer,) = torch.autograd.grad((1 + strength) * soft, student)
    assert (gradient - softer).abs().max() < 1e-15
