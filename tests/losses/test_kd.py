import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatviz.losses import distillation


def softmax(row, temperature):
    highest = max(row)
    parts = [math.exp((z - highest) / temperature) for z in row]
    return [p / sum(parts) for p in parts]


def literal(student, teacher, temperature):
    """T²·(1/n) ∑ₙ ∑ₖ p log(p/q), number by number."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        total += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True) if pk > 0)
    return temperature**2 * total / len(student)


logits = st.floats(-8, 8, width=32)


@settings(deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda k: st.lists(
            st.tuples(
                st.lists(logits, min_size=k, max_size=k), st.lists(logits, min_size=k, max_size=k)
            ),
            min_size=1,
            max_size=4,
        )
    ),
    st.sampled_from([0.5, 1.0, 4.0, 20.0]),
)
def test_it_is_the_formula(rows, temperature):
    student, teacher = ([row[side] for row in rows] for side in (0, 1))
    s, t = torch.tensor(student, requires_grad=True), torch.tensor(teacher)
    found = distillation(s, t, temperature)
    expected = literal(student, teacher, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=2e-6 * temperature**2)
    (gradient,) = torch.autograd.grad(found, s)
    for row, a, b in zip(gradient.tolist(), student, teacher, strict=True):
        pairs = zip(softmax(a, temperature), softmax(b, temperature), strict=True)
        wanted = [temperature / len(rows) * (q - p) for q, p in pairs]
        assert row == pytest.approx(wanted, abs=1e-5 * temperature)


def test_at_temperature_four_it_is_sixteen_times_the_mean_divergence():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (t / 4).softmax(1), (s / 4).softmax(1)
    assert distillation(s, t).item() == pytest.approx(
        16 * (p * (p / q).log()).sum().item() / 5, rel=1e-5
    )


def test_a_high_temperature_compares_centred_logits():
    # T²·KL → ‖centred s − centred t‖² / (2·classes), and its gradient → the difference.
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    gap = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    found = distillation(s, t, 200.0).item()
    assert found == pytest.approx(gap.square().sum(1).mean().item() / 10, rel=0.02)


def test_agreement_costs_nothing():
    s = torch.randn(3, 4, requires_grad=True)
    loss = distillation(s, s.detach() + 2.5)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, s)
    assert gradient.abs().max() < 1e-6


def test_half_types_are_widened():
    s, t = torch.randn(3, 4).bfloat16(), torch.randn(3, 4).half()
    found = distillation(s, t)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(literal(s.tolist(), t.tolist(), 4.0), rel=1e-4)


def test_far_logits_stay_finite():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = distillation(s, -s.detach(), 1.0)
    assert loss.item() == pytest.approx(2e4, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, s)
    assert gradient.tolist() == [[1.0, -1.0, 0.0]]
