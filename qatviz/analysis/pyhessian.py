"""The same questions put to PyHessian, the package that papers cite, to check answers against.

Its products, its random vectors, its power iteration and its Lanczos steps run as they were
released (version 0.1, 2021). What stops or falsifies them is kept away from here:

* ``density()`` calls ``torch.eig``, which is gone: it gets a ``torch`` that has one, of its own.
* It divides by lengths plus 1e-6, and makes Lanczos vectors orthogonal once: with small curvature,
  or once a space is used up, they are neither of length 1 nor orthogonal, and values appear that
  are no eigenvalues. Both methods get a division and an orthogonalisation without that.
* ``trace()`` stops after two vectors wherever the trace is negative: see ``trace_samples``.
* It leaves the model in evaluation mode: every module gets its own mode back.
* It asks for a GPU: here it works where the model is.
* A parameter without a gradient becomes the number 0 and crashes: each gets the gradient 0·p.
* It leaves gradients, with their graphs, in ``.grad``, and warns about it: put back afterwards.
* It draws from the global generator: that is seeded for the call, and put back.

Two faults stay, because they lie inside the power iteration: an eigenvalue is older than its
eigenvector by two products (one, where iterations ran out), and the change that it stops at is
relative to |λ| + 1e-6, so that it stops early on eigenvalues below about 1e-6.

Source: Yao et al. 2020, arXiv 1912.07145.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from qatviz.analysis.subject import Loss
from qatviz.analysis.surface import Surface
from qatviz.datasets import Split
from qatviz.evaluation import evaluating

Tensors = Sequence[Tensor]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after something was found.

    Args:
        kept: What a function would have returned of what was found.
        error: The interruption.
    """

    def __init__(self, kept: Any, error: KeyboardInterrupt) -> None:
        super().__init__(*error.args)
        self.kept = kept


def eigenpairs(
    surface: Surface,
    split: Split,
    loss: Loss,
    k: int,
    *,
    batch: int,
    max_iter: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
) -> tuple[Float[Array, "k"], Float[Tensor, "k size"]]:
    """The eigenvalues of largest magnitude, by power iteration with deflation.

    Args:
        surface: What moves, and where it stands.
        split: The images. As one batch PyHessian keeps the graph of the gradient, which is
            fast; in several it computes it anew for each product.
        loss: ``(logits, labels) -> mean``.
        k: How many.
        batch: Images at once.
        max_iter: Products for each eigenvalue, at most. Default: 100 (PyHessian).
        tol: Relative change of the eigenvalue at which it stops. Default: 1e-3 (PyHessian).
        seed: Of the vectors to start from. Default: 0.

    Returns:
        Eigenvalues in the order in which they were found, with their signs; eigenvectors of
        length 1, in the order of the surface's vector (zero where the curvature is zero). Where
        it stopped by ``tol``, an eigenvalue is vᵀHv of the iterate before the last, and the
        eigenvector is the one after.

    Raises:
        ValueError: If PyHessian is not installed or cannot take the surface, or a number is out
            of range.
        Interrupted: On Ctrl-C, with what was found.
    """
    _check_range("k", k, 1, surface.size)
    _check_range("max_iter", max_iter, 1)
    with _started(surface, split, loss, batch, seed) as problem:
        values, vectors = [], []

        def found() -> tuple[Array, Tensor]:
            flat = [_flat(surface, problem, vector) for vector in vectors[: len(values)]]
            return np.array(values), torch.stack(flat)

        with _keeping(values, found):
            for _ in range(k):  # one by one, orthogonal to those before
                value, vector = _mended(problem.eigenvalues, vectors)(max_iter, tol, 1)
                vectors += vector
                values += value
        return found()


def trace_samples(
    surface: Surface,
    split: Split,
    loss: Loss,
    *,
    batch: int,
    max_iter: int = 100,
    tol: float = 0.0,
    seed: int = 0,
) -> Float[Array, "samples"]:
    """Samples vᵀHv with vectors v of random signs, whose mean is the trace.

    PyHessian stops once the mean moves by less than ``tol`` of its signed size, which is at once
    where the trace is negative. Here it is the magnitude: where the trace is positive, nothing
    is different.

    Args:
        surface: What moves, and where it stands.
        split: The images.
        loss: ``(logits, labels) -> mean``.
        batch: Images at once.
        max_iter: Samples, at most. Default: 100 (PyHessian).
        tol: Relative change of the mean at which it stops. Default: 0: all samples (ours;
            PyHessian has 1e-3, which notices a mean that stands still, not one that is right).
        seed: Of the signs. Default: 0.

    Returns:
        One number per vector.

    Raises:
        ValueError: If PyHessian is not installed or cannot take the surface, or a number is out
            of range.
        Interrupted: On Ctrl-C, with what was found.
    """
    _check_range("max_iter", max_iter, 1)
    samples: list[float] = []
    before = 0.0
    with (
        _started(surface, split, loss, batch, seed) as problem,
        _keeping(samples, lambda: np.array(samples)),
    ):
        while len(samples) < max_iter:
            samples += problem.trace(maxIter=1, tol=-np.inf)
            mean = float(np.mean(samples))
            if abs(mean - before) < tol * (abs(before) + 1e-6):
                break
            before = mean
    return np.array(samples)


def ritz(
    surface: Surface,
    split: Split,
    loss: Loss,
    *,
    batch: int,
    steps: int = 100,
    runs: int = 1,
    seed: int = 0,
) -> tuple[Float[Array, "runs steps"], Float[Array, "runs steps"]]:
    """What a density of eigenvalues is made of: Ritz values and their weights.

    Args:
        surface: What moves, and where it stands.
        split: The images.
        loss: ``(logits, labels) -> mean``.
        batch: Images at once.
        steps: Lanczos steps, each a product and a vector that is kept, at most the size of the
            surface. Default: 100 (PyHessian).
        runs: Random vectors to start from. Default: 1 (PyHessian).
        seed: Of the vectors. Default: 0.

    Returns:
        Nodes, ascending in each run, and weights, whose sum in each run is 1.

    Raises:
        ValueError: If PyHessian is not installed or cannot take the surface, or a number is out
            of range.
        Interrupted: On Ctrl-C, with what was found.
    """
    _check_range("steps", steps, 1, surface.size)
    _check_range("runs", runs, 1)
    with _started(surface, split, loss, batch, seed) as problem:
        found: list[tuple[list, list]] = []

        def both() -> tuple[Array, Array]:
            return np.array([nodes for nodes, _ in found]), np.array([w for _, w in found])

        with _keeping(found, both):
            for _ in range(runs):
                (nodes,), (weights,) = _mended(problem.density)(steps, 1)
                found.append((nodes, weights))
        return both()


class _Torch:
    """``torch`` as ``density()`` expects it: with ``eig``; its matrix in double precision."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any) -> Tensor:
        return torch.zeros(*size, dtype=torch.float64)

    @staticmethod
    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        """As it was: eigenvalues as pairs (real, imaginary), eigenvectors as columns."""
        values, vectors = torch.linalg.eigh(matrix)  # symmetric: T of Lanczos
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


@contextmanager
def _keeping(found: list, result: Callable[[], Any]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        if not found:
            raise
        raise Interrupted(result(), error) from None


def _mended(
    released: MethodType, before: Sequence[Tensors] = ()
) -> Callable[..., tuple[list, list]]:
    """A method of PyHessian to which three names mean something else; nothing is patched."""
    function = released.__func__

    def orthonormal(vector: Tensors, others: list[Tensors]) -> Tensors:
        return _orthonormal(vector, [*before, *others])

    names = {"torch": _Torch(), "normalization": _normal, "orthnormal": orthonormal}
    mended = FunctionType(function.__code__, {**function.__globals__, **names})
    return MethodType(mended, released.__self__)


def _orthonormal(vector: Tensors, others: list[Tensors]) -> Tensors:
    """A vector of length 1, orthogonal to others of length 1, even if it is rounding noise."""
    for passes in range(8):
        if passes == 4:  # all of it was cancelled: another one, as PyHessian takes where β = 0
            vector = [torch.randn_like(part) for part in vector]
        vector = _normal(vector)
        for other in others:
            overlap = _product(vector, other)
            vector = [a - overlap * b for a, b in zip(vector, other, strict=True)]
        if _product(vector, vector) > 0.5:  # nothing was cancelled
            break
    return _normal(vector)


def _normal(vector: Tensors) -> Tensors:
    length = _product(vector, vector).sqrt()
    return [a / torch.where(length == 0, 1, length) for a in vector]


def _product(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


@contextmanager
def _started(surface: Surface, split: Split, loss: Loss, batch: int, seed: int) -> Iterator[Any]:
    """PyHessian's object for these images, in a room that is cleaned up afterwards."""
    hessian = _released()
    _check_range("batch", batch, 1)
    _check_surface(surface)
    moving = [p for p in surface.model.parameters() if p.requires_grad]
    gradients = [p.grad for p in moving]
    devices = list(range(torch.cuda.device_count()))

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        # The sum is zero: a gradient, with a graph, for parameters that take no part.
        return loss(outputs, targets) + 0 * sum(p.square().sum() for p in moving)

    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        evaluating(surface.model),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        torch.manual_seed(seed)
        try:
            for parameter in moving:
                parameter.grad = None
            problem = hessian(surface.model, criterion, **_images(split, batch, moving[0]))
            problem.device = moving[0].device  # it knows "cpu" and "cuda" only
            yield problem
        finally:
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = gradient


def _images(split: Split, batch: int, like: Tensor) -> dict[str, Any]:
    """The images as PyHessian takes them: one batch, or several."""
    batches = [(images.to(like), labels.to(like.device)) for images, labels in split.batches(batch)]
    which = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
    return {**which, "cuda": False}


def _released() -> type:
    try:
        from pyhessian import hessian
    except ImportError as error:
        raise ValueError(
            'PyHessian is not installed; it comes with pip install "qatviz[pyhessian]"'
        ) from error
    return hessian


def _check_surface(surface: Surface) -> None:
    if any(m.training for m in surface.model.modules() if isinstance(m, _BatchNorm)):
        raise ValueError(
            "PyHessian puts every module in evaluation mode, so BatchNorm cannot use the "
            "statistics of the images; allowed: batchnorm='running'"
        )
    moving = {name for name, p in surface.model.named_parameters() if p.requires_grad}
    if moving != set(surface.names):
        raise ValueError(
            f"PyHessian takes the parameters that ask for gradients, {sorted(moving)}, but the "
            f"surface names {sorted(surface.names)}"
        )


def _check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value}; allowed: {allowed}")


def _flat(surface: Surface, problem: Any, tensors: Tensors) -> Tensor:
    """PyHessian's list of tensors, in the order of the model, as a vector of the surface."""
    own = {id(p): tensor for p, tensor in zip(problem.params, tensors, strict=True)}
    named = dict(surface.model.named_parameters())
    return surface.flatten(own[id(named[name])].detach() for name in surface.names)
