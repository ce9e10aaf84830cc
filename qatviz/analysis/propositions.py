"""Four statements about consistency and perturbation, checked in numbers.

The titles are those of the propositions of Pang et al. 2025, arXiv 2402.13497v2. Their
statements and proofs could not be had: the statements here are ours.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    cross_entropy,
    kl_div,
    linear,
    unfold,
)
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm
from typing_extensions import override

from qatviz.analysis.landscape import Direction, random_directions
from qatviz.analysis.moved import Moved
from qatviz.analysis.similarity import watching
from qatviz.analysis.subject import Data, check_evaluating, device_of
from qatviz.analysis.surface import Surface, as_surface
from qatviz.quantize import check_ready, quantizable_layers
from qatviz.quantizers import Quantizer
from qatviz.records import (
    ConvolutionMismatch,
    DivergenceAsSharpness,
    ErrorPropagation,
    PACBayesBound,
    ToleratedNoise,
    WeightChange,
)

OF = ("weights", "images")
LENGTHS = (1.0, 0.1, 0.01, 0.001)
BATCH = 100

# No shapes in the types of public functions: they are checked always, and said in one sentence.
Linear = Callable[[Tensor], Tensor]


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


# Proposition 4


@torch.no_grad()
def error_propagation(
    model: nn.Module,
    images: Tensor,
    delta: Tensor,
    *,
    iterations: int = 200,
    seed: int = 0,
    label: str = "",
) -> ErrorPropagation:
    """Follow a change of the images through all layers, beside what would predict it.

    At the output h of each convolution and linear layer, before BatchNorm: the change that
    arrives; what it is to first order, Jδ by a Jacobian-vector product; and a product of
    spectral norms, which no change exceeds. J passes straight through quantizers, so that what
    it misses in a quantized network are the jumps of rounding: large where the change of a
    layer's input is below a step.

    The product is of the network without quantizers of activations, with its weights as they are
    multiplied. Of a convolution it takes the norm of the whole operator at the size of its
    input, by power iteration; with the factors γ/√(σ² + ε) of the BatchNorm that reads it, as
    one operator; so of average pooling. ReLU, flattening and quantizers count as 1; maximum pooling
    as the root of how often it reads a pixel; a sum as the sum of its parts, so
    that a block with a shortcut is 1 + ‖branch‖. Where a network does something else, there is
    no product from there on. It is no bound of a network with quantized activations: a staircase
    has none. Power iteration comes from below: the product may be short by a little.

    Everything is computed in float64, see ``divergence_as_sharpness``.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        images: As the model takes them: normalised.
        delta: δ of each image, not zero.
        iterations: The most steps of power iteration per layer, at least 1. It stops where a
            step changes the norm by less than 10⁻⁹ of it. Default: 200 (ours).
        seed: Of what power iteration starts from. Default: 0.
        label: Name of the network. Default: none (ours).

    Returns:
        A `records.ErrorPropagation`: numbers by layer, in the order of the forward pass, and
        image. Where a layer runs more than once, its last run counts. Draw with
        ``plots.error_propagation``.

    Raises:
        ValueError: If the model is in training mode or not calibrated, has no layer, shapes do
            not fit, a number is not finite, δ of an image is zero, or ``iterations`` is below 1.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 4 by its title; the statement
    is ours.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; allowed: 1 or more")
    check_evaluating(model)
    check_ready(model)
    _check_change(images, delta)
    twin = copy.deepcopy(model).double()
    layers = quantizable_layers(twin)
    if not layers:
        raise ValueError("error_propagation: the model has no convolution and no linear layer")
    x, d = (t.detach().to(device_of(twin), torch.float64) for t in (images, delta))
    parts = [
        _followed(twin, layers, *pair) for pair in zip(x.split(BATCH), d.split(BATCH), strict=True)
    ]
    found = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    spectral, lipschitz = _norms(model, found, x[:1], iterations, seed)
    rows = np.stack(list(found.values()), axis=1)  # numbers, layers, images
    sizes = _lengths(d).cpu().numpy()
    norm, change, first, missed, steps = rows
    with np.errstate(divide="ignore", invalid="ignore"):
        return ErrorPropagation(
            label=label,
            layers=tuple(found),
            disturbance=sizes / _lengths(x).cpu().numpy(),
            change=change / norm,
            predicted=first / norm,
            mismatch=missed / change,
            steps=steps,
            spectral=spectral,
            lipschitz=lipschitz,
            bound=lipschitz[:, None] * sizes / norm,
        )


def _followed(
    model: nn.Module, layers: dict[str, nn.Module], x: Tensor, delta: Tensor
) -> dict[str, np.ndarray]:
    """By layer, in order: ‖h‖, ‖Δh‖, ‖Jδ‖, ‖Δh − Jδ‖ and the input's change in steps, by image."""

    def run(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str, given: Tensor, output: Tensor) -> None:
            kept[name] = given.clone(), output.clone()  # what comes next may work in place

        with watching(layers, keep):
            model(images)
        return kept

    before, slopes = jvp(run, (x,), (delta,))
    after = run(x + delta)
    found = {}
    for name, (given, output) in before.items():
        change, first = after[name][1] - output, slopes[name][1]
        lengths = [_lengths(t) for t in (output, change, first, change - first)]
        moved = after[name][0] - given
        step = _step(getattr(layers[name], "input_quantizer", None))
        lengths.append(_lengths(moved) / math.sqrt(moved[0].numel()) / step)
        found[name] = torch.stack(lengths).cpu().numpy()
    return found


def _step(quantizer: nn.Module | None) -> float:
    """Mean distance of neighbouring levels; NaN without a quantizer."""
    if not isinstance(quantizer, Quantizer):
        return math.nan
    levels = quantizer.levels().double()
    return ((levels.amax(-1) - levels.amin(-1)) / (levels.shape[-1] - 1)).mean().item()


def _lengths(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1)


def _norms(
    model: nn.Module, names: dict[str, Any], x: Tensor, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer the norm of its own and the product up to its output."""
    smooth = Surface(model, "dequantized", activation_quantizers=False).model.double()
    generator = torch.Generator().manual_seed(seed)
    mode = _Products(x, lambda map, like: _spectral_norm(map, like, iterations, generator))
    found = {}

    def keep(name: str, given: Tensor, output: Tensor) -> None:
        own = mode.maps.get(id(output), (math.nan,))[0]
        found[name] = own, mode.products.get(id(output), math.nan)

    with watching({name: smooth.get_submodule(name) for name in names}, keep), mode:
        smooth(x)
    own, products = np.array([found[name] for name in names]).T
    return own, products


class _Products(TorchFunctionMode):
    """Watches a forward pass, and multiplies the norms of what it does, tensor by tensor.

    Attributes:
        products: By id of a tensor that depends on the input, how much longer than a change of
            the input its change can be; NaN where that is not known.
        maps: By id of the output of a linear map: its norm, the product of its input, the map
            without shift, and a tensor like its input.
    """

    def __init__(self, x: Tensor, norm: Callable[[Linear, Tensor], float]) -> None:
        super().__init__()
        self.norm, self.seen = norm, [x]  # seen: so that no id is given twice
        self.products: dict[int, float] = {id(x): 1.0}
        self.maps: dict[int, tuple[float, float, Linear, Tensor]] = {}
        self.rules: dict[str, Callable[..., float]] = {
            "conv2d": self._convolution,
            "linear": self._linear,
            "batch_norm": self._batchnorm,
            "max_pool2d": self._maximum,
            "avg_pool2d": self._average,
            "adaptive_avg_pool2d": self._adaptive,
            "pad": self._padding,
            **dict.fromkeys(_SUMS, self._sum),
            **dict.fromkeys(_SAME, self._same),
        }

    @override
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if not isinstance(output, Tensor) or not any(id(t) in self.products for t in given):
            return output
        self.seen.append(output)
        rule = self.rules.get(getattr(func, "__name__", ""), self._unknown)
        # In place: the output is the input, whose product the rule still reads.
        self.products[id(output)] = rule(output, *args, **kwargs)
        return output

    def _of(self, tensor: Any) -> float:
        """A constant does not change."""
        return self.products.get(id(tensor), 0.0)

    def _map(self, output: Tensor, given: Tensor, map: Linear) -> float:
        norm = self.norm(map, given)
        self.maps[id(output)] = norm, self._of(given), map, given
        return norm * self._of(given)

    def _convolution(
        self, output: Tensor, input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **kw: Any
    ) -> float:
        return self._map(output, input, lambda v: conv2d(v, weight, None, *rest, **kw))

    def _linear(self, output: Tensor, input: Tensor, weight: Tensor, bias: Any = None) -> float:
        return self._map(output, input, lambda v: linear(v, weight))

    def _batchnorm(
        self,
        output: Tensor,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> float:
        if training or running_var is None:
            return math.nan
        factors = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
        if id(input) not in self.maps:
            return factors.abs().max().item() * self._of(input)
        _, before, map, given = self.maps[id(input)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        return self.norm(lambda v: factors.view(shape) * map(v), given) * before

    def _maximum(
        self,
        output: Tensor,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        **kw: Any,
    ) -> float:
        if dilation not in (1, (1, 1)):
            return math.nan
        sizes, strides = _pair(kernel_size), _pair(stride or kernel_size)
        readers = math.prod(math.ceil(k / s) for k, s in zip(sizes, strides, strict=True))
        return math.sqrt(readers) * self._of(input)

    def _average(self, output: Tensor, input: Tensor, *rest: Any, **kw: Any) -> float:
        return self._map(output, input, lambda v: avg_pool2d(v, *rest, **kw))

    def _adaptive(self, output: Tensor, input: Tensor, *rest: Any, **kw: Any) -> float:
        return self._map(output, input, lambda v: adaptive_avg_pool2d(v, *rest, **kw))

    def _padding(
        self, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", *_: Any, **kw: Any
    ) -> float:
        return self._of(input) if mode == "constant" else math.nan

    def _sum(self, output: Tensor, one: Any, other: Any, **kw: Any) -> float:
        return math.nan if kw else self._of(one) + self._of(other)

    def _same(self, output: Tensor, input: Tensor, *_: Any, **kw: Any) -> float:
        return self._of(input)

    def _unknown(self, output: Tensor, *_: Any, **kw: Any) -> float:
        return math.nan


_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__isub__")
# What brings no two points further apart.
_SAME = (
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "tanh", "sigmoid", "dropout"),
    *("mean", "flatten", "reshape", "view", "contiguous", "clone", "__getitem__", "to", "double"),
)


def _pair(number: Any) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else tuple(number)


@torch.enable_grad()
def _spectral_norm(map: Linear, like: Tensor, iterations: int, generator: torch.Generator) -> float:
    """The largest ‖map(v)‖/‖v‖, by power iteration on mapᵀ∘map."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    v, norm = drawn.to(like), 0.0
    for _ in range(iterations):
        v = (v / v.norm()).detach().requires_grad_()
        y = map(v)
        before, norm = norm, y.norm().item()
        (v,) = torch.autograd.grad(y, v, y.detach())
        if not v.any() or abs(norm - before) <= 1e-9 * norm:
            break
    return norm


# Refusals


def _check_positive(name: str, values: Sequence[float]) -> None:
    if not len(values) or not all(0 < v < math.inf for v in values):
        raise ValueError(f"{name} are {list(values)}; allowed: one or more, each above 0")


def _check_change(images: Tensor, delta: Tensor) -> None:
    if images.shape != delta.shape or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, delta {tuple(delta.shape)}; allowed: the "
            f"same, of 1 image or more"
        )
    for name, tensor in (("images", images), ("delta", delta)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    if not _lengths(delta).all():
        raise ValueError("delta of an image is zero: nothing would arrive anywhere")
