import inspect
import math

import pytest
import torch
from torch import nn

from qatviz.methods import CrossEntropy, Method, Wrapper
from qatviz.methods.base import check_between, cosine_between, labelled_cross_entropy
from tests.methods.common import CE, same, trained


def literal(logits, labels):
    """−(1/n) ∑ log(exp z[label] / ∑ exp z), number by number."""
    values = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row)))
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        if label != -1
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("labels", [[0, 2, 1, 1], [0, -1, -1, 2], [-1, -1, 1, -1]])
def test_cross_entropy_averages_over_the_labelled(labels):
    logits, labels = torch.randn(4, 3), torch.tensor(labels)
    assert labelled_cross_entropy(logits, labels).item() == pytest.approx(
        literal(logits, labels), rel=1e-5
    )


def test_gradient_is_softmax_less_one_hot_over_the_number_of_labelled():
    logits, labels = torch.randn(3, 4, requires_grad=True), torch.tensor([2, -1, 0])
    (gradient,) = torch.autograd.grad(labelled_cross_entropy(logits, labels), logits)
    expected = (logits.softmax(1) - torch.eye(4)[labels.clamp(min=0)]) / 2
    expected[1] = 0
    torch.testing.assert_close(gradient, expected.detach())


def test_no_labelled_image_costs_nothing_and_pulls_nowhere():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = labelled_cross_entropy(logits, torch.full((5,), -1))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros(5, 3))


def test_method_is_given_a_view_and_a_function():
    images = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
    labels = torch.tensor([0, 1, -1, 2])
    seen = []

    def forward(views):
        seen.append(views)
        return views.flatten(1).float()[:, :3] / 255

    method = CrossEntropy(view=lambda images: images.flip(-1))
    terms = method.loss(forward, images, labels)
    assert list(terms) == ["cross_entropy"]
    assert len(seen) == 1
    assert torch.equal(seen[0], images.flip(-1))
    logits = images.flip(-1).flatten(1)[:, :3] / 255
    assert terms["cross_entropy"].item() == pytest.approx(literal(logits, labels), rel=1e-5)


def test_the_default_view_is_the_image():
    images = torch.randint(0, 256, (2, 1, 2, 2), dtype=torch.uint8)
    seen = []
    CrossEntropy().loss(lambda v: seen.append(v) or torch.zeros(2, 3), images, torch.tensor([0, 1]))
    assert seen[0] is images


def test_half_precision_logits_are_compared_in_full():
    logits = torch.randn(2, 3).bfloat16()
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    term = CrossEntropy().loss(lambda views: logits, images, labels)["cross_entropy"]
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(literal(logits.float(), labels), rel=1e-6)


def test_a_method_is_a_module_with_four_verbs():
    method = Method()
    assert isinstance(method, nn.Module)
    assert method.prepare(nn.Identity(), None) is None
    assert method.after_step((torch.zeros(1), torch.zeros(1)), 0.5) is None
    student = nn.Identity()
    assert method.evaluated(student) is student
    with pytest.raises(NotImplementedError):
        method.loss(lambda images: images, torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert list(inspect.signature(Method.loss).parameters) == [
        "self",
        "forward",
        "images",
        "labels",
    ]
    assert list(CrossEntropy().parameters()) == []


# --- Label smoothing


def literal_smooth(logits, labels, smoothing):
    """−(1/n) ∑ₙ ∑ₖ ((1 − ε)·1[k = label] + ε/K) log p_k, number by number."""
    values = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            total = sum(map(math.exp, row))
            values.append(
                -sum(
                    ((1 - smoothing) * (k == label) + smoothing / len(row))
                    * math.log(math.exp(z) / total)
                    for k, z in enumerate(row)
                )
            )
    return sum(values) / max(len(values), 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("labels", [[0, 2, 1, 1], [0, -1, -1, 2], [-1, -1, -1, -1]])
def test_smoothing_is_the_formula_over_the_labelled(labels, smoothing):
    logits, labels = torch.randn(4, 3), torch.tensor(labels)
    found = labelled_cross_entropy(logits, labels, smoothing).item()
    assert found == pytest.approx(literal_smooth(logits, labels, smoothing), rel=1e-5)
    images = torch.zeros(4, 1, 1, 1)
    term = CrossEntropy(smoothing=smoothing).loss(lambda _: logits, images, labels)
    assert term["cross_entropy"].item() == found


def test_smoothing_of_zero_is_the_loss_without_it_to_the_bit():
    logits, labels = torch.randn(64, 10), torch.randint(-1, 10, (64,))
    plain = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    assert torch.equal(labelled_cross_entropy(logits, labels, 0.0), plain / (labels >= 0).sum())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_outside_its_range(smoothing):
    with pytest.raises(ValueError, match="smoothing must be from 0 below 1, got"):
        CrossEntropy(smoothing=smoothing)


# --- A method around a method


class Recorder(CrossEntropy):
    def __init__(self):
        super().__init__()
        self.calls, self.other = [], nn.Identity()

    def prepare(self, student, data):
        self.calls.append(("prepare", student, data))

    def after_step(self, batch, progress):
        self.calls.append(("after_step", batch, progress))

    def evaluated(self, student):
        return self.other


def test_a_wrapper_does_what_the_method_does():
    inner, student = Recorder(), nn.Identity()
    wrapper = Wrapper(Wrapper(inner))
    batch = (torch.zeros(2, 1, 1, 3), torch.tensor([0, 1]))
    wrapper.prepare(student, "data")
    wrapper.after_step(batch, 0.5)
    assert inner.calls == [("prepare", student, "data"), ("after_step", batch, 0.5)]
    assert wrapper.evaluated(student) is inner.other
    logits = torch.randn(2, 3)
    assert wrapper.loss(lambda _: logits, *batch) == inner.loss(lambda _: logits, *batch)


def test_a_wrapper_trains_to_the_bit_as_the_method():
    assert same(trained(Wrapper(CE()))[0], trained(CE())[0])


# --- Shared arithmetic


def test_the_cosine_by_hand():
    # From 2 to 6 between a quarter and the end: the middle is at 0.625.
    values = [cosine_between(2.0, 6.0, 0.25, t) for t in (0, 0.1, 0.25, 0.5, 0.625, 0.75, 1)]
    assert values == pytest.approx([2, 2, 2, 3, 4, 5, 6])
    assert cosine_between(2.0, 6.0, 0.0, 0.5) == pytest.approx(4)


def test_a_range_includes_its_ends_unless_said():
    check_between("X", "y", 0, 0, 1)
    check_between("X", "y", 1, 0, 1)
    check_between("X", "y", 0, 0, 1, open_above=True)
    for bad in (-1e-9, 1.1, math.nan):
        with pytest.raises(ValueError, match="X: y must be from 0 to 1, got"):
            check_between("X", "y", bad, 0, 1)
