"""Draw four statements about consistency and perturbation, in numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from qatviz.plots.style import check_kind, colours_of
from qatviz.records import ConvolutionMismatch, DivergenceAsSharpness, ErrorPropagation


def divergence_as_sharpness(
    ax: Axes, records: Mapping[str, DivergenceAsSharpness], *, log: bool = False
) -> Axes:
    """Draw the divergence over its quadratic prediction against the length, a line per network.

    Args:
        ax: Where.
        records: What ``analysis.divergence_as_sharpness`` returned, by name; all of weights, or
            all of images.
        log: Whether the ratio is on a logarithmic scale: of networks that round activations it
            may be thousands. Default: False (ours).

    Returns:
        The axes. Bars are two standard errors over images; dashed: 1, where they agree.

    Raises:
        ValueError: If some are of weights and others of images.
    """
    check_kind(records, DivergenceAsSharpness, one=False, several=True)
    of = sorted({record.of for record in records.values()})
    if len(of) > 1:
        raise ValueError(f"records are of displaced {' and '.join(of)}; allowed: one of them")
    colours = colours_of(records)
    for name, record in records.items():
        order = np.argsort(record.lengths)
        bars = 2 * np.nan_to_num(record.ratio_error[order])
        look = {"color": colours[name], "capsize": 2, "label": f"{name} (n = {record.samples})"}
        ax.errorbar(record.lengths[order], record.ratio[order], yerr=bars, fmt="o-", ms=4, **look)
    ax.axhline(1, color="0.6", ls="--", lw=1, zorder=0)
    whose = {"weights": "of all weights", "images": "of each image"}[of[0]]
    ax.set(
        xscale="log",
        xlabel=f"length of the displacement ‖δ‖ (L2 norm, {whose})",
        ylabel="KL(p_T ‖ p_S) / ½δᵀFδ (ratio of means)",
    )
    if log:
        ax.set_yscale("log")
    ax.legend()
    return ax


def convolution_mismatch(ax: Axes, records: Mapping[str, Sequence[ConvolutionMismatch]]) -> Axes:
    """Draw what no change of a kernel can do against the size of the images, a line per change.

    Args:
        ax: Where.
        records: What ``analysis.convolution_mismatch`` returned for several sizes, by kind of
            change.

    Returns:
        The axes. Dots: images alone, with two standard errors; squares: all with one ΔW, where
        there are several; dotted: √(1 − unknowns/positions), what white noise would leave.
    """
    for several in records.values():
        sizes = dict(enumerate(several))
        check_kind(sizes, ConvolutionMismatch, one=False, several=True)
    colours = colours_of(records)
    for name, kind in records.items():
        kind = sorted(kind, key=lambda record: record.height * record.width)
        sizes = [record.height * record.width for record in kind]
        look = {"color": colours[name]}
        bars = 2 * np.nan_to_num([record.error for record in kind])
        means = [record.mean for record in kind]
        ax.errorbar(sizes, means, yerr=bars, fmt="o-", ms=4, capsize=2, label=name, **look)
        several = [record for record in kind if record.samples > 1]
        if several:
            at = [record.height * record.width for record in several]
            label = f"{name}, one ΔW for {max(r.samples for r in several)} images"
            ax.plot(at, [r.together for r in several], "s--", ms=4, mfc="none", label=label, **look)
        ax.plot(sizes, [record.white for record in kind], ":", lw=1, **look)
    ax.set(
        xscale="log",
        xlabel="pixels of an image (height × width)",
        ylabel="residual ‖ΔW·P − W·ΔP‖ / ‖W·ΔP‖",
        ylim=(0, 1.05),
    )
    ax.legend()
    return ax


def error_propagation(ax: Axes, records: Mapping[str, ErrorPropagation]) -> Axes:
    """Draw the relative change of every layer's output by depth, on a logarithmic scale.

    Args:
        ax: Where.
        records: What ``analysis.error_propagation`` returned, by name of the network; all of the
            same layers.

    Returns:
        The axes. Solid: what arrives, with two standard errors over images; dashed: to first
        order; dotted: the product of spectral norms, where there is one.

    Raises:
        ValueError: If the layers differ.
    """
    check_kind(records, ErrorPropagation, one=False, several=True)
    first, layers = next((name, record.layers) for name, record in records.items())
    if different := [name for name, record in records.items() if record.layers != layers]:
        raise ValueError(f"{different[0]!r} has other layers than {first!r}")
    places, colours = np.arange(len(layers)), colours_of(records)
    for name, record in records.items():
        look = {"color": colours[name]}
        bars = 2 * np.nan_to_num(record.change_error)
        label = f"{name} (n = {record.samples})"
        ax.errorbar(places, record.mean_change, yerr=bars, fmt="o-", ms=4, label=label, **look)
        ax.plot(places, record.mean_predicted, "--", label=f"{name}, first order", **look)
        ax.plot(places, record.mean_bound, ":", label=f"{name}, product of norms", **look)
    ax.set_yscale("log")
    ax.set_xticks(places, list(layers), rotation=40, ha="right", rotation_mode="anchor")
    ax.set(xlabel="layer, in order", ylabel="change of the output / its norm")
    ax.legend()
    return ax
