"""Draw where quantization makes errors, and which layers' errors matter."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm

from qatviz.plots.style import COLOURS, check_kind, images, plus_minus
from qatviz.records import BitSensitivity, LayerEffects, LayerSQNR

QUANTITIES = {
    "loss": ("change of loss (nats)", 1),
    "accuracy": ("change of accuracy (points)", 100),
    "divergence": ("KL(float ‖ quantized) (nats)", 1),
}


def layer_sqnr(ax: Axes, record: LayerSQNR, *, parts: bool = False) -> Axes:
    """Draw the SQNR of every layer's output as two bars: its own noise, and with what arrives.

    Args:
        ax: Where.
        record: What ``analysis.layer_sqnr`` returned.
        parts: Whether to mark the SQNR of weight and input, too. Default: False (ours).

    Returns:
        The axes.
    """
    check_kind(record, LayerSQNR)
    places = np.arange(len(record.layers))
    bars = (
        (-0.2, record.local, record.local_error, "levels", "only this layer quantized"),
        (0.2, record.accumulated, record.accumulated_error, "quantized", "all layers quantized"),
    )
    for shift, values, errors, colour, label in bars:
        finite = np.where(np.isfinite(values), values, np.nan)
        look = {"width": 0.4, "color": COLOURS[colour], "ecolor": COLOURS["float"]}
        ax.bar(places + shift, finite, yerr=errors, label=label, **look)
        for place in places[np.isposinf(values)]:
            ax.annotate("∞", (place + shift, 0), ha="center", va="bottom", color=COLOURS[colour])
    if parts:
        look = {"ls": "", "mfc": "white", "color": COLOURS["rounded"], "ms": 5}
        ax.plot(places, _finite(record.weights), "^", label="weight", **look)
        ax.plot(places, _finite(record.inputs), "v", label="input", **look)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.set_ylabel("SQNR (dB)")
    ax.set_title(record.label)
    _name_layers(ax, record.layers)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08 if record.label else 1), ncols=2)
    return ax


def sensitivity_map(ax: Axes, record: BitSensitivity, quantity: str = "divergence") -> Axes:
    """Draw what each layer costs at each bit-width as a table of colours and numbers.

    Red is worse, blue is better. Colours are linear up to a typical standard error and
    logarithmic beyond. Numbers in brackets are within two standard errors of zero.

    Args:
        ax: Where. A colour bar takes some of its room.
        record: What ``analysis.bit_sensitivity`` returned.
        quantity: "loss", "accuracy" or "divergence". Default: "divergence", the least noisy.

    Returns:
        The axes.

    Raises:
        ValueError: If ``quantity`` is another word.
    """
    check_kind(record, BitSensitivity)
    effects, name, scale = _chosen(record, quantity)
    values, errors = scale * effects.single, scale * effects.single_error
    largest = _largest(values)
    signed = quantity != "divergence" or np.nanmin(values, initial=0) < 0
    norm = AsinhNorm(_typical(values, errors), -largest if signed else 0, largest)
    colours = {"accuracy": "RdBu", "loss": "RdBu_r"}.get(quantity, "RdBu_r" if signed else "Reds")
    image = ax.imshow(values, cmap=colours, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.2g}"
            text = f"({text})" if abs(value) <= 2 * errors[row, column] else text
            depth = abs(norm(value) - norm(0)) / (1 - norm(0))
            colour = "white" if depth > 0.7 else "black"
            ax.annotate(text, (column, row), ha="center", va="center", color=colour, size="x-small")
    ax.set_xticks(range(len(record.bits)), [str(b) for b in record.bits])
    ax.set_yticks(range(len(record.layers)), record.layers)
    ax.set_xlabel(f"bits of {_what(record)} (brackets: within 2 s.e. of 0)")
    ax.set_title(record.label)
    ax.figure.colorbar(image, ax=ax, label=name)
    return ax


def sensitivity_lines(ax: Axes, record: BitSensitivity, quantity: str = "divergence") -> Axes:
    """Draw what each layer costs, one line per bit-width; the legend has sum and joint effect.

    The axis is linear up to a typical standard error and logarithmic beyond.

    Args:
        ax: Where.
        record: What ``analysis.bit_sensitivity`` returned.
        quantity: "loss", "accuracy" or "divergence". Default: "divergence", the least noisy.

    Returns:
        The axes.

    Raises:
        ValueError: If ``quantity`` is another word.
    """
    check_kind(record, BitSensitivity)
    effects, name, scale = _chosen(record, quantity)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(record.bits)))
    for index, (bits, shade) in enumerate(zip(record.bits, shades, strict=True)):
        values, errors = scale * effects.single[:, index], scale * effects.single_error[:, index]
        total = scale * effects.total[index], scale * effects.total_error[index]
        joint = scale * effects.joint[index], scale * effects.joint_error[index]
        told = f"sum {plus_minus(*total, '.2g')},\ntogether {plus_minus(*joint, '.2g')}"
        label = f"{bits} bit: {told}"
        look = {"fmt": "o-", "ms": 4, "lw": 1.2, "capsize": 3, "color": shade}
        ax.errorbar(range(len(values)), values, errors, label=label, **look)
    width = _typical(scale * effects.single, scale * effects.single_error)
    ax.set_yscale("symlog", linthresh=width)
    ax.axhline(0, color=COLOURS["float"], lw=0.6)
    ax.set_ylabel(name)
    ax.set_title(f"{record.label} {_what(record)}, {images([record.samples])}".strip())
    _name_layers(ax, record.layers)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize="small")
    return ax


def _chosen(record: BitSensitivity, quantity: str) -> tuple[LayerEffects, str, int]:
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity is {quantity!r}; allowed: {', '.join(QUANTITIES)}")
    return getattr(record, quantity), *QUANTITIES[quantity]


def _what(record: BitSensitivity) -> str:
    part = "weights and inputs" if record.part == "both" else record.part
    return f"{part}, all layers but one" if record.leave_out else f"{part}, one layer"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0)) or 1.0


def _typical(values: np.ndarray, errors: np.ndarray) -> float:
    """The median standard error, or a hundredth of the largest value where there is none."""
    known = errors[np.isfinite(errors) & (errors > 0)]
    return float(np.median(known)) if len(known) else _largest(values) / 100


def _name_layers(ax: Axes, layers: tuple[str, ...]) -> None:
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor")
