"""Where quantization makes errors, and which layers' errors matter."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from glob import escape

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from tqdm.auto import tqdm

from qatviz.analysis.similarity import jackknife, watching
from qatviz.analysis.subject import Data, clean_loss, subject, undisturbed
from qatviz.calibration import as_taken, calibrate
from qatviz.datasets import Split
from qatviz.evaluation import predict
from qatviz.quantize import quantizable_layers, quantize, quantized_layers, quantizers
from qatviz.quantizers import Affine, Quantizer
from qatviz.records import BitSensitivity, LayerEffects, LayerSQNR, RankAgreement

PARTS = ("weights", "inputs", "both")
CALIBRATION = 64  # images, where none are given (ours)


@undisturbed()
@torch.no_grad()
def layer_sqnr(
    model: nn.Module,
    data: Data,
    *,
    samples: int | None = None,
    batch: int = 128,
    label: str = "",
) -> LayerSQNR:
    """Measure how much noise quantization adds in each layer, and how much arrives from before.

    SQNR = 10·log₁₀(∑x²/∑(x − x̂)²), sums over all images and numbers. Of each output there are
    two: *local*, where the layer gets the input of the reference and only its own quantizers are
    on, and *accumulated*, where it gets what the quantized network gives it.

    The reference is the same network with all quantizers off. After training with quantizers
    that is another network, which was never trained and may classify badly: an accumulated SQNR
    says how far the two are apart, not how good the quantized one is. DoReFa and EWGS give
    weights units of their own, which counts as noise here.

    Args:
        model: A quantized network, in evaluation mode, calibrated. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these.
        samples: How many images, the first. Default: None: all.
        batch: Images at once. Default: 128 (ours).
        label: Name of the network. Default: none (ours).

    Returns:
        Decibels by layer, with standard errors by the jackknife over images. Where a layer runs
        more than once, its last run counts; NaN where it does not run. ``records.LayerSQNR``. Draw
        with ``plots.layer_sqnr``.

    Raises:
        ValueError: As ``subject``; or if nothing is quantized.
    """
    split = subject(model, data, samples)
    layers = quantized_layers(model)
    if not layers:
        raise ValueError("layer_sqnr: the model has no quantized layer; see summary(model)")
    reference = _without_quantizers(model)
    sums = {name: np.zeros((len(split), 5)) for name in layers}
    start = 0
    for images, _ in split.batches(batch):
        images = as_taken(model, images)
        for name, found in _noise(model, reference, layers, images).items():
            sums[name][start : start + len(images)] = found
        start += len(images)
    rounding = np.array([_weight_error(layer) for layer in layers.values()])
    found = np.stack(list(sums.values()), axis=-1)  # images, sums, layers
    signal_in, noise_in, signal, local, accumulated = found.transpose(1, 0, 2)
    pairs = ((signal_in, noise_in), (signal, local), (signal, accumulated))
    ratios = [number for pair in pairs for number in jackknife(_decibels, *pair)]
    return LayerSQNR(label, len(split), tuple(layers), rounding[:, 0], rounding[:, 1], *ratios)


@undisturbed()
def bit_sensitivity(
    float_model: nn.Module,
    data: Data,
    *,
    bits: Sequence[int] = (2, 3, 4, 8),
    make: Callable[[int], Quantizer] = Affine,
    part: str = "weights",
    leave_out: bool = False,
    layers: Iterable[str] = ("*",),
    calibration: Data = None,
    samples: int | None = None,
    label: str = "",
    progress: bool = True,
) -> BitSensitivity:
    """Quantize each layer of a float network alone, and see what it costs.

    An effect is the change of the mean cross-entropy, of the accuracy and of
    KL(float ‖ quantized) on fixed images, without training. Changes are taken image by image, so
    that their standard errors are those of paired differences. Effects do not add up: the joint
    effect of all layers stands beside the sum. KL is less noisy than accuracy, and unlike the
    loss cannot improve by chance.

    There is one evaluation for each layer and bit-width, and one for all layers together.

    Args:
        float_model: In evaluation mode, not quantized. It does not change.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these; 1,000 to 5,000 are usual.
        bits: Bit-widths, each once. Default: 2, 3, 4 and 8.
        make: ``bits -> quantizer``, such as ``LSQ``, or ``partial(LSQ, axis=0)`` for weights.
            Default: ``Affine``, whose range has the least error (ours: LSQ's first step is meant
            to be trained).
        part: "weights", "inputs" or "both". Default: "weights" (ours).
        leave_out: True: quantize all layers but one, which keep their grids; the effect of the
            layer is then what all layers together change, less that. Default: False.
        layers: Patterns of names of the layers to try; others stay float. Default: all
            convolutions and linear layers.
        calibration: Images that the grids of inputs are chosen from. Default: None: the first
            64 of the data (ours: the search of ``Affine`` takes seconds for each layer).
        samples: How many images, the first. Default: None: all.
        label: Name of the network. Default: none (ours).
        progress: Whether to show a bar. Default: True. Ctrl-C keeps what was measured.

    Returns:
        Effects by layer and bits. ``records.BitSensitivity``. Draw with ``plots.sensitivity_map``
        or ``plots.sensitivity_lines``.

    Raises:
        ValueError: As ``subject``; or if the model is quantized already, a logit of it is not
            finite, a pattern matches no layer, ``part`` is another word, ``bits`` are empty or
            repeated, or ``make`` makes no quantizer or, for inputs, one with an axis.
    """
    names, quantizer = _layers(float_model, layers), _check_scan(part, bits, make)
    split = subject(float_model, data, samples)
    scan = _Scan(float_model, split, names, part, make, leave_out)
    if part != "weights":
        scan.calibration = (
            split.subset(min(CALIBRATION, len(split)))
            if calibration is None
            else subject(float_model, calibration)
        )
    cells = [(b, name) for b in bits for name in (None, *scan.layers)]
    try:
        for cell in tqdm(cells, "sensitivity", disable=not progress, leave=False):
            scan.measure(*cell)
    except KeyboardInterrupt:
        if not scan.found:
            raise
        warnings.warn(
            f"sensitivity: interrupted after {len(scan.found)} of {len(cells)} evaluations",
            stacklevel=3,
        )
    effects = [scan.effects(bits, which) for which in range(3)]
    loss, correct, _ = scan.float_measures
    return BitSensitivity(
        label=label,
        samples=len(split),
        calibration=len(scan.calibration or ()),
        quantizer=quantizer,
        part=part,
        leave_out=leave_out,
        layers=tuple(scan.layers),
        bits=np.array(bits),
        loss=effects[0],
        accuracy=effects[1],
        divergence=effects[2],
        float_loss=float(loss.mean()),
        float_loss_error=float(_error(loss)),
        float_accuracy=float(correct.mean()),
        complete=len(scan.found) == len(cells),
    )


def rank_agreement(
    effects: Float[Array, "layers"] | Sequence[float],
    scores: Float[Array, "layers"] | Sequence[float],
) -> RankAgreement:
    """Compare the order of layers by measured effects with their order by a score.

    Scores may be anything with a number for each layer: the trace of the Hessian times the
    squared rounding error (HAWQ-V2), a gradient, learned bits.

    Args:
        effects: Such as ``bit_sensitivity(...).loss.single[:, 0]``.
        scores: In the same order of layers.

    Returns:
        Spearman's rank correlation. Its p-value is from Student's t, and rough below about ten
        layers. ``records.RankAgreement``: two numbers, which have no plot.

    Raises:
        ValueError: If there are fewer than three layers, lengths differ, a number is not finite,
            or all of one kind are equal.
    """
    pair = [np.asarray(values, float) for values in (effects, scores)]
    a, b = pair
    if a.ndim != 1 or a.shape != b.shape or len(a) < 3:
        raise ValueError(f"rank_agreement: shapes {a.shape} and {b.shape}; allowed: 3 or more each")
    for name, values in zip(("effects", "scores"), pair, strict=True):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise ValueError(f"rank_agreement: {name} have no order: {values}")
    found = spearmanr(a, b)
    return RankAgreement(float(found.statistic), float(found.pvalue), len(a))


class _Scan:
    """Answers of a network with some of its layers quantized, image by image."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        layers: list[str],
        part: str,
        make: Callable[[int], Quantizer],
        leave_out: bool,
    ) -> None:
        self.model, self.split, self.layers = model, split, layers
        self.part, self.make, self.leave_out = part, make, leave_out
        self.calibration: Split | None = None
        self.student = model
        self.found: dict[tuple[int, str | None], Array] = {}
        self.known = predict(model, split)[0].double()
        clean_loss(self.known, split.labels.cpu())
        self.float_measures = self._measures(self.known)

    def measure(self, bits: int, layer: str | None) -> None:
        """Quantize all layers (None), which comes first, or one, or all but one."""
        if layer is None:
            student = self.student = self._quantized(bits, self.layers)
        elif self.leave_out:
            student = _float_at(self.student, layer)
        else:
            student = self._quantized(bits, [layer])
        logits = predict(student, self.split)[0].double()
        self.found[bits, layer] = self._measures(logits)

    def effects(self, bits: Sequence[int], which: int) -> LayerEffects:
        """Means and standard errors of one of the measures."""
        missing = np.full_like(self.float_measures, np.nan)
        base = self.float_measures[which]
        joint = np.stack([self.found.get((b, None), missing)[which] for b in bits]) - base
        alone = np.stack([
            [self.found.get((b, layer), missing)[which] for b in bits] for layer in self.layers
        ])  # fmt: skip
        single = joint - (alone - base) if self.leave_out else alone - base
        return LayerEffects(
            single=single.mean(-1),
            single_error=_error(single),
            total_error=_error(single.sum(0)),
            joint=joint.mean(-1),
            joint_error=_error(joint),
        )

    def _quantized(self, bits: int, names: list[str]) -> nn.Module:
        make = {escape(name): lambda: self.make(bits) for name in names}
        weights = make if self.part != "inputs" else None
        inputs = make if self.part != "weights" else None
        student = quantize(self.model, weights, inputs, only=make)
        if self.calibration is not None:
            calibrate(student, self.calibration.batches())
        return student

    def _measures(self, logits: Tensor) -> Array:
        """By image: cross-entropy, whether it is right, KL(float ‖ this)."""
        labels = self.split.labels.cpu()
        loss = cross_entropy(logits, labels, reduction="none")
        correct = (logits.argmax(1) == labels).double()
        mine, theirs = logits.log_softmax(1), self.known.log_softmax(1)
        divergence = kl_div(mine, theirs, reduction="none", log_target=True).sum(1)
        return torch.stack([loss, correct, divergence]).numpy()


def _without_quantizers(model: nn.Module) -> nn.Module:
    """A copy with all quantizers off."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(module, Quantizer):
            twin.set_submodule(name, nn.Identity())
    return twin.eval()


def _float_at(student: nn.Module, name: str) -> nn.Module:
    """A copy with the quantizers of one layer off."""
    twin = copy.deepcopy(student)
    layer = twin.get_submodule(name)
    layer.weight_quantizer, layer.input_quantizer = nn.Identity(), nn.Identity()
    return twin


def _noise(
    model: nn.Module, reference: nn.Module, layers: dict[str, nn.Module], images: Tensor
) -> dict[str, Array]:
    """By layer and image: ∑x², ∑(x − x̂)² of the input, ∑y², local and accumulated ∑(y − ŷ)²."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    found: dict[str, Array] = {}

    def keep(name: str, x: Tensor, y: Tensor) -> None:
        kept[name] = x.clone(), y.clone()  # what comes next may work in place

    def compare(name: str, _: Tensor, got: Tensor) -> None:
        layer, (x, y) = layers[name], kept[name]
        rounded = getattr(layer, "input_quantizer", getattr(layer, "quantizer", None))(x)
        differences = (x, rounded - x, y, layer.forward(x) - y, got - y)
        rows = [d.double().square().reshape(len(images), -1).sum(1) for d in differences]
        found[name] = torch.stack(rows, dim=1).cpu().numpy()

    with watching({name: reference.get_submodule(name) for name in layers}, keep):
        reference(images)
    with watching(layers, compare):
        model(images)
    return found


def _weight_error(layer: nn.Module) -> tuple[float, float]:
    """Squared error of a weight between the outermost levels, and beyond, over the signal."""
    weight = getattr(layer, "weight", None)
    signal = 0.0 if weight is None else weight.detach().double().square().sum().item()
    if signal == 0:
        return np.nan, np.nan
    if not isinstance(layer.weight_quantizer, Quantizer):
        return 0.0, 0.0
    weight, grid = weight.detach(), layer.weight_quantizer
    error = (layer.quantized_weight().detach() - weight).double().square()
    levels = grid.levels()
    low, high = levels.amin(-1), levels.amax(-1)
    if grid.axis is not None:
        shape = [1] * weight.ndim
        shape[grid.axis] = -1
        low, high = low.view(shape), high.view(shape)
    beyond = (weight < low) | (weight > high)
    return error[~beyond].sum().item() / signal, error[beyond].sum().item() / signal


def _decibels(signal: Array, noise: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(np.maximum(signal, 0) / np.maximum(noise, 0))


def _error(values: Array) -> Array:
    """Standard error of the mean over the last axis; NaN of a single value."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.std(-1, ddof=1) / np.sqrt(values.shape[-1]))


def _layers(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    if isinstance(patterns, str):
        raise ValueError(f"layers must be a sequence of patterns, got the string {patterns!r}")
    if quantizers(model):
        raise ValueError(
            f"bit_sensitivity takes a float model; these are quantizers: "
            f"{', '.join(quantizers(model))}"
        )
    names, patterns = list(quantizable_layers(model)), tuple(patterns)
    found = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    unknown = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if unknown or not found:
        raise ValueError(
            f"layers: no layer that can be quantized matches {', '.join(unknown) or 'nothing'}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    return found


def _check_scan(part: str, bits: Sequence[int], make: Callable[[int], Quantizer]) -> str:
    """The class of the quantizers."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    if not len(bits) or len(set(bits)) < len(bits):
        raise ValueError(f"bits are {list(bits)}; allowed: one or more, each once")
    made = [make(b) for b in bits]
    for quantizer in made:
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"make must make a quantizer of so many bits, got {quantizer!r}")
        if part != "weights" and quantizer.axis is not None:
            raise ValueError(
                f"make gives a grid to each index of axis {quantizer.axis}, which is no axis of "
                f"inputs; allowed with part={part!r}: axis=None"
            )
    return type(made[0]).__name__
