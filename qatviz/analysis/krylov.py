"""Eigenvalues of a symmetric matrix that is only known by its products with vectors."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

Product = Callable[[Tensor], Tensor]
WHICH = ("magnitude", "largest", "smallest")


@dataclass(frozen=True, eq=False)
class Ritz:
    """Approximate eigenpairs, in the order asked for.

    Args:
        values: θ.
        residuals: ‖H·y − θ·y‖ of each, from the Lanczos recurrence.
        coefficients: The vectors y as rows of coefficients of the basis.
    """

    values: Float[Array, "pairs"]
    residuals: Float[Array, "pairs"]
    coefficients: Float[Array, "pairs steps"]


class Krylov:
    """The Lanczos basis of a symmetric matrix H, from one random vector, orthogonalised in full.

    After m steps the rows of Q are orthonormal, and with T = Q·H·Qᵀ (kept in float64)::

        H·Qᵀ = Qᵀ·T + β·q_{m+1}·e_mᵀ

    so the eigenvectors of T times Q approximate those of H, each with residual β·|last
    coefficient|: an error bar without another product, in which rounding is not seen
    (``rounding`` measures it). Each new vector is orthogonalised twice
    against all before it; without that, copies of eigenvalues appear. Where the basis spans a
    subspace that H does not leave, it goes on from a new random vector. Once the basis is full,
    ``restart`` keeps the best approximations and the recurrence stays true (thick restart).

    Args:
        product: v ↦ H·v.
        size: Length of the vectors, at least 1.
        room: The most vectors kept, at least 2 unless ``size`` is 1.
        generator: Draws the random vectors.
        like: Gives their type and device.

    Source: Lanczos 1950; Wu & Simon 2000, thick restart.
    """

    def __init__(
        self, product: Product, size: int, room: int, generator: torch.Generator, like: Tensor
    ) -> None:
        self.product, self.size, self.generator, self.like = product, size, generator, like
        self.room = min(room, size)
        # Memory that is never written to is never taken.
        self.basis = torch.empty(self.room, size, dtype=like.dtype, device=like.device)
        self.matrix = np.zeros((self.room, self.room))
        self.steps, self.beta = 0, 0.0
        self._pairs: tuple[Array, Array] | None = None
        self._tail = np.zeros(0)  # what H·Qᵀ has of q_{m+1}: β·e_m, or more after a restart
        self.next = self._random()

    def step(self) -> None:
        """One product: one more vector in the basis."""
        m = self.steps
        self.basis[m] = self.next
        new = self.product(self.basis[m])
        scale = new.norm().item()
        row = self._orthogonalise(new, m + 1)
        self.matrix[m, : m + 1] = self.matrix[: m + 1, m] = row.double().cpu().numpy()
        beta = new.norm().item()
        self._pairs, self.steps, self.beta, self._tail = None, m + 1, beta, _last(m + 1, beta)
        tiny = 10 * torch.finfo(new.dtype).eps * scale
        if self.beta > tiny:
            self.next = new.div_(self.beta)
        else:
            self.beta, self._tail = 0.0, _last(m + 1, 0.0)
            self.next = self._random() if self.steps < self.size else new

    def ritz(self, k: int, which: str = "magnitude") -> Ritz:
        """The approximations that the basis gives.

        Args:
            k: How many; fewer if there are fewer steps.
            which: "magnitude": largest |θ| first; "largest" or "smallest": by θ.

        Returns:
            Values, residuals and coefficients.
        """
        if self._pairs is None:
            self._pairs = np.linalg.eigh(self.matrix[: self.steps, : self.steps])
        values, vectors = self._pairs
        chosen = order(values, which)[:k]
        coefficients = vectors[:, chosen].T
        return Ritz(values[chosen], np.abs(coefficients @ self._tail), coefficients)

    def vectors(self, coefficients: Float[Array, "pairs steps"]) -> Float[Tensor, "pairs size"]:
        """Approximate eigenvectors, of length 1.

        Args:
            coefficients: As ``ritz`` returns them.

        Returns:
            One per row.
        """
        weights = torch.from_numpy(np.ascontiguousarray(coefficients)).to(self.basis)
        return weights @ self.basis[: self.steps]

    def rounding(self, found: Ritz) -> float:
        """What the recurrence does not see, by one product more.

        Args:
            found: As ``ritz`` returned it, of the basis as it is.

        Returns:
            The part of the residuals that lies beside q_{m+1}, of a sum of all vectors with
            random signs: its square is expected to be the sum of theirs.
        """
        signs = torch.randint(2, found.values.shape, generator=self.generator).numpy() * 2.0 - 1
        total, parts = self._sum(found, signs), self._sum(found, signs * found.values)
        rest = self.product(total) - parts
        rest -= self.next * float(signs @ found.coefficients @ self._tail)
        return rest.norm().item()

    def restart(self, keep: int, which: str) -> None:
        """Make room: only the best approximations stay, in place. Ctrl-C waits until it is done.

        Args:
            keep: How many, fewer than ``room``.
            which: See ``ritz``.
        """
        best, steps = self.ritz(keep, which), self.steps
        with _undivided():
            self._replace(best, steps, keep)

    def _replace(self, best: Ritz, steps: int, keep: int) -> None:
        self._pairs, self.steps = None, 0  # after an error from here on, nothing can be trusted
        weights = torch.from_numpy(np.ascontiguousarray(best.coefficients)).to(self.basis)
        for columns in self.basis.split(1 << 16, dim=1):  # no second basis in memory
            columns[:keep] = weights @ columns[:steps]
        self.matrix[:] = 0
        self.matrix[range(keep), range(keep)] = best.values
        self._tail, self.steps = best.coefficients @ self._tail, keep

    def _sum(self, found: Ritz, factors: Float[Array, "pairs"]) -> Tensor:
        return self.vectors((factors @ found.coefficients)[None])[0]

    def _orthogonalise(self, vector: Tensor, steps: int) -> Tensor:
        """Make a vector orthogonal to the first vectors of the basis, in place; what it had."""
        basis = self.basis[:steps]
        first = basis @ vector
        vector -= first @ basis
        second = basis @ vector
        vector -= second @ basis
        return first + second

    def _random(self) -> Tensor:
        vector = torch.randn(self.size, generator=self.generator, dtype=self.like.dtype)
        vector = vector.to(self.like.device)
        self._orthogonalise(vector, self.steps)
        return vector.div_(vector.norm())


def _last(steps: int, beta: float) -> Float[Array, "steps"]:
    return np.append(np.zeros(steps - 1), beta)


@contextmanager
def _undivided() -> Iterator[None]:
    """Let Ctrl-C wait until something is done; it reaches the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = []
    before = signal.signal(signal.SIGINT, lambda *_: waiting.append(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def order(values: Float[Array, "values"], which: str) -> Int[Array, "values"]:
    """The order in which eigenvalues are asked for.

    Args:
        values: Eigenvalues.
        which: "magnitude", "largest" or "smallest".

    Returns:
        Indices, the first that is wanted first.

    Raises:
        ValueError: If ``which`` is another word.
    """
    if which not in WHICH:
        raise ValueError(f"which: got {which!r}, allowed: {', '.join(WHICH)}")
    key = {"magnitude": -np.abs(values), "largest": -values, "smallest": values}[which]
    return np.argsort(key, kind="stable")
