"""Who is fooled first? Images under a corruption, and what several networks say of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import ipywidgets
import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray as Array
from torch import nn

from qatviz.analysis.subject import subject
from qatviz.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from qatviz.datasets import Split
from qatviz.evaluation import predict
from qatviz.plots.style import colours_of
from qatviz.widgets.explorer import Explorer

KINDS = ("gaussian_noise", "motion_blur", "contrast", "rotate")
STOPS = (0, *SEVERITIES)
RIGHT, WRONG = "#01665e", "#8c510a"  # told apart by their marks too


@dataclass(frozen=True, eq=False)
class Disturbed:
    """Images at one severity of a corruption, and what networks answer at all of them.

    Args:
        kind: Name of the corruption.
        severity: 0 (none) to 5.
        amount: What that severity means, in words.
        images: The images that are shown, raw, channels last.
        labels: The class of each.
        answers: By network, the class that it predicts for each.
        names: Names of the classes.
        accuracy: By network, accuracy at severity 0 to 5, 0 to 1.
        samples: Images that accuracies are of.
    """

    kind: str
    severity: int
    amount: str
    images: Shaped[Array, "shown height width channels"]
    labels: Int[Array, "shown"]
    answers: Mapping[str, Int[Array, "shown"]]
    names: tuple[str, ...]
    accuracy: Mapping[str, Float[Array, "severities"]]
    samples: int


def corruption_explorer(
    models: Mapping[str, nn.Module],
    data: Split,
    *,
    kinds: Iterable[str] = KINDS,
    shown: int = 6,
    samples: int = 200,
) -> Explorer:
    """Drag the severity of a corruption; see the images, the answers, the accuracy.

    All networks see the same draw of what is random. A kind is measured when it is first chosen.

    Args:
        models: Networks by name, in evaluation mode, calibrated. They do not change.
        data: Raw images with their mean and std.
        kinds: Names in ``corruptions.CORRUPTIONS``. Default: one each of noise, blur, weather
            and geometry (ours).
        shown: Images in view, the first. Default: 6 (ours).
        samples: Images that accuracies are of, the first; all if there are fewer. Default: 200
            (ours).

    Returns:
        An explorer; ``result`` is a ``Disturbed``.

    Raises:
        ValueError: As ``analysis.subject``; or if there is no network or no kind, a kind is
            unknown, or ``shown`` is not from 1 to ``samples``.
    """
    kinds = tuple(kinds)
    unknown = [kind for kind in kinds if kind not in CORRUPTIONS]
    if not models or not kinds or unknown:
        raise ValueError(
            f"corruption_explorer: {len(models)} networks, kinds are {list(kinds)}; allowed: at "
            f"least one of each, kinds among {', '.join(CORRUPTIONS)}"
        )
    for model in models.values():
        split = subject(model, data, min(samples, len(data)))
    if not 1 <= shown <= len(split):
        raise ValueError(f"shown is {shown}; allowed: 1 to {len(split)}")
    known: dict[str, list[tuple[Split, dict[str, Array]]]] = {}

    def compute(kind: str, severity: int) -> Disturbed:
        if kind not in known:
            known[kind] = [_answers(models, _disturbed(split, kind, stop)) for stop in STOPS]
        seen, answers = known[kind][severity]
        labels = split.labels.numpy()
        return Disturbed(
            kind=kind,
            severity=severity,
            amount=_amount(kind, severity),
            images=seen.images[:shown].movedim(1, -1).numpy(),
            labels=labels[:shown],
            answers={name: answer[:shown] for name, answer in answers.items()},
            names=split.classes,
            accuracy={
                name: np.array([(step[name] == labels).mean() for _, step in known[kind]])
                for name in models
            },
            samples=len(split),
        )

    return Explorer(
        compute,
        draw_corruption,
        size=(8.6, 2.9),
        kind=ipywidgets.Dropdown(options=list(kinds), description="kind"),
        severity=ipywidgets.IntSlider(2, 0, STOPS[-1], description="severity"),
        frames={"kind": list(kinds), "severity": list(STOPS)},
    )


def draw_corruption(figure: Figure, result: Disturbed) -> None:
    """Draw the images over the answers on the left, accuracy against severity on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    figure.suptitle(_title(result), fontsize="medium")
    left, right = figure.subplots(1, 2, width_ratios=(5, 2))
    _draw_answers(left, result)
    colours = colours_of(result.accuracy)
    for name, accuracy in result.accuracy.items():
        right.plot(STOPS, 100 * accuracy, "-", lw=1.2, color=colours[name], label=name)
        here = 100 * accuracy[result.severity]
        right.plot(result.severity, here, "o", color=colours[name])
    right.axvline(result.severity, color="0.6", lw=0.8, ls=":", zorder=0)
    right.set(xlabel="severity", ylabel=f"accuracy (%), {result.samples} images", ylim=(0, 102))
    right.legend(loc="lower left", fontsize="x-small", frameon=False)


def _draw_answers(ax: Axes, result: Disturbed) -> None:
    """A strip of images of unit size, and under each a line of text per network."""
    count, line = len(result.labels), 0.3
    strip = np.concatenate(list(result.images), axis=1)
    grey = strip.shape[-1] == 1
    look = {"cmap": "gray", "vmin": 0, "vmax": 255} if grey else {}
    look |= {"extent": (0, count, 0, 1), "interpolation": "nearest"}
    ax.imshow(strip.squeeze(-1) if grey else strip, **look)
    rows = [-line * (row + 0.75) for row in range(len(result.answers))]
    for row, answers in zip(rows, result.answers.values(), strict=True):
        pairs = zip(answers.tolist(), result.labels.tolist(), strict=True)
        for place, (answer, label) in enumerate(pairs):
            mark, colour = ("✓", RIGHT) if answer == label else ("✗", WRONG)
            words = f"{mark} {_name(result, answer)}"
            ax.text(place + 0.5, row, words, ha="center", va="center", fontsize=7.5, color=colour)
    ax.set(xlim=(0, count), ylim=(rows[-1] - 0.75 * line, 1))
    ax.set_yticks(rows, list(result.answers), fontsize=8)
    ax.set_xticks(
        np.arange(count) + 0.5, [_name(result, n) for n in result.labels.tolist()], fontsize=7.5
    )
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _name(result: Disturbed, label: int) -> str:
    return result.names[label] if result.names else str(label)


def _title(result: Disturbed) -> str:
    return f"{result.kind.replace('_', ' ')}, severity {result.severity}: {result.amount}"


def _amount(kind: str, severity: int) -> str:
    if severity == 0:
        return "none"
    corruption = CORRUPTIONS[kind]
    return f"{corruption.amounts[severity - 1]:g} ({corruption.unit})"


def _disturbed(split: Split, kind: str, severity: int) -> Split:
    if severity == 0:
        return split
    return replace(split, images=corrupt(split.images, kind, severity))


def _answers(models: Mapping[str, nn.Module], split: Split) -> tuple[Split, dict[str, Array]]:
    """The images, and by network the classes predicted for them."""
    return split, {name: predict(m, split)[0].argmax(1).numpy() for name, m in models.items()}
