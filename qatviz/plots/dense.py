"""Draw what networks learned of collages, pixel by pixel or box by box."""

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from qatviz.plots.style import by_label, check_kind, colours_of
from qatviz.records import DensePictures, DenseRun, DenseScores

SPECK = 25  # pixels: fewer of a class get no name


def dense_curves(ax: Axes, runs: DenseRun | Mapping[str, DenseRun]) -> Axes:
    """Draw scores over training.

    Args:
        ax: Where.
        runs: One, or several of one task by label: what ``analysis.segmentation_toy`` or
            ``analysis.detection_toy`` returned.

    Returns:
        The axes.
    """
    found = by_label(runs, DenseRun)
    colours = colours_of(found)
    for label, run in found.items():
        ax.plot(run.steps, 100 * run.scores, "o-", ms=4, color=colours[label], label=label)
    run = next(iter(found.values()))
    ax.set(xlabel="optimizer steps", ylabel=f"{run.measure} (%)", ylim=(0, None))
    ax.set_title(f"{run.task}: {run.test:,} test collages")
    if any(found):
        ax.legend(fontsize="small")
    return ax


def dense_scores(ax: Axes, record: DenseScores) -> Axes:
    """Draw final scores: a dot per seed, and the mean with its 95 % t-interval.

    Args:
        ax: Where.
        record: What ``analysis.compare_dense`` returned.

    Returns:
        The axes.
    """
    check_kind(record, DenseScores)
    colours = colours_of(record.arms)
    for place, (arm, values) in enumerate(zip(record.arms, record.scores, strict=True)):
        look = {"color": colours[arm]}
        ax.plot([place - 0.12] * len(values), 100 * values, "o", ms=5, mfc="white", **look)
        mean, half = 100 * record.mean[place], 100 * record.half_width[place]
        ax.errorbar(place + 0.12, mean, half, fmt="_", ms=14, mew=2, capsize=4, **look)
    ax.set_xticks(range(len(record.arms)), record.arms)
    ax.set(ylabel=f"{record.measure} (%)", xlim=(-0.5, len(record.arms) - 0.5))
    ax.set_title(_said_of(record))
    return ax


def dense_differences(ax: Axes, record: DenseScores) -> Axes:
    """Draw mean differences over pairs with their 95 % t-intervals, and zero.

    Args:
        ax: Where.
        record: What ``analysis.compare_dense`` returned.

    Returns:
        The axes, the first arm on top; the arm that is compared with is left out.
    """
    check_kind(record, DenseScores)
    colours = colours_of(record.arms)
    others = [arm for arm in record.arms if arm != record.against]
    for place, arm in enumerate(others):
        index = record.arms.index(arm)
        mean, half = (100 * v[index] for v in (record.difference, record.difference_half_width))
        ax.errorbar(mean, place, xerr=half, fmt="o", ms=5, capsize=4, color=colours[arm])
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_yticks(range(len(others)), others)
    ax.set(
        xlabel=f"difference in {record.measure} from {record.against} (points)",
        ylim=(len(others) - 0.5, -0.5),
        title=_said_of(record),
    )
    return ax


def dense_pictures(axes: np.ndarray, runs: Mapping[str, DenseRun], index: int = 0) -> np.ndarray:
    """Draw a test collage, what is on it, and what each network says.

    Of boxes, those with a score of 0.3 or more: a network that ranks them well but is sure of none
    shows none.

    Args:
        axes: Two more than there are runs, in a row.
        runs: Of one task and one seed, by label, with pictures.
        index: Which of the collages that they keep. Default: 0.

    Returns:
        The axes: the collage, the truth, and a network each. A class has one colour in all.

    Raises:
        ValueError: If there is another number of axes, or a run has no pictures.
    """
    check_kind(runs, DenseRun, one=False, several=True)
    if len(axes) != len(runs) + 2 or any(run.pictures is None for run in runs.values()):
        raise ValueError(f"there must be {len(runs) + 2} axes, got {len(axes)}, and pictures")
    first = next(iter(runs.values()))
    kept, names = first.pictures, first.classes
    for ax in axes:
        ax.imshow(kept.images[index], cmap="gray", vmin=0, vmax=255)
        ax.set_axis_off()
    masks = bool(len(kept.masks))
    _draw(
        axes[1], kept.true_masks if masks else (), kept.true_boxes, kept.true_labels, index, names
    )
    for ax, run in zip(axes[2:], runs.values(), strict=True):
        told: DensePictures = run.pictures
        _draw(ax, told.masks, told.boxes, told.labels, index, names)
    for ax, title in zip(axes, ("collage", "truth", *runs), strict=True):
        ax.set_title(title, fontsize="small")
    return axes


def _draw(ax, masks, boxes, labels, index, names) -> None:
    """A mask, or boxes, with the names of classes."""
    colours = sns.color_palette("husl", 10)
    if len(masks):
        mask = masks[index]
        shown = np.zeros((*mask.shape, 3))
        for label in np.unique(mask):
            background = names[label] == "background"
            shown[mask == label] = (0, 0, 0) if background else colours[label % 10]
            places = np.argwhere(mask == label)
            if not background and len(places) >= SPECK:
                away = np.square(places - places.mean(0)).sum(1)  # of several, not between them
                row, column = places[away.argmin()]
                _name(ax, float(column), float(row), names[label])
        ax.imshow(shown)
        return
    for (left, top, right, bottom), label in zip(boxes[index], labels[index], strict=True):
        colour = colours[label % 10]
        # A pixel's middle has whole coordinates: its border is half a pixel before.
        corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=1.5))
        _name(ax, (left + right) / 2, top + 2, names[label])


def _name(ax: Axes, x: float, y: float, name: str) -> None:
    """Write a name, below those that are in its way (in pixels of a collage)."""
    while any(
        abs(x - t.get_position()[0]) < 20 and abs(y - t.get_position()[1]) < 5 for t in ax.texts
    ):
        y += 1
    box = {"fc": "black", "ec": "none", "alpha": 0.6, "pad": 0.5}
    ax.text(x, y, name, color="white", fontsize="xx-small", ha="center", va="center", bbox=box)


def _said_of(record: DenseScores) -> str:
    return (
        f"{record.task}, {len(record.seeds)} seeds\n"
        f"{record.labelled:,} labelled, {record.test:,} test collages each"
    )
