"""Every quantizer side by side: one view, one tensor, one layer."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qatviz.analysis.curves import transfer_curve
from qatviz.quantizers import (
    EWGS,
    LSQ,
    NIPQ,
    PACT,
    AdaRound,
    Affine,
    AffineLSQ,
    DoReFa,
    LSQPlus,
    Quantizer,
    ReleasedDoReFa,
    fixed_range,
    lp_range,
    released_lsq,
    released_pact,
    released_range,
    rounding_penalty,
)
from qatviz.records import LearnedGrid, Released, TransferCurve, ZooCurve, ZooErrors

IMAGES_AT_ONCE = 16
VISIBLE_DELTA = 1.0
DECAY = 1e-3

View = Callable[[Any, Tensor], tuple[Tensor, Tensor | float]]


def _by_step(quantizer: Any, x: Tensor) -> tuple[Tensor, float]:
    return (x / quantizer.step).clamp(quantizer.low, quantizer.high), 1.0


def _by_step_and_zero(quantizer: Any, x: Tensor) -> tuple[Tensor, float]:
    low = quantizer.low - quantizer.zero_point
    high = quantizer.high - quantizer.zero_point
    return torch.clamp(x / quantizer.step, low, high), 1.0


def _by_step_and_offset(quantizer: Any, x: Tensor) -> tuple[Tensor, float]:
    return ((x - quantizer.offset) / quantizer.step).clamp(quantizer.low, quantizer.high), 1.0


def _by_alpha(quantizer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    clip = quantizer.clip.detach()
    return torch.clamp(x, torch.zeros_like(clip), clip), clip / quantizer.high


def _by_tanh(quantizer: Any, x: Tensor) -> tuple[Tensor, float]:
    if quantizer.signed:
        squashed = x.tanh()
        return squashed / (2 * squashed.abs().max()) + 0.5, 1 / (2**quantizer.bits - 1)
    return x.clamp(0, 1), 1 / (2**quantizer.bits - 1)


def _by_bounds(quantizer: Any, x: Tensor) -> tuple[Tensor, float]:
    width = quantizer.upper - quantizer.lower
    return ((x - quantizer.lower) / width).clamp(0, 1), 1 / quantizer.high


@dataclass(frozen=True)
class _Kind:
    """What the table says of a quantizer, and how to make one."""

    quantizer: type[Quantizer]
    paper: str
    clip: str
    levels: str
    by_clip: str = "none"
    by_rounding: str = "none"
    view: View | None = None
    outside: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    signs: tuple[bool, ...] = (True, False)
    own_units: bool = False
    like: str = ""


_CODES = "−2^(b−1) … 2^(b−1)−1 signed, 0 … 2^b−1 unsigned"
_ZOO = {
    "Affine": _Kind(
        Affine,
        "Krishnamoorthi, arXiv 1806.08342; range of PD-Quant, arXiv 2212.07048",
        "x_c = clip(x/s, −z, 2^b−1−z)",
        "(k − z)·s, k = 0 … 2^b−1",
        view=_by_step_and_zero,
    ),
    "AffineLSQ": _Kind(
        AffineLSQ,
        "Pang, Cai 2025, arXiv 2503.11159; PD-Quant, arXiv 2212.07048",
        "x_c = clip(x/s, −z, 2^b−1−z)",
        "(k − z)·s, k = 0 … 2^b−1",
        by_clip="s",
        view=_by_step_and_zero,
    ),
    "LSQ": _Kind(
        LSQ,
        "Esser et al. 2020, arXiv 1902.08153",
        "x_c = clip(x/s, −Q_N, Q_P)",
        f"k·s, k = {_CODES}",
        by_clip="s",
        view=_by_step,
    ),
    "LSQPlus": _Kind(
        LSQPlus,
        "Bhalgat et al. 2020, arXiv 2004.09576 (activations; its weights have LSQ's grid)",
        "x_c = clip((x − β)/s, 0, 2^b−1)",
        "k·s + β, k = 0 … 2^b−1",
        by_clip="s, β",
        view=_by_step_and_offset,
    ),
    "PACT": _Kind(
        PACT,
        "Choi et al. 2018, arXiv 1805.06085",
        "x_c = clip(x, 0, α)",
        "k·α/(2^b−1), k = 0 … 2^b−1",
        by_clip="α",
        view=_by_alpha,
        signs=(False,),
    ),
    "DoReFa": _Kind(
        DoReFa,
        "Zhou et al. 2016, arXiv 1606.06160",
        "weights x_c = tanh(x)/(2·max|tanh(x)|) + ½, activations x_c = clip(x, 0, 1)",
        "weights 2k/(2^b−1) − 1, activations k/(2^b−1), k = 0 … 2^b−1",
        view=_by_tanh,
        own_units=True,
    ),
    "EWGS": _Kind(
        EWGS,
        "Lee, Kim, Ham 2021, arXiv 2104.00903",
        "x_c = clip((x − l)/(u − l), 0, 1)",
        "weights |s|·(2k/(2^b−1) − 1), activations |s|·k/(2^b−1), k = 0 … 2^b−1",
        by_clip="l, u",
        by_rounding="s",
        view=_by_bounds,
    ),
    "NIPQ": _Kind(
        NIPQ,
        "Shin et al. 2023, arXiv 2206.00820",
        "clip(x, −α or 0, α), α = softplus(a)",
        "k·α/n, k = −n … n, n = 2^(b−1)−1 signed; k = 0 … n, n = 2^b−1 unsigned",
        by_clip="a",
        by_rounding="β (the bits)",
        outside="outside of the view: training adds noise and rounds nothing",
        options={"learn_bits": False},
    ),
    "AdaRound": _Kind(
        AdaRound,
        "Nagel et al. 2020, arXiv 2004.10568",
        "clip(⌊x/s⌋ + h(a), −z, 2^b−1−z)",
        "(k − z)·s, k = 0 … 2^b−1",
        by_rounding="a, one per weight",
        outside="outside of the view: the weight is frozen, ∂L/∂x = 0",
        options={"axis": None},
        signs=(True,),
        like="Affine",
    ),
}


def zoo_names() -> tuple[str, ...]:
    """The quantizers that the functions of this file know.

    Returns:
        Their names, those that learn nothing first.
    """
    return tuple(_ZOO)


def zoo_quantizer(name: str, bits: int, *, signed: bool, delta: float | None = None) -> Quantizer:
    """Make a quantizer by its name: one grid for the tensor, bits fixed.

    Args:
        name: One of ``zoo_names()``.
        bits: Bits of the grid.
        signed: True for weights, False for activations after a ReLU.
        delta: δ of EWGS. Default: None: EWGS's own.

    Returns:
        A quantizer that is not yet calibrated.

    Raises:
        ValueError: If there is no quantizer of this name, or it has no such grid; says why.
    """
    if name not in _ZOO:
        raise ValueError(f"there is no quantizer {name!r} here; there are {', '.join(_ZOO)}")
    if reason := _why_not(name, bits, signed):
        raise ValueError(reason)
    options = dict(_ZOO[name].options)
    if _ZOO[name].quantizer is EWGS and delta is not None:
        options["delta"] = delta
    quantizer = _ZOO[name].quantizer(bits, signed=signed, **options)
    quantizer.batched = not signed
    return quantizer


def _why_not(name: str, bits: int, signed: bool) -> str:
    """Why there is no such grid, as a sentence; empty if there is one."""
    kind, sign = _ZOO[name], "signed" if signed else "unsigned"
    if signed not in kind.signs:
        tensor = "activations after a ReLU" if signed else "weights"
        return f"{name} is made for {tensor}: it has no {sign} grid."
    allowed = kind.quantizer.bits_allowed(signed)
    if bits not in allowed:
        return (
            f"{name} has no {sign} grid of {bits} bit: "
            f"it has {allowed.start} to {allowed.stop - 1} bits."
        )
    return ""


def zoo_unit(name: str, quantizer: Quantizer, x: Float[Tensor, "*shape"]) -> float:
    """What levels are to be multiplied by so that they have the unit of the tensor.

    Args:
        name: One of ``zoo_names()``.
        quantizer: The calibrated quantizer of that name.
        x: The tensor.

    Returns:
        1, or for a quantizer whose levels have units of their own (DoReFa) the c of
        min_c ‖x − c·x̂‖².
    """
    if not _ZOO[name].own_units:
        return 1.0
    with torch.no_grad():
        return _best_scalar(x.double(), quantizer(x).double())


def _calibrated(
    name: str, x: Tensor, bits: int, signed: bool, delta: float | None = None
) -> Quantizer:
    quantizer = zoo_quantizer(name, bits, signed=signed, delta=delta)
    quantizer.init_from(x)
    return quantizer.eval()


def _existing(names: Iterable[str] | None, bits: int, signed: bool) -> list[str]:
    names = list(_ZOO if names is None else names)
    if unknown := [name for name in names if name not in _ZOO]:
        raise ValueError(f"there is no quantizer {unknown}; there are {', '.join(_ZOO)}")
    return [name for name in names if not _why_not(name, bits, signed)]


def _check_tensor(x: Tensor, what: str) -> tuple[Tensor, bool]:
    """The tensor as float32 on the CPU, and whether anything is negative."""
    if x.numel() == 0 or not x.isfinite().all() or not x.any():
        raise ValueError(f"{what}: {list(x.shape)} values, not all finite or all zero")
    return x.detach().float().cpu(), bool((x < 0).any())


# ---------------------------------------------------------------- one view of all


def unified_view(*, bits: int = 3, delta: float | None = None) -> pd.DataFrame:
    """Every quantizer as a clip, a rounding, and a coefficient μ of the backward pass.

    x_c is what the clip returns, x_q its rounding, and going backwards
    ∂L/∂x_c = ∂L/∂x_q + μ·(x_c − x_q). μ is measured: 1,000 normal numbers with random upstream
    gradients pass through each quantizer in float64, and μ = m + k·|∂L/∂x_q| is fitted to the
    ∂L/∂x that autograd returns.

    Args:
        bits: Bits of the grids that are measured. Default: 3 (ours).
        delta: δ of EWGS. Default: None: EWGS's own.

    Returns:
        A row per quantizer: paper, clip, learned parameters of the clip and of the rounding,
        levels, and μ.

    Source: SQAKD, arXiv 2403.11106, and its released code; the equation as we read it.
    """
    rows = []
    for name, kind in _ZOO.items():
        learned = kind.by_clip, kind.by_rounding
        mu = kind.outside or _as_formula(*measured_mu(name, bits=bits, delta=delta))
        rows.append((name, kind.paper, kind.clip, *learned, kind.levels, mu))
    columns = ["paper", "clip", "clip learns", "rounding learns", "levels", "μ"]
    return pd.DataFrame(rows, columns=["quantizer", *columns]).set_index("quantizer")


def measured_mu(
    name: str, *, bits: int = 3, signed: bool | None = None, delta: float | None = None
) -> tuple[float, float]:
    """Measure the coefficient μ = m + k·|∂L/∂x_q| of a quantizer's backward pass.

    Args:
        name: One of ``zoo_names()``, in the unified view.
        bits: Bits of the grid. Default: 3 (ours).
        signed: Sign of the grid. Default: None: signed where there is one.
        delta: δ of EWGS. Default: None: EWGS's own.

    Returns:
        m and k, by least squares.

    Raises:
        ValueError: If the quantizer is outside of the view, or there is none of this name.
    """
    _existing([name], bits, True)  # refuses an unknown name
    if _ZOO[name].view is None:
        raise ValueError(f"measured_mu: {name} is {_ZOO[name].outside}")
    signed = True in _ZOO[name].signs if signed is None else signed
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, 1000, generator=generator, dtype=torch.float64)
    x, upstream = draw(), draw()
    quantizer = _calibrated(name, x if signed else x.abs(), bits, signed, delta).double()
    x.requires_grad_()
    codes = quantizer.codes(x.detach()).requires_grad_()
    (of_code,) = torch.autograd.grad(quantizer.dequantize(codes), codes, upstream)
    (of_x,) = torch.autograd.grad(quantizer(x), x, upstream)
    clipped, unit = _ZOO[name].view(quantizer, x)
    error, of_rounded = (clipped - (clipped / unit).round() * unit).detach(), of_code / unit
    # What each term of ∂L/∂x_c would make of ∂L/∂x.
    straight, constant, scaled = (
        torch.autograd.grad(clipped, x, term, retain_graph=True)[0]
        for term in (of_rounded, error, error * of_rounded.abs())
    )
    terms = torch.stack([constant, scaled], 1)
    m, k = torch.linalg.lstsq(terms, (of_x - straight)[:, None]).solution.flatten().tolist()
    return m, k


def _as_formula(m: float, k: float) -> str:
    terms = [f"{m:.3g}"] if abs(m) > 1e-9 else []
    terms += [f"{k:.3g}·|∂L/∂x_q|"] if abs(k) > 1e-9 else []
    return " + ".join(terms) or "0"


# ---------------------------------------------------------------- staircases


def zoo_curves(
    sample: Float[Tensor, "*shape"],
    *,
    bits: int,
    names: Iterable[str] | None = None,
    delta: float = VISIBLE_DELTA,
    points: int = 1001,
) -> list[ZooCurve]:
    """Trace every quantizer, each calibrated on the same tensor.

    Weights (anything negative) get signed grids, traced over ±max|x|; other tensors unsigned
    ones, traced from −max/10 to max.

    Args:
        sample: Weights or activations, finite, not all zero.
        bits: Bits of the grids.
        names: Which, of ``zoo_names()``. Default: None: all.
        delta: δ of EWGS. Default: 1 (ours: a thousand times the released value, so that the
            eye can see it).
        points: Inputs, evenly spaced. Default: 1001 (ours).

    Returns:
        A record per quantizer that has such a grid.

    Raises:
        ValueError: If the sample is empty, not finite or all zero, or a name is unknown.
    """
    sample, signed = _check_tensor(sample, "zoo_curves")
    return [
        zoo_curve(name, sample, bits=bits, signed=signed, delta=delta, points=points)
        for name in _existing(names, bits, signed)
    ]


def zoo_curve(
    name: str,
    sample: Float[Tensor, "*shape"],
    *,
    bits: int,
    signed: bool,
    delta: float = VISIBLE_DELTA,
    points: int = 1001,
) -> ZooCurve:
    """Trace one quantizer; see ``zoo_curves``.

    Args:
        name: One of ``zoo_names()``.
        sample: What it is calibrated on, finite, not all zero.
        bits: Bits of the grid.
        signed: True for weights, False for activations after a ReLU.
        delta: δ of EWGS. Default: 1 (ours, see ``zoo_curves``).
        points: Inputs, evenly spaced. Default: 1001 (ours).

    Returns:
        Its curve, and where training computes something else, the band that it fills.
    """
    sample, _ = _check_tensor(sample, "zoo_curve")
    quantizer = _calibrated(name, sample, bits, signed, delta)
    scale = zoo_unit(name, quantizer, sample)
    reach = sample.abs().max().item()
    x = torch.linspace(-reach if signed else -reach / 10, reach, points)
    if isinstance(quantizer, AdaRound):
        ends = quantizer.levels()[[0, -1]].tolist()
        quantizer = AdaRound(bits, signed=signed, axis=None, find_range=fixed_range(*ends)).eval()
        quantizer.init_from(x)
    label = f"{name}, {bits} bit"
    curve = transfer_curve(
        quantizer, low=x[0].item(), high=x[-1].item(), points=points, label=label
    )
    return ZooCurve(
        name=name,
        curve=_scaled(curve, scale),
        opposed=scale * _gain(quantizer, x, -1.0),
        band=_band(quantizer, x),
        band_label=_BANDS.get(type(quantizer), ""),
        scale=scale,
        signed=signed,
    )


_BANDS = {NIPQ: "noise in training: x ± Δ/2", AdaRound: "up or down, to be learned"}


def _scaled(curve: TransferCurve, scale: float) -> TransferCurve:
    return TransferCurve(
        curve.x, scale * curve.y, scale * curve.gradient, scale * curve.levels, curve.label
    )


def _gain(quantizer: Quantizer, x: Tensor, upstream: float) -> np.ndarray:
    """(∂L/∂x)/(∂L/∂x̂) where ∂L/∂x̂ is the same for all."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(x), x, torch.full_like(x, upstream))
    return gradient.double().numpy() / upstream


@torch.no_grad()
def _band(quantizer: Quantizer, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    twin, ends = copy.deepcopy(quantizer), []
    for end in (-1, 1):
        if isinstance(twin, NIPQ):
            twin.train().noise = lambda x, step, inside, end=end: torch.full_like(x, end / 2)
        elif isinstance(twin, AdaRound):
            twin.rounding.fill_(end)
        else:
            return np.empty(0), np.empty(0)
        ends.append(twin(x).double().numpy())
    return ends[0], ends[1]


# ---------------------------------------------------------------- learning on one layer


def learn_grids(
    layer: nn.Conv2d | nn.Linear,
    inputs: Float[Tensor, "batch *rest"],
    *,
    bits: int,
    part: str = "weight",
    names: Iterable[str] | None = None,
    **options: Any,
) -> list[LearnedGrid]:
    """Let every quantizer learn on the same layer; see ``learn_grid``.

    Args:
        layer: A float convolution or linear layer.
        inputs: What arrives there.
        bits: Bits of the grids.
        part: "weight" or "input": what is quantized. Default: "weight".
        names: Which, of ``zoo_names()``. Default: None: all.
        **options: Of ``learn_grid``.

    Returns:
        A record per quantizer that has such a grid.
    """
    x = layer.weight if part == "weight" else inputs
    signed = bool((x < 0).any())
    return [
        learn_grid(
            zoo_quantizer(name, bits, signed=signed),
            layer,
            inputs,
            part=part,
            name=name,
            rescale=_ZOO[name].own_units,
            **options,
        )
        for name in _existing(names, bits, signed)
    ]


def learn_grid(
    quantizer: Quantizer,
    layer: nn.Conv2d | nn.Linear,
    inputs: Float[Tensor, "batch *rest"],
    *,
    part: str = "weight",
    steps: int = 400,
    rate: float = 0.05,
    penalty: float = 0.1,
    decay: float | None = None,
    rescale: bool = False,
    name: str | None = None,
    seed: int = 0,
) -> LearnedGrid:
    """Train a quantizer's own parameters, and nothing else, for the output of one layer.

    The loss is ‖ŷ − y‖²/‖y‖², y the output of the float layer without its bias; the quantizer
    learns it through its own backward pass. Adam, one batch, a rate for each parameter that is
    relative to its size, falling to zero as a cosine. NIPQ trains through its noise and
    AdaRound softly, with its penalty; both are judged in evaluation.

    Args:
        quantizer: Any quantizer; calibrated on the tensor if it is not yet. A copy is trained.
        layer: A float convolution or linear layer. It does not change.
        inputs: What arrives there.
        part: "weight" or "input": what is quantized. Default: "weight".
        steps: Steps of Adam. Default: 400 (ours).
        rate: Rate at the start, a share of the mean magnitude of each parameter (or, where that
            is zero, of the root mean square of the tensor). Default: 0.05 (ours).
        penalty: Weight of AdaRound's penalty per weight. Default: 0.1 (ours).
        decay: λ of the L2 penalty λ·α² on PACT's clip. Default: None: 0.001 for PACT (ours; the
            paper has such a penalty, and without it a clip beyond the largest value has no
            gradient at all, and never learns).
        rescale: True: ŷ is multiplied by the best scalar, for levels with units of their own.
            Default: False.
        name: For titles. Default: the class.
        seed: Of the noise. Default: 0.

    Returns:
        Errors, levels and parameters, before and after.

    Raises:
        ValueError: If ``part`` is neither "weight" nor "input", there is no step, or the
            layer's output is zero.
    """
    if part not in ("weight", "input"):
        raise ValueError(f"learn_grid: part must be 'weight' or 'input', got {part!r}")
    if steps < 1:
        raise ValueError(f"learn_grid: steps must be 1 or more, got {steps}")
    x = (layer.weight if part == "weight" else inputs).detach().float()
    quantizer = copy.deepcopy(quantizer)
    quantizer.batched = part == "input"
    if not quantizer.calibrated:
        quantizer.init_from(x)
    task = _Task(x, *_outputs(layer, inputs.detach().float(), part), rescale)
    before, codes = _state(quantizer, task), _codes(quantizer, x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = _train(quantizer, task, steps, rate, penalty, DECAY if decay is None else decay)
    after, moved = _state(quantizer, task), _codes(quantizer, x) != codes
    return LearnedGrid(
        name=name or type(quantizer).__name__,
        part=part,
        bits=quantizer.bits,
        loss=loss,
        before=before[0],
        after=after[0],
        levels_before=before[2],
        levels_after=after[2],
        parameters_before=before[3],
        parameters_after=after[3],
        scale=(before[1], after[1]),
        moved=moved.double().mean().item(),
    )


class _Task:
    """What a quantizer has to do for a layer: keep its output."""

    def __init__(self, x: Tensor, output: Callable, wanted: Tensor, rescale: bool) -> None:
        self.x, self.output, self.wanted, self.rescale = x, output, wanted, rescale
        self.power = wanted.square().sum()
        if not self.power > 0:
            raise ValueError("learn_grid: the output of the float layer is zero everywhere")

    def error(self, quantizer: Quantizer) -> tuple[Tensor, float]:
        """The relative error of the output, and what it was multiplied by."""
        found, scale = self.output(quantizer(self.x)), 1.0
        if self.rescale:
            scale = _best_scalar(self.wanted, found.detach())
        # The best scalar's own derivative is zero, so it may stand as a constant.
        return (scale * found - self.wanted).square().sum() / self.power, scale


def _outputs(layer: nn.Module, inputs: Tensor, part: str) -> tuple[Callable, Tensor]:
    """From the quantized tensor to the layer's output, and the output of the float layer."""
    twin = copy.deepcopy(layer).float().requires_grad_(False)
    twin.bias = None
    if part == "input":
        return twin, twin(inputs)
    weight, groups = twin.weight, getattr(layer, "groups", 1)
    size = weight[0].numel()
    eye = torch.eye(size).reshape(size, *weight.shape[1:]).to(weight)
    twin.weight = nn.Parameter(eye.repeat(groups, *[1] * (weight.ndim - 1)), requires_grad=False)
    gram = torch.zeros(groups, size, size, dtype=torch.float64, device=weight.device)
    for images in inputs.split(IMAGES_AT_ONCE):
        patches = twin(images).movedim(1 if weight.ndim > 2 else -1, 0)
        patches = patches.reshape(groups, size, -1).double()
        gram += patches @ patches.mT
    # W·R, with R·Rᵀ the Gram matrix of the patches, has the squared errors of the real output.
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp(min=0).sqrt()[:, None]).to(weight)

    def output(weight: Tensor) -> Tensor:
        return weight.reshape(groups, -1, size) @ root

    return output, output(weight)


def _train(
    quantizer: Quantizer, task: _Task, steps: int, rate: float, penalty: float, decay: float
) -> np.ndarray:
    learned = [p for p in quantizer.parameters() if p.requires_grad]
    if not learned:
        return np.empty(0)
    sizes = [_size(p, task.x) for p in learned]
    groups = [{"params": [p], "lr": rate * s} for p, s in zip(learned, sizes, strict=True)]
    adam = torch.optim.Adam(groups)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    quantizer.train()
    losses = np.empty(steps)
    for step in range(steps):
        loss, _ = task.error(quantizer)
        losses[step] = loss.item()
        if isinstance(quantizer, AdaRound):
            share = penalty / task.x.numel()
            loss = loss + rounding_penalty([quantizer], step, steps, weight=share)
        if isinstance(quantizer, PACT):
            loss = loss + decay * quantizer.clip.square()
        adam.zero_grad()
        loss.backward()
        adam.step()
        cosine.step()
    quantizer.eval()
    return losses


def _size(parameter: Tensor, x: Tensor) -> float:
    """How large a parameter is; where it is zero, how large the tensor is."""
    size, spread = parameter.detach().abs().mean().item(), x.square().mean().sqrt().item()
    return size if size > 1e-3 * spread else spread


@torch.no_grad()
def _state(
    quantizer: Quantizer, task: _Task
) -> tuple[float, float, np.ndarray, dict[str, np.ndarray]]:
    """Error in evaluation, factor on the levels, levels, parameters."""
    quantizer.eval()
    error, scale = task.error(quantizer)
    parameters = {n: _array(p) for n, p in quantizer.named_parameters() if p.requires_grad}
    return error.item(), scale, scale * _array(quantizer.levels()), parameters


@torch.no_grad()
def _codes(quantizer: Quantizer, x: Tensor) -> Tensor:
    return quantizer.eval().codes(x)


# ---------------------------------------------------------------- errors


def zoo_errors(
    tensor: Float[Tensor, "*shape"],
    *,
    bits: Iterable[int] = range(1, 9),
    names: Iterable[str] | None = None,
    most: int = 20_000,
    seed: int = 0,
    label: str = "",
) -> ZooErrors:
    """The error of every quantizer on one tensor, against bits, before any training.

    Levels may have units of their own (DoReFa, EWGS), which a layer's scale or BatchNorm takes
    out again. So the error is what the best scalar leaves, min_c ‖x − c·x̂‖²/‖x‖², which is
    1 − cos²(x, x̂); the plain error is there as well.

    Of a tensor with more values than ``most``, that many are drawn without replacement, for
    the search of ``lp_range`` is long at 8 bits; the largest magnitude is always among them.

    Args:
        tensor: Weights (signed grids) or activations, finite, not all zero.
        bits: Bits of the grids. Default: 1 to 8 (ours).
        names: Which, of ``zoo_names()``. Default: None: all but those that equal another
            before they are trained (AdaRound: Affine).
        most: Values to round, at most. Default: 20,000 (ours).
        seed: Of the draw. Default: 0.
        label: Name of the tensor.

    Returns:
        Decibels, a row per quantizer.

    Raises:
        ValueError: If the tensor is empty, not finite or all zero, or a name is unknown.
    """
    x, signed = _check_tensor(tensor, f"zoo_errors of {label!r}")
    x, bits = _drawn(x, most, seed), list(bits)
    names = [n for n in _ZOO if not _ZOO[n].like] if names is None else list(names)
    best, plain = np.full((2, len(names), len(bits)), np.nan)
    for column, b in enumerate(bits):
        for name in _existing(names, b, signed):
            with torch.no_grad():
                quantized = _calibrated(name, x, b, signed)(x)
            found, after = decibels(x, quantized), decibels(x, quantized, best=True)
            best[names.index(name), column] = after
            if not _ZOO[name].own_units:
                plain[names.index(name), column] = found
    return ZooErrors(label, np.array(bits), tuple(names), best, plain, x.numel())


def _drawn(x: Tensor, most: int, seed: int) -> Tensor:
    x = x.flatten()
    if len(x) <= most:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most]
    order[0] = x.abs().argmax()
    return x[order]


def decibels(
    x: Float[Tensor, "*shape"], quantized: Float[Tensor, "*shape"], *, best: bool = False
) -> float:
    """The SQNR of a quantized tensor, as it is or after the best scalar.

    Args:
        x: The tensor.
        quantized: x̂.
        best: True: 10·log10(‖x‖²/min_c ‖x − c·x̂‖²). Default: False: 10·log10(‖x‖²/‖x − x̂‖²).

    Returns:
        Decibels; infinite where nothing is lost.
    """
    x, quantized = x.detach().double().flatten(), quantized.detach().double().flatten()
    scale = _best_scalar(x, quantized) if best else 1.0
    noise = (scale * quantized - x).square().sum().item()
    return 10 * math.log10(x.square().sum().item() / noise) if noise else math.inf


def _best_scalar(x: Tensor, quantized: Tensor) -> float:
    power = quantized.square().sum().item()
    return (x * quantized).sum().item() / power if power else 0.0


# ---------------------------------------------------------------- as released


def released(
    weights: Float[Tensor, "*shape"],
    activations: Float[Tensor, "*more"],
    *,
    bits: int = 3,
    delta: float = VISIBLE_DELTA,
) -> list[Released]:
    """Five quantizers as their papers intend them, beside what released code computes.

    The clip with the least squared error stands for the one that PACT would learn.

    Args:
        weights: Weights of a layer, finite, some negative.
        activations: What arrives there after a ReLU, finite, none negative.
        bits: Bits of the grids, 2 to 8. Default: 3 (ours).
        delta: δ of EWGS as intended. Default: 1 (ours, see ``zoo_curves``).

    Returns:
        PACT's clip, LSQ's sign and DoReFa's squeeze for activations; NIPQ's initial range and
        EWGS's δ for weights.

    Raises:
        ValueError: If a tensor is not as described, or the bits are not allowed.
    """
    weights, two_sided = _check_tensor(weights, "released, weights")
    activations, negative = _check_tensor(activations, "released, activations")
    if not two_sided or negative:
        raise ValueError("released: weights need both signs, activations none below zero")
    clip = lp_range(activations.reshape(1, -1), 2**bits, p=2.0)[1].item()
    nipq = partial(NIPQ, bits, signed=True, learn_bits=False)
    after_relu = partial(_pair, activations)
    return [
        after_relu("PACT: learned clip; fixed ±6", PACT(bits, clip=clip), released_pact(bits)),
        after_relu("LSQ after a ReLU: unsigned; signed", LSQ(bits), released_lsq(bits)),
        after_relu("DoReFa after a ReLU: clip; tanh", DoReFa(bits), ReleasedDoReFa(bits)),
        _pair(
            weights,
            "NIPQ, first range: max|w|; softplus(max w)",
            nipq(),
            nipq(find_range=released_range),
        ),
        _pair(
            weights,
            f"EWGS, gradient: δ = {delta:g}; δ = 0",
            EWGS(bits, delta=delta),
            EWGS(bits, delta=0.0),
            gradient=True,
        ),
    ]


def _pair(
    x: Tensor, title: str, intended: Quantizer, as_released: Quantizer, *, gradient: bool = False
) -> Released:
    signed, reach = bool((x < 0).any()), x.abs().max().item()
    curves, used, sqnr, best = [], [], [], []
    for quantizer, label in ((intended, "as intended"), (as_released, "as released")):
        quantizer.batched = not signed
        quantizer.init_from(x)
        low = -reach if signed else -reach / 10
        curves.append(transfer_curve(quantizer.eval(), low=low, high=reach, label=label))
        with torch.no_grad():
            quantized, codes = quantizer(x), quantizer.codes(x)
        used.append(len(codes.unique()) / quantizer.levels().numel())
        sqnr.append(decibels(x, quantized))
        best.append(decibels(x, quantized, best=True))
    label = "weights" if signed else "activations"
    return Released(title, label, *curves, tuple(used), tuple(sqnr), tuple(best), gradient)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
