"""Four statements about consistency and perturbation, checked in numbers.

The titles are those of the propositions of Pang et al. 2025, arXiv 2402.13497v2. Their
statements and proofs could not be had: the statements here are ours.
"""

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import (
    conv2d,
    cross_entropy,
    kl_div,
    linear,
    unfold,
)
from tqdm.auto import tqdm

from qatviz.analysis.landscape import Direction, random_directions
from qatviz.analysis.moved import Moved
from qatviz.analysis.subject import Data
from qatviz.analysis.surface import Surface, as_surface
from qatviz.records import (
    ConvolutionMismatch,
    DivergenceAsSharpness,
    PACBayesBound,
    ToleratedNoise,
    WeightChange,
)

OF = ("weights", "images")
LENGTHS = (1.0, 0.1, 0.01, 0.001)
BATCH = 100

# No shapes in the types of public functions: they are checked always, and said in one sentence.


# Proposition 1


@torch.no_grad()
def divergence_as_sharpness(
    model: nn.Module | Surface,
    data: Data,
    direction: Direction | Tensor | None = None,
    *,
    of: str = "weights",
    lengths: Sequence[float] = LENGTHS,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
) -> DivergenceAsSharpness:
    """Displace a network, and compare the divergence of its answers with a rise of its loss.

    With p_T the predictive distribution where the network stands and p_S that of the displaced
    one, by image::

        Σ_y p_T(y)·[CE(y, p_S) − CE(y, p_T)] = KL(p_T ‖ p_S)      always: an identity
        KL(p_T ‖ p_S) ≈ ½δᵀFδ = ½·Var_{c∼p_T}((Jδ)_c)             where δ is short

    F is the Fisher matrix and J the Jacobian of the logits where the network stands. So the
    divergence is the rise of the loss along this one displacement, if the labels were what the
    network itself believes. Under the true labels the rise is log p_T(y) − log p_S(y), which
    may be negative.

    J passes straight through quantizers that are on. The divergence does not: there the ratio
    of the two need not go to 1 as δ → 0. Without such quantizers it does.

    Everything is computed in float64: in float32 the divergence of a short displacement is lost
    in rounding. A float64 copy of a quantized network may round single activations otherwise.

    Args:
        model: In evaluation mode, or a ``Surface`` of it, with running BatchNorm. Neither
            changes.
        data: A ``Split``, ``(images, labels)`` or a loader.
        direction: Of the displacement: a ``Direction`` of the surface or its vector; of images,
            a tensor in their shape, normalised images. Only where it points counts. Default:
            None: Gaussian; of weights filter by filter as large as they are (ours).
        of: "weights": all images see the same displaced weights; "images": each image is
            displaced, by the same length. Default: "weights".
        lengths: L2 norms of δ, above 0. Default: 1 to 0.001 (ours).
        samples: How many images, the first. Default: None: all.
        seed: Of the direction, where none is given. Default: 0.
        label: Name of the network. Default: none (ours).

    Returns:
        A `records.DivergenceAsSharpness`: the four numbers by length and image. Draw with
        ``plots.divergence_as_sharpness``.

    Raises:
        ValueError: As ``subject``; or if a length is not above 0, ``of`` is another word,
            BatchNorm takes the statistics of the images, or the direction has another shape, is
            not finite, or is zero.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 1 by its title; the statement
    is ours.
    """
    if of not in OF:
        raise ValueError(f"of is {of!r}; allowed: {', '.join(OF)}")
    _check_positive("lengths", lengths)
    moved = Moved(_in_float64(model), data, samples=samples, batch=BATCH)
    if moved.surface.batchnorm == "batch":
        raise ValueError("BatchNorm takes the statistics of the images; allowed: 'running'")
    unit, name = _unit(moved, direction, of, seed)
    found, seen = [], 0
    for images, labels in moved.batches:
        shift = unit[seen : seen + len(labels)] if of == "images" else unit
        found.append(_displaced(moved, images, labels, shift, of, lengths))
        seen += len(labels)
    return DivergenceAsSharpness(
        label,
        of,
        moved.surface.space,
        name,
        np.array(lengths, float),
        *torch.cat(found, dim=-1).cpu().numpy(),
    )


def _in_float64(model: nn.Module | Surface) -> Surface:
    surface = copy.deepcopy(as_surface(model))
    surface.model.double()
    surface.point = surface.point.double()
    return surface


def _unit(
    moved: Moved, direction: Direction | Tensor | None, of: str, seed: int
) -> tuple[Tensor, str]:
    """A displacement of length 1, of the weights or of each image, and its name."""
    of_images = of == "images"
    shape = tuple(moved.split.images.shape) if of_images else (moved.surface.size,)
    vector, name = direction, "direction"
    if direction is None and of_images:
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(shape, generator=generator, dtype=torch.float64)
        name = "Gaussian noise"
    elif direction is None:
        (direction,) = random_directions(moved.surface, 1, seed=seed)
    if isinstance(direction, Direction):
        vector, name = direction.vector, direction.name
    vector = vector.detach().to(moved.surface.point)
    if tuple(vector.shape) != shape:
        raise ValueError(f"direction has shape {tuple(vector.shape)}; allowed: {shape}")
    rows = vector.reshape(shape[0], -1) if of_images else vector.reshape(1, -1)
    norms = rows.norm(dim=1, keepdim=True)
    if not norms.isfinite().all() or not norms.all():
        raise ValueError("direction is zero or not finite: it points nowhere")
    return (rows / norms).reshape(shape), name


def _displaced(
    moved: Moved, images: Tensor, labels: Tensor, unit: Tensor, of: str, lengths: Sequence[float]
) -> Tensor:
    """By length and image: divergence, expected rise, ½δᵀFδ, rise."""
    surface, model = moved.surface, moved.model

    def answers(length: float | Tensor) -> Tensor:
        if of == "images":
            return model(images + length * unit)
        parts = surface.split(surface.point + length * unit)
        return functional_call(model, parts, (images,))

    zero = torch.zeros((), dtype=torch.float64, device=images.device)
    known, slope = jvp(answers, (zero,), (torch.ones_like(zero),))
    teacher = known.log_softmax(1)
    chances = teacher.exp()
    centred = slope - (chances * slope).sum(1, keepdim=True)
    variance = (chances * centred.square()).sum(1)
    rows = []
    for length in lengths:
        student = answers(length)
        apart = kl_div(student.log_softmax(1), teacher, reduction="none", log_target=True).sum(1)
        expected = torch.zeros_like(apart)
        for index in range(known.shape[1]):
            drawn = torch.full_like(labels, index)
            expected += chances[:, index] * _rise(student, known, drawn)
        half = 0.5 * length**2 * variance
        rows.append(torch.stack([apart, expected, half, _rise(student, known, labels)]))
    return torch.stack(rows, dim=1)


def _rise(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    after, before = (cross_entropy(z, labels, reduction="none") for z in (student, teacher))
    return after - before


# Proposition 2


def pac_bayes_bound(
    error: float, distance: float, sigma: float, images: int, confidence: float = 0.05
) -> PACBayesBound:
    """Bound the error of a network with noisy weights on images that it has not seen.

    With a probability of at least 1 − ξ over the training images, for weights w + ε with
    ε ~ N(0, σ²) on each, and the 0–1 loss::

        E[unseen error] ≤ E[training error] + √((‖w − w₀‖²/(2σ²) + ln(2√n/ξ))/(2n))

    w₀ must not depend on the training images: a float network trained on the same ones is no
    such w₀, and the number is then a measure and no bound. Nor does it hold for the best of
    several σ without paying for the choice. For networks it is usually above 1: it says nothing,
    and only the order of networks may be of use.

    Args:
        error: Mean share of wrong answers on the training images with the noise, 0 to 1:
            ``tolerated_noise(...).error``.
        distance: ‖w − w₀‖, 0 or more.
        sigma: σ, above 0.
        images: Training images n, 1 or more.
        confidence: ξ, between 0 and 1. Default: 0.05 (ours).

    Returns:
        A `records.PACBayesBound`: the bound and its parts.

    Raises:
        ValueError: If a number is not in its range.

    Source: McAllester 1999, with the constant of Maurer 2004, arXiv cs/0411099; that it is what
    proposition 2 of Pang et al. 2025, arXiv 2402.13497v2, says is our guess.
    """
    for name, value, fine, allowed in (
        ("error", error, 0 <= error <= 1, "0 to 1"),
        ("distance", distance, 0 <= distance < math.inf, "0 or more"),
        ("sigma", sigma, 0 < sigma < math.inf, "above 0"),
        ("images", images, images >= 1, "1 or more"),
        ("confidence", confidence, 0 < confidence < 1, "between 0 and 1"),
    ):
        if not fine:
            raise ValueError(f"{name} is {value}; allowed: {allowed}")
    return PACBayesBound(float(error), float(distance), float(sigma), images, float(confidence))


@torch.no_grad()
def tolerated_noise(
    model: nn.Module | Surface,
    data: Data,
    *,
    sigmas: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
    points: float = 10.0,
    draws: int = 10,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
    progress: bool = True,
) -> ToleratedNoise:
    """Find the largest noise on all weights that costs no more than some accuracy.

    w + σ·ε, with ε a standard normal number per weight, whatever the size of the weight: what
    ``pac_bayes_bound`` is about. BatchNorm makes the size of weights meaningless: compare
    networks by ``weight_noise``, whose noise follows it. Every σ sees the same draws, scaled.

    Args:
        model: In evaluation mode, or a ``Surface`` of it. Neither changes.
        data: A ``Split``, ``(images, labels)`` or a loader; training images, for the bound.
        sigmas: σ, above 0, in units of a weight. Default: 0.001 to 0.1 (ours).
        points: Percentage points that may be lost, 0 or more. Default: 10 (ours; 1 is the other
            one in use).
        draws: Draws, at least 1. Default: 10 (ours).
        samples: How many images, the first. Default: None: all.
        seed: Of the noise. Default: 0.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True.

    Returns:
        A `records.ToleratedNoise`: accuracy of every σ and draw; those that Ctrl-C prevented are
        NaN.

    Raises:
        ValueError: As ``subject`` and ``Surface``; or if a σ is not above 0, ``points`` is
            negative, or ``draws`` is below 1.
    """
    _check_positive("sigmas", sigmas)
    if draws < 1 or not points >= 0:
        raise ValueError(f"draws is {draws}, points is {points}; allowed: 1 or more, 0 or more")
    moved = Moved(model, data, samples=samples)
    point = moved.surface.point
    _, clean = moved(point)
    accuracy = np.full((len(sigmas), draws), np.nan)
    cells = [(draw, index) for draw in range(draws) for index in range(len(sigmas))]
    done = 0
    try:
        for draw, index in tqdm(cells, "tolerated_noise", disable=not progress, leave=False):
            own = int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
            noise = torch.randn(point.shape, generator=torch.Generator().manual_seed(own))
            _, accuracy[index, draw] = moved(point + sigmas[index] * noise.to(point))
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn(
            f"tolerated_noise: interrupted after {done} of {len(cells)} measurements", stacklevel=2
        )
    return ToleratedNoise(
        label=label,
        samples=len(moved.split),
        space=moved.surface.space,
        size=moved.surface.size,
        points=points,
        sigmas=np.array(sigmas, float),
        accuracy=accuracy,
        clean_accuracy=clean,
        complete=done == len(cells),
    )


# Proposition 3


def equivalent_weight_change(
    weight: Tensor,
    x: Tensor,
    delta: Tensor,
) -> WeightChange:
    """Find the smallest change of a weight that does what a change of one input does.

    W(x + δ) = (W + ΔW)x with ΔW = Wδxᵀ/‖x‖²: exact, of rank one, and the one of least norm.
    It serves this one input; for another one ΔW is another one.

    Args:
        weight: W of a fully connected layer, (out, features).
        x: One input, (features,), not zero.
        delta: δ, its change, (features,).

    Returns:
        A `records.WeightChange`: ΔW, in float64, and what it does.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or ``x`` is zero.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 3 by its title; the statement
    is ours.
    """
    weight, x, delta = _doubles(weight=weight, x=x, delta=delta)
    if weight.ndim != 2 or x.shape != weight.shape[1:] or delta.shape != x.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, x {tuple(x.shape)}, delta "
            f"{tuple(delta.shape)}; allowed: (out, features), (features,), (features,)"
        )
    if not x.any():
        raise ValueError("x is zero: no change of the weight changes the output")
    wanted = weight @ delta
    change = torch.outer(wanted, x) / x.square().sum()
    bound = torch.linalg.matrix_norm(weight, 2) * delta.norm() / x.norm()
    return _weight_change(weight, change, wanted, change @ x, bound.item())


def multiplicative_weight_change(
    weight: Tensor,
    x: Tensor,
    factors: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
) -> WeightChange:
    """Find the change of a weight that does what scaling the input does, for all inputs at once.

    W(x ⊙ (1 + u)) = (W·diag(1 + u))x: exact for any number of inputs that share u, which is a
    number per feature of a linear layer, per channel of a convolution. It is no longer exact
    where u differs from pixel to pixel.

    Args:
        weight: W of a fully connected layer, (out, features), or of a convolution, (out,
            features, height, width).
        x: Inputs, (batch, features) or (batch, features, height, width).
        factors: u, (features,).
        stride: Of the convolution. Default: 1.
        padding: Of the convolution, with zeros. Default: 0.

    Returns:
        A `records.WeightChange`: ΔW = W·diag(u), in float64, and what it does; without a bound.

    Raises:
        ValueError: If the shapes do not fit or a number is not finite.
    """
    weight, x, factors = _doubles(weight=weight, x=x, factors=factors)
    features = weight.shape[1] if weight.ndim in (2, 4) else None
    if x.ndim != weight.ndim or x.shape[1] != features or factors.shape != (features,):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, x {tuple(x.shape)}, factors "
            f"{tuple(factors.shape)}; allowed: (out, features), (batch, features), (features,), "
            f"and the same with two more axes of weight and x"
        )
    u = factors.view(1, -1, *[1] * (weight.ndim - 2))

    def run(w: Tensor, inputs: Tensor) -> Tensor:
        if w.ndim == 2:
            return linear(inputs, w)
        return conv2d(inputs, w, stride=stride, padding=padding)

    change = weight * u
    wanted = run(weight, x * (1 + u)) - run(weight, x)
    return _weight_change(weight, change, wanted, run(change, x), math.nan)


def convolution_mismatch(
    weight: Tensor,
    images: Tensor,
    moved: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    label: str = "",
) -> ConvolutionMismatch:
    """Measure how far a change of images is from being a change of a convolution's kernel.

    A kernel is shared: with P the patches of the images and ΔP their change, both one column per
    position, ΔW·P = W·ΔP has to hold in all of them. The residual ‖ΔW·P − W·ΔP‖/‖W·ΔP‖ is that
    of the least squares, of each image alone and of all with one ΔW. A fully connected layer is
    the case of images of one pixel: exact for one, in general not for a batch of more images
    than features.

    Args:
        weight: W of a convolution without groups and dilation, (out, channels, height, width).
        images: As the convolution reads them, (images, channels, height, width).
        moved: The same, changed: by noise, by a shift, by a flip.
        stride: Of the convolution. Default: 1.
        padding: Of the convolution, with zeros. Default: 0.
        label: Name of the change. Default: none (ours).

    Returns:
        A `records.ConvolutionMismatch`: residuals, computed in float64 on the CPU. Draw with
        ``plots.convolution_mismatch``.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or the output of the
            convolution is the same for all images as it was.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 3 by its title; the check is
    ours.
    """
    weight, images, moved = _doubles(weight=weight, images=images, moved=moved)
    if weight.ndim != 4 or images.ndim != 4 or images.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, images {tuple(images.shape)}; allowed: "
            f"(out, channels, height, width) and (images, channels, height, width)"
        )
    if moved.shape != images.shape:
        raise ValueError(f"moved has shape {tuple(moved.shape)}; allowed: {tuple(images.shape)}")
    window = {"kernel_size": weight.shape[2:], "stride": stride, "padding": padding}
    patches = unfold(images, **window).transpose(1, 2)  # images, positions, unknowns
    wanted = unfold(moved - images, **window).transpose(1, 2) @ weight.flatten(1).T
    if not wanted.any():
        raise ValueError("moved: the output of the convolution does not change")
    alone = [_residual(p, w) for p, w in zip(patches, wanted, strict=True)]
    return ConvolutionMismatch(
        label=label,
        height=images.shape[2],
        width=images.shape[3],
        unknowns=patches.shape[2],
        positions=patches.shape[1],
        alone=np.array(alone),
        together=_residual(patches.flatten(0, 1), wanted.flatten(0, 1)),
    )


def _residual(patches: Tensor, wanted: Tensor) -> float:
    """Relative residual of patches·ΔWᵀ = wanted; patches may be of any rank."""
    norm = wanted.norm().item()
    if not norm:
        return 0.0
    change = torch.linalg.lstsq(patches, wanted, driver="gelsd").solution
    return (patches @ change - wanted).norm().item() / norm


def _weight_change(
    weight: Tensor, change: Tensor, wanted: Tensor, reached: Tensor, bound: float
) -> WeightChange:
    return WeightChange(*(t.numpy() for t in (weight, change, wanted, reached)), bound)


def _doubles(**tensors: Tensor) -> list[Tensor]:
    """In float64 on the CPU, without a graph."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    return [tensor.detach().cpu().double() for tensor in tensors.values()]


# Refusals


def _check_positive(name: str, values: Sequence[float]) -> None:
    if not len(values) or not all(0 < v < math.inf for v in values):
        raise ValueError(f"{name} are {list(values)}; allowed: one or more, each above 0")
