"""How much the loss rises when weights are moved a little: the worst, or on average."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from qatviz.analysis.moved import Moved
from qatviz.analysis.subject import Data, Loss, undisturbed
from qatviz.analysis.surface import Surface
from qatviz.records.sharpness import Sharpness

SATURATE = 10.0  # the first step of the search in a box, in mean slopes (ours)


@undisturbed()
def box_sharpness(
    model: nn.Module | Surface,
    data: Data,
    *,
    epsilon: float = 1e-3,
    iterations: int = 10,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Sharpness:
    """The largest rise of the loss in a box around the weights: ε-sharpness.

    max L(w + z) − L(w) over |zᵢ| ≤ ε·(|wᵢ| + 1), by L-BFGS-B over all weights, from z = 0. The
    largest loss that was met counts: a lower bound. ``record.percent`` is the paper's number. The
    search sees zᵢ as a share of its bound, and the loss times a number that makes the first step
    reach most bounds (ours): unscaled, ten steps hardly leave the centre where slopes are small.
    The box changes with the scale of the weights, which BatchNorm makes meaningless.

    In the space "latent" the loss is the real staircase, its gradient that of the straight-through
    surrogate; weights that move by less than half a step mostly keep their codes.

    Args:
        model: In evaluation mode; or a ``Surface`` of it, which names the space, the layers and
            what else moves. It does not change.
        data: Images: a ``Split``, ``(images, labels)`` or a loader, seen without augmentation.
            Beside them their normalised copy is held, if it fits into 256 MiB; else one batch.
        epsilon: ε, above 0. Default: 1e-3 (the paper, beside 5e-4).
        iterations: Of L-BFGS-B, each of one pass with gradients or a few. Default: 10 (the paper).
        loss: ``(logits, labels) -> mean``. Default: cross-entropy, without weight decay.
        samples: Images, the first. Default: None: all that were given.
        batch: Images at once. Default: None: 100 on a CPU, 500 elsewhere (ours: measured).
        progress: Whether to show a bar. Default: True.

    Returns:
        The record; on Ctrl-C the largest so far, ``complete`` False. ``records.Sharpness``. Draw
        with ``plots.sharpness_points``.

    Raises:
        ValueError: If the model, the data or a number is not as said, the loss is not finite, or
            every gradient is zero.

    Source: Keskar et al. 2017, arXiv 1609.04836, metric 2.1.
    """
    _check(epsilon=epsilon, iterations=iterations)
    moved = Moved(model, data, loss=loss, samples=samples, batch=batch)
    return _box(moved, epsilon, iterations, progress)


@undisturbed()
def worst_sharpness(
    model: nn.Module | Surface,
    data: Data,
    *,
    radius: float | None = None,
    steps: int = 20,
    adaptive: bool = False,
    eta: float = 0.01,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Sharpness:
    """The largest rise of the loss in a ball around the weights, by climbing.

    max L(w + z) − L(w) over ‖z‖ ≤ ρ. The first step is SAM's, z = ρ·g/‖g‖; every further one goes
    on by ρ/4 along the gradient where it stands, and back into the ball. The largest loss that was
    met counts: a lower bound, which does not fall with more steps. Near a minimum and for small ρ
    it is ρ‖g‖ + ½ρ²λ₁ at most.

    Adaptive: the ball is ‖z/(|w| + η)‖ ≤ ρ, its first step ρ·T²g/‖Tg‖ with T = |w| + η: a weight
    moves in proportion to its size, and up to η the measure does not change when weights are
    rescaled and BatchNorm undoes it.

    In the space "latent" the loss is the real staircase and gradients pass straight through its
    quantizers: a step that leaves all codes as they are raises nothing.

    Args:
        model: See ``box_sharpness``.
        data: See ``box_sharpness``.
        radius: ρ, above 0. Default: None: 0.05 (SAM), adaptive 0.5 (ASAM), both for CIFAR-10.
        steps: 1: SAM's alone. Default: 20 (analysis tools' standard).
        adaptive: Whether the ball is adaptive. Default: False.
        eta: η ≥ 0. Default: 0.01 (ASAM).
        loss: See ``box_sharpness``.
        samples: See ``box_sharpness``.
        batch: See ``box_sharpness``.
        progress: See ``box_sharpness``.

    Returns:
        The record; on Ctrl-C the largest so far, ``complete`` False. ``records.Sharpness``. Draw
        with ``plots.sharpness_points``.

    Raises:
        ValueError: As ``box_sharpness``.

    Source: Foret et al. 2021 (SAM), arXiv 2010.01412, equation 2; Kwon et al. 2021 (ASAM), arXiv
    2102.11600, equation 5 as we read it.
    """
    radius = (0.5 if adaptive else 0.05) if radius is None else radius
    _check(radius=radius, steps=steps)
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta is {eta}; allowed: 0 or more")
    moved = Moved(model, data, loss=loss, samples=samples, batch=batch)
    return _worst(moved, radius, steps, adaptive, eta, progress)


@undisturbed()
def average_sharpness(
    model: nn.Module | Surface,
    data: Data,
    *,
    radius: float | None = None,
    draws: int = 20,
    adaptive: bool = False,
    seed: int = 0,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Sharpness:
    """The mean rise of the loss under Gaussian noise on the weights.

    E[L(w + z)] − L(w) with zᵢ from N(0, σ²); adaptive: from |wᵢ|·N(0, σ²). Every draw is used with
    both signs, and their mean counts (ours): the slope of the loss, which is no part of the mean
    but most of the spread, cancels. For small σ it is ½σ²·tr(H). Note that ‖z‖ ≈ σ√P: noise of
    one σ is much longer than a ball of that radius.

    Args:
        model: See ``box_sharpness``.
        data: See ``box_sharpness``.
        radius: σ, above 0. Default: None: 0.01, adaptive 0.1 (ours).
        draws: Pairs of opposite draws, 2 or more. Default: 20 (ours; 20 to 100 are usual).
        adaptive: Whether noise is in proportion to each weight. Default: False.
        seed: Of the noise. Default: 0.
        loss: See ``box_sharpness``.
        samples: See ``box_sharpness``.
        batch: See ``box_sharpness``.
        progress: See ``box_sharpness``.

    Returns:
        The record, with the rise of every pair; on Ctrl-C of those so far, ``complete`` False.
        ``records.Sharpness``. Draw with ``plots.sharpness_points``.

    Raises:
        ValueError: As ``box_sharpness``.

    Source: Andriushchenko et al. 2023, arXiv 2302.07011, section 2; perturbations in proportion:
    Neyshabur et al. 2017, arXiv 1706.08947.
    """
    radius = (0.1 if adaptive else 0.01) if radius is None else radius
    _check(radius=radius, draws=draws)
    if draws < 2:
        raise ValueError(f"draws is {draws}; allowed: 2 or more, for a standard error")
    moved = Moved(model, data, loss=loss, samples=samples, batch=batch)
    return _average(moved, radius, draws, adaptive, seed, progress)


@undisturbed()
def sharpness_measures(
    model: nn.Module | Surface,
    data: Data,
    *,
    draws: int = 20,
    seed: int = 0,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> dict[str, Sharpness]:
    """Every usual measure of sharpness at its usual setting: a description, not an explanation.

    How sharp a network is says little, and sometimes the opposite, of how well it generalises
    (Andriushchenko et al.); adaptive measures alone survive a rescaling of the weights.

    Args:
        model: See ``box_sharpness``.
        data: See ``box_sharpness``.
        draws: See ``average_sharpness``.
        seed: See ``average_sharpness``.
        loss: See ``box_sharpness``.
        samples: See ``box_sharpness``.
        batch: See ``box_sharpness``.
        progress: See ``box_sharpness``.

    Returns:
        Records by name: "box 0.001", "box 0.0005", "step", "ball", "adaptive step", "adaptive
        ball", "noise", "adaptive noise". On Ctrl-C those so far. Each a ``records.Sharpness``. Draw
        with ``plots.sharpness_panels``.

    Raises:
        ValueError: As ``box_sharpness``.

    Source: Keskar et al. 2017, Foret et al. 2021, Kwon et al. 2021, Andriushchenko et al. 2023:
    see the three functions.
    """
    _check(draws=draws)
    moved = Moved(model, data, loss=loss, samples=samples, batch=batch)
    measures: dict[str, Callable[[], Sharpness]] = {
        "box 0.001": lambda: _box(moved, 1e-3, 10, progress),
        "box 0.0005": lambda: _box(moved, 5e-4, 10, progress),
        "step": lambda: _worst(moved, 0.05, 1, False, 0.01, progress),
        "ball": lambda: _worst(moved, 0.05, 20, False, 0.01, progress),
        "adaptive step": lambda: _worst(moved, 0.5, 1, True, 0.01, progress),
        "adaptive ball": lambda: _worst(moved, 0.5, 20, True, 0.01, progress),
        "noise": lambda: _average(moved, 0.01, draws, False, seed, progress),
        "adaptive noise": lambda: _average(moved, 0.1, draws, True, seed, progress),
    }
    found: dict[str, Sharpness] = {}
    for name, measure in measures.items():
        try:
            found[name] = measure()
        except KeyboardInterrupt:  # before its own loop: nothing of this one can be kept
            if not found:
                raise
            done = f"{len(found)} of {len(measures)} measures are done"
            warnings.warn(f"{name}: interrupted; {done}", stacklevel=3)
            break
        if not found[name].complete:
            break
    return found


class _Highest:
    """The largest loss that a search has met, and how it was met."""

    def __init__(self, moved: Moved) -> None:
        self.moved, self.before, self.complete = moved, moved.passes, False
        self.loss, self.gradient = moved.gradient(moved.surface.point)
        if not np.isfinite(self.loss):
            raise ValueError(f"the loss of the network itself is {self.loss}")
        if not self.gradient.any():
            raise ValueError("every gradient is zero: there is no direction to climb")
        self.largest = self.loss

    def meet(self, loss: float) -> None:
        if loss > self.largest:  # False for NaN
            self.largest = loss

    def record(self, measure: str, region: str, radius: float) -> Sharpness:
        return Sharpness(
            conditions=self.moved.conditions(),
            measure=measure,
            region=region,
            radius=radius,
            loss=self.loss,
            rises=np.array([self.largest - self.loss]),
            average=False,
            passes=self.moved.passes - self.before,
            complete=self.complete,
        )


def _box(moved: Moved, epsilon: float, iterations: int, progress: bool) -> Sharpness:
    highest, point = _Highest(moved), moved.surface.point
    bound = epsilon * (point.abs() + 1)
    slope = (bound * highest.gradient).double()
    scale = SATURATE / slope.abs().mean().item()

    def descend(shares: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = moved.gradient(point + bound * torch.as_tensor(shares).to(point))
        highest.meet(loss)
        rise = loss - highest.loss
        if not np.isfinite(rise):
            rise, gradient = -1e6, torch.zeros_like(gradient)  # the search turns back
        return -scale * rise, -scale * (bound * gradient).double().cpu().numpy()

    with _Bar("box", iterations, "step", progress) as bar:
        try:
            minimize(
                descend,
                np.zeros(len(point)),
                jac=True,
                method="L-BFGS-B",
                bounds=Bounds(np.full(len(point), -1.0), np.full(len(point), 1.0)),
                callback=lambda _: bar.update(),
                options={"maxiter": iterations, "ftol": 0, "gtol": 0},
            )
            highest.complete = True
        except KeyboardInterrupt:
            bar.tell_interrupted()
    return highest.record("largest rise (L-BFGS-B)", f"box of ε = {epsilon:g}", epsilon)


def _worst(
    moved: Moved, radius: float, steps: int, adaptive: bool, eta: float, progress: bool
) -> Sharpness:
    highest, point = _Highest(moved), moved.surface.point
    # In units of T the ball is round: z = T·u, and ∂L/∂u = T·g.
    scale = point.abs() + eta if adaptive else torch.ones_like(point)
    slope, here = scale * highest.gradient, torch.zeros_like(point)
    with _Bar("ball", steps, "step", progress) as bar:
        try:
            for step in range(steps):
                if not slope.isfinite().all() or not slope.any():
                    break
                length = radius if step == 0 else radius / 4
                here = here + length * slope / slope.norm()
                here = here * min(1.0, radius / here.norm().item())
                if step == steps - 1:
                    loss, _ = moved(point + scale * here)
                else:
                    loss, gradient = moved.gradient(point + scale * here)
                    slope = scale * gradient
                highest.meet(loss)
                bar.update()
            highest.complete = True
        except KeyboardInterrupt:
            bar.tell_interrupted()
    kind = "adaptive " if adaptive else ""
    how = "one step" if steps == 1 else f"{steps} steps"
    return highest.record(f"largest rise ({how})", f"{kind}ball of ρ = {radius:g}", radius)


@torch.no_grad()
def _average(
    moved: Moved, radius: float, draws: int, adaptive: bool, seed: int, progress: bool
) -> Sharpness:
    surface, before = moved.surface, moved.passes
    point, rises = surface.point, []
    loss, _ = moved(point)
    if not np.isfinite(loss):
        raise ValueError(f"the loss of the network itself is {loss}")
    scale = radius * (point.abs() if adaptive else torch.ones_like(point))
    generator = torch.Generator().manual_seed(seed)
    with _Bar("noise", draws, "pair", progress) as bar:
        try:
            for _ in range(draws):
                noise = scale * _normal(point, generator)
                rises.append((moved(point + noise)[0] + moved(point - noise)[0]) / 2 - loss)
                bar.update()
        except KeyboardInterrupt:
            bar.tell_interrupted()
    kind = "adaptive " if adaptive else ""
    return Sharpness(
        conditions=moved.conditions(),
        measure="mean rise",
        region=f"{kind}noise of σ = {radius:g}",
        radius=radius,
        loss=loss,
        rises=np.array(rises, dtype=float),
        average=True,
        passes=moved.passes - before,
        complete=len(rises) == draws,
    )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    # In float64 on the CPU: the same numbers for every type and device.
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


class _Bar:
    """A bar, and a count that goes on where the bar is hidden."""

    def __init__(self, what: str, total: int, unit: str, progress: bool) -> None:
        self.what, self.total, self.done = what, total, 0
        self.bar = tqdm(total=total, desc=what, unit=unit, disable=not progress)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self) -> None:
        self.done += 1
        self.bar.update()

    def tell_interrupted(self) -> None:
        said = f"{self.what}: interrupted after {self.done} of {self.total}"
        warnings.warn(said, stacklevel=5)


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        whole = name in ("iterations", "steps", "draws")
        if not 0 < number < np.inf or (whole and number < 1):
            raise ValueError(f"{name} is {number}; allowed: {'1 or more' if whole else 'above 0'}")
