"""The curvature of a loss: eigenvalues, trace and spectral density of its Hessian."""

import copy
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from qatviz.analysis.hessian import GIB, Hessian
from qatviz.analysis.krylov import Krylov, Product, order
from qatviz.analysis.subject import Data, Loss, subject, undisturbed
from qatviz.analysis.surface import Surface, as_surface
from qatviz.records.curvature import Eigenvalues, Setting, SpectralDensity, Trace

BASIS = 2 * 10**9  # bytes for the Lanczos basis and the eigenvectors (ours)
BACKENDS = ("qatviz", "pyhessian")
METHODS = ("hutchinson", "hutch++")
# Values, vectors, residuals over the largest magnitude, and that.
Found = tuple[Float[Array, "pairs"], Float[Array, "pairs size"], Float[Array, "pairs"], float]

# Method, the exact part, one row per draw.
Estimate = tuple[str, float, Float[Array, "draws parts"]]


@undisturbed()
def eigenvalues(
    model: nn.Module | Surface,
    data: Data,
    k: int = 5,
    *,
    which: str = "magnitude",
    relative: bool = False,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int = 128,
    tolerance: float = 1e-4,
    products: int | None = None,
    seed: int = 0,
    memory: int = GIB,
    backend: str = "qatviz",
    progress: bool = True,
) -> Eigenvalues:
    """The k outermost eigenvalues of the Hessian of a mean loss, and their vectors.

    By Lanczos steps with full orthogonalisation and thick restarts, until every residual
    ‖Hv − λv‖ is below ``tolerance``·|λ₁|. A symmetric matrix has an eigenvalue within that
    distance of λ; a well separated one is wrong by about its square. Of an eigenvalue that occurs
    several times one random vector sees one copy; rounding brings in others, in float32 sooner
    than in float64. So copies may be missing, of which smaller eigenvalues take the place, and
    how many are found depends on rounding and ``k``. Pairs that are returned are orthogonal, and
    their residuals hold.

    Of a quantized network this is the Hessian of a surrogate: see ``Surface``. Where the
    surrogate's is not symmetric (EWGS), it is refused. Where a maximum is taken over numbers on
    a grid (maximum pooling after a layer with quantized weights and inputs), many are equal, and
    rounding decides which of them the derivative belongs to: eigenvalues then differ by per cents
    from float32 to float64, or with ``batch``.

    Args:
        model: In evaluation mode; or a ``Surface`` of it, which names the space, the layers and
            what else moves. It does not change.
        data: Images: a ``Split``, ``(images, labels)`` or a loader, seen without augmentation.
        k: How many, 1 to P. Default: 5 (ours).
        which: "magnitude": largest |λ| first; "largest"; "smallest": most negative first.
            Default: "magnitude" (PyHessian).
        relative: Measure each direction in norms of the filter that it moves, D·H·D with D the
            norms: does not change when filters are rescaled and BatchNorm undoes it. Default:
            False.
        loss: ``(logits, labels) -> mean``. Default: cross-entropy, without weight decay.
        samples: Images, the first. Default: None: all that were given.
        batch: Images at once; all where an image is not alone, see ``Hessian``. Default: 128
            (ours).
        tolerance: Above 0; float32 rounding leaves residuals of about 1e-6. Default: 1e-4
            (ours).
        products: The most steps, each a product with the Hessian; one more measures what
            rounding adds to the residuals. Default: None: 30·k, at least 300 (ours).
        seed: Of the first vector. Default: 0 (ours).
        memory: Bytes for graphs of gradients kept from product to product. Default: 1 GiB.
        backend: "pyhessian": power iteration by the package of that name, to cross-check. It
            stops where an eigenvalue changes by less than ``tolerance`` of itself, or after
            100 products, whatever the residual, which we measure. Default: "qatviz".
        progress: Whether to show a bar, and what memory will be needed. Default: True.

    Returns:
        The record; on Ctrl-C what has been found, its residuals without what rounding adds, or NaN
        where PyHessian's were not measured. ``records.Eigenvalues``. Draw with
        ``plots.eigenvalues``, ``plots.spectrum`` or ``plots.against_bits``.

    Raises:
        ValueError: If the model, the data, ``k``, a word or a number is not as said, or the
            loss is not finite or its Hessian not symmetric.

    Source: Lanczos 1950; Wu & Simon 2000; as an analysis of networks: Yao et al. 2020
    (PyHessian), arXiv 1912.07145.
    """
    order(np.empty(0), which)  # refuses an unknown word before anything is computed
    products = max(30 * k, 300) if products is None else products
    if not tolerance > 0 or products < 1:
        raise ValueError(
            f"tolerance must be above 0 and products 1 or more, got {tolerance} and {products}"
        )
    if backend == "pyhessian" and (which != "magnitude" or relative):
        raise ValueError("PyHessian has eigenvalues of largest magnitude only, not relative")
    run = _Run(model, data, samples, loss, batch, memory, relative, backend)
    if not 1 <= k <= run.size:
        raise ValueError(f"k is {k}; allowed: 1 to the {run.size} numbers that move")
    if backend == "pyhessian":
        found = _by_power(run, k, tolerance, seed)
    else:
        room = min(_room(run.hessian, 2 * k + 2) - k, max(products, k + 2), run.size)
        with run.bar(f"top {k} by {which}", products, room + k, progress) as product:
            found = _by_lanczos(run, product, k, which, tolerance, products, room, seed)
    values, vectors, residuals, largest = found
    within = int((residuals <= tolerance).sum())
    ended = backend == "pyhessian" and not run.interrupted
    complete = within == k or (ended and len(values) == k)
    if run.interrupted or not complete:
        run.warn(f"{within} of {k} eigenvalues are within tolerance")
    return Eigenvalues(
        setting=run.setting(),
        which=which,
        values=values,
        residuals=residuals,
        largest=largest,
        vectors=vectors,
        tolerance=tolerance,
        complete=complete,
        **run.costs(),
    )


@undisturbed()
def trace(
    model: nn.Module | Surface,
    data: Data,
    *,
    method: str = "hutchinson",
    products: int = 100,
    relative: bool = False,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int = 128,
    seed: int = 0,
    memory: int = GIB,
    backend: str = "qatviz",
    progress: bool = True,
) -> Trace:
    """The trace of the Hessian of a mean loss, with its standard error.

    Hutchinson: the mean of zᵀHz over vectors z of random signs; the parts of the product give
    the trace of every layer's own block for nothing. Hutch++: a third of the products finds the
    subspace where H is large, a third takes the trace there exactly, and a third estimates what
    is left; its error falls with the number of products, that of Hutchinson with its root. All
    vectors are drawn: nothing is stopped because a mean stands still by accident.

    Args:
        model: See ``eigenvalues``.
        data: See ``eigenvalues``.
        method: "hutchinson" or "hutch++". Default: "hutchinson" (traces by layer).
        products: Products with the Hessian; for Hutch++ a multiple of 3. Default: 100 (ours;
            PyHessian takes at most 100 and stops early).
        relative: See ``eigenvalues``: ∑‖w_f‖²·H_ii.
        loss: See ``eigenvalues``.
        samples: See ``eigenvalues``.
        batch: See ``eigenvalues``.
        seed: Of the vectors. Default: 0 (ours).
        memory: See ``eigenvalues``.
        backend: "pyhessian": its Hutchinson, which stops once the mean moves by less than a
            thousandth. Default: "qatviz".
        progress: Whether to show a bar.

    Returns:
        The record; on Ctrl-C with the vectors drawn so far, ``complete`` False. Hutch++ that has
        drawn none of its last third gives Hutchinson's estimate from those of its first.
        ``records.Trace``. Draw with ``plots.traces`` or ``plots.against_bits``.

    Raises:
        ValueError: As ``eigenvalues``; or if ``method`` or ``products`` is not as said.

    Source: Hutchinson 1990; Meyer et al. 2021 (Hutch++), arXiv 2010.09649.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, allowed: {', '.join(METHODS)}")
    third = products // 3 if method == "hutch++" else 0
    if products < 1 or (method == "hutch++" and products % 3):
        allowed = "a multiple of 3" if method == "hutch++" else "1 or more"
        raise ValueError(f"products is {products}; allowed for {method}: {allowed}")
    if backend == "pyhessian" and (third or relative):
        raise ValueError("PyHessian has Hutchinson's estimator only, not relative")
    run = _Run(model, data, samples, loss, batch, memory, relative, backend)
    if backend == "pyhessian":
        method, exact, draws = _their_draws(run, products, seed)
    else:
        _room(run.hessian, 2 * third)
        with run.bar(method, products, 2 * third, progress) as product:
            estimate = _hutch_plus_plus if third else _hutchinson
            method, exact, draws = estimate(run, product, products, seed)
    wanted = third or products
    complete = not run.interrupted and (len(draws) == wanted or backend == "pyhessian")
    if not complete:
        run.warn(f"{len(draws)} of {wanted} draws are done, by {method}")
    return Trace(run.setting(), method, exact, draws, complete=complete, **run.costs())


@undisturbed()
def spectral_density(
    model: nn.Module | Surface,
    data: Data,
    *,
    draws: int = 10,
    steps: int = 80,
    relative: bool = False,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int = 128,
    seed: int = 0,
    memory: int = GIB,
    backend: str = "qatviz",
    progress: bool = True,
) -> SpectralDensity:
    """How all the eigenvalues of the Hessian of a mean loss are spread.

    Stochastic Lanczos quadrature: Lanczos steps from random unit vectors, each of which gives
    nodes and weights of a Gauss quadrature of the density that it sees.

    Args:
        model: See ``eigenvalues``.
        data: See ``eigenvalues``.
        draws: Random vectors. Default: 10 (analysis tools' standard; PyHessian takes 1).
        steps: Lanczos steps for each; P if that is less. Default: 80 (the same).
        relative: See ``eigenvalues``.
        loss: See ``eigenvalues``.
        samples: See ``eigenvalues``.
        batch: See ``eigenvalues``.
        seed: Of the vectors. Default: 0 (ours).
        memory: See ``eigenvalues``.
        backend: "pyhessian": products and recurrence by the package of that name, from vectors
            of random signs. Default: "qatviz".
        progress: Whether to show a bar.

    Returns:
        The record; on Ctrl-C with the draws that were finished, ``complete`` False.
        ``records.SpectralDensity``. Draw with ``plots.density``.

    Raises:
        ValueError: As ``eigenvalues``; or if ``draws`` or ``steps`` is below 1.

    Source: Ghorbani et al. 2019, arXiv 1901.10159; Golub & Meurant 2010.
    """
    if draws < 1 or steps < 1:
        raise ValueError(f"draws and steps must be 1 or more, got {draws} and {steps}")
    if backend == "pyhessian" and relative:
        raise ValueError("PyHessian has no relative density")
    run = _Run(model, data, samples, loss, batch, memory, relative, backend)
    steps = min(steps, run.size)
    _room(run.hessian, steps)
    if backend == "pyhessian":
        from qatviz.analysis import pyhessian

        nodes, weights = run.kept(
            *(pyhessian.ritz, run.surface, run.split, run.loss),
            **{"batch": run.hessian.batch, "steps": steps, "runs": draws, "seed": seed},
        )
        run.theirs = nodes.size
    else:
        with run.bar("density", draws * steps, steps, progress) as product:
            nodes, weights = _quadrature(run, product, draws, steps, seed)
    complete = len(nodes) == draws
    if run.interrupted or not complete:
        run.warn(f"{len(nodes)} of {draws} draws are done")
    return SpectralDensity(run.setting(), nodes, weights, complete=complete, **run.costs())


class _Run:
    """One analysis: what it is of, its products, what it cost."""

    def __init__(
        self,
        model: nn.Module | Surface,
        data: Data,
        samples: int | None,
        loss: Loss,
        batch: int,
        memory: int,
        relative: bool,
        backend: str,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, allowed: {', '.join(BACKENDS)}")
        self.start, self.loss, self.backend, self.relative = time.time(), loss, backend, relative
        self.split = subject(_looked_at(model), data, samples)
        self.surface = as_surface(model)
        self.here = self.surface.here()
        self.hessian = Hessian(self.surface, self.split, loss, batch=batch, memory=memory)
        self.size, self.theirs = self.hessian.size, 0
        self.scale = self.surface.filter_norms(self.here) if relative else None
        self.interrupted = False

    def product(self, vector: Tensor) -> Tensor:
        if self.scale is None:
            return self.hessian(vector)
        return self.scale * self.hessian(self.scale * vector)

    @contextmanager
    def bar(self, what: str, total: int, vectors: int, progress: bool) -> Iterator[Any]:
        """A product that moves a bar, after saying what memory the run will take."""
        hessian = self.hessian
        if progress:
            basis = vectors * self.size * hessian.itemsize
            graphs = hessian.kept * hessian.graph_bytes
            said = (
                f"{what}: {self.size:,} numbers, at most {vectors} vectors of them "
                f"({basis / 1e6:,.0f} MB); graphs of {hessian.kept} batches kept "
                f"({graphs / 1e6:,.0f} MB)"
            )
            tqdm.write(said, file=sys.stderr)
        with tqdm(total=total, desc=what, unit="product", disable=not progress) as bar:

            def product(vector: Tensor) -> Tensor:
                result = self.product(vector)
                bar.update()
                return result

            try:
                yield product
            finally:
                bar.total = bar.n  # the tolerance may be met before the most products

    def counted(self, batch: int) -> Loss:
        """The loss for PyHessian, which counts in ``theirs`` how often its gradient is derived."""
        batches = -(-len(self.split) // batch)
        passes = []

        def derived(_: Tensor) -> None:
            passes.append(None)
            self.theirs = len(passes) // batches

        def watched(gradient: Tensor) -> None:
            if gradient.requires_grad:
                gradient.register_hook(derived)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            logits.register_hook(watched)
            return self.loss(logits, labels)

        return loss

    def kept(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """What PyHessian finds, or has found until it is interrupted."""
        from qatviz.analysis import pyhessian

        try:
            return function(*arguments, **options)
        except pyhessian.Interrupted as stopped:
            self.interrupted = True
            return stopped.kept

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def setting(self) -> Setting:
        parts = self.surface.split(self.here)
        return Setting(
            space=self.surface.space,
            names=self.surface.names,
            sizes=tuple(p.numel() for p in parts.values()),
            norms=tuple(p.norm().item() for p in parts.values()),
            samples=len(self.split),
            loss=self.hessian.loss,
            activation_quantizers=self.surface.activation_quantizers,
            batchnorm=self.surface.batchnorm,
            relative=self.relative,
            asymmetry=self.hessian.asymmetry,
        )

    def costs(self) -> dict[str, Any]:
        return {
            "products": self.hessian.products if self.backend == "qatviz" else self.theirs,
            "seconds": time.time() - self.start,
            "backend": self.backend,
        }

    def warn(self, what: str) -> None:
        why = "interrupted: " if self.interrupted else ""
        warnings.warn(f"{why}{what}", stacklevel=4)


def _looked_at(model: nn.Module | Surface) -> nn.Module:
    """What to try images on: of a surface a copy, because its BatchNorm may be training."""
    looked_at = copy.deepcopy(model.model).eval() if isinstance(model, Surface) else model
    dtypes = {p.dtype for p in looked_at.parameters()} - {torch.float32, torch.float64}
    if dtypes:
        raise ValueError(f"parameters are {dtypes.pop()}; allowed: torch.float32, torch.float64")
    return looked_at


def _by_lanczos(
    run: _Run,
    product: Product,
    k: int,
    which: str,
    tolerance: float,
    products: int,
    room: int,
    seed: int,
) -> Found:
    krylov = Krylov(product, run.size, room, run.generator(seed), run.surface.point)
    every, rounding = max(k // 10, 1), 0.0
    try:
        while krylov.steps < run.size and run.hessian.products < products:
            if krylov.steps == krylov.room:
                krylov.restart(min(k + (room - k) // 2, room - 1), which)
            krylov.step()
            if run.hessian.products % every == 0 and _met(krylov, k, which, tolerance):
                break
        rounding = krylov.rounding(krylov.ritz(k, which))
    except KeyboardInterrupt:
        run.interrupted = True
    if not krylov.steps:
        raise KeyboardInterrupt
    found, largest = krylov.ritz(k, which), _largest(krylov)
    vectors = krylov.vectors(found.coefficients).cpu().numpy()
    residuals = np.hypot(found.residuals, rounding) / (largest or 1.0)
    return found.values, vectors, residuals, largest


def _met(krylov: Krylov, k: int, which: str, tolerance: float) -> bool:
    if krylov.steps < k:
        return False
    return bool((krylov.ritz(k, which).residuals <= tolerance * _largest(krylov)).all())


def _largest(krylov: Krylov) -> float:
    return float(np.abs(krylov.ritz(1).values[0]))


def _by_power(run: _Run, k: int, tolerance: float, seed: int) -> Found:
    """PyHessian's power iteration; the residuals are computed with our products."""
    from qatviz.analysis import pyhessian

    batch = run.hessian.batch
    values, vectors = run.kept(
        *(pyhessian.eigenpairs, run.surface, run.split, run.counted(batch), k),
        **{"batch": batch, "tol": tolerance, "seed": seed},
    )
    largest = float(np.abs(values).max())
    residuals = np.full(len(values), np.nan)
    try:
        for i, (value, v) in enumerate(zip(values, vectors, strict=True)):
            error = (run.product(v) - float(value) * v).norm().item()
            residuals[i] = error / (largest or 1.0)
    except KeyboardInterrupt:
        run.interrupted = True
    return values, vectors.cpu().numpy(), residuals, largest


def _their_draws(run: _Run, products: int, seed: int) -> Estimate:
    from qatviz.analysis import pyhessian

    draws = run.kept(
        *(pyhessian.trace_samples, run.surface, run.split, run.loss),
        **{"batch": run.hessian.batch, "max_iter": products, "tol": 1e-3, "seed": seed},
    )
    run.theirs = len(draws)
    return "hutchinson", 0.0, draws[:, None]


def _hutchinson(run: _Run, product: Product, products: int, seed: int) -> Estimate:
    generator, draws = run.generator(seed), []
    try:
        for _ in range(products):
            z = _signs(run, generator)
            draws.append(_by_part(run, z * product(z)))
    except KeyboardInterrupt:
        run.interrupted = True
        if not draws:
            raise
    return "hutchinson", 0.0, np.array(draws)


def _by_part(run: _Run, vector: Tensor) -> list[float]:
    parts = run.surface.split(vector).values()
    return [part.sum(dtype=torch.float64).item() for part in parts]


def _hutch_plus_plus(run: _Run, product: Product, products: int, seed: int) -> Estimate:
    generator, third = run.generator(seed), products // 3
    sketch = run.surface.point.new_empty(third, run.size)
    exact, draws, sketched = 0.0, [], []
    try:
        for row in sketch:
            z = _signs(run, generator)
            row.copy_(product(z))
            sketched.append(_by_part(run, z * row))
        basis = torch.linalg.qr(sketch.T).Q.T
        del sketch, row  # two blocks of vectors at once, as announced
        exact = sum((q @ product(q)).double().item() for q in basis)
        for _ in range(third):
            z = _signs(run, generator)
            z -= (basis @ z) @ basis
            draws.append([(z @ product(z)).double().item()])
    except KeyboardInterrupt:
        run.interrupted = True
        if not sketched:
            raise
    if not draws:  # the vectors of the sketch are draws of Hutchinson's estimator
        return "hutchinson", 0.0, np.array(sketched)
    return "hutch++", exact, np.array(draws)


def _quadrature(
    run: _Run, product: Product, draws: int, steps: int, seed: int
) -> tuple[Array, Array]:
    generator, nodes, weights = run.generator(seed), [], []
    try:
        for _ in range(draws):
            krylov = Krylov(product, run.size, steps, generator, run.surface.point)
            for _ in range(steps):
                krylov.step()
            values, vectors = np.linalg.eigh(krylov.matrix)
            nodes.append(values)
            weights.append(vectors[0] ** 2)
    except KeyboardInterrupt:
        run.interrupted = True
        if not nodes:
            raise
    return np.array(nodes), np.array(weights)


def _signs(run: _Run, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, (run.size,), generator=generator) * 2 - 1
    return signs.to(run.surface.point)


def _room(hessian: Hessian, wanted: int) -> int:
    """How many vectors fit into memory; refuses where more are needed."""
    room = BASIS // (hessian.size * hessian.itemsize)
    if room < min(wanted, 2 * hessian.size):
        raise ValueError(
            f"{wanted} vectors of {hessian.size:,} numbers do not fit into {BASIS:,} bytes, which "
            f"hold {room}; take fewer, or fewer layers"
        )
    return room
