"""How many of their bits the integer codes of a quantized network use."""

import lzma
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from qatviz.analysis.subject import Data, subject, undisturbed
from qatviz.calibration import activation_quantizers, as_taken
from qatviz.datasets import Split
from qatviz.quantize import check_ready
from qatviz.quantizers import EWGS, LSQ, NIPQ, Quantizer, ReleasedDoReFa
from qatviz.quantizers.base import widened
from qatviz.records import CodeEntropy, GaussianCodes
from qatviz.records.entropy import entropy_error, plug_in_entropy
from qatviz.tracking import weight_quantized_layers

GROUPS = 10


@torch.no_grad()
def code_entropy(model: nn.Module, *, bins: int = 256, label: str = "") -> CodeEntropy:
    """Count the integer codes of every quantized weight; layers with float weights do not count.

    With p_k the share of code k in a layer of n weights, H = −∑ p_k·log₂ p_k bits per weight.
    A grid per channel does not change what is counted: codes are pooled as they are stored. High
    entropy is no goal in itself: the codes of the smallest squared error are not uniform.

    Args:
        model: Calibrated, in any mode. It does not change.
        bins: Bins of the histogram for the differential entropy of w/s, from the smallest to
            the largest. Default: 256 (consistency regularization, as we specified it).
        label: Name of the network. Default: none (ours).

    Returns:
        The counts, from which everything else follows. Levels are the codes that a grid has:
        2^bits, of signed NIPQ 2^bits − 1. The differential entropy is NaN where the levels do not
        lie where the weights lie (DoReFa). ``records.CodeEntropy``. Draw with ``plots.bits_used``,
        ``plots.code_occupancy``, ``plots.entropy_by_layer`` or ``plots.network_entropy``.

    Raises:
        ValueError: If a quantizer is not calibrated, no weight is quantized, or ``bins`` is
            below 1.
    """
    check_ready(model)
    layers = weight_quantized_layers(model)
    if not layers:
        raise ValueError("code_entropy: the model has no quantized weight")
    if bins < 1:
        raise ValueError(f"bins is {bins}; allowed: 1 or more")
    channels, nonzero, dead, differential, compressed = [], [], [], [], []
    for layer in layers.values():
        quantizer, weight = layer.weight_quantizer, widened(layer.weight)
        offsets, zero = _coded(quantizer, weight)
        channels.append(_count_rows(offsets.flatten(1), _levels(quantizer)))
        nonzero.append(_count(offsets[~zero], _levels(quantizer)))
        dead.append(int(zero.flatten(1).all(1).sum()))
        differential.append(_differential(weight / _step(quantizer, weight), bins))
        compressed.append(_compressed(offsets))
    counts = tuple(c.sum(0) for c in channels)
    return CodeEntropy(
        label=label,
        of="weights",
        layers=tuple(layers),
        **_grids([layer.weight_quantizer for layer in layers.values()]),
        counts=counts,
        nonzero=tuple(nonzero),
        channels=tuple(channels),
        error=np.array([float(entropy_error(c)) for c in counts]),
        differential=np.array(differential),
        compressed=np.array(compressed),
        filters=np.array([len(c) for c in channels]),
        dead=np.array(dead),
        samples=0,
    )


@undisturbed()
@torch.no_grad()
def activation_entropy(
    model: nn.Module, data: Data, *, samples: int | None = None, label: str = ""
) -> CodeEntropy:
    """Count the integer codes of every quantized activation.

    After a ReLU most are zero: the record also has the entropy of those that are not.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these; take 1000 images or more.
        samples: How many images, the first. Default: None: all.
        label: Name of the network. Default: none (ours).

    Returns:
        The counts by layer, in the order of the model. ``records.CodeEntropy``. Draw with
        ``plots.bits_used``, ``plots.code_occupancy`` or ``plots.entropy_by_layer``.

    Raises:
        ValueError: As ``subject``; or if no activation is quantized, or one is not reached.
    """
    split = subject(model, data, samples)
    grids = activation_quantizers(model)
    if not grids:
        raise ValueError("activation_entropy: the model has no quantized activation")
    counts, nonzero = _count_inputs(model, split, grids)
    if missed := [name for name, rows in counts.items() if not rows.any()]:
        raise ValueError(f"activation_entropy: the forward pass did not reach {', '.join(missed)}")
    return _of_inputs(grids, counts, nonzero, len(split), label)


@torch.no_grad()
def gaussian_entropy(
    bits: int, make: Callable[[int], Quantizer] = LSQ, *, points: int = 2**18
) -> GaussianCodes:
    """The entropy that a quantizer gives to normal weights before any training.

    What the entropy of a trained network is compared with. The normal distribution is
    integrated at points of equal probability, from which the quantizer also chooses its grid.

    Args:
        bits: Bits per code.
        make: ``bits -> quantizer``. Default: ``LSQ``, with s = 2·E|w|/√Q_P.
        points: Points. A quantizer whose grid reaches the largest number (min-max, DoReFa)
            sees as many weights. Default: 2¹⁸ (ours).

    Returns:
        The probability of each code. ``records.GaussianCodes``. Draw as ``reference`` in
        ``plots.code_occupancy`` or ``plots.entropy_by_layer``.

    Raises:
        ValueError: If ``points`` is below 2, or the quantizer does not allow the bits.
    """
    if points < 2:
        raise ValueError(f"points is {points}; allowed: 2 or more")
    quantizer = make(bits)
    middle = (np.arange(points) + 0.5) / points
    weights = torch.from_numpy(ndtri(middle)).view(1, -1)  # one channel, where those count
    quantizer.init_from(weights)
    counts = _count(_coded(quantizer, weights)[0], _levels(quantizer))
    name = type(quantizer).__name__
    return GaussianCodes(
        f"{name}, {bits} bits", quantizer.bits, quantizer.low, counts / points, points
    )


def _count_inputs(
    model: nn.Module, split: Split, grids: dict[str, Quantizer]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Counts by group of images; and, over all images, of what is not rounded to zero."""
    counts = {name: [] for name in grids}
    nonzero = {name: np.zeros(_levels(q), int) for name, q in grids.items()}

    def watch(name: str) -> Callable[..., None]:
        def hook(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
            offsets, zero = _coded(quantizer, widened(args[0]))
            counts[name][-1] += _count(offsets, _levels(quantizer))
            nonzero[name] += _count(offsets[~zero], _levels(quantizer))

        return hook

    hooks = [q.register_forward_pre_hook(watch(name)) for name, q in grids.items()]
    try:
        for chosen in torch.arange(len(split)).tensor_split(min(GROUPS, len(split))):
            for name, rows in counts.items():
                rows.append(np.zeros_like(nonzero[name]))
            for images, _ in split.subset(chosen).batches(500):
                model(as_taken(model, images))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: np.stack(rows) for name, rows in counts.items()}, nonzero


def _of_inputs(
    grids: dict[str, Quantizer],
    counts: dict[str, np.ndarray],
    nonzero: dict[str, np.ndarray],
    samples: int,
    label: str,
) -> CodeEntropy:
    none, unknown = np.zeros(len(grids), int), np.full(len(grids), np.nan)
    return CodeEntropy(
        label=label,
        of="inputs",
        layers=tuple(name.rpartition(".")[0] or name for name in grids),
        **_grids(list(grids.values())),
        counts=tuple(c.sum(0) for c in counts.values()),
        nonzero=tuple(nonzero.values()),
        channels=tuple(c[:0] for c in counts.values()),
        error=np.array([_jackknife(c) for c in counts.values()]),
        differential=unknown,
        compressed=unknown,
        filters=none,
        dead=none,
        samples=samples,
    )


def _grids(quantizers: list[Quantizer]) -> dict[str, np.ndarray]:
    return {
        "bits": np.array([q.bits for q in quantizers]),
        "low": np.array([q.low for q in quantizers]),
    }


def _levels(quantizer: Quantizer) -> int:
    return quantizer.high - quantizer.low + 1


def _coded(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes counted from the lowest, and which numbers are rounded to exactly zero."""
    codes = quantizer.codes(x)
    zero = quantizer.dequantize(codes) == 0
    return (codes - quantizer.low).round().long(), zero


def _count(offsets: Tensor, levels: int) -> np.ndarray:
    return torch.bincount(offsets.flatten(), minlength=levels).cpu().numpy()


def _count_rows(offsets: Tensor, levels: int) -> np.ndarray:
    rows = torch.arange(len(offsets), device=offsets.device).view(-1, 1)
    return _count(offsets + levels * rows, levels * len(offsets)).reshape(-1, levels)


def _step(quantizer: Quantizer, x: Tensor) -> Tensor:
    """The distance between levels where the numbers lie; NaN where that means nothing."""
    if isinstance(quantizer, NIPQ):
        return quantizer.alpha / quantizer.high
    if isinstance(quantizer, EWGS):
        return quantizer._positive(quantizer.upper - quantizer.lower) / quantizer.high
    if isinstance(quantizer, ReleasedDoReFa) or not hasattr(quantizer, "step"):
        return x.new_tensor(float("nan"))  # DoReFa squeezes weights into [−1, 1]
    return quantizer._positive(quantizer.step)


def _differential(x: Tensor, bins: int) -> float:
    """−∑ p·log₂(p/width), the entropy of a density, in bits; NaN where it has no width."""
    numbers = x.flatten().cpu().double().numpy()
    if not np.isfinite(numbers).all() or numbers.min() == numbers.max():
        return float("nan")
    counts, edges = np.histogram(numbers, bins)
    return float(plug_in_entropy(counts) + np.log2(edges[1] - edges[0]))


def _compressed(offsets: Tensor) -> float:
    """Bits per number after LZMA of a byte (or two) per code, without the head of a file."""
    kind = np.uint8 if int(offsets.max()) < 256 else np.uint16
    raw = offsets.cpu().numpy().astype(kind).tobytes()
    filters = [
        {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
    ]
    packed = lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)
    return 8 * len(packed) / offsets.numel()


def _jackknife(counts: np.ndarray) -> float:
    """The standard error of an entropy, from leaving out one group of images at a time."""
    groups = len(counts)
    if groups < 2:
        return float("nan")
    without = plug_in_entropy(counts.sum(0) - counts)
    return float(np.sqrt((groups - 1) * without.var()))
