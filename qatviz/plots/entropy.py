"""Draw how many of their bits the codes of a network use."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import COLOURS, by_label, check_kind, colours_of, joined, plus_minus
from qatviz.records import CodeEntropy, GaussianCodes


def bits_used(ax: Axes, record: CodeEntropy) -> Axes:
    """Draw for each layer the bits that are stored, and inside them those that say something.

    Args:
        ax: Where.
        record: What ``analysis.code_entropy`` or ``analysis.activation_entropy`` returned.

    Returns:
        The axes.
    """
    check_kind(record, CodeEntropy)
    places = np.arange(len(record.layers))
    stored = f"available: {record.bits_available.sum() / record.sizes.sum():.3g}"
    ax.bar(places, record.bits, color=COLOURS["levels"], alpha=0.35, label=f"{stored} bits")
    look = {"color": COLOURS["quantized"], "width": 0.55, "ecolor": COLOURS["float"]}
    used = f"used: {plus_minus(record.mean, record.mean_error)} bits"
    ax.bar(places, record.entropy, yerr=record.error, label=used, **look)
    ax.set_ylabel(f"bits per {record.of.removesuffix('s')}")
    ax.set_title(record.label)
    _name_layers(ax, record.layers)
    ax.set_ylim(0, 1.25 * record.bits.max())
    ax.legend(loc="upper right", ncols=2)
    return ax


def code_occupancy(
    ax: Axes,
    record: CodeEntropy,
    layer: str,
    *,
    reference: GaussianCodes | None = None,
) -> Axes:
    """Draw the share of numbers at each code of one layer, and the entropy in the title.

    Args:
        ax: Where.
        record: What ``analysis.code_entropy`` or ``analysis.activation_entropy`` returned.
        layer: Name of the layer.
        reference: Shares to compare with, of the same grid, drawn as dashes. Default: None.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such layer, or the reference has another number of codes.
    """
    check_kind(record, CodeEntropy)
    if layer not in record.layers:
        raise ValueError(f"layer is {layer!r}; allowed: {', '.join(record.layers)}")
    index = record.layers.index(layer)
    shares = 100 * record.counts[index] / record.sizes[index]
    codes = record.low[index] + np.arange(len(shares))
    bars = ax.bar(codes, shares, color=COLOURS["quantized"], width=0.8)
    if len(shares) <= 8:
        box = {"fc": "white", "ec": "none", "pad": 0.6}  # in front of the dashes
        labels = [f"{share:.2g}%" for share in shares]
        ax.bar_label(bars, labels, fontsize="x-small", padding=3, bbox=box)
    if reference is not None:
        _dashes(ax, reference, codes)
    ax.set(xlabel="code", ylabel=f"share of {record.of} (%)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    error, most = record.error[index], np.log2(len(shares))
    ax.set_title(f"{layer}: {record.entropy[index]:.3f} ± {error:.1g} of {most:.3g} bits")
    ax.margins(y=0.25)
    return ax


def _dashes(ax: Axes, reference: GaussianCodes, codes: np.ndarray) -> None:
    check_kind(reference, GaussianCodes)
    if len(reference.shares) != len(codes):
        raise ValueError(
            f"the reference has {len(reference.shares)} codes, the layer has {len(codes)}"
        )
    label = f"normal weights, {reference.label}: {reference.entropy:.3f} bits"
    ends = codes - 0.45, codes + 0.45
    ax.hlines(100 * reference.shares, *ends, color=COLOURS["float"], lw=2, label=label)
    ax.legend(loc="upper left")


def entropy_by_layer(
    ax: Axes,
    records: CodeEntropy | Mapping[str, CodeEntropy],
    *,
    reference: GaussianCodes | None = None,
    corrected: bool = False,
) -> Axes:
    """Draw the entropy of every layer, one line per network.

    Args:
        ax: Where.
        records: What ``analysis.code_entropy`` returned, or several by name of the network; all
            of the same layers.
        reference: Entropy before training, drawn as a dashed line. Default: None.
        corrected: With the correction of Miller and Madow. Default: False (ours).

    Returns:
        The axes.

    Raises:
        ValueError: If the networks have other layers.
    """
    several = by_label(records, CodeEntropy)
    first = next(iter(several.values()))
    if different := [name for name, r in several.items() if r.layers != first.layers]:
        raise ValueError(f"{different[0]!r} has other layers than {next(iter(several))!r}")
    colours = colours_of(several)
    for name, record in several.items():
        values = record.corrected if corrected else record.entropy
        look = {"fmt": "o-", "ms": 4, "capsize": 3, "color": colours[name]}
        mean = record.mean_corrected if corrected else record.mean
        label = joined(name, f"{plus_minus(mean, record.mean_error, '.3f')} bits")
        ax.errorbar(range(len(values)), values, record.error, label=label, **look)
    if reference is not None:
        check_kind(reference, GaussianCodes)
        label = f"normal weights: {reference.entropy:.3f} bits"
        ax.axhline(reference.entropy, color=COLOURS["float"], ls="--", lw=1, label=label)
    ax.set_ylabel(f"entropy (bits per {first.of.removesuffix('s')})")
    _name_layers(ax, first.layers)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return ax


def network_entropy(ax: Axes, records: CodeEntropy | Mapping[str, CodeEntropy]) -> Axes:
    """Draw the bits that whole networks use, one bar each, within those that they have.

    Args:
        ax: Where.
        records: What ``analysis.code_entropy`` returned, or several by name of the network.

    Returns:
        The axes.
    """
    several = by_label(records, CodeEntropy)
    places, colours = range(len(several)), colours_of(several)
    available = [r.bits_available.sum() / r.sizes.sum() for r in several.values()]
    ax.bar(places, available, color=COLOURS["levels"], alpha=0.35, label="available")
    means, errors = zip(*[(r.mean, r.mean_error) for r in several.values()], strict=True)
    look = {"width": 0.55, "color": list(colours.values()), "ecolor": COLOURS["float"]}
    bars = ax.bar(places, means, yerr=errors, **look)
    texts = [plus_minus(*pair, ".3f") for pair in zip(means, errors, strict=True)]
    ax.bar_label(bars, texts, fontsize="x-small", label_type="center", color="white", rotation=90)
    ax.set_xticks(list(places), list(several))
    of = next(iter(several.values())).of.removesuffix("s")
    ax.set(ylabel=f"bits per {of}", ylim=(0, 1.2 * max(available)))
    ax.legend(loc="upper right")
    return ax


def _name_layers(ax: Axes, layers: tuple[str, ...]) -> None:
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor")
