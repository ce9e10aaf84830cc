"""The two tasks: by hand, by loops, and with predictions that follow their image exactly."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from qatviz.analysis.dense_tasks import (
    Detection,
    Segmentation,
    detections,
    divergences,
    grid_targets,
    mean_divergence,
    split_maps,
)
from qatviz.collages import Collages, Views, draw_views, moved, moved_boxes
from qatviz.quantize import quantizable_layers


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views_of(*rows):
    mirrored, shift = zip(*((m, s) for m, *s in rows), strict=True)
    return Views(torch.tensor(mirrored), torch.tensor(shift))


def collages_of(boxes, labels, size=48):
    """Two classes; black, since only boxes count."""
    images = torch.zeros(len(boxes), 1, size, size, dtype=torch.uint8)
    masks = torch.full((len(boxes), size, size), 2)
    return Collages(images, masks, torch.tensor(boxes).float(), torch.tensor(labels), ("a", "b"))


def perfect(boxes, labels, cells=6, sure=8.0):
    """The maps of a detector that knows."""
    classes, distances = grid_targets(boxes, labels, cells)
    there = (classes >= 0).float()
    logits = sure * one_hot(classes.clamp(min=0), 2).movedim(-1, 1) * there[:, None]
    return torch.cat([sure * (2 * there[:, None] - 1), logits, distances], 1)


@pytest.mark.parametrize(
    ("task", "shape", "weights"),
    [
        (Segmentation(), (2, 11, 48, 48), [(1, 16, 9), (16, 32, 9), (32, 48, 9), (48, 32, 9),
                                           (32, 16, 9), (16, 11, 9)]),
        (Detection(), (2, 15, 6, 6), [(1, 16, 9), (16, 32, 9), (32, 48, 9), (48, 32, 9),
                                      (32, 15, 1)]),
    ],
)  # fmt: skip
def test_the_networks(task, shape, weights):
    network = task.network(1, 10)
    assert network(torch.rand(2, 1, 48, 48)).shape == shape
    layers = list(quantizable_layers(network))
    assert (layers[0], layers[-1]) == ("first", "last")
    # A weight per link, two numbers per channel of a BatchNorm, a bias per output of the last.
    expected = sum(i * o * k for i, o, k in weights)
    expected += sum(2 * o for _, o, _ in weights[:-1]) + weights[-1][1]
    assert sum(p.numel() for p in network.parameters()) == expected
    norms = [m for m in network if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(weights) - 1


def test_divergence_of_each_cell_by_its_formula():
    student, teacher = random_maps(2, 3, 2, 2), random_maps(2, 3, 2, 2, seed=1)
    result = divergences(student, teacher)
    for index in np.ndindex(2, 2, 2):
        image, row, column = index
        p, q = (
            [math.exp(v) for v in maps[image, :, row, column].tolist()]
            for maps in (teacher, student)
        )
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert result[index].item() == pytest.approx(expected, rel=1e-4)


def test_only_valid_cells_count_in_the_mean():
    student, teacher = random_maps(1, 3, 1, 3), random_maps(1, 3, 1, 3, seed=1)
    each = divergences(student, teacher)[0, 0]
    valid = torch.tensor([[[True, False, True]]])
    expected = (each[0] + each[2]) / 2
    torch.testing.assert_close(mean_divergence(student, teacher, valid), expected)
    assert mean_divergence(student, teacher, torch.zeros_like(valid)) == 0
    torch.testing.assert_close(Segmentation().disagreement(student, teacher, valid), expected)


def test_predictions_that_follow_their_pixels_agree_once_aligned():
    task, images = Segmentation(), random_maps(4, 1, 12, 12)
    pointwise = nn.Conv2d(1, 3, 1)  # says of every pixel what its grey says, wherever it is
    both = [draw_views(4, most=6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    maps = [pointwise(moved(images, views)) for views in both]
    (ours, seen), (theirs, known) = map(task.aligned, maps, both)
    assert 0 < (seen & known).sum() < seen.numel()
    assert task.disagreement(ours, theirs, seen & known).item() == pytest.approx(0, abs=1e-7)
    assert task.disagreement(ours, theirs, torch.ones_like(seen)) > 0.001  # what one did not see
    assert task.disagreement(*maps, torch.ones_like(seen)) > 0.001


def test_segmentation_learns_the_mask_that_moved_alike():
    views = views_of((True, 1, 0))
    masks = torch.tensor([[[0, 1], [2, 0]]])
    collage = Collages(torch.zeros(1, 1, 2, 2).byte(), masks, torch.zeros(1, 1, 4),
                       torch.tensor([[-1]]), ("a", "b"))  # fmt: skip
    maps = random_maps(1, 3, 2, 2)
    terms = Segmentation().label_loss(maps, collage, views)
    # Mirrored: 1 0 / 0 2; one down: background above.
    expected = cross_entropy(maps, torch.tensor([[[2, 2], [1, 0]]]))
    assert list(terms) == ["pixels"]
    torch.testing.assert_close(terms["pixels"], expected)


def test_segmentation_scores_the_likeliest_class():
    masks = torch.tensor([[[0, 1], [2, 2]]])
    collage = Collages(torch.zeros(1, 1, 2, 2).byte(), masks, torch.zeros(1, 1, 4),
                       torch.tensor([[-1]]), ("a", "b"))  # fmt: skip
    maps = one_hot(torch.tensor([[[0, 1], [1, 2]]]), 3).movedim(-1, 1).float()
    assert Segmentation().scores(maps, collage) == pytest.approx([1, 0.5, 0.5])
    assert Segmentation().picture(maps)[0]["mask"].tolist() == [[0, 1], [1, 2]]


def test_targets_of_the_grid_by_hand():
    boxes = torch.tensor([[[4.0, 10, 16, 30], [0, 0, 6, 6], [1, 1, 9, 9]]])
    classes, distances = grid_targets(boxes, torch.tensor([[1, 0, -1]]), 6)
    # Centres (10, 20) and (3, 3): cells (column 1, row 2) and (0, 0), centres (12, 20) and (4, 4).
    expected = torch.full((1, 6, 6), -1)
    expected[0, 2, 1], expected[0, 0, 0] = 1, 0
    assert torch.equal(classes, expected)
    assert (16 * distances[0, :, 2, 1]).tolist() == [8, 10, 4, 10]
    assert (16 * distances[0, :, 0, 0]).tolist() == [4, 4, 2, 2]
    assert distances.abs().sum() == pytest.approx((32 + 12) / 16)
    later = torch.tensor([[[4.0, 10, 16, 30], [2, 10, 18, 30]]])
    classes, distances = grid_targets(later, torch.tensor([[1, 0]]), 6)
    assert classes[0, 2, 1] == 0
    assert (16 * distances[0, :, 2, 1]).tolist() == [10, 10, 6, 10]


def test_a_detector_that_knows_finds_every_box_once():
    boxes = torch.tensor([[[4.0, 10, 16, 30], [20, 20, 44, 41]], [[30, 5, 35, 19], [0, 0, 0, 0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    maps = perfect(boxes, labels)
    told = detections(maps, 48)
    rows = sorted(zip(told.image.tolist(), told.label.tolist(), told.box.tolist(), strict=True))
    assert rows == [(0, 0, [20, 20, 44, 41]), (0, 1, [4, 10, 16, 30]), (1, 1, [30, 5, 35, 19])]
    score = 1 / (1 + math.exp(-8)) ** 2  # an object, and of two classes this one
    assert told.score.tolist() == pytest.approx([score] * 3)
    collages = collages_of(boxes.tolist(), labels.tolist())
    assert Detection().scores(maps, collages).tolist() == [1, 1]
    drawn = Detection().picture(maps)
    assert [len(one["labels"]) for one in drawn] == [2, 1]
    assert drawn[1]["boxes"].tolist() == [[30, 5, 35, 19]]


def test_doubles_and_what_is_unsure_are_dropped():
    boxes = torch.tensor([[[6.0, 6, 24, 24]]])
    maps = perfect(boxes, torch.tensor([[0]]))
    maps[0, 0, 1, 2] = 3.0  # the cell to the right says the same box, less sure
    maps[0, 1, 1, 2] = 8.0
    maps[0, -4:, 1, 2] = torch.tensor([14.0, 6, 4, 12]) / 16
    assert detections(maps, 48).box.tolist() == [[6, 6, 24, 24]]
    maps[0, 1:3, 1, 2] = torch.tensor([0.0, 8.0])  # another class: no double
    assert len(detections(maps, 48).box) == 2
    maps[0, 0] = -4.0  # 0.018
    assert len(detections(maps, 48).box) == 0
    maps[0, 0, 1, 2], maps[0, -4:, 1, 2] = 8.0, torch.tensor([-1.0, 6, -1, 12]) / 16
    assert (detections(maps, 48).box[0, 0::2] == 21).all()  # right of left by nothing, not less


def test_detection_learns_what_is_in_the_view():
    collages = collages_of([[[4, 10, 16, 30], [0, 0, 0, 0]], [[20, 20, 44, 40], [0, 0, 6, 6]]],
                           [[1, -1], [0, 1]])  # fmt: skip
    views = views_of((True, 0, 0), (False, 8, 0))
    maps = random_maps(2, 7, 6, 6)
    terms = Detection().label_loss(maps, collages, views)
    # First: from 32 to 44, centre (38, 20). Second: down, (32, 38) and (3, 11); all are kept.
    cells = {(0, 2, 4): (1, [32, 10, 44, 30]), (1, 4, 4): (0, [20, 28, 44, 48]),
             (1, 1, 0): (1, [0, 8, 6, 14])}  # fmt: skip
    objects, classes, boxes = 0.0, 0.0, 0.0
    for image, row, column in np.ndindex(2, 6, 6):
        cell = maps[image, :, row, column].tolist()
        sign = 1 if (image, row, column) in cells else -1
        objects += math.log(1 + math.exp(-sign * cell[0]))
        if sign > 0:
            label, (left, top, right, bottom) = cells[image, row, column]
            classes += math.log(math.exp(cell[1]) + math.exp(cell[2])) - cell[1 + label]
            x, y = 8 * column + 4, 8 * row + 4
            sides = [(x - left) / 16, (y - top) / 16, (right - x) / 16, (bottom - y) / 16]
            boxes += sum(abs(a - b) for a, b in zip(cell[3:], sides, strict=True)) / 4
    expected = {"objects": objects / 3, "classes": classes / 3, "boxes": boxes / 3}
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_objects_has_a_finite_loss():
    terms = Detection().label_loss(
        random_maps(1, 7, 6, 6), collages_of([[[0, 0, 0, 0]]], [[-1]]), views_of((False, 0, 0))
    )
    assert terms["classes"] == terms["boxes"] == 0
    assert terms["objects"] > 0


def test_disagreement_of_detectors_by_its_formula():
    student, teacher = random_maps(2, 7, 3, 3), random_maps(2, 7, 3, 3, seed=1)
    teacher[:, 0] += 0.5
    valid = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    total, count = 0.0, 0
    for image, row, column in np.ndindex(2, 3, 3):
        if not valid[image, row, column]:
            continue
        ours, theirs = (m[image, :, row, column].double() for m in (student, teacher))
        p, q = theirs[0].sigmoid(), ours[0].sigmoid()
        total += p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        if p >= 0.5:
            count += 1
            p, q = theirs[1:3].softmax(0), ours[1:3].softmax(0)
            total += (p * (p / q).log()).sum() + (theirs[3:] - ours[3:]).abs().mean()
    assert count > 2
    result = Detection().disagreement(student, teacher, valid)
    torch.testing.assert_close(result.double(), total / count, rtol=1e-4, atol=0)
    quiet = teacher.clone()
    quiet[:, 0] = -9  # sure of nothing: divided by the images
    one = divergences(*(torch.stack([m[:, 0], 0 * m[:, 0]], 1) for m in (student, quiet)))
    result = Detection().disagreement(student, quiet, valid)
    torch.testing.assert_close(result, (one * valid).sum() / 2)


def test_detectors_that_know_agree_once_aligned():
    task = Detection()
    boxes = torch.tensor([[[12.0, 10, 26, 30]], [[17, 17, 32, 29]], [[10, 20, 33, 32]]])
    labels = torch.tensor([[1], [0], [1]])
    both = (
        views_of((True, 8, 0), (False, 0, -8), (True, -8, 8)),
        views_of((False, -8, 0), (True, 0, 8), (True, 8, 8)),
    )
    maps = [perfect(*moved_boxes(boxes, labels, views, 48)) for views in both]
    (ours, seen), (theirs, known) = map(task.aligned, maps, both)
    valid = seen & known
    # All objects are whole in both views, in cells that both show.
    assert ((split_maps(ours)[0] > 0) & valid).sum() == 3
    assert task.disagreement(ours, theirs, valid).item() == pytest.approx(0, abs=1e-6)
    assert task.disagreement(*maps, torch.ones_like(valid)) > 1
    # A mirror swaps left and right: without that the boxes would not agree.
    wrong = [super(Detection, task).unmirrored(m, v) for m, v in zip(maps, both, strict=True)]
    assert torch.equal(wrong[0], maps[0])
    assert (
        task.unmirrored(maps[0], both[0])[0, -4:].tolist() == maps[0][0, [-2, -3, -4, -1]].tolist()
    )
    assert torch.equal(task.unmirrored(maps[0], both[0])[1], maps[0][1])
