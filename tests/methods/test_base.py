import inspect
import math

import pytest
import torch
from torch import nn

from qatviz.methods import CrossEntropy, Method
from qatviz.methods.base import labelled_cross_entropy


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


def test_a_method_is_a_module_with_three_verbs():
    method = Method()
    assert isinstance(method, nn.Module)
    assert method.prepare(nn.Identity(), None) is None
    assert method.after_step((torch.zeros(1), torch.zeros(1)), 0.5) is None
    with pytest.raises(NotImplementedError):
        method.loss(lambda images: images, torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert list(inspect.signature(Method.loss).parameters) == [
        "self",
        "forward",
        "images",
        "labels",
    ]
    assert list(CrossEntropy().parameters()) == []
