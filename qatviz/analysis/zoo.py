"""Every quantizer side by side: one view, one tensor, one layer."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

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
    fixed_range,
)
from qatviz.records import TransferCurve, ZooCurve

VISIBLE_DELTA = 1.0

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
ZOO = {
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
    return tuple(ZOO)


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
    if name not in ZOO:
        raise ValueError(f"there is no quantizer {name!r} here; there are {', '.join(ZOO)}")
    if reason := _why_not(name, bits, signed):
        raise ValueError(reason)
    options = dict(ZOO[name].options)
    if ZOO[name].quantizer is EWGS and delta is not None:
        options["delta"] = delta
    quantizer = ZOO[name].quantizer(bits, signed=signed, **options)
    quantizer.batched = not signed
    return quantizer


def _why_not(name: str, bits: int, signed: bool) -> str:
    """Why there is no such grid, as a sentence; empty if there is one."""
    kind, sign = ZOO[name], "signed" if signed else "unsigned"
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
    if not ZOO[name].own_units:
        return 1.0
    with torch.no_grad():
        return best_scalar(x.double(), quantizer(x).double())


def calibrated_on(
    name: str, x: Tensor, bits: int, signed: bool, delta: float | None = None
) -> Quantizer:
    """Make a quantizer by its name, calibrated on a tensor, for evaluation.

    Args:
        name: One of ``zoo_names()``.
        x: The tensor.
        bits: Bits of the grid.
        signed: True for weights, False for activations after a ReLU.
        delta: δ of EWGS. Default: None: EWGS's own.

    Returns:
        The quantizer, in evaluation mode.
    """
    quantizer = zoo_quantizer(name, bits, signed=signed, delta=delta)
    quantizer.init_from(x)
    return quantizer.eval()


def existing(names: Iterable[str] | None, bits: int, signed: bool) -> list[str]:
    """Those of the names that have such a grid.

    Args:
        names: Of ``zoo_names()``; None: all.
        bits: Bits of the grid.
        signed: True for weights, False for activations after a ReLU.

    Returns:
        Names, in the order given.

    Raises:
        ValueError: If a name is unknown.
    """
    names = list(ZOO if names is None else names)
    if unknown := [name for name in names if name not in ZOO]:
        raise ValueError(f"there is no quantizer {unknown}; there are {', '.join(ZOO)}")
    return [name for name in names if not _why_not(name, bits, signed)]


def check_tensor(x: Tensor, what: str) -> tuple[Tensor, bool]:
    """Refuse a tensor that no grid can be chosen from.

    Args:
        x: The tensor.
        what: What is being done, for the message.

    Returns:
        The tensor as float32 on the CPU, and whether anything is negative.

    Raises:
        ValueError: If it is empty, not finite, or all zero.
    """
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
    for name, kind in ZOO.items():
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
    existing([name], bits, True)  # refuses an unknown name
    if ZOO[name].view is None:
        raise ValueError(f"measured_mu: {name} is {ZOO[name].outside}")
    signed = True in ZOO[name].signs if signed is None else signed
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, 1000, generator=generator, dtype=torch.float64)
    x, upstream = draw(), draw()
    quantizer = calibrated_on(name, x if signed else x.abs(), bits, signed, delta).double()
    x.requires_grad_()
    codes = quantizer.codes(x.detach()).requires_grad_()
    (of_code,) = torch.autograd.grad(quantizer.dequantize(codes), codes, upstream)
    (of_x,) = torch.autograd.grad(quantizer(x), x, upstream)
    clipped, unit = ZOO[name].view(quantizer, x)
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
        A record per quantizer that has such a grid. ``records.ZooCurve``. Draw with
        ``plots.zoo_curves``.

    Raises:
        ValueError: If the sample is empty, not finite or all zero, or a name is unknown.
    """
    sample, signed = check_tensor(sample, "zoo_curves")
    return [
        zoo_curve(name, sample, bits=bits, signed=signed, delta=delta, points=points)
        for name in existing(names, bits, signed)
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
        ``records.ZooCurve``. Draw with ``plots.zoo_curve`` or ``plots.zoo_curves``.
    """
    sample, _ = check_tensor(sample, "zoo_curve")
    quantizer = calibrated_on(name, sample, bits, signed, delta)
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


def best_scalar(x: Tensor, quantized: Tensor) -> float:
    """The c of min_c ‖x − c·x̂‖².

    Args:
        x: A tensor.
        quantized: x̂.

    Returns:
        ⟨x, x̂⟩/‖x̂‖², or 0 where x̂ is zero everywhere.
    """
    power = quantized.square().sum().item()
    return (x * quantized).sum().item() / power if power else 0.0


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor as a record holds it.

    Args:
        tensor: Any tensor.

    Returns:
        float64, on the CPU.
    """
    return tensor.detach().double().cpu().numpy()
