import pytest
import torch

from qatviz.exercises.start_here import check_best_step, check_bytes, check_codes
from qatviz.models import small_cnn


@pytest.fixture
def weights():
    return torch.randn(2_000)


@pytest.mark.parametrize("answer", [[-2, -1, 0, 1], (1, 0, -1, -2), {-2.0, -1.0, 0.0, 1.0}])
def test_codes_right(answer):
    assert check_codes(answer).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ([-2, -1, 1, 2], "symmetric"),
        ([-2, -1, 0, 1, 2], "zero needs one of them"),
        ([0, 1, 2, 3], "unsigned"),
        ([-1, 0, 1], "2² = 4 codes"),
    ],
)
def test_codes_wrong(answer, hint):
    verdict = check_codes(answer)
    assert verdict.right is False
    assert hint in verdict.message


def test_best_step_right(weights):
    assert check_best_step(0.6, weights).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.25, "too small: the tails are clipped"),
        (4, "too large: everything rounds to zero"),
        (0, "positive number, got 0"),
        (-1, "positive number, got -1"),
    ],
)
def test_best_step_wrong(answer, hint, weights):
    verdict = check_best_step(answer, weights)
    assert verdict.right is False
    assert hint in verdict.message


def test_bytes_right():
    # 1·16·9 + 16·32·9 + 32·64·9 + 64·10 weights, four to a byte.
    assert check_bytes((144 + 4_608 + 18_432 + 640) / 4, small_cnn()).right is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (23_824 * 2, "those are bits"),
        (23_824 * 4, "float32"),
        (24_058 / 4, "BatchNorm and biases"),
        (1, "sum layer.weight.numel()"),
    ],
)
def test_bytes_wrong(answer, hint):
    verdict = check_bytes(answer, small_cnn())
    assert verdict.right is False
    assert hint in verdict.message


def test_unanswered(weights):
    for verdict in (
        check_codes(None),
        check_best_step(None, weights),
        check_bytes(None, small_cnn()),
    ):
        assert verdict.right is None
