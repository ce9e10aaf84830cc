"""How well masks and boxes are predicted: intersection over union, average precision."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qatviz.collages import Boxes, Labels, areas, common_areas

PerClass = Float[np.ndarray, "classes"]


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes found in several images, one row each.

    Attributes:
        image: ``[found]``, int64: number of the image.
        label: ``[found]``, int64: class.
        score: ``[found]``, float: how sure the detector is.
        box: ``[found, 4]``: left, top, right, bottom in pixels.
    """

    image: Tensor
    label: Tensor
    score: Tensor
    box: Tensor


def intersection_over_union(
    predicted: Int64[Tensor, "*shape"], truth: Int64[Tensor, "*shape"], classes: int
) -> PerClass:
    """Pixels that are predicted and true of a class, of all that are either, over all images.

    Args:
        predicted: The class of each pixel.
        truth: The same shape.
        classes: How many, background included.

    Returns:
        One number per class, 0 to 1; NaN where no pixel is truly of the class.
    """
    pairs = torch.bincount((truth * classes + predicted).flatten(), minlength=classes**2)
    table = pairs.view(classes, classes).double()
    both, true = table.diagonal(), table.sum(1)
    either = true + table.sum(0) - both
    return torch.where(true > 0, both / either.clamp(min=1), torch.nan).numpy()


def average_precision(
    found: Detections, boxes: Boxes, labels: Labels, classes: int, least: float = 0.5
) -> PerClass:
    """The area under precision over recall, of each class.

    All that was found of a class is taken in the order of falling scores. It is right if, of the
    true boxes of its class in its image, the one that it overlaps most has an intersection over
    union of at least ``least`` with it and was not taken by one before. After each, precision is
    the share of right ones so far, recall the share of true boxes that were found. Precision is
    then raised to the highest at any larger recall, and summed over the steps of recall.

    Args:
        found: What a detector found.
        boxes: The true ones of each image.
        labels: Their classes; −1: none.
        classes: How many, without background.
        least: Default: 0.5.

    Returns:
        One number per class, 0 to 1; NaN where there is no true box.

    Source: Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: a Retrospective",
    section 4.2 (the area, as from 2010 on; as we read it).
    """
    result = np.full(classes, np.nan)
    for label in range(classes):
        total = int((labels == label).sum())
        if total:
            right = _right(found, boxes, labels, label, least)
            result[label] = area_under_precision(right, total)
    return result


def area_under_precision(right: Float[np.ndarray, "found"], total: int) -> float:
    """The area under precision over recall, given which were right.

    Args:
        right: 1 where right, else 0, by falling score.
        total: How many there were to find.

    Returns:
        0 to 1.
    """
    if not len(right):
        return 0.0
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * right).sum() / total)  # recall rises by 1/total where right


def _right(
    found: Detections, boxes: Tensor, labels: Tensor, label: int, least: float
) -> np.ndarray:
    """Of all that was found of a class, by falling score, 1 where it is right."""
    chosen = (found.label == label).nonzero()[:, 0]
    chosen = chosen[found.score[chosen].argsort(descending=True, stable=True)]
    overlaps = _overlaps(found.box[chosen], boxes[found.image[chosen]])
    overlaps = torch.where(labels[found.image[chosen]] == label, overlaps, -1.0)
    best, place = (part.tolist() for part in overlaps.max(1))
    taken, right = set(), np.zeros(len(chosen))
    for index, image in enumerate(found.image[chosen].tolist()):
        true = (image, place[index])
        if best[index] >= least and true not in taken:
            taken.add(true)
            right[index] = 1
    return right


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of each box with the boxes of its own row."""
    box = box[:, None].expand_as(boxes)
    common = common_areas(box, boxes)
    return common / (areas(box) + areas(boxes) - common).clamp(min=1e-9)
