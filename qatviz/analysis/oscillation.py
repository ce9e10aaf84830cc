"""Weights that go to and fro between two codes, and what of a network hangs on where they are."""

import math
import warnings
from collections.abc import Iterable
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.conv import _ConvNd
from tqdm.auto import tqdm

from qatviz.analysis.subject import Data, Loss, clean_loss, subject, undisturbed
from qatviz.datasets import Split
from qatviz.evaluation import accuracy, predict, reestimate_batchnorm, running_norms
from qatviz.quantize import check_ready
from qatviz.quantizers.base import widened
from qatviz.records import BatchNormDrift, BinDistances, OscillationLottery, OscillationToy
from qatviz.tracking import (
    OSCILLATES,
    OscillationTracker,
    distances,
    grid_positions,
    weight_quantized_layers,
)

SCHEDULES = ("constant", "cosine")
START = 0.5 + 1e-4 * (math.sqrt(5) - 1)  # beside the threshold, so that no weight meets a tie


def bin_distances(model: nn.Module, *, label: str = "") -> BinDistances:
    """Count where the weights of a network lie between the thresholds of their codes.

    u = w/s − round(w/s), in 100 bins from −½ to ½ for each layer, w/s the number that is rounded
    (``qatviz.tracking.grid_positions``). Clipped weights are left out: they are beyond all
    thresholds. Layers without such a number are named in the record: one-bit DoReFa takes the
    sign of a weight, AdaRound learns the rounding whatever the weight is.

    Args:
        model: A quantized network; every weight quantizer calibrated.
        label: Name of the network. Default: none (ours).

    Returns:
        The counts. ``records.BinDistances``. Draw with ``plots.bin_distances``.

    Raises:
        ValueError: If a quantizer is not calibrated, no weight is quantized, or no layer has
            such a number; says why.

    Source: Nagel et al. 2022, arXiv 2203.11086 (histograms of weights around their levels).
    """
    check_ready(model)
    layers = weight_quantized_layers(model)
    if not layers:
        raise ValueError("bin_distances: the model has no quantized weight")
    grids = [layer.weight_quantizer for layer in layers.values()]
    record = distances(layers, grids, [layer.weight for layer in layers.values()], label)
    if not record.layers:
        grid_positions(grids[0], next(iter(layers.values())).weight)
    return record


def oscillation_toy(
    targets: Iterable[float] = tuple(round(0.05 * i, 2) for i in range(1, 20)),
    *,
    rate: float = 0.01,
    updates: int = 4000,
    schedule: str = "constant",
    windows: int = 20,
    shown: float = 0.3,
) -> OscillationToy:
    """Pull weights to points between two levels, each alone: w ← w − η(q(w) − w*).

    The gradient of ½(q(w) − w*)² straight through the rounding is constant on each side of the
    threshold and points to it, so that a weight cannot rest: it goes on so that its level is w*
    on average. It is at the upper level a share (w* − ŵ↓)/s of the time, and changes level twice
    for every visit to the rarer one: 2d/s times an update, d the distance of w* from its nearest
    level. The learning rate has no part in that, only in how far the weight goes: at most ηs.
    So under a rate that decays to zero oscillations become small, not rare. (In the exact middle
    between two levels the way up is as long as the way down. There any decay lets a weight stay
    for two updates, and oscillations are half as many.)

    Everything is float64 and begins beside the threshold, off the lattice of round numbers.

    Args:
        targets: (w* − ŵ↓)/s, each strictly between 0 and 1. Default: 0.05 to 0.95 (ours).
        rate: η, the learning rate at the start, above 0, up to 1. Default: 0.01 (ours).
        updates: Updates, a multiple of ``windows``. The last half is counted. Default: 4000
            (ours).
        schedule: ``"constant"``, or ``"cosine"``: η·(1 + cos(π·t/T))/2. Default: "constant".
        windows: Parts that training is cut into, to see what changes. Default: 20 (ours).
        shown: The weight whose path is kept: the one with the target nearest to this.
            Default: 0.3 (ours).

    Returns:
        What was measured and what is predicted. ``records.OscillationToy``. Draw with
        ``plots.oscillation_toy`` or ``plots.toy_decay``.

    Raises:
        ValueError: If an argument is outside what is said here.

    Source: Nagel et al. 2022, arXiv 2203.11086 (the toy regression); 2d/s follows from the mean
    of the level.
    """
    goal = np.array(list(targets), dtype=float)
    _check_toy(goal, rate, updates, schedule, windows)
    progress = np.arange(updates) / updates
    decay = (1 + np.cos(np.pi * progress)) / 2 if schedule == "cosine" else np.ones(updates)
    rates = rate * decay
    weight = np.empty((updates + 1, len(goal)))
    weight[0] = START
    for index, now in enumerate(rates):
        weight[index + 1] = weight[index] - now * (np.round(weight[index]) - goal)
    code = np.round(weight).astype(int)
    happened = _reversals(code)
    half = updates // 2
    parts = weight[1:].reshape(windows, -1, len(goal))
    kept = int(np.abs(goal - shown).argmin())
    return OscillationToy(
        targets=goal,
        events=happened[half:].mean(0),
        upper=code[half:-1].mean(0),
        counted=updates - half,
        rates=rates,
        window=updates // windows,
        window_events=happened.reshape(windows, -1, len(goal)).mean(1),
        window_spread=parts.max(1) - parts.min(1),
        shown=kept,
        position=weight[:, kept],
        code=code[:, kept],
        schedule=schedule,
    )


@undisturbed()
@torch.no_grad()
def oscillation_lottery(
    model: nn.Module,
    tracker: OscillationTracker,
    data: Data,
    *,
    draws: int = 20,
    above: float = OSCILLATES,
    samples: int | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: bool = True,
    label: str = "",
) -> OscillationLottery:
    """Put each oscillating weight on one of its two codes by chance, and evaluate; many times.

    A weight whose frequency is above the threshold takes the code ⌈q̄⌉ with probability
    q̄ − ⌊q̄⌋, else ⌊q̄⌋, independently of the others: q̄ is the tracker's mean code, so these are
    the shares of the time that it was there, as far as it was on two neighbouring codes only.
    All other weights, the grids and BatchNorm's statistics stay those of the network. Where the
    network is no better than the draws, its last step is one of many it could have ended on.

    With all of them at round(q̄), where freezing would put them, the network is evaluated once.

    Args:
        model: The network that was tracked, in evaluation mode; it does not change.
        tracker: What watched it in training.
        data: Images and labels (see ``qatviz.analysis.subject``).
        draws: Draws. Default: 20 (ours; 10 to 50 show a spread).
        above: The frequency above which a weight is drawn. Default: 0.005 (commonly attributed
            to Nagel et al. 2022; not verified).
        samples: How many images, the first. Default: None: all.
        loss: ``(logits, labels) -> scalar``. Default: cross-entropy.
        seed: Of the draws. Default: 0 (ours).
        progress: Whether to show a bar. Default: True. Interrupted (Ctrl-C), it returns the
            draws that there are.
        label: Name of the network. Default: none (ours).

    Returns:
        Accuracy and loss of each draw, and of the network. ``records.OscillationLottery``. Draw
        with ``plots.oscillation_lottery``.

    Raises:
        ValueError: If the network or the images are refused by ``subject``, the network does not
            have the tracked layers, computes with other numbers than the levels of its codes,
            a loss is not finite or not one number, or ``draws`` is below 1.

    Source: Nagel et al. 2022, arXiv 2203.11086 (networks whose oscillating weights are drawn); the
    number of draws and the evaluation at round(q̄) are ours.
    """
    split = subject(model, data, samples)
    if draws < 1:
        raise ValueError(f"oscillation_lottery: draws must be at least 1, got {draws}")
    twin = _silenced(model, tracker)
    layers = [model.get_submodule(name) for name in tracker.names]
    grids = [layer.weight_quantizer for layer in layers]
    parts = [q.codes(widened(x.weight)).flatten() for q, x in zip(grids, layers, strict=True)]
    codes, mean = torch.cat(parts).float().cpu(), tracker.mean.cpu()
    chosen = tracker.frequency.cpu() > above
    low, generator = mean.floor(), torch.Generator().manual_seed(seed)

    def measured(wanted: Tensor) -> tuple[float, float]:
        placed = tracker.split(torch.where(chosen, wanted, codes))
        for (name, values), grid in zip(placed.items(), grids, strict=True):
            weight = twin.get_submodule(name).weight
            values = values.to(weight.device).clamp(grid.low, grid.high)  # q̄ is rounded, too
            weight.copy_(grid.dequantize(values))
        return _scores(twin, split, loss)

    checkpoint, settled = measured(codes), measured(mean.round())
    found: list[tuple[float, float, float]] = []
    try:
        for _ in tqdm(range(draws), desc="draws", disable=not progress):
            wanted = low + (torch.rand(len(mean), generator=generator) < mean - low)
            moved = (wanted != codes)[chosen].double().mean().item()
            found.append((*measured(wanted), moved))
    except KeyboardInterrupt:
        warnings.warn(
            f"oscillation_lottery: interrupted after {len(found)} of {draws} draws", stacklevel=4
        )
    table = np.array(found).reshape(-1, 3)
    return OscillationLottery(
        *(table[:, 0], table[:, 1], *checkpoint, *settled),
        drawn=int(chosen.sum()),
        weights=len(codes),
        moved=table[:, 2],
        apart=(codes != tracker.codes.cpu()).double().mean().item(),
        above=above,
        samples=len(split),
        complete=len(found) == draws,
        label=label,
    )


@undisturbed()
def batchnorm_drift(
    model: nn.Module,
    data: Data,
    *,
    batches: int = 50,
    size: int = 128,
    seed: int = 0,
    label: str = "",
) -> BatchNormDrift:
    """Compare BatchNorm's running statistics with those of the network as it is.

    The moving averages of training mix what many past networks made of the images. Of each
    channel, with μ₁, σ₁² the running mean and variance, and μ₂, σ₂² estimated anew (see
    ``evaluation.reestimate_batchnorm``)::

        KL = ln(σ₂/σ₁) + (σ₁² + (μ₁ − μ₂)²)/(2σ₂²) − ½       nats

    Variances are those that the layer divides by, with its ε (ours: a dead channel has none).
    The same between two halves of the images is what chance alone makes of it.

    Args:
        model: A network in evaluation mode; it does not change.
        data: Training images (see ``qatviz.analysis.subject``), at least two.
        batches: Batches of the estimate, at most. Default: 50 (Nagel et al. 2022, released
            code).
        size: Images in a batch, at most half of them. Default: 128 (the same).
        seed: Of the order of the images, and of the halves. Default: 0 (ours).
        label: Name of the network. Default: none (ours).

    Returns:
        Divergences by layer and channel. ``records.BatchNormDrift``. Draw with
        ``plots.batchnorm_drift``.

    Raises:
        ValueError: If the network or the images are refused by ``subject``, there are fewer than
            four images, or no BatchNorm layer keeps statistics.

    Source: Nagel et al. 2022, arXiv 2203.11086 (divergences by layer); the halves are ours.
    """
    split = subject(model, data)
    norms = running_norms(model)
    if not norms:
        raise ValueError("batchnorm_drift: the model has no BatchNorm with running statistics")
    if len(split) < 4:
        raise ValueError(f"batchnorm_drift: at least 4 images are needed, got {len(split)}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    halves = [split.subset(part) for part in order.tensor_split(2)]
    size = min(size, len(halves[1]))
    new, *parts = (_estimated(model, part, batches, size, seed) for part in (split, *halves))
    now = {name: _statistics(norm) for name, norm in norms.items()}
    kinds = _kinds(model)
    return BatchNormDrift(
        layers=tuple(norms),
        kinds=tuple(kinds[name] for name in norms),
        divergence=tuple(_divergence(now[name], new[name]) for name in norms),
        noise=tuple(_divergence(parts[0][name], parts[1][name]) for name in norms),
        images=min(batches, len(split) // size) * size,
        label=label,
    )


def _check_toy(
    goal: Float[np.ndarray, "targets"], rate: float, updates: int, schedule: str, windows: int
) -> None:
    check_pull("oscillation_toy", goal, rate)
    if windows < 1 or updates < 2 or updates % windows:
        raise ValueError(
            f"oscillation_toy: updates must be a multiple of windows, from 2 up; got {updates} "
            f"and {windows}"
        )
    if schedule not in SCHEDULES:
        raise ValueError(
            f"oscillation_toy: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"
        )


def check_pull(owner: str, goal: Float[np.ndarray, "targets"], rate: float) -> None:
    """Refuse where a toy pulls its weights, or how hard.

    Args:
        owner: Name of the toy.
        goal: Targets, in steps.
        rate: η.

    Raises:
        ValueError: If there is no target, one is not between two levels, or ``rate`` is outside
            its range.
    """
    if not len(goal) or not ((goal > 0) & (goal < 1)).all():
        raise ValueError(f"{owner}: targets must be strictly between 0 and 1, got {goal.tolist()}")
    if not 0 < rate <= 1:
        raise ValueError(f"{owner}: rate must be above 0, up to 1, got {rate!r}")


def _reversals(codes: np.ndarray) -> np.ndarray:
    """Where a change goes against the last one: a row less than codes."""
    change = np.sign(np.diff(codes, axis=0))
    last, found = np.zeros_like(change[0]), np.zeros(change.shape, dtype=bool)
    for index, now in enumerate(change):
        found[index] = now * last < 0
        last = np.where(now, now, last)
    return found


def _silenced(model: nn.Module, tracker: OscillationTracker) -> nn.Module:
    """A copy of the network whose tracked weights pass as they are."""
    twin = deepcopy(model)
    found = weight_quantized_layers(twin)
    for name, shape in zip(tracker.names, tracker.shapes, strict=True):
        if name not in found or found[name].weight.shape != shape:
            raise ValueError(
                f"oscillation_lottery: the tracker saw a quantized weight {list(shape)} of layer "
                f"{name!r}, which the model does not have"
            )
        quantizer, weight = found[name].weight_quantizer, widened(found[name].weight)
        level = quantizer.dequantize(quantizer.codes(weight))
        if not torch.allclose(quantizer(weight), level, rtol=1e-5):
            raise ValueError(
                f"oscillation_lottery: {type(quantizer).__name__} of layer {name!r} computes with "
                f"other numbers than the levels of its codes"
            )
        found[name].weight_quantizer = nn.Identity()
    return twin


def _scores(model: nn.Module, split: Split, loss: Loss) -> tuple[float, float]:
    logits, labels = predict(model, split)
    return accuracy(logits, labels), clean_loss(logits, labels, loss)


def _estimated(
    model: nn.Module, data: Split, batches: int, size: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and variances by layer, as the images have them."""
    twin = deepcopy(model)
    reestimate_batchnorm(twin, data, batches, size, seed)
    return {name: _statistics(norm) for name, norm in running_norms(twin).items()}


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.running_mean.double(), norm.running_var.double() + norm.eps


def _divergence(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> Float[np.ndarray, "channels"]:
    """KL(first ‖ second) of normal distributions, in nats."""
    (mean, variance), (other, wide) = first, second
    ratio = variance / wide
    nats = (ratio - ratio.log() - 1 + (mean - other).square() / wide) / 2
    return nats.clamp(min=0).cpu().numpy()


def _kinds(model: nn.Module) -> dict[str, str]:
    """What is listed before each BatchNorm."""
    found, kind, norms = {}, "", running_norms(model)
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            depthwise = 1 < module.groups == module.in_channels
            pointwise = set(module.kernel_size) == {1}
            kind = "depthwise" if depthwise else "pointwise" if pointwise else "convolution"
        elif isinstance(module, nn.Linear):
            kind = "linear"
        elif name in norms:
            found[name] = kind
    return found
