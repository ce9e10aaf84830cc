"""The loss around a network: along a line, over a plane, and on the way to another network."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from qatviz.analysis.keeping import Kept, Table, digest_of_images, digest_of_model, loss_name
from qatviz.analysis.moved import Moved
from qatviz.analysis.subject import Data, Loss, undisturbed
from qatviz.analysis.surface import Surface, as_surface
from qatviz.records.curvature import Eigenvalues
from qatviz.records.landscape import Conditions, LossLine, LossPath, LossSurface

NORMALISE = ("filter", "layer", "none")
UNITS = ("curvature", "norm")
SAVE_EVERY = 10.0  # seconds (ours)
AGREE = 1e-3  # relative, of the loss at the centre on another machine (ours)


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the space of the weights of a surface, and what 1 along it means.

    Args:
        vector: As long as the vector of the surface.
        name: For the label of an axis.
        unit: For the label of an axis.
    """

    vector: Float[Tensor, "size"]
    name: str
    unit: str


def random_directions(
    model: nn.Module | Surface, count: int = 2, *, seed: int = 0, normalise: str = "filter"
) -> list[Direction]:
    """Gaussian directions, by default as large as the weights, filter by filter.

    Every number is drawn from N(0, 1). Then each filter of a direction (a slice along the first
    axis of a weight) is given the norm of the same filter of the weights: d_f ← d_f·‖w_f‖/‖d_f‖.
    So a unit on the axis means the same for networks whose weights differ in size, which
    BatchNorm makes meaningless. A filter of zeros does not move; nor do parameters of one axis
    (BatchNorm, biases), however directions are normalised. Directions are not made orthogonal:
    in a large space they nearly are.

    The first directions do not depend on ``count``, and networks of one architecture have the
    same ones but for their norms.

    Args:
        model: In evaluation mode, or a ``Surface`` of it; directions are for where it
            stands.
        count: How many. Default: 2.
        seed: Default: 0 (ours; 123 in the released code).
        normalise: "filter", "layer" (norm of the whole weight) or "none". Default: "filter" (the
            paper; the released code's command has "none").

    Returns:
        The directions.

    Raises:
        ValueError: If ``count`` is below 1, a word is not one of those above, or nothing would
            move.

    Source: Li et al. 2018, arXiv 1712.09913, section 4.
    """
    if count < 1:
        raise ValueError(f"count is {count}; allowed: 1 or more")
    if normalise not in NORMALISE:
        raise ValueError(f"normalise: got {normalise!r}, allowed: {', '.join(NORMALISE)}")
    surface = as_surface(model)
    unit = "standard normal steps" if normalise == "none" else f"{normalise} norms"
    weights = surface.split(surface.here()).values()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(1, count + 1):
        vector = surface.flatten(_draw(w, normalise, generator) for w in weights)
        if not vector.any():
            raise ValueError("random_directions: all filters are zero, nothing would move")
        found.append(Direction(vector, f"random direction {number}", unit))
    return found


def _draw(weight: Tensor, normalise: str, generator: torch.Generator) -> Tensor:
    # In float64 on the CPU: the same numbers for every type and device.
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    if normalise != "none":
        kept = 1 if normalise == "filter" else 0
        norms, lengths = (
            t.flatten(kept).norm(dim=-1).view(-1, *[1] * (t.ndim - 1))
            for t in (weight.double().cpu(), drawn)
        )
        drawn *= norms / lengths
    return drawn.to(weight)


def eigenvector_directions(
    model: nn.Module | Surface, eigenvalues: Eigenvalues, count: int = 2, *, unit: str = "curvature"
) -> list[Direction]:
    """The directions of the first eigenvectors of a Hessian.

    Along one of them L(αv) ≈ L₀ + αgᵀv + ½λα² where α is small. They are not normalised by
    filters: they would no longer be eigenvectors. Of a ``relative`` Hessian D·H·D the direction
    is D·v, along which the curvature is λ, too.

    Args:
        model: The network, or the ``Surface`` that the eigenvalues are of.
        eigenvalues: What ``analysis.eigenvalues`` returned for it.
        count: How many, the first. Default: 2.
        unit: What 1 along them is. "curvature": v/√|λ|, so that the quadratic term is ±½ at 1;
            "norm": a step as long as all weights that move, ‖w‖. Default: "curvature" (ours).

    Returns:
        The directions.

    Raises:
        ValueError: If the eigenvalues are of another space or of other parameters, there are
            fewer than ``count``, ``unit`` is not one of the words above, or an eigenvalue is zero.
    """
    surface = as_surface(model)
    if unit not in UNITS:
        raise ValueError(f"unit: got {unit!r}, allowed: {', '.join(UNITS)}")
    if not 1 <= count <= len(eigenvalues.values):
        raise ValueError(f"count is {count}; allowed: 1 to {len(eigenvalues.values)}")
    setting = eigenvalues.setting
    if (setting.space, setting.names) != (surface.space, surface.names):
        raise ValueError(
            f"eigenvectors over {setting.space} weights of {len(setting.names)} parameters are "
            f"no directions for {surface.space} weights of {len(surface.names)}"
        )
    scale = surface.filter_norms() if setting.relative else 1
    found = []
    for index in range(count):
        value = float(eigenvalues.values[index])
        vector = scale * torch.as_tensor(eigenvalues.vectors[index]).to(surface.point)
        if unit == "curvature":
            if value == 0:
                raise ValueError(f"eigenvalue {index + 1} is zero: take unit='norm'")
            vector = vector / abs(value) ** 0.5
        else:
            vector = vector * (surface.here().norm() / vector.norm())
        words = {"curvature": "1/√|λ|", "norm": "‖w‖"}[unit]
        found.append(Direction(vector, f"eigenvector {index + 1}, λ = {value:.3g}", words))
    return found


@undisturbed()
def line(
    model: nn.Module | Surface,
    data: Data,
    direction: Direction | Tensor | None = None,
    *,
    reach: float = 1.0,
    points: int = 51,
    seed: int = 0,
    reestimate: int = 0,
    training: Data = None,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> LossLine:
    """Loss and accuracy along a line through a network: L(w + x·d).

    In the space "latent" the weights are quantized again at every point, with steps that stay as
    they are: a staircase, for which 101 points or more are right. Elsewhere they move freely.

    Args:
        model: In evaluation mode; or a ``Surface`` of it, which names the space, the layers and
            what else moves. It does not change.
        data: Images: a ``Split``, ``(images, labels)`` or a loader, seen without augmentation.
            Beside them their normalised copy is held, if it fits into 256 MiB; else one batch.
        direction: Of ``random_directions`` or ``eigenvector_directions``, or any vector over the
            weights of the surface. Default: None: the first random one.
        reach: x runs from −reach to reach. Default: 1.0 (Li et al.).
        points: An odd number, so that the network itself is among them. Default: 51 (Li et al.).
        seed: Of the random direction, if none is given. Default: 0.
        reestimate: Batches of 128 ``training`` images from which BatchNorm's statistics are
            estimated anew at every point. Default: 0: they stay as they are (the convention).
        training: Images for that.
        loss: ``(logits, labels) -> mean``. Default: cross-entropy, without weight decay.
        samples: Images, the first. Default: None: all that were given.
        batch: Images at once. Default: None: 100 on a CPU, 500 elsewhere (ours: measured).
        progress: Whether to show a bar. Default: True.

    Returns:
        The record. Points whose loss is not finite say so; on Ctrl-C those from the centre outward
        that were computed, ``complete`` False. ``records.LossLine``. Draw with ``plots.loss_line``.

    Raises:
        ValueError: If the model, the data, a direction or a number is not as said, or the loss of
            the network itself is not finite.

    Source: Goodfellow et al. 2015, arXiv 1412.6544; Li et al. 2018, arXiv 1712.09913.
    """
    start = time.monotonic()
    x = _positions(reach, points)
    options = {"loss": loss, "samples": samples, "batch": batch}
    moved = Moved(model, data, reestimate=reestimate, training=training, **options)
    given = random_directions(moved.surface, 1, seed=seed) if direction is None else [direction]
    (along,) = _directions(moved.surface, given)
    point, table = moved.surface.point, Table((points,))

    def at(place: tuple[int, ...]) -> tuple[float, float]:
        return moved(point.add(along.vector, alpha=x[place[0]]))

    _fill(table, _outward(table.loss.shape), at, Kept(None, {}, ()), "line", progress)
    return LossLine(
        conditions=moved.conditions(),
        direction=along.name,
        unit=along.unit,
        length=_length(along),
        x=x,
        loss=table.loss,
        accuracy=table.accuracy,
        computed=table.computed,
        seconds=time.monotonic() - start,
    )


@undisturbed()
def plane(
    model: nn.Module | Surface,
    data: Data,
    directions: Sequence[Direction | Tensor] | None = None,
    *,
    reach: float = 1.0,
    points: int = 51,
    seed: int = 0,
    reestimate: int = 0,
    training: Data = None,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> LossSurface:
    """Loss and accuracy over a plane through a network: L(w + x·d₁ + y·d₂).

    Points are visited from the centre outward, so that an interrupted picture is one of the
    middle. A random plane shows mostly the bulk of the spectrum, and can hide directions of
    negative curvature: report eigenvalues and trace beside it.

    Args:
        model: See ``line``.
        data: See ``line``.
        directions: Two, see ``line``. Default: None: random ones, normalised by filters.
        reach: x and y run from −reach to reach. Default: 1.0 (Li et al.).
        points: Along each axis; odd. Default: 51 (Li et al.): 2601 passes over the images.
        seed: Of the random directions, if none are given. Default: 0.
        reestimate: See ``line``.
        training: See ``line``.
        loss: See ``line``.
        samples: See ``line``.
        batch: See ``line``.
        cache: A file in which values are kept every ten seconds, on Ctrl-C and at the end, and
            from which the next call takes them up. The centre is always evaluated, and compared.
            Default: None.
        progress: See ``line``.

    Returns:
        The record, as of ``line``. ``records.LossSurface``. Draw with ``plots.loss_contour``,
        ``plots.loss_contours`` or ``plots.loss_relief``.

    Raises:
        ValueError: As ``line``; or if the directions are parallel, or ``cache`` is a file of
            another model, other images, directions or settings.

    Source: Li et al. 2018, arXiv 1712.09913.
    """
    start = time.monotonic()
    x = _positions(reach, points)
    options = {"loss": loss, "samples": samples, "batch": batch}
    moved = Moved(model, data, reestimate=reestimate, training=training, **options)
    surface = moved.surface
    given = random_directions(surface, 2, seed=seed) if directions is None else directions
    first, second = _directions(surface, given, 2)
    cosine = _cosine(first.vector, second.vector)
    kept = Kept(cache, _names(moved, x) if cache else {}, [first.vector, second.vector])
    table = Table((points, points))
    kept.load(table)
    earlier = table.seconds

    def at(place: tuple[int, ...]) -> tuple[float, float]:
        table.seconds = earlier + time.monotonic() - start
        row, column = place
        moved_to = surface.point.add(first.vector, alpha=x[column])
        return moved(moved_to.add_(second.vector, alpha=x[row]))

    _fill(table, _outward(table.loss.shape), at, kept, "plane", progress)
    return LossSurface(
        conditions=moved.conditions(),
        directions=(first.name, second.name),
        units=(first.unit, second.unit),
        lengths=(_length(first), _length(second)),
        cosine=cosine,
        x=x,
        y=x.copy(),
        loss=table.loss,
        accuracy=table.accuracy,
        computed=table.computed,
        seconds=earlier + time.monotonic() - start,
    )


@undisturbed()
def between(
    first: nn.Module | Surface,
    second: nn.Module | Surface,
    data: Data,
    *,
    points: int = 21,
    beyond: float = 0.25,
    ends: tuple[str, str] = ("A", "B"),
    reestimate: int = 0,
    training: Data = None,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> LossPath:
    """Loss and accuracy on the straight way from one network to another.

    Everything moves, whatever the surfaces let move: weights, biases, BatchNorm's factors and its
    statistics, and the steps of the quantizers that are on. Otherwise the ends would not be the two
    networks. Between them BatchNorm's statistics are wrong in general, and most of a barrier may
    be that: compare with ``reestimate=50``.

    Args:
        first: In evaluation mode, or a ``Surface`` of it, which names the space. No network
            changes.
        second: Of the same architecture, in the same space. A dequantized one without activation
            quantizers is a float network, too.
        data: See ``line``.
        points: From one network to the other, both included. Default: 21 (ours; 21 to 51 usual).
        beyond: How far to go on behind either, as a share of the way, at the same spacing.
            Default: 0.25 (ours).
        ends: What the networks are called.
        reestimate: See ``line``; also at the two networks.
        training: See ``line``.
        loss: See ``line``.
        samples: See ``line``.
        batch: See ``line``.
        progress: See ``line``.

    Returns:
        The record; on Ctrl-C with what was computed, the two networks first. ``records.LossPath``.
        Draw with ``plots.loss_path``.

    Raises:
        ValueError: As ``line``; or if the networks differ in more than floating numbers, or the
            loss of one of them is not finite.

    Source: Goodfellow et al. 2015, arXiv 1412.6544; barriers: Frankle et al. 2020, arXiv
    1912.05671; statistics on the way: Garipov et al. 2018, arXiv 1802.10026.
    """
    start = time.monotonic()
    if points < 2 or not beyond >= 0:
        raise ValueError(f"points must be ≥ 2 and beyond ≥ 0, got {points} and {beyond}")
    options = {"loss": loss, "samples": samples, "batch": batch}
    options |= {"reestimate": reestimate, "training": training}
    here, there = (Moved(model, data, **options) for model in (first, second))
    way = _Way(here, there)
    outside = int(beyond * (points - 1) + 1e-9)
    t = np.arange(-outside, points + outside) / (points - 1)
    table = Table(t.shape)

    def at(place: tuple[int, ...]) -> tuple[float, float]:
        return way(float(t[place]))

    order = sorted(range(len(t)), key=lambda i: (t[i] not in (0, 1), abs(t[i] - 0.5), i))
    _fill(table, [(i,) for i in order], at, Kept(None, {}, ()), "path", progress)
    return LossPath(
        conditions=way.conditions(),
        ends=ends,
        t=t,
        loss=table.loss,
        accuracy=table.accuracy,
        computed=table.computed,
        distance=way.distance,
        seconds=time.monotonic() - start,
    )


class _Way:
    """Everything of two networks, and a third that stands anywhere between them."""

    def __init__(self, here: Moved, there: Moved) -> None:
        self.here, self.there = here, there
        for moved in (here, there):
            moved.surface.assign(moved.surface.point)
        _check_pair(here.surface, there.surface)
        ours, theirs = _tensors(here.model), _tensors(there.model)
        if problems := _differences(ours, theirs):
            raise ValueError(
                f"between: the networks differ in more than numbers: {'; '.join(problems[:5])}"
            )
        moving = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self.tensors = [ours[name] for name in moving]
        self.starts = [tensor.detach().clone() for tensor in self.tensors]
        self.stops = [theirs[name].detach().to(ours[name]) for name in moving]
        self.distance = _norm(
            b - a for a, b in zip(self.starts, self.stops, strict=True) if a.ndim > 1
        )

    @torch.no_grad()
    def __call__(self, t: float) -> tuple[float, float]:
        torch._foreach_copy_(self.tensors, self.starts)
        if t:  # 0·NaN of a second network without a loss is NaN
            torch._foreach_lerp_(self.tensors, self.stops, t)
        found = self.here.here()
        if t == 1:
            self._check_end(found[0])
        return found

    def _check_end(self, found: float) -> None:
        wanted = self.there.here()[0]
        if not np.isfinite(wanted):
            raise ValueError(f"between: the loss of the second network is {wanted}")
        if not np.isclose(found, wanted, rtol=AGREE, atol=1e-6):
            raise ValueError(
                f"between: with all numbers of the second network the first has the loss "
                f"{found:.4g}, the second {wanted:.4g}: they are not of one architecture, or "
                f"their quantizers have other bits"
            )

    def conditions(self) -> Conditions:
        """Those of the first network; everything moves."""
        found = vars(self.here.conditions()) | {
            "size": sum(t.numel() for t in self.starts),
            "norm": _norm(self.starts),
        }
        if self.here.surface.space != self.there.surface.space:
            found["space"] += f" to {self.there.surface.space}"
        return Conditions(**found)


def _check_pair(first: Surface, second: Surface) -> None:
    spaces = {first.space, second.space}
    plain = {"float", "dequantized"}
    on = first.activation_quantizers, second.activation_quantizers
    if spaces != {first.space} and not (spaces == plain and not any(on)):
        raise ValueError(
            f"between: one network has {first.space} weights, the other {second.space}; give "
            f"surfaces of one space (or dequantized weights without activation quantizers "
            f"beside a float network)"
        )
    if first.batchnorm != second.batchnorm:
        raise ValueError("between: one network has BatchNorm of the images, the other not")


def _differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    found = [f"only one has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name].to(ours[name].device)
        moves = one.is_floating_point() or name.endswith("num_batches_tracked")
        if one.shape != other.shape:
            found.append(f"{name} is {list(one.shape)} and {list(other.shape)}")
        elif not moves and not torch.equal(one, other):
            found.append(f"{name}, which holds no floating numbers")
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _positions(reach: float, points: int) -> np.ndarray:
    """From −reach to reach, with an exact 0 in the middle."""
    if points < 3 or points % 2 == 0:
        raise ValueError(
            f"points is {points}; allowed: odd numbers from 3, so that the network itself is one"
        )
    if not 0 < reach < np.inf:
        raise ValueError(f"reach is {reach}; allowed: above 0")
    half = points // 2
    return reach * np.arange(-half, half + 1) / half


def _outward(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a grid, those closest to its centre first."""
    middle = [n // 2 for n in shape]
    return sorted(
        np.ndindex(*shape),
        key=lambda place: (sum((i - m) ** 2 for i, m in zip(place, middle, strict=True)), place),
    )


def _directions(
    surface: Surface, given: Iterable[Direction | Tensor], count: int = 1
) -> list[Direction]:
    """Directions with names, over the weights of the surface."""
    found: list[Direction] = []
    for number, direction in enumerate(given, 1):
        if isinstance(direction, Tensor):
            unit = f"‖d‖ = {direction.norm().item():.3g}"
            direction = Direction(direction, f"direction {number}", unit)
        vector = direction.vector.detach().to(surface.point)
        if vector.shape != surface.point.shape or not vector.isfinite().all() or not vector.any():
            raise ValueError(
                f"{direction.name} must be {surface.size} finite numbers, not all zero, got "
                f"{list(vector.shape)}"
            )
        found.append(Direction(vector, direction.name, direction.unit))
    if len(found) != count:
        raise ValueError(f"{count} direction(s) are needed, got {len(found)}")
    if count == 2 and abs(_cosine(found[0].vector, found[1].vector)) > 0.999:
        raise ValueError("the two directions are parallel: they make a line, not a plane")
    return found


def _fill(
    table: Table,
    order: Sequence[tuple[int, ...]],
    at: Callable[[tuple[int, ...]], tuple[float, float]],
    kept: Kept,
    what: str,
    progress: bool,
) -> None:
    """Compute what is missing, in order; the first always: it is the network itself."""
    centre, new = order[0], 0
    before = table.loss[centre]
    waiting = [centre] + [place for place in order[1:] if not table.computed[place]]
    bar = tqdm(total=len(order), desc=what, unit="point", disable=not progress)
    saved = time.monotonic()
    try:
        with bar:
            bar.update(len(order) - len(waiting))
            for place in waiting:
                values = at(place)
                if place == centre:
                    _check_centre(values[0], before, kept)
                if not table.computed[place]:
                    table.put(place, values)
                    new += 1
                bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    kept.save(table)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        done = f"{table.computed.sum()} of {len(order)} points"
        warnings.warn(f"{what}: interrupted after {done}", stacklevel=4)
    finally:
        if new:  # a complete file is not touched
            kept.save(table)


def _check_centre(loss: float, before: float, kept: Kept) -> None:
    if not np.isfinite(loss):
        raise ValueError(f"the loss of the network itself is {loss}")
    if np.isfinite(before) and not np.isclose(loss, before, rtol=AGREE, atol=1e-6):
        raise ValueError(
            f"{kept.path} has the loss {before:.6g} for the network itself, which is "
            f"{loss:.6g} here: it was made with another model or loss. Name another file"
        )


def _names(moved: Moved, x: np.ndarray) -> dict[str, str]:
    """What the values of a plane depend on, beside its directions."""
    surface = moved.surface
    surface.assign(surface.point)
    reestimated = ""
    if moved.training is not None:
        reestimated = f"{moved.reestimate} {digest_of_images(moved.training)}"
    return {
        "model": digest_of_model(surface.model),
        "images": digest_of_images(moved.split),
        "grid": f"{len(x)} points to {x[-1]!r}",
        "space": f"{surface!r} {surface.names}",
        "loss": loss_name(moved.loss),
        "BatchNorm": f"{surface.batchnorm} {reestimated}",
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return (a @ b / (a.norm() * b.norm())).item()


def _length(direction: Direction) -> float:
    return direction.vector.double().norm().item()


def _norm(tensors: Any) -> float:
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5
