"""How a network answers when its images or its weights are disturbed."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from tqdm.auto import tqdm

from qatviz.analysis.subject import Data, Loss, clean_loss, subject, undisturbed
from qatviz.analysis.surface import Surface
from qatviz.augment import Images
from qatviz.calibration import as_taken
from qatviz.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from qatviz.datasets import Split
from qatviz.evaluation import reestimate_batchnorm, running_norms
from qatviz.quantizers.base import widened
from qatviz.records import (
    AccuracyBySamples,
    CorruptionAccuracy,
    InputNoise,
    ViewConsistency,
    WeightNoise,
)
from qatviz.tracking import weight_quantized_layers

KINDS = ("filter", "multiplicative", "flips")
SIZES = (100, 200, 500, 1000, 2000, 5000, 10000)
BATCH = 500

Move = Callable[[float, torch.Generator], Tensor]


@undisturbed()
def input_noise(
    model: nn.Module,
    data: Data,
    *,
    sigmas: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    draws: int = 20,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
    progress: bool = True,
) -> InputNoise:
    """Add Gaussian noise to normalised images, and compare the answers with those without.

    With f(x) the predictive distribution and δ ~ N(0, σ²): the accuracy and loss under noise, the
    share of predictions that change, KL(f(x) ‖ f(x + δ)), and V(x), the variance over draws of
    each logit, averaged over logits. V is compared with the variance that clean logits have over
    images, because the scale of logits differs between networks. Every σ and every network sees
    the same noise, scaled.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these.
        sigmas: σ, in units of a normalised image: σ·std of the data in units of [0, 1].
            Default: 0.02, 0.05, 0.1, 0.2 (ours, for the figure of FPQ).
        draws: Draws of the noise, at least 1. Default: 20 (ours).
        loss: ``(logits, labels) -> mean``. Default: cross-entropy.
        samples: How many images, the first. Default: None: all.
        seed: Of the noise. Default: 0.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True.

    Returns:
        All draws; those that Ctrl-C prevented are NaN. Where noise makes logits that are not
        finite, see ``InputNoise``. ``records.InputNoise``. Draw with ``plots.input_noise``.

    Raises:
        ValueError: As ``subject``; or if the loss without noise or a logit is not finite, the loss
            is not one number, a σ is negative or ``draws`` is below 1.

    Source: after Pang & Cai 2025 (FPQ), arXiv 2503.11159, figure 1; the protocol is ours.
    """
    split = subject(model, data, samples)
    _check(draws, sigmas=sigmas)
    clean = _logits(model, split)
    cells = _Cells(clean, split.labels, loss, (len(sigmas), draws))
    means = torch.zeros(len(sigmas), *clean.shape, dtype=torch.float64)
    squares = torch.zeros_like(means)
    made = np.zeros(len(sigmas))

    def measure(draw: int, index: int) -> None:
        generator = _generator(seed, draw)

        def disturb(images: Tensor) -> Tensor:
            noise = torch.randn(images.shape, generator=generator)
            return images + sigmas[index] * noise.to(images.device)

        logits = _logits(model, split, disturb)
        cells.put((index, draw), logits)
        # Welford's sums: no large numbers are subtracted.
        made[index] += 1
        shift = logits - means[index]
        means[index] += shift / made[index]
        squares[index] += shift * (logits - means[index])

    order = [(draw, index) for draw in range(draws) for index in range(len(sigmas))]
    complete = _each("input_noise", order, measure, progress)
    # One draw has no variance.
    divisor = np.where(made > 1, made - 1, np.nan)
    return InputNoise(
        label=label,
        samples=len(split),
        sigmas=np.array(sigmas, float),
        **cells.values(),
        variance=squares.mean(2).numpy() / divisor[:, None],
        **cells.clean(),
        clean_variance=clean.var(0, correction=0).mean().item(),
        complete=complete,
    )


@undisturbed()
def corruption_accuracy(
    model: nn.Module,
    data: Data,
    *,
    kinds: Iterable[str] = tuple(CORRUPTIONS),
    severities: Iterable[int] = SEVERITIES,
    draws: int = 10,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
    progress: bool = True,
) -> CorruptionAccuracy:
    """Measure a network on corrupted images.

    Images are corrupted raw and normalised afterwards. Every network and severity sees the same
    draws. Kinds without chance are measured once. Report the clean accuracy beside: a network
    that is worse to begin with has less to lose. At the defaults the images pass 431 times.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split`` of raw images with their mean and std: not normalised before.
        kinds: Names in ``corruptions.CORRUPTIONS``. Default: all.
        severities: 1 to 5. Default: all. What they mean is ours.
        draws: Draws of what is random, at least 1. Default: 10 (ours).
        loss: ``(logits, labels) -> mean``. Default: cross-entropy.
        samples: How many images, the first. Default: None: all.
        seed: Of the corruptions. Default: 0.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True.

    Returns:
        Accuracy and loss of every kind, severity and draw; those that Ctrl-C prevented are NaN.
        ``records.CorruptionAccuracy``. Draw with ``plots.corruption_accuracy`` or
        ``plots.corruption_means``.

    Raises:
        ValueError: As ``subject`` and ``corrupt``; or if the loss of clean images is not finite
            or not one number, or ``draws`` is below 1.

    Source: the protocol of Hendrycks & Dietterich 2019, arXiv 1903.12261, with corruptions of
    our own.
    """
    split = subject(model, data, samples)
    kinds, severities = tuple(kinds), tuple(severities)
    _check(draws, kinds=kinds, severities=severities)
    for kind, severity in ((k, s) for k in kinds for s in severities):
        corrupt(split.images[:1], kind, severity)  # refuses what it cannot do
    shape = (len(kinds), len(severities), draws)
    cells = _Cells(_logits(model, split), split.labels, loss, shape)

    def measure(draw: int, kind: int, severity: int) -> None:
        generator = _generator(seed, draw)

        def disturb(images: Tensor) -> Tensor:
            return corrupt(images, kinds[kind], severities[severity], generator)

        logits = _logits(model, split, raw=disturb)
        alike = draw if CORRUPTIONS[kinds[kind]].random else slice(None)
        cells.put((kind, severity, alike), logits)

    order = [
        (draw, kind, severity)
        for draw in range(draws)
        for kind in range(len(kinds))
        for severity in range(len(severities))
        if draw == 0 or CORRUPTIONS[kinds[kind]].random
    ]
    complete = _each("corruption_accuracy", order, measure, progress)
    return CorruptionAccuracy(
        label=label,
        samples=len(split),
        kinds=kinds,
        families=tuple(CORRUPTIONS[kind].family for kind in kinds),
        severities=np.array(severities),
        **cells.values("accuracy", "loss"),
        **cells.clean(),
        complete=complete,
    )


@undisturbed()
def weight_noise(
    model: nn.Module,
    data: Data,
    *,
    levels: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    kind: str = "filter",
    space: str = "dequantized",
    layers: Iterable[str] = ("*",),
    reestimate: Data = None,
    draws: int = 10,
    loss: Loss = cross_entropy,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
    progress: bool = True,
) -> WeightNoise:
    """Disturb the weights, and measure what it costs.

    With ε a standard normal number per weight:

    * ``"filter"``: w + ρ·‖w_f‖·ε_f/‖ε_f‖ for each filter f (a slice along the first axis): a
      filter moves by the share ρ of its length.
    * ``"multiplicative"``: w·(1 + η·ε).
    * ``"flips"``: with probability p a weight takes the level one code above or below, either
      equally likely; at the ends of the grid the one that there is. Layers without a weight
      quantizer stay as they are.

    In the space ``"dequantized"`` the weights are disturbed after rounding; in ``"latent"`` before,
    so that noise below half a step often changes nothing. Biases, BatchNorm and steps stay. Every
    level sees the same draws, scaled.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these; training images, for the increase of the training loss.
        levels: ρ, η or p. Default: 0.01 to 0.2 (ours).
        kind: As above. Default: "filter".
        space: "dequantized", "latent" or "float", see ``Surface``; a float network has one.
            Default: "dequantized". Flips have this one only.
        layers: Patterns of the layers to disturb. Default: all.
        reestimate: Training images from which BatchNorm is estimated anew at every point, the
            clean one too (``reestimate_batchnorm``, 50 batches). Default: None: statistics stay.
        draws: Draws, at least 1. Default: 10 (ours).
        loss: ``(logits, labels) -> mean``. Default: cross-entropy.
        samples: How many images, the first. Default: None: all.
        seed: Of the noise. Default: 0.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True.

    Returns:
        Accuracy and loss of every level and draw; those that Ctrl-C prevented are NaN.
        ``records.WeightNoise``. Draw with ``plots.weight_noise``.

    Raises:
        ValueError: As ``subject`` and ``Surface``; or if the kind is unknown, a level is negative
            (a probability is above 1), ``draws`` is below 1, flips have no codes to flip, the
            loss without noise is not finite or not one number, or there is no BatchNorm to
            estimate anew.

    Source: Li et al. 2018, arXiv 1712.09913, section 4, for the normalisation by filters; the
    protocol is ours.
    """
    split = subject(model, data, samples)
    _check(draws, levels=levels)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
    surface = Surface(model, space, layers=layers)
    move = _flips(model, surface, levels) if kind == "flips" else _gaussian(surface, kind)
    norms = None if reestimate is None else subject(model, reestimate)
    if norms is not None and not running_norms(model):
        raise ValueError("reestimate: there is no BatchNorm that uses running statistics")

    def answers(point: Tensor) -> Tensor:
        surface.assign(point)
        if norms is not None:
            reestimate_batchnorm(surface.model, norms)
        return _logits(surface.model, split)

    cells = _Cells(answers(surface.point), split.labels, loss, (len(levels), draws))

    def measure(draw: int, index: int) -> None:
        cells.put((index, draw), answers(move(levels[index], _generator(seed, draw))))

    order = [(draw, index) for draw in range(draws) for index in range(len(levels))]
    complete = _each("weight_noise", order, measure, progress)
    return WeightNoise(
        label=label,
        samples=len(split),
        kind=kind,
        space=surface.space,
        batchnorm="running" if norms is None else "re-estimated",
        levels=np.array(levels, float),
        **cells.values("accuracy", "loss"),
        **cells.clean(),
        complete=complete,
    )


@undisturbed()
def view_consistency(
    model: nn.Module,
    data: Data,
    view: Callable[[Images], Images],
    *,
    draws: int = 10,
    samples: int | None = None,
    seed: int = 0,
    label: str = "",
    progress: bool = True,
) -> ViewConsistency:
    """Measure how often the prediction for an augmented view is that for the image itself.

    A method that trains for consistency is rewarded for exactly this: high agreement is then no
    independent evidence of generalization.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)`` or a loader of these. A view sees the images of a
            ``Split`` as they are stored, before normalisation; those of a pair as given.
        view: A function of ``qatviz.augment``, or one of your own, which draws from torch's
            global generator (seeded here, and put back).
        draws: Views of each image, at least 1. Default: 10 (ours).
        samples: How many images, the first. Default: None: all.
        seed: Of the views. Default: 0.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True.

    Returns:
        Agreement, divergence and accuracy of every draw; those that Ctrl-C prevented are NaN.
        ``records.ViewConsistency``. Draw with ``plots.view_consistency``.

    Raises:
        ValueError: As ``subject``; or if a logit is not finite, or ``draws`` is below 1.
    """
    split = subject(model, data, samples).to("cpu")
    _check(draws)
    clean = _logits(model, split)
    cells = _Cells(clean, split.labels, cross_entropy, (draws,))
    same = torch.ones(len(split), dtype=torch.bool)

    def measure(draw: int) -> None:
        # Not torch.manual_seed, which would seed accelerators too.
        torch.default_generator.manual_seed(_entropy(seed, draw))
        logits = _logits(model, split, raw=view)
        cells.put((draw,), logits)
        same.logical_and_(_predicted(logits) == clean.argmax(1))

    complete = _each("view_consistency", [(d,) for d in range(draws)], measure, progress)
    values = cells.values()
    return ViewConsistency(
        label=label,
        view=getattr(view, "__name__", repr(view)),
        samples=len(split),
        agreement=1 - values["flips"],
        divergence=values["divergence"],
        accuracy=values["accuracy"],
        unanimous=same.double().mean().item(),
        clean_accuracy=cells.clean()["clean_accuracy"],
        complete=complete,
    )


@undisturbed()
def accuracy_by_samples(
    models: nn.Module | Mapping[str, nn.Module],
    data: Data,
    *,
    sizes: Sequence[int] | None = None,
    permutations: int = 50,
    seed: int = 0,
) -> AccuracyBySamples:
    """Measure accuracy on the first n images, in many random orders.

    The expected accuracy does not depend on n: the curve shows sampling error only, and is no
    evidence of generalization. Several networks see the same orders, so that their difference
    can be taken image by image.

    Args:
        models: A network, or several by name; in evaluation mode, calibrated.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these.
        sizes: Numbers of images, each 1 or more. Default: None: those of 100, 200, 500, 1000,
            2000, 5000, 10000 that there are (ours), and all.
        permutations: Orders, at least 1. Default: 50 (ours).
        seed: Of the orders. Default: 0.

    Returns:
        Accuracy by network, order and n. ``records.AccuracyBySamples``. Draw with
        ``plots.accuracy_by_samples``; its ``difference`` with ``plots.accuracy_difference``.

    Raises:
        ValueError: As ``subject``; or if there is no network, a logit is not finite, a size is
            not there, or ``permutations`` is below 1.
    """
    models = models if isinstance(models, Mapping) else {"": models}
    if not models:
        raise ValueError("accuracy_by_samples: no network was given")
    for model in models.values():
        data = subject(model, data)  # a loader can be read only once
    images = len(data)
    if sizes is None:
        sizes = sorted({*(n for n in SIZES if n < images), images})
    if permutations < 1 or not len(sizes) or not all(1 <= n <= images for n in sizes):
        raise ValueError(
            f"permutations is {permutations}, sizes are {list(sizes)}; allowed: 1 or more, and "
            f"sizes from 1 to {images}"
        )
    sizes = np.array(sorted(sizes))
    correct = np.stack([_right(model, data) for model in models.values()])
    generator = np.random.default_rng(seed)
    orders = np.stack([generator.permutation(images) for _ in range(permutations)])
    right = correct[:, orders].cumsum(-1)[..., sizes - 1]
    return AccuracyBySamples(tuple(models), sizes, right / sizes, correct)


class _Cells:
    """What is measured in every cell of a table, beside the answers without disturbance."""

    def __init__(self, clean: Tensor, labels: Tensor, loss: Loss, shape: tuple[int, ...]) -> None:
        self.known, self.labels, self.loss = clean, labels.cpu(), loss
        names = ("accuracy", "loss", "divergence", "flips")
        self.found = {name: np.full(shape, np.nan) for name in names}
        self.clean_loss = clean_loss(clean, self.labels, loss)

    def put(self, cell: tuple[int | slice, ...], logits: Tensor) -> None:
        divergence = kl_div(
            logits.log_softmax(1), self.known.log_softmax(1), reduction="batchmean", log_target=True
        )
        flips = (_predicted(logits) != self.known.argmax(1)).double().mean()
        self.found["divergence"][cell] = _or_infinite(divergence)
        self.found["flips"][cell] = flips.item()
        self.found["loss"][cell] = _or_infinite(self.loss(logits, self.labels))
        self.found["accuracy"][cell] = _accuracy(logits, self.labels)

    def values(self, *names: str) -> dict[str, np.ndarray]:
        return {name: self.found[name] for name in names or self.found}

    def clean(self) -> dict[str, float]:
        return {
            "clean_accuracy": _accuracy(self.known, self.labels),
            "clean_loss": self.clean_loss,
        }


def _right(model: nn.Module, split: Split) -> np.ndarray:
    logits, labels = _logits(model, split), split.labels.cpu()
    clean_loss(logits, labels)
    return (logits.argmax(1) == labels).numpy()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (_predicted(logits) == labels).double().mean().item()


def _predicted(logits: Tensor) -> Tensor:
    """Classes; −1, which is none, where a logit is not finite."""
    return logits.argmax(1).where(logits.isfinite().all(1), -1)


def _or_infinite(value: Tensor) -> float:
    """NaN stands for what was not measured."""
    return math.inf if value.isnan() else value.item()


def _same(images: Tensor) -> Tensor:
    return images


@torch.no_grad()
def _logits(
    model: nn.Module,
    split: Split,
    normalised: Callable[[Tensor], Tensor] = _same,
    raw: Callable[[Tensor], Tensor] = _same,
) -> Tensor:
    """Answers in float64 on the CPU, to images changed before or after normalisation."""
    found = []
    for images in split.images.split(BATCH):
        seen = normalised(split.normalise(raw(images)))
        found.append(model(as_taken(model, seen)).cpu().double())
    return torch.cat(found)


def _gaussian(surface: Surface, kind: str) -> Move:
    sizes = surface.filter_norms() if kind == "filter" else surface.point

    def move(level: float, generator: torch.Generator) -> Tensor:
        noise = torch.randn(surface.size, generator=generator).to(surface.point)
        if kind == "filter":
            parts = surface.split(noise).values()
            noise = torch.cat([_unit_filters(part).flatten() for part in parts])
        return surface.point + level * sizes * noise

    return move


def _unit_filters(noise: Tensor) -> Tensor:
    return noise / noise.flatten(1).norm(dim=1).view(-1, *[1] * (noise.ndim - 1))


def _flips(model: nn.Module, surface: Surface, levels: Sequence[float]) -> Move:
    """Codes one up or down; the surface holds the levels that they stand for."""
    if max(levels) > 1:
        raise ValueError(f"levels go up to {max(levels)}; a probability is at most 1")
    layers = {f"{name}.weight": layer for name, layer in weight_quantized_layers(model).items()}
    flipped = {name: layers[name] for name in surface.names if name in layers}
    if surface.space != "dequantized" or not flipped:
        raise ValueError(
            f"flips are of codes: they need quantized weights, in the space 'dequantized'; got "
            f"{len(flipped)} quantized layers in the space {surface.space!r}"
        )
    here = surface.split(surface.point)
    ways = {name: _neighbours(name, layer, here[name]) for name, layer in flipped.items()}

    def move(level: float, generator: torch.Generator) -> Tensor:
        numbers = torch.rand(2, surface.size, generator=generator).to(surface.point)
        chance, side = (surface.split(n) for n in numbers)
        moved = surface.point.clone()
        for name, (below, above) in ways.items():
            new = torch.where(side[name] < 0.5, below, above)
            surface.split(moved)[name].copy_(torch.where(chance[name] < level, new, here[name]))
        return moved

    return move


@torch.no_grad()
def _neighbours(name: str, layer: nn.Module, point: Tensor) -> tuple[Tensor, Tensor]:
    """For every weight the levels one code below and above; at an end, twice the only one."""
    quantizer = layer.weight_quantizer
    codes = quantizer.codes(widened(layer.weight))
    if not torch.allclose(quantizer.dequantize(codes).to(point), point, rtol=1e-5, atol=1e-8):
        raise ValueError(
            f"flips: the codes of {name} do not say alone what its weights are "
            f"({type(quantizer).__name__} with {quantizer.bits} bits)"
        )
    below = torch.where(codes > quantizer.low, codes - 1, codes + 1)
    above = torch.where(codes < quantizer.high, codes + 1, codes - 1)
    return quantizer.dequantize(below).to(point), quantizer.dequantize(above).to(point)


def _entropy(seed: int, draw: int) -> int:
    """A seed of its own for every draw."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])


def _generator(seed: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(_entropy(seed, draw))


def _check(draws: int, **amounts: Sequence) -> None:
    if draws < 1:
        raise ValueError(f"draws is {draws}; allowed: 1 or more")
    for name, values in amounts.items():
        if not len(values):
            raise ValueError(f"{name} is empty; at least one is needed")
        if not all(isinstance(v, str) or (v >= 0 and np.isfinite(v)) for v in values):
            raise ValueError(f"{name} are {list(values)}; allowed: 0 or more")


def _each(
    what: str, cells: list[tuple[int, ...]], measure: Callable[..., None], progress: bool
) -> bool:
    """Measure cell by cell; whether all were. Ctrl-C keeps what was measured, if anything was."""
    done = 0
    try:
        for cell in tqdm(cells, desc=what, disable=not progress, leave=False):
            measure(*cell)
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn(
            f"{what}: interrupted after {done} of {len(cells)} measurements", stacklevel=4
        )
    return done == len(cells)
