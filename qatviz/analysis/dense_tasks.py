"""Two dense tasks on collages: their small networks, losses, and ways of agreeing across views."""

from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import batched_nms
from typing_extensions import override

from qatviz.analysis.dense_scores import Detections, average_precision, intersection_over_union
from qatviz.collages import Boxes, Collages, Labels, Views, moved, moved_back, moved_boxes

Maps = Float[Tensor, "batch channels rows columns"]
Valid = Bool[Tensor, "batch rows columns"]
Scalar = Float[Tensor, ""]
CELL = 8  # pixels along the side of a cell of the detector's grid
PICTURED = 0.3  # ours: lowest score of a box in a picture; the unsure ones would cover it
UNIT = 16  # pixels: the unit of its distances, about half a garment


class Task(ABC):
    """What a network is to say of collages, and how far it is from that.

    Attributes:
        name: In one word.
        measure: What ``scores`` are.
        stride: Pixels per cell of its maps.
        most: Largest shift of its views, in pixels; shifts are multiples of ``stride``.
    """

    name: str
    measure: str
    stride: int
    most: int

    @abstractmethod
    def network(self, channels: int, classes: int) -> nn.Sequential:
        """A new float network, drawn from the global generator.

        Args:
            channels: Of the images.
            classes: Without background.

        Returns:
            Units by name, of which the first and the last with weights are ``first`` and ``last``.
        """

    @abstractmethod
    def label_loss(self, maps: Maps, collages: Collages, views: Views) -> dict[str, Scalar]:
        """How far the maps of moved images are from what is on these.

        Args:
            maps: Of a network.
            collages: As they were before.
            views: How they were moved.

        Returns:
            Terms by name; the loss is their sum.
        """

    @abstractmethod
    def disagreement(self, student: Maps, teacher: Maps, valid: Valid) -> Scalar:
        """How far a student is from its teacher, cell by cell.

        Args:
            student: Maps of a network.
            teacher: Of another, without gradient.
            valid: Which cells count.

        Returns:
            0 where they agree.
        """

    @abstractmethod
    def scores(self, maps: Maps, collages: Collages) -> Float[np.ndarray, "classes"]:
        """How good the maps of unmoved collages are.

        Args:
            maps: Of a network.
            collages: The truth.

        Returns:
            One number per class, 0 to 1; NaN where the class is in no collage.
        """

    @abstractmethod
    def picture(self, maps: Maps) -> list[dict[str, np.ndarray]]:
        """What a network says of each collage, to be drawn.

        Args:
            maps: Of a network.

        Returns:
            For each collage, ``"mask"``, or ``"boxes"`` and ``"labels"``.
        """

    def unmirrored(self, maps: Maps, views: Views) -> Maps:
        """Mirror what maps say about left and right, where the image was mirrored.

        Args:
            maps: Already moved back.
            views: How the images were moved.

        Returns:
            The maps.
        """
        return maps

    def aligned(self, maps: Maps, views: Views) -> tuple[Maps, Valid]:
        """Move maps of moved images to where the images were before.

        Args:
            maps: Of a network.
            views: How the images were moved.

        Returns:
            The maps, and which cells the moved image still showed.
        """
        back, valid = moved_back(maps, views, self.stride)
        return self.unmirrored(back, views), valid


class Segmentation(Task):
    """The class of every pixel, background included. ~40,000 parameters, two poolings."""

    name, measure, stride, most = "segmentation", "mIoU", 1, 6

    @override
    def network(self, channels: int, classes: int) -> nn.Sequential:
        return _sequential(
            *_unit("first", channels, 16),
            ("pool1", nn.MaxPool2d(2)),
            *_unit("second", 16, 32),
            ("pool2", nn.MaxPool2d(2)),
            *_unit("third", 32, 48),
            *_unit("fourth", 48, 32),
            ("up1", nn.Upsample(scale_factor=2, mode="bilinear")),
            *_unit("fifth", 32, 16),
            ("last", nn.Conv2d(16, classes + 1, 3, padding=1)),
            ("up2", nn.Upsample(scale_factor=2, mode="bilinear")),
        )

    @override
    def label_loss(self, maps, collages, views) -> dict[str, Scalar]:
        masks = moved(collages.masks, views, collages.background)
        return {"pixels": cross_entropy(maps, masks)}

    @override
    def disagreement(self, student, teacher, valid) -> Scalar:
        return mean_divergence(student, teacher, valid)

    @override
    def scores(self, maps, collages) -> Float[np.ndarray, "classes"]:
        return intersection_over_union(maps.argmax(1), collages.masks, maps.shape[1])

    @override
    def picture(self, maps) -> list[dict[str, np.ndarray]]:
        return [{"mask": mask.numpy().astype(np.uint8)} for mask in maps.argmax(1)]


class Detection(Task):
    """Boxes, from a grid of cells of 8×8 pixels. ~33,000 parameters, three poolings.

    Of each cell the maps hold: the logit that the centre of an object's box lies in it; the logits
    of its class; the distances from the cell's centre to the left, top, right and bottom of the
    box, in units of 16 pixels. Shifts are whole cells, so that maps can be moved back exactly.
    """

    name, measure, stride, most = "detection", "AP at IoU 0.5", CELL, CELL

    @override
    def network(self, channels: int, classes: int) -> nn.Sequential:
        return _sequential(
            *_unit("first", channels, 16),
            ("pool1", nn.MaxPool2d(2)),
            *_unit("second", 16, 32),
            ("pool2", nn.MaxPool2d(2)),
            *_unit("third", 32, 48),
            ("pool3", nn.MaxPool2d(2)),
            *_unit("fourth", 48, 32),
            ("last", nn.Conv2d(32, 1 + classes + 4, 1)),
        )

    @override
    def label_loss(self, maps, collages, views) -> dict[str, Scalar]:
        size = collages.images.shape[-1]
        boxes, labels = moved_boxes(collages.boxes, collages.labels, views, size)
        classes, distances = grid_targets(boxes, labels, maps.shape[-1])
        there = classes >= 0
        count = there.sum().clamp(min=1)
        objects, logits, sides = split_maps(maps)
        wrong = binary_cross_entropy_with_logits(objects, there.float(), reduction="sum")
        off = (sides - distances).abs().mean(1)
        return {
            "objects": wrong / count,
            "classes": cross_entropy(logits, classes, ignore_index=-1, reduction="sum") / count,
            "boxes": (off * there).sum() / count,
        }

    @override
    def disagreement(self, student, teacher, valid) -> Scalar:
        """KL of objects on all valid cells; of classes, and L1 of boxes, where the teacher is sure.

        Args:
            student: Maps of a network.
            teacher: Of another, without gradient.
            valid: Which cells count.

        Returns:
            The sum, over the number of valid cells where the teacher says that there is an object
            with a probability of ½ or more, but at least that of images: each should show one.
        """
        (ours, classes, sides), (theirs, sure, places) = map(split_maps, (student, teacher))
        confident = valid & (theirs >= 0)
        count = confident.sum().clamp(min=len(valid))
        # Two classes: with logits z and 0 the softmax is the sigmoid of z.
        pair = [torch.stack([z, torch.zeros_like(z)], 1) for z in (ours, theirs)]
        objects = (divergences(*pair) * valid).sum()
        same = (divergences(classes, sure) * confident).sum()
        off = ((sides - places).abs().mean(1) * confident).sum()
        return (objects + same + off) / count

    @override
    def unmirrored(self, maps, views) -> Maps:
        swapped = torch.cat([maps[:, :-4], maps[:, [-2, -3, -4, -1]]], 1)
        return torch.where(views.mirrored.view(-1, 1, 1, 1), swapped, maps)

    @override
    def scores(self, maps, collages) -> Float[np.ndarray, "classes"]:
        found = detections(maps, collages.images.shape[-1])
        return average_precision(found, collages.boxes, collages.labels, len(collages.classes))

    @override
    def picture(self, maps) -> list[dict[str, np.ndarray]]:
        found = detections(maps, maps.shape[-1] * CELL, PICTURED)
        rows = [found.image == index for index in range(len(maps))]
        return [{"boxes": found.box[r].numpy(), "labels": found.label[r].numpy()} for r in rows]


def divergences(
    student: Float[Tensor, "batch classes rows columns"],
    teacher: Float[Tensor, "batch classes rows columns"],
) -> Float[Tensor, "batch rows columns"]:
    """KL(p_T ‖ p_S) of each cell, in nats.

    Args:
        student: Logits.
        teacher: Logits.

    Returns:
        0 or more.
    """
    ours, theirs = student.log_softmax(1), teacher.log_softmax(1)
    return (theirs.exp() * (theirs - ours)).sum(1)


def mean_divergence(student: Maps, teacher: Maps, valid: Valid) -> Scalar:
    """The mean of ``divergences`` over the cells that count.

    Args:
        student: Logits.
        teacher: Logits.
        valid: Which cells count.

    Returns:
        Nats, 0 or more; 0 where none counts.
    """
    return (divergences(student, teacher) * valid).sum() / valid.sum().clamp(min=1)


def split_maps(
    maps: Maps,
) -> tuple[
    Float[Tensor, "batch rows columns"],
    Float[Tensor, "batch classes rows columns"],
    Float[Tensor, "batch 4 rows columns"],
]:
    """What the maps of a detector hold.

    Args:
        maps: See ``Detection``.

    Returns:
        Logits of objects, logits of classes, distances.
    """
    return maps[:, 0], maps[:, 1:-4], maps[:, -4:]


def grid_targets(
    boxes: Boxes, labels: Labels, cells: int
) -> tuple[Int64[Tensor, "batch cells cells"], Float[Tensor, "batch 4 cells cells"]]:
    """What the maps of a detector should hold. Of two objects in one cell the later counts.

    Args:
        boxes: Left, top, right, bottom in pixels.
        labels: −1: no object.
        cells: Along each side of the grid.

    Returns:
        The class of each cell, −1 where no box has its centre; and the distances, 0 there.
    """
    classes = torch.full((len(boxes), cells, cells), -1)
    distances = torch.zeros(len(boxes), 4, cells, cells)
    own = torch.arange(len(boxes))
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    place = (middle / CELL).long().clamp(0, cells - 1)
    for index in range(labels.shape[1]):  # one after the other: which of two counts is then fixed
        there = labels[:, index] >= 0
        column, row = place[there, index].unbind(1)
        centre = (place[there, index] + 0.5) * CELL
        box = boxes[there, index]
        classes[own[there], row, column] = labels[there, index]
        sides = torch.cat([centre - box[:, :2], box[:, 2:] - centre], 1)
        distances[own[there], :, row, column] = sides / UNIT
    return classes, distances


def detections(maps: Maps, size: int, least: float = 0.05, overlap: float = 0.5) -> Detections:
    """What a detector found: the likeliest class of each cell, without doubles.

    Args:
        maps: See ``Detection``.
        size: Side of the images in pixels, where boxes end.
        least: Lowest score, the probability of an object times that of its class. Default: 0.05
            (ours).
        overlap: Of two boxes of one class in one image that overlap by more than this
            (intersection over union), the one with the lower score is dropped. Default: 0.5
            (ours).

    Returns:
        All that was found, by falling score.
    """
    objects, logits, sides = split_maps(maps)
    share, label = logits.softmax(1).max(1)
    score = objects.sigmoid() * share
    at = (torch.arange(maps.shape[-1]) + 0.5) * CELL
    centre = torch.stack([at.expand(len(at), -1), at[:, None].expand(-1, len(at))])  # x, y
    low, high = centre - UNIT * sides[:, :2], centre + UNIT * sides[:, 2:]
    box = torch.cat([low, high.maximum(low)], 1).clamp(0, size).movedim(1, -1)
    image, row, column = (score >= least).nonzero().unbind(1)
    rows = (image, row, column)
    classes = logits.shape[1]
    kept = batched_nms(box[rows], score[rows], image * classes + label[rows], overlap)
    return Detections(image[kept], label[rows][kept], score[rows][kept], box[rows][kept])


def _unit(name: str, inputs: int, outputs: int) -> list[tuple[str, nn.Module]]:
    return [
        (name, nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
        (f"{name}_norm", nn.BatchNorm2d(outputs)),
        (f"{name}_relu", nn.ReLU()),
    ]


def _sequential(*units: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(units))
