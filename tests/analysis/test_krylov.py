import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from qatviz.analysis.krylov import Krylov, order


def symmetric(values, seed=0):
    """A dense matrix with these eigenvalues."""
    generator = np.random.default_rng(seed)
    q, _ = np.linalg.qr(generator.normal(size=(len(values), len(values))))
    return (q * np.asarray(values, float)) @ q.T


def krylov(matrix, room=None, seed=0, dtype=torch.float64):
    dense = torch.tensor(matrix, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=dtype)
    return Krylov(lambda v: dense @ v, len(matrix), room or len(matrix), generator, like)


def advance(k, steps, keep=None, which="magnitude"):
    for _ in range(steps):
        if k.steps == k.room:
            k.restart(keep, which)
        k.step()
    return k


def true_residuals(matrix, found, vectors):
    vectors = vectors.double().numpy()
    return np.linalg.norm(vectors @ matrix - found.values[:, None] * vectors, axis=1)


SPREAD = np.concatenate([[-9, 7, 5.5], np.linspace(-1, 2, 57)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_recurrence_holds_and_the_basis_is_orthonormal(dtype):
    eps, matrix = torch.finfo(dtype).eps, symmetric(SPREAD)
    k = advance(krylov(matrix, dtype=dtype), 20)
    q = k.basis[:20].double().numpy()
    np.testing.assert_allclose(q @ q.T, np.eye(20), atol=20 * eps)
    rest = matrix @ q.T - q.T @ k.matrix[:20, :20]
    rest[:, -1] -= k.beta * k.next.double().numpy()
    np.testing.assert_allclose(rest, 0, atol=200 * eps)
    np.testing.assert_allclose(np.triu(k.matrix[:20, :20], 2), 0, atol=200 * eps)  # tridiagonal


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
def test_outer_eigenvalues_with_their_residuals(which):
    matrix = symmetric(SPREAD)
    k = advance(krylov(matrix), 25)
    found = k.ritz(3, which)
    expected = SPREAD[order(SPREAD, which)][:3]
    vectors = k.vectors(found.coefficients)
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, found, vectors), atol=1e-12)
    # A symmetric matrix has an eigenvalue within the residual.
    assert (np.abs(found.values - expected) <= found.residuals + 1e-12).all()
    assert found.residuals[0] < 0.1
    assert (found.residuals > 0).all()


def test_all_steps_give_all_eigenvalues():
    k = advance(krylov(symmetric(SPREAD)), 60)
    np.testing.assert_allclose(k.ritz(60, "smallest").values, np.sort(SPREAD), atol=1e-12)
    assert k.ritz(99).values.shape == (60,)


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize(("room", "keep"), [(6, 5), (6, 3), (12, 8)])
def test_restarts_in_a_small_room_find_the_same(which, room, keep):
    matrix = symmetric(SPREAD)
    k = advance(krylov(matrix, room), 150, keep, which)
    assert k.basis.shape == (room, 60)
    found = k.ritz(2, which)
    np.testing.assert_allclose(found.values, SPREAD[order(SPREAD, which)][:2], rtol=1e-6)
    residuals = true_residuals(matrix, found, k.vectors(found.coefficients))
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-12)
    q, t = k.basis[: k.steps].numpy(), k.matrix[: k.steps, : k.steps]
    rest = matrix @ q.T - q.T @ t
    rest[:, -1] -= k.beta * k.next.numpy()
    np.testing.assert_allclose(rest, 0, atol=1e-11)


def test_a_diagonal_quadratic_is_exact():
    k = advance(krylov(np.diag([3.0, -2.0, 1.0])), 3)
    np.testing.assert_allclose(k.ritz(3).values, [3, -2, 1], atol=1e-14)


def test_zero():
    k = advance(krylov(np.zeros((5, 5))), 5)
    assert np.array_equal(k.ritz(5).values, np.zeros(5))
    assert np.array_equal(k.ritz(5).residuals, np.zeros(5))
    np.testing.assert_allclose(k.basis @ k.basis.T, np.eye(5), atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_identity(dtype):
    k = advance(krylov(np.eye(6), dtype=dtype), 6)
    np.testing.assert_allclose(k.ritz(6).values, np.ones(6), atol=1e-6)
    assert k.ritz(6).residuals.max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_low_rank(dtype):
    values = [4.0, -3.0, 2.0] + [0.0] * 20
    k = advance(krylov(symmetric(values), dtype=dtype), 23)
    found = k.ritz(23).values
    np.testing.assert_allclose(found[:3], values[:3], rtol=1e-5)
    np.testing.assert_allclose(found[3:], 0, atol=1e-5)


def test_repeated_eigenvalues_are_found_once_and_all_when_the_space_is_used_up():
    values = [5.0] * 3 + [3.0] * 2 + [1.0] * 10
    k = advance(krylov(symmetric(values)), 3)
    np.testing.assert_allclose(k.ritz(3).values, [5, 3, 1], atol=1e-12)
    np.testing.assert_allclose(k.ritz(3).residuals, 0, atol=1e-12)
    k = advance(krylov(symmetric(values)), 15)
    np.testing.assert_allclose(k.ritz(15).values, values, atol=1e-12)


def test_one_number():
    k = advance(krylov(np.array([[-2.5]])), 1)
    assert k.ritz(1).values == pytest.approx(-2.5)
    assert k.ritz(1).residuals.max() == 0


def test_the_generator_decides():
    matrix = symmetric(SPREAD)
    one, same, other = (advance(krylov(matrix, seed=s), 4).ritz(2).values for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rounding_is_what_the_recurrence_does_not_see():
    matrix = symmetric(SPREAD)
    k = advance(krylov(matrix), 20)
    found = k.ritz(4)
    assert k.rounding(found) < 1e-12
    # The matrix moves a little: residuals then have a part that no recurrence knows of.
    moved = matrix + 1e-3 * symmetric(np.linspace(-1, 1, 60), seed=1)
    k.product = lambda v: torch.tensor(moved) @ v
    measured = np.mean([k.rounding(found) ** 2 for _ in range(300)])
    vectors = k.vectors(found.coefficients).numpy()
    parts = vectors @ (moved - matrix)
    assert measured == pytest.approx((parts**2).sum(), rel=0.15)
    true = true_residuals(moved, found, k.vectors(found.coefficients))
    assert (np.hypot(found.residuals, k.rounding(found)) > 0.5 * true).all()


def test_an_interrupted_restart_leaves_nothing_to_trust(monkeypatch):
    k = advance(krylov(symmetric(SPREAD), 6), 6)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.Tensor, "split", interrupt)
    with pytest.raises(KeyboardInterrupt):
        k.restart(3, "magnitude")
    assert k.steps == 0


@pytest.mark.parametrize("which", ["magnitude", "smallest"])
def test_residuals_hold_right_after_a_restart(which):
    matrix = symmetric(SPREAD)
    k = advance(krylov(matrix, 12), 12)
    before = k.ritz(5, which)
    k.restart(5, which)
    found = k.ritz(5, which)
    np.testing.assert_allclose(found.values, before.values, rtol=1e-12)
    np.testing.assert_allclose(found.residuals, before.residuals, rtol=1e-8)
    true = true_residuals(matrix, found, k.vectors(found.coefficients))
    np.testing.assert_allclose(found.residuals, true, rtol=1e-8, atol=1e-10)
    assert found.residuals.max() > 1e-3


def test_ctrl_c_waits_until_a_restart_is_done(monkeypatch):
    matrix = symmetric(SPREAD)
    k, wanted = (advance(krylov(matrix, 12), 12) for _ in range(2))
    wanted.restart(5, "magnitude")
    released = torch.Tensor.split

    def interrupt(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return released(*arguments, **options)

    monkeypatch.setattr(torch.Tensor, "split", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        k.restart(5, "magnitude")
    assert signal.getsignal(signal.SIGINT) is handler
    found, expected = k.ritz(5), wanted.ritz(5)
    assert np.array_equal(found.values, expected.values)
    assert torch.equal(k.vectors(found.coefficients), wanted.vectors(expected.coefficients))


def test_a_restart_in_another_thread():
    k = advance(krylov(symmetric(SPREAD), 12), 12)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(k.restart, 5, "magnitude").result()
    assert k.steps == 5


def test_an_interrupted_step_leaves_what_was_before():
    matrix = symmetric(SPREAD)
    k = advance(krylov(matrix), 10)
    before = k.ritz(3)

    def interrupt(_):
        raise KeyboardInterrupt

    product, k.product = k.product, interrupt
    with pytest.raises(KeyboardInterrupt):
        k.step()
    assert k.steps == 10
    assert np.array_equal(k.ritz(3).values, before.values)
    k.product = product
    assert np.array_equal(advance(k, 5).matrix, advance(krylov(matrix), 15).matrix)


def test_the_order_that_is_asked_for():
    values = np.array([1.0, -4.0, 3.0, 0.0])
    assert order(values, "magnitude").tolist() == [1, 2, 0, 3]
    assert order(values, "largest").tolist() == [2, 0, 3, 1]
    assert order(values, "smallest").tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="which: got 'LM', allowed: magnitude, largest, smallest"):
        order(values, "LM")
