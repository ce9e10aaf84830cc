"""Collages of made-up images, whose pixels say what they are; views by loops over pixels."""

import pytest
import torch

from qatviz.collages import (
    Views,
    areas,
    common_areas,
    draw_views,
    make_collages,
    moved,
    moved_back,
    moved_boxes,
)
from qatviz.datasets import Split

CLASSES = ("a", "b", "c")


def solid(channels=1, side=6):
    """Six images, each all of one grey: 100, 120, 140 for classes 0, 1, 2."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    grey = (100 + 20 * labels).to(torch.uint8)
    images = grey.view(-1, 1, 1, 1).expand(-1, channels, side, side).contiguous()
    return Split(images, labels, classes=CLASSES)


def some_views(batch=5, most=4, multiple=1, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return draw_views(batch, most=most, multiple=multiple, generator=generator)


def where_to(row, column, mirrored, shift, width):
    """Where a pixel of the image lies in the view."""
    column = width - 1 - column if mirrored else column
    return row + int(shift[0]), column + int(shift[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_is_of_the_class_that_its_grey_says(channels):
    made = make_collages(solid(channels), 20, size=20, sides=(4, 7))
    assert made.images.shape == (20, channels, 20, 20)
    assert (len(made), made.background, made.classes) == (20, 3, CLASSES)
    for image, mask in zip(made.images, made.masks, strict=True):
        for row in range(20):
            for column in range(20):
                expected = {0: 3, 100: 0, 120: 1, 140: 2}[int(image[0, row, column])]
                assert mask[row, column] == expected


def test_boxes_hold_all_pixels_of_their_object_and_no_more():
    made = make_collages(solid(), 30, size=20, objects=1, sides=(3, 9))
    assert len({int(label) for label in made.labels[:, 0]}) == 3
    for mask, boxes, labels in zip(made.masks, made.boxes, made.labels, strict=True):
        inside = [(r, c) for r in range(20) for c in range(20) if mask[r, c] != 3]
        rows, columns = [r for r, _ in inside], [c for _, c in inside]
        expected = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        assert boxes[0].tolist() == expected
        assert all(mask[r, c] == labels[0] for r, c in inside)
        assert 3 <= expected[2] - expected[0] <= 9


def test_dark_borders_are_no_part_of_an_object():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[0, 0, 2:6, 3:5] = 255
    made = make_collages(
        Split(images, torch.tensor([0])), 5, size=12, objects=1, sides=(8, 8), seed=1
    )
    assert made.classes == ("0",)
    wide = made.boxes[:, 0, 2:] - made.boxes[:, 0, :2]
    assert wide.tolist() == [[2.0, 4.0]] * 5
    assert (made.masks == 0).sum((1, 2)).tolist() == [8] * 5


def test_objects_hardly_cover_each_other_and_all_numbers_occur():
    made = make_collages(solid(), 60, size=20, sides=(5, 8), overlap=0.1)
    counts = [int((labels >= 0).sum()) for labels in made.labels]
    assert set(counts) == {1, 2, 3}
    for boxes, count in zip(made.boxes.tolist(), counts, strict=True):
        for first in range(count):
            for second in range(first):
                a, b = boxes[first], boxes[second]
                across = max(0, min(a[2], b[2]) - max(a[0], b[0]))
                along = max(0, min(a[3], b[3]) - max(a[1], b[1]))
                smaller = min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
                assert across * along <= 0.1 * smaller
    touching = make_collages(solid(), 60, size=20, sides=(5, 8), overlap=1.0)
    assert common_areas(touching.boxes[:, 0], touching.boxes[:, 1]).max() > 4


def test_an_object_that_finds_no_place_is_left_out():
    made = make_collages(solid(), 10, size=8, sides=(7, 8), overlap=0.0)
    assert ((made.labels >= 0).sum(1) == 1).all()
    assert (made.labels[:, 1:] == -1).all()
    assert (made.boxes[:, 1:] == 0).all()


def test_an_image_without_light_is_left_out():
    dark = Split(torch.zeros(2, 1, 6, 6, dtype=torch.uint8), torch.tensor([0, 1]))
    made = make_collages(dark, 3, size=8, sides=(4, 6))
    assert (made.labels == -1).all()
    assert (made.masks == 2).all()


def test_the_first_of_many_are_those_of_few_and_nothing_else_is_drawn():
    before = torch.get_rng_state()
    few, many = (make_collages(solid(), n, size=20, sides=(4, 7), seed=5) for n in (4, 9))
    other = make_collages(solid(), 4, size=20, sides=(4, 7), seed=6)
    assert torch.equal(before, torch.get_rng_state())
    part = many.subset(slice(4))
    for name in ("images", "masks", "boxes", "labels"):
        assert torch.equal(getattr(few, name), getattr(part, name))
    assert not torch.equal(few.images, other.images)
    picked = many.subset(torch.tensor([7, 2]))
    assert torch.equal(picked.masks, torch.stack([many.masks[7], many.masks[2]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count and objects from 1, got 0"),
        ({"objects": 0}, "got 1 and 0"),
        ({"sides": (5, 4)}, r"got \(5, 4\)"),
        ({"sides": (5, 49)}, "from 1 to 48"),
    ],
)
def test_what_cannot_be_made_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make_collages(solid(), **({"count": 1} | changes))


def test_images_without_labels_or_of_floats_are_refused():
    split = solid()
    for wrong in (
        Split(split.images, -torch.ones(6).long()),
        Split(split.images / 255, split.labels),
    ):
        with pytest.raises(ValueError, match="uint8, and all labelled"):
            make_collages(wrong, 1)


def test_views_are_even_over_all_multiples():
    views = some_views(4000, most=8, multiple=4, seed=0)
    assert abs(views.mirrored.float().mean() - 0.5) < 0.04
    for axis in (0, 1):
        counts = [(views.shift[:, axis] == s).sum().item() for s in (-8, -4, 0, 4, 8)]
        assert sum(counts) == 4000
        assert all(abs(n - 800) < 120 for n in counts)
    assert (some_views(9, most=0).shift == 0).all()
    for most, multiple in ((-1, 1), (6, 4)):
        with pytest.raises(ValueError, match=f"multiple of {multiple}, got {most}"):
            some_views(most=most, multiple=multiple)


@pytest.mark.parametrize("shape", [(5, 2, 7, 6), (5, 7, 6)])
def test_every_pixel_is_moved_to_its_place(shape):
    maps = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape)
    views = some_views()
    assert views.mirrored.any()
    assert not views.mirrored.all()
    expected = torch.full(shape, 9999)
    for index in range(5):
        for row in range(7):
            for column in range(6):
                r, c = where_to(row, column, views.mirrored[index], views.shift[index], 6)
                if 0 <= r < 7 and 0 <= c < 6:
                    expected[index, ..., r, c] = maps[index, ..., row, column]
    assert torch.equal(moved(maps, views, 9999), expected)
    assert (moved(maps, views) == expected.where(expected != 9999, 0)).all()
    assert moved(maps.to(torch.uint8), views).dtype == torch.uint8


def test_there_and_back_is_the_original_wherever_the_view_showed_it():
    maps, views = torch.rand(5, 2, 7, 6, generator=torch.Generator().manual_seed(0)), some_views()
    back, valid = moved_back(moved(maps, views), views)
    for index in range(5):
        for row in range(7):
            for column in range(6):
                r, c = where_to(row, column, views.mirrored[index], views.shift[index], 6)
                assert valid[index, row, column] == (0 <= r < 7 and 0 <= c < 6)
                shown = maps[index, :, row, column] if valid[index, row, column] else torch.zeros(2)
                assert torch.equal(back[index, :, row, column], shown)
    assert 0 < valid.sum() < valid.numel()


def test_coarse_maps_go_back_by_cells():
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    views = some_views(6, most=8, multiple=4, seed=1)
    pooled = torch.nn.functional.avg_pool2d(images, 4)
    back, valid = moved_back(torch.nn.functional.avg_pool2d(moved(images, views), 4), views, 4)
    assert 0 < valid.sum() < valid.numel()
    torch.testing.assert_close(back[:, 0][valid], pooled[:, 0][valid])
    with pytest.raises(ValueError, match="multiple of the stride, 4"):
        moved_back(pooled, Views(torch.ones(6).bool(), torch.full((6, 2), 2)), 4)


def test_gradients_go_back_to_the_pixels_that_are_seen():
    maps, views = torch.rand(5, 1, 7, 6, requires_grad=True), some_views()
    back, valid = moved_back(maps, views)
    back.sum().backward()
    assert maps.grad.sum() == valid.sum()
    assert set(maps.grad.unique().tolist()) == {0.0, 1.0}


def test_boxes_move_with_their_objects():
    made = make_collages(solid(), 40, size=20, objects=1, sides=(5, 8))
    views = some_views(40, most=6)
    boxes, labels = moved_boxes(made.boxes, made.labels, views, 20)
    masks = moved(made.masks, views, made.background)
    dropped = 0
    for mask, whole, box, label, old in zip(
        masks, made.boxes[:, 0], boxes[:, 0], labels[:, 0], made.labels[:, 0], strict=True
    ):
        inside = [(r, c) for r in range(20) for c in range(20) if mask[r, c] != 3]
        if len(inside) < 0.5 * areas(whole):  # all of the box is object
            assert label == -1
            dropped += 1
            continue
        rows, columns = [r for r, _ in inside], [c for _, c in inside]
        assert box.tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        assert label == old
    assert 0 < dropped < 20


def test_no_object_stays_none():
    views = Views(torch.tensor([True]), torch.tensor([[0, 0]]))
    empty = torch.zeros(1, 2, 4)
    assert (moved_boxes(empty, torch.full((1, 2), -1), views, 9)[1] == -1).all()


def test_areas_by_hand():
    a, b = torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([[2.0, 1, 9, 9]])
    assert areas(a).tolist() == [12]
    assert common_areas(a, b).tolist() == [4]
    assert common_areas(a, b + 10).tolist() == [0]
