"""Scores by loops over pixels and boxes, and by hand."""

import math

import numpy as np
import pytest
import torch

from qatviz.analysis.dense_scores import (
    Detections,
    area_under_precision,
    average_precision,
    intersection_over_union,
)


def found(*rows):
    """Of rows (image, label, score, box)."""
    image, label, score, box = zip(*rows, strict=True)
    return Detections(*map(torch.tensor, (image, label, score, box)))


def overlap(a, b):
    across = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    along = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return across * along / (both - across * along) if both else 0


def test_intersection_over_union_by_counting():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (3, 5, 6), generator=generator)
    predicted = torch.randint(5, (3, 5, 6), generator=generator)
    result = intersection_over_union(predicted, truth, 5)
    pairs = list(zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True))
    for label in range(4):
        both = sum(t == label and p == label for t, p in pairs)
        either = sum(t == label or p == label for t, p in pairs)
        assert result[label] == pytest.approx(both / either)
    assert math.isnan(result[4])  # predicted, but never true


def test_intersection_over_union_by_hand():
    truth = torch.tensor([[0, 0, 1, 1]])
    assert intersection_over_union(truth, truth, 2).tolist() == [1, 1]
    assert intersection_over_union(torch.tensor([[0, 1, 1, 0]]), truth, 2) == pytest.approx(
        [1 / 3] * 2
    )
    assert intersection_over_union(torch.zeros(1, 4).long(), truth, 2).tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("right", "total", "area"),
    [
        ([1, 1], 2, 1),
        ([1, 0, 1], 2, 0.5 * 1 + 0.5 * 2 / 3),
        ([0, 1, 1, 0], 4, 0.25 * 2 / 3 + 0.25 * 2 / 3),  # ½, then ⅔: raised to ⅔
        ([0, 0], 3, 0),
        ([], 3, 0),
    ],
)
def test_area_under_precision_by_hand(right, total, area):
    assert area_under_precision(np.array(right, float), total) == pytest.approx(area)


def test_average_precision_by_hand():
    boxes = torch.tensor(
        [[[0, 0, 10, 10], [20, 0, 30, 10]], [[0, 0, 10, 10], [0, 0, 0, 0]]]
    ).float()
    labels = torch.tensor([[0, 0], [1, -1]])
    told = found(
        (0, 0, 0.9, [0.0, 0, 10, 10]),  # right
        (0, 0, 0.8, [0.0, 0, 10, 9]),  # of the same object: wrong
        (0, 0, 0.7, [21.0, 0, 30, 10]),  # right: 0.9
        (1, 0, 0.95, [0.0, 0, 10, 10]),  # of another class: wrong, and the surest
        (1, 1, 0.3, [0.0, 0, 4, 10]),  # 0.4 of it: wrong
    )
    # Class 0 by falling score: wrong, right, wrong, right: ½ at both recalls.
    result = average_precision(told, boxes, labels, 3)
    assert result[:2] == pytest.approx([0.5, 0])
    assert math.isnan(result[2])
    assert average_precision(told, boxes, labels, 3, 0.4)[1] == pytest.approx(1)


def test_nothing_found_is_zero():
    none = Detections(
        *(torch.zeros(0, dtype=torch.long) for _ in "il"), torch.zeros(0), torch.zeros(0, 4)
    )
    boxes = torch.tensor([[[0.0, 0, 5, 5]]])
    assert average_precision(none, boxes, torch.tensor([[1]]), 2).tolist()[1] == 0


def literal(told, boxes, labels, label, least):
    """One at a time, with every precision at or beyond each recall."""
    rows = sorted((r for r in told if r[1] == label), key=lambda r: -r[2])
    total = sum(x == label for row in labels for x in row)
    taken, hits, points = set(), 0, []
    for rank, (image, _, _, box) in enumerate(rows, 1):
        overlaps = [
            (overlap(box, true), j)
            for j, true in enumerate(boxes[image])
            if labels[image][j] == label
        ]
        best, j = max(overlaps, default=(0, -1), key=lambda pair: pair[0])
        if best >= least and (image, j) not in taken:
            taken.add((image, j))
            hits += 1
        points.append((hits / total, hits / rank))
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_as_the_literal_one(seed):
    drawn = np.random.default_rng(seed)
    corner = drawn.uniform(0, 20, (6, 3, 2))
    boxes = np.concatenate([corner, corner + drawn.uniform(4, 15, (6, 3, 2))], -1)
    labels = np.concatenate([np.tile([0, 1, 2], (2, 1)), drawn.integers(-1, 3, (4, 3))])
    told = []
    for _ in range(60):
        i, j = drawn.integers(6), drawn.integers(3)
        box = boxes[i, j] + drawn.normal(0, 1, 4)
        told.append((int(i), int(drawn.integers(3)), float(drawn.random()), box.tolist()))
    result = average_precision(found(*told), torch.tensor(boxes), torch.tensor(labels), 3, 0.5)
    expected = [literal(told, boxes.tolist(), labels.tolist(), k, 0.5) for k in range(3)]
    assert result == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 0.05
