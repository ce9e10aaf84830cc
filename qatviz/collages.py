"""Collages: several small images on one black canvas, with a class per pixel and boxes.

Views of a collage are flips and whole-pixel shifts whose parameters are kept, so that maps
predicted of a view can be moved back to where the collage had them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

from qatviz.datasets import Split

Boxes = Float[Tensor, "batch objects 4"]
Labels = Int64[Tensor, "batch objects"]
TRIES = 20  # ours: places tried for an object, before it is left out


@dataclass(frozen=True, eq=False)
class Collages:
    """Canvases with what is on them.

    Attributes:
        images: ``[collages, channels, size, size]``, uint8; 0 where nothing is.
        masks: ``[collages, size, size]``, int64: the class of each pixel; ``background`` where
            nothing is.
        boxes: ``[collages, objects, 4]``, float32: left, top, right, bottom in pixels, the
            smallest that holds every pixel of the object, right and bottom beyond its last.
        labels: ``[collages, objects]``, int64: the class in each box; −1: no object there.
        classes: The name of each class.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def background(self) -> int:
        """The class of pixels where nothing is: the one after the last."""
        return len(self.classes)

    def subset(self, which: slice | Int64[Tensor, " chosen"]) -> "Collages":
        """Some of the collages.

        Args:
            which: A slice, or a tensor of indices.

        Returns:
            The same classes.
        """
        parts = (self.images, self.masks, self.boxes, self.labels)
        return Collages(*(part[which] for part in parts), self.classes)


@dataclass(frozen=True, eq=False)
class Views:
    """How each image of a batch is moved: mirrored left to right or not, then shifted.

    Attributes:
        mirrored: ``[batch]``, bool.
        shift: ``[batch, 2]``, int64: pixels down and to the right.
    """

    mirrored: Tensor
    shift: Tensor


def make_collages(
    split: Split,
    count: int,
    *,
    size: int = 48,
    objects: int = 3,
    sides: tuple[int, int] = (16, 24),
    overlap: float = 0.1,
    threshold: float = 0.1,
    seed: int = 0,
) -> Collages:
    """Shrink images and place them on black canvases, 1 to ``objects`` on each.

    Number, images, sides and places are drawn evenly. A place where the box of an object would
    cover an earlier one by more than ``overlap`` of the smaller of the two is drawn anew; after
    20 tries the object is left out. A later object hides an earlier one, whose box stays.

    Args:
        split: Images with black background, uint8, all labelled.
        count: How many collages.
        size: Side of the canvas in pixels. Default: 48 (ours).
        objects: Most objects on a canvas. Default: 3 (ours).
        sides: Smallest and largest side of a shrunken image, in pixels. Default: 16 and 24 (ours).
        overlap: See above, 0 to 1. Default: 0.1 (ours).
        threshold: A pixel belongs to the object if its brightest channel is above this, in units
            of [0, 1]. Default: 0.1 (ours).
        seed: Of all that is drawn. The first collages of a larger count are those of a smaller.
            Default: 0 (ours).

    Returns:
        The collages.

    Raises:
        ValueError: If images are not uint8 or not all labelled, ``count`` or ``objects`` is below
            1, or the sides are not ordered from 1 to ``size``.
    """
    _check(split, count, objects, sides, size)
    generator = torch.Generator().manual_seed(seed)
    classes = split.classes or tuple(str(i) for i in range(int(split.labels.max()) + 1))
    channels = split.images.shape[1]
    images = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    masks = torch.full((count, size, size), len(classes))
    boxes, labels = torch.zeros(count, objects, 4), torch.full((count, objects), -1)
    for index in range(count):
        wanted = int(torch.randint(1, objects + 1, (), generator=generator))
        placed = 0
        for _ in range(wanted):
            chosen = int(torch.randint(len(split), (), generator=generator))
            side = int(torch.randint(sides[0], sides[1] + 1, (), generator=generator))
            small = _shrunken(split.images[chosen], side)
            inside = small.amax(0) > 255 * threshold
            box = _place(inside, boxes[index, :placed], size, overlap, generator)
            if box is None:
                continue
            (top, left), boxes[index, placed] = box
            window = (slice(top, top + side), slice(left, left + side))
            images[index][:, *window][:, inside] = small[:, inside]
            masks[index][window][inside] = split.labels[chosen]
            labels[index, placed] = split.labels[chosen]
            placed += 1
    return Collages(images, masks, boxes, labels, classes)


def draw_views(count: int, *, most: int, generator: torch.Generator, multiple: int = 1) -> Views:
    """Draw how to move each image: a mirror with probability ½, and an even shift both ways.

    Args:
        count: How many images.
        most: Largest shift in pixels, 0 or more, a multiple of ``multiple``.
        generator: Draws.
        multiple: Shifts are multiples of this: where maps have a cell per so many pixels, these
            can be moved back exactly. Default: 1 (ours).

    Returns:
        One view per image.

    Raises:
        ValueError: If ``most`` is negative or no multiple.
    """
    if most < 0 or most % multiple:
        raise ValueError(f"draw_views: most must be 0 or a multiple of {multiple}, got {most}")
    mirrored = torch.rand(count, generator=generator) < 0.5
    steps = most // multiple
    shift = torch.randint(-steps, steps + 1, (count, 2), generator=generator) * multiple
    return Views(mirrored, shift)


def moved(
    maps: Shaped[Tensor, "batch *channels height width"], views: Views, fill: int = 0
) -> Shaped[Tensor, "batch *channels height width"]:
    """Move each image, or each mask.

    Args:
        maps: Images ``[batch, channels, height, width]`` or masks ``[batch, height, width]``.
        views: How, one per image.
        fill: What comes in at the borders. Default: 0.

    Returns:
        The same shape and type.
    """
    height, width = maps.shape[-2:]
    rows = torch.arange(height) - views.shift[:, :1]
    columns = torch.arange(width) - views.shift[:, 1:]
    columns, inside = _mirrored(columns, views, width), _inside(rows, columns, height, width)
    inside = inside.view(len(maps), *[1] * (maps.ndim - 3), height, width)
    return torch.where(inside, _picked(maps, rows, columns), fill)


def moved_back(
    maps: Float[Tensor, "batch channels height width"], views: Views, stride: int = 1
) -> tuple[Float[Tensor, "batch channels height width"], Bool[Tensor, "batch height width"]]:
    """Move maps that were predicted of moved images to where the images were before.

    Differentiable. Numbers stay as they are: what a map says about left and right is for the
    caller to mirror.

    Args:
        maps: One per image.
        views: How the images were moved.
        stride: Pixels per cell of the maps, along each side; shifts must be multiples.
            Default: 1.

    Returns:
        The maps, and which of their cells the moved image still showed: elsewhere they are 0.

    Raises:
        ValueError: If a shift is no multiple of ``stride``.
    """
    if (views.shift % stride).any():
        raise ValueError(f"moved_back: every shift must be a multiple of the stride, {stride}")
    height, width = maps.shape[-2:]
    shift = views.shift // stride
    rows = torch.arange(height) + shift[:, :1]
    columns = _mirrored(torch.arange(width).expand(len(maps), width), views, width) + shift[:, 1:]
    inside = _inside(rows, columns, height, width)
    return torch.where(inside[:, None], _picked(maps, rows, columns), 0), inside


def moved_boxes(
    boxes: Boxes, labels: Labels, views: Views, size: int, least: float = 0.5
) -> tuple[Boxes, Labels]:
    """Move the boxes of moved images, cut off at the border.

    Args:
        boxes: Left, top, right, bottom in pixels.
        labels: −1: no object.
        views: How the images were moved.
        size: Side of the images in pixels.
        least: Share of its area that an object must keep, or it is none. Default: 0.5 (ours).

    Returns:
        Boxes, and labels: −1 where too little is left.
    """
    left, top, right, bottom = boxes.unbind(-1)
    swap = views.mirrored[:, None]
    left, right = torch.where(swap, size - right, left), torch.where(swap, size - left, right)
    down, along = views.shift[:, :1], views.shift[:, 1:]
    whole = torch.stack([left + along, top + down, right + along, bottom + down], -1)
    cut = whole.clamp(0, size)
    keeps = (areas(cut) >= least * areas(whole)) & (areas(cut) > 0)
    return cut, torch.where(keeps, labels, -1)


def areas(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """The areas of boxes.

    Args:
        boxes: Left, top, right, bottom.

    Returns:
        Width times height.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def common_areas(
    first: Float[Tensor, "*batch 4"], second: Float[Tensor, "*batch 4"]
) -> Float[Tensor, "*batch"]:
    """The areas that pairs of boxes have in common.

    Args:
        first: Left, top, right, bottom.
        second: The same shape.

    Returns:
        0 where they do not touch.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def _check(split: Split, count: int, objects: int, sides: tuple[int, int], size: int) -> None:
    if split.images.dtype != torch.uint8 or (split.labels < 0).any():
        raise ValueError("make_collages: images must be uint8, and all labelled")
    if min(count, objects) < 1:
        raise ValueError(f"make_collages: count and objects from 1, got {count} and {objects}")
    if not 1 <= sides[0] <= sides[1] <= size:
        raise ValueError(f"make_collages: sides must be ordered, from 1 to {size}, got {sides}")


def _shrunken(image: Tensor, side: int) -> Tensor:
    small = interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)


def _place(
    inside: Tensor, earlier: Tensor, size: int, overlap: float, generator: torch.Generator
) -> tuple[tuple[int, int], Tensor] | None:
    """Top and left of an object, and its box; None where it has no pixel or finds no place."""
    if not inside.any():
        return None
    rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    for _ in range(TRIES):
        top, left = torch.randint(0, size - len(inside) + 1, (2,), generator=generator).tolist()
        box = torch.stack(ends) + torch.tensor([left, top, left, top])
        others = box.float().expand_as(earlier)
        smaller = torch.minimum(areas(earlier), areas(others))
        if (common_areas(earlier, others) <= overlap * smaller).all():
            return (top, left), box
    return None


def _mirrored(columns: Tensor, views: Views, width: int) -> Tensor:
    return torch.where(views.mirrored[:, None], width - 1 - columns, columns)


def _inside(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Which cells are within the map: ``[batch, height, width]``."""
    up = (rows >= 0) & (rows < height)
    along = (columns >= 0) & (columns < width)
    return up[:, :, None] & along[:, None]


def _picked(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each map at its rows and columns; those outside are moved to the border."""
    height, width = maps.shape[-2:]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
    flat = flat.view(len(maps), *[1] * (maps.ndim - 3), height * width)
    wide = maps.flatten(-2)
    return wide.gather(-1, flat.expand(wide.shape)).view(maps.shape)
