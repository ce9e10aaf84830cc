import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from qatviz.analysis.input_changes import equivalent_input_change


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_columns(weight, shape, stride, padding):
    """The convolution as a matrix: what it makes of each input with a single one."""
    columns = []
    for index in range(math.prod(shape)):
        unit = torch.zeros(math.prod(shape), dtype=torch.float64)
        unit[index] = 1
        columns.append(conv2d(unit.view(1, *shape), weight, stride=stride, padding=padding))
    return np.stack([column.flatten().numpy() for column in columns], axis=1)


# With more equations than unknowns, with as many, with fewer; without padding.
@pytest.mark.parametrize(
    ("out", "stride", "padding", "equations"),
    [(5, 1, 1, 180), (2, 1, 1, 72), (3, 2, 1, 27), (4, 1, 0, 64)],
)
def test_a_convolution_against_the_pseudo_inverse(out, stride, padding, equations):
    weight, change, x = drawn(out, 2, 3, 3), drawn(out, 2, 3, 3, seed=1), drawn(3, 2, 6, 6, seed=2)
    found = equivalent_input_change(
        weight, change, x, stride=stride, padding=padding, iterations=5000, label="noise"
    )
    matrix = by_columns(weight, (2, 6, 6), stride, padding)
    does = by_columns(change, (2, 6, 6), stride, padding)
    assert (found.unknowns, found.equations) == (72, equations) == matrix.T.shape
    for index, image in enumerate(x.flatten(1).numpy()):
        wanted = does @ image
        delta = np.linalg.pinv(matrix) @ wanted
        left = np.linalg.norm(matrix @ delta - wanted) / np.linalg.norm(wanted)
        np.testing.assert_allclose(found.change[index].ravel(), delta, atol=1e-5)
        assert found.residual[index] == pytest.approx(left, abs=1e-6)
        size = np.linalg.norm(delta) / np.linalg.norm(image)
        assert found.size[index] == pytest.approx(size, rel=1e-5)
    expected = (change.square().sum() / weight.square().sum()).sqrt().item()
    assert found.weight_size == pytest.approx(expected)
    assert found.settled.all()
    assert (found.samples, found.label) == (3, "noise")


def test_a_linear_layer_with_fewer_outputs_than_inputs_can_do_it():
    weight, change, x = drawn(4, 9), drawn(4, 9, seed=1), drawn(6, 9, seed=2)
    found = equivalent_input_change(weight, change, x)
    moved = (x + torch.tensor(found.change)) @ weight.T
    np.testing.assert_allclose(moved, x @ (weight + change).T, atol=1e-9)
    np.testing.assert_allclose(
        found.change, x.numpy() @ change.numpy().T @ np.linalg.pinv(weight.numpy()).T, atol=1e-9
    )
    assert found.residual.max() < 1e-9
    assert found.white == 0


def test_a_linear_layer_with_more_outputs_cannot():
    weight, change, x = drawn(90, 9), drawn(90, 9, seed=1), drawn(40, 9, seed=2)
    found = equivalent_input_change(weight, change, x)
    assert found.white == pytest.approx(math.sqrt(1 - 9 / 90))
    assert found.mean_residual == pytest.approx(found.white, abs=0.02)


def test_what_a_stride_skips_is_no_unknown():
    weight, change, x = drawn(3, 2, 1, 1), drawn(3, 2, 1, 1, seed=1), drawn(4, 2, 8, 8, seed=2)
    found = equivalent_input_change(weight, change, x, stride=2)
    assert (found.unknowns, found.equations) == (2 * 4 * 4, 3 * 4 * 4)
    assert not found.change[:, :, 1::2].any()
    assert found.white == pytest.approx(math.sqrt(1 / 3))


def test_scaling_the_weight_is_scaling_the_input():
    weight, x = drawn(5, 2, 3, 3), drawn(3, 2, 6, 6, seed=2)
    found = equivalent_input_change(weight, 0.1 * weight, x, padding=1)
    np.testing.assert_allclose(found.change, 0.1 * x, atol=1e-6)
    np.testing.assert_allclose(found.size, 0.1, rtol=1e-6)
    assert found.weight_size == pytest.approx(0.1)


def test_what_changes_nothing_needs_no_change():
    weight, x = drawn(4, 9), drawn(3, 9, seed=2)
    x[1] = 0
    for change in (torch.zeros(4, 9), drawn(4, 9, seed=1)):
        found = equivalent_input_change(weight, change, x)
        assert (found.residual[1], found.size[1], found.settled.all()) == (0, 0, True)
    nothing = equivalent_input_change(weight, torch.zeros(4, 9), x)
    assert nothing.iterations == 0
    assert not nothing.change.any()


def test_too_few_steps_are_told_and_only_leave_more():
    weight, change, x = drawn(2, 2, 3, 3), drawn(2, 2, 3, 3, seed=1), drawn(3, 2, 6, 6, seed=2)
    records = [
        equivalent_input_change(weight, change, x, padding=1, iterations=steps)
        for steps in (2, 10, 5000)
    ]
    assert [r.iterations for r in records[:2]] == [2, 10]
    assert [r.settled.all() for r in records] == [False, False, True]
    for less, more in pairwise(records):
        assert (less.residual > more.residual).all()
        assert (less.size < more.size).all()


def test_every_input_has_its_own():
    weight, change, x = drawn(5, 2, 3, 3), drawn(5, 2, 3, 3, seed=1), drawn(3, 2, 6, 6, seed=2)
    together = equivalent_input_change(weight, change, x, padding=1)
    for index in range(3):
        alone = equivalent_input_change(weight, change, x[index : index + 1], padding=1)
        np.testing.assert_allclose(alone.change[0], together.change[index], atol=1e-6)


W, C, X = torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ((W, torch.ones(3, 2), X), {}, r"change \(3, 2\)"),
        ((W, C, torch.ones(4, 2)), {}, r"x \(4, 2\)"),
        ((W, C, torch.ones(0, 3)), {}, r"x \(0, 3\)"),
        ((W, C, torch.ones(4, 3, 2, 2)), {}, "weight has shape"),
        ((W[0], C[0], X), {}, "weight has shape"),
        ((W, C, X / 0), {}, "x has numbers"),
        ((W, C / 0, X), {}, "change has numbers"),
        ((0 * W, C, X), {}, "weight is zero"),
        ((W, C, X), {"iterations": 0}, "iterations is 0"),
        ((W, C, X), {"tolerance": 0.0}, "tolerance 0"),
        ((W, C, X), {"tolerance": math.nan}, "tolerance nan"),
    ],
)
def test_what_is_refused(given, options, words):
    with pytest.raises(ValueError, match=words):
        equivalent_input_change(*given, **options)


def test_nothing_that_was_given_changes():
    weight, change, x = drawn(5, 2, 3, 3), drawn(5, 2, 3, 3, seed=1), drawn(3, 2, 6, 6, seed=2)
    weight.requires_grad_()
    before = [t.detach().clone() for t in (weight, change, x)]
    state = torch.get_rng_state()
    equivalent_input_change(weight, change, x, padding=1)
    for old, new in zip(before, (weight, change, x), strict=True):
        assert torch.equal(old, new)
    assert weight.grad is None
    assert torch.equal(state, torch.get_rng_state())
