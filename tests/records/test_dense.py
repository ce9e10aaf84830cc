import json
import math

import numpy as np
import pytest

from qatviz.records import DensePictures, DenseRun, DenseScores
from tests.records.common import check_frozen


def pictures(boxes=False):
    masks = np.zeros((1, 48, 48), np.uint8)
    masks[0, 10:20, 5:15], masks[0, 30:40, 20:40] = 1, 1
    masks[masks == 0] = 2
    box, label = np.array([[5.0, 10, 15, 20]]), np.array([1])
    return DensePictures(
        images=np.full((1, 48, 48), 7, np.uint8),
        masks=masks[:0] if boxes else masks,
        boxes=(box,) if boxes else (),
        labels=(label,) if boxes else (),
        true_masks=masks,
        true_boxes=(box + 1,),
        true_labels=(label - 1,),
    )


def run(arm="LSQ", seed=0, boxes=False, **changes):
    values = {
        "task": "detection" if boxes else "segmentation",
        "arm": arm,
        "measure": "AP at IoU 0.5" if boxes else "mIoU",
        "seed": seed,
        "classes": ("coat", "bag") if boxes else ("coat", "bag", "background"),
        "steps": np.array([0, 10]),
        "per_class": np.array([[0.0, np.nan, 0.2], [0.5, np.nan, 0.9]]),
        "terms": {"pixels": np.array([np.nan, 1.5])},
        "labelled": 1000,
        "unlabelled": 0,
        "test": 400,
        "batch": 32,
        "bits": 2,
        "strength": 0.0,
        "decay": 0.0,
        "parameters": 123,
        "seconds": 4.5,
        "pictures": pictures(boxes),
    }
    return DenseRun(**(values | changes))


def scores(**changes):
    values = {
        "task": "segmentation",
        "measure": "mIoU",
        "arms": ("float", "LSQ", "CR"),
        "seeds": (0, 1, 2),
        "scores": np.array([[0.7, 0.7, 0.7], [0.4, 0.5, 0.6], [0.5, 0.5, 0.8]]),
        "against": "LSQ",
        "quantile": 4.303,
        "labelled": 1000,
        "test": 400,
    }
    return DenseScores(**(values | changes))


def test_the_score_is_the_mean_over_classes_that_occur():
    np.testing.assert_allclose(run().scores, [0.1, 0.7])
    assert run().score == pytest.approx(0.7)
    check_frozen(run())
    check_frozen(pictures())


def same(first, second):
    if isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            same(value, second[key])
    elif isinstance(first, DensePictures):
        same(vars(first), vars(second))
    else:
        assert first == second


@pytest.mark.parametrize("record", [run(), run(boxes=True), run("float", pictures=None, bits=None)])
def test_a_run_goes_through_a_file(record, tmp_path):
    path = tmp_path / "runs.json"
    content = {"machine": {}, "runs": [record.as_dict()]}
    path.write_text(json.dumps(content, allow_nan=False))
    (again,) = DenseRun.read(path)
    same(vars(record), vars(again))


def test_what_is_no_run_is_refused():
    good = run().as_dict()
    for wrong in ({}, good | {"more": 1}, {k: v for k, v in good.items() if k != "arm"}):
        with pytest.raises(ValueError, match="not a run on collages"):
            DenseRun.from_dict(wrong)


def test_means_and_differences_by_hand():
    record = scores()
    np.testing.assert_allclose(record.mean, [0.7, 0.5, 0.6])
    # Deviations 0, 0.1 and √(2·0.1² + 0.2²)/√2 = √0.03.
    half = 4.303 / math.sqrt(3) * np.array([0, 0.1, math.sqrt(0.03)])
    np.testing.assert_allclose(record.half_width, half, atol=1e-9)
    np.testing.assert_allclose(record.difference, [0.2, 0, 0.1])
    # CR less LSQ: 0.1, 0, 0.2, a deviation of 0.1.
    half = 4.303 / math.sqrt(3) * np.array([0.1, 0, 0.1])
    np.testing.assert_allclose(record.difference_half_width, half, atol=1e-9)
    check_frozen(record)


def test_one_seed_has_no_interval():
    record = scores(seeds=(4,), scores=np.array([[0.7], [0.5], [0.6]]), quantile=np.nan)
    assert np.isnan(record.half_width).all()
    np.testing.assert_allclose(record.difference, [0.2, 0, 0.1])
