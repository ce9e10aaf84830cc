import math

import numpy as np
import pytest

from qatviz.records import (
    AccuracyBySamples,
    CorruptionAccuracy,
    InputNoise,
    ViewConsistency,
    WeightNoise,
)
from qatviz.records.perturbation import error_of_draws, mean_of_draws
from tests.records.common import check_frozen

NAN = float("nan")


def input_noise(**changes):
    values = {
        "label": "net",
        "samples": 2,
        "sigmas": np.array([0.1, 0.2]),
        "accuracy": np.array([[0.5, 1.0, 0.6], [0.5, 0.0, NAN]]),
        "loss": np.array([[1.0, 2.0, 3.0], [4.0, 6.0, NAN]]),
        "divergence": np.full((2, 3), 0.1),
        "flips": np.full((2, 3), 0.2),
        "variance": np.array([[2.0, 4.0], [8.0, 16.0]]),
        "clean_accuracy": 0.8,
        "clean_loss": 0.9,
        "clean_variance": 2.0,
        "complete": False,
    }
    return InputNoise(**(values | changes))


def corruptions(**changes):
    values = {
        "label": "net",
        "samples": 100,
        "kinds": ("jpeg", "rotate"),
        "families": ("digital", "geometry"),
        "severities": np.array([1, 5]),
        "accuracy": np.array([[[0.9, 0.9], [0.5, 0.5]], [[0.6, 0.8], [0.2, 0.4]]]),
        "loss": np.ones((2, 2, 2)),
        "clean_accuracy": 0.9,
        "clean_loss": 0.3,
        "complete": True,
    }
    return CorruptionAccuracy(**(values | changes))


def weight_noise(**changes):
    values = {
        "label": "net",
        "samples": 400,
        "kind": "filter",
        "space": "dequantized",
        "batchnorm": "running",
        "levels": np.array([0.1, 0.2, 0.4]),
        "accuracy": np.array([[0.8, 0.8], [0.80, 0.78], [0.5, 0.3]]),
        "loss": np.array([[1.0, 1.2], [2.0, 2.0], [3.0, 5.0]]),
        "clean_accuracy": 0.8,
        "clean_loss": 1.0,
        "complete": True,
    }
    return WeightNoise(**(values | changes))


def views(**changes):
    values = {
        "label": "net",
        "view": "flip",
        "samples": 10,
        "agreement": np.array([0.8, 1.0]),
        "divergence": np.array([0.1, 0.3]),
        "accuracy": np.array([0.5, 0.7]),
        "unanimous": 0.7,
        "clean_accuracy": 0.9,
        "complete": True,
    }
    return ViewConsistency(**(values | changes))


def by_samples(**changes):
    """Two networks, two orders of four images: 0 1 2 3, and 3 2 1 0."""
    values = {
        "labels": ("a", "b"),
        "sizes": np.array([1, 2, 4]),
        "accuracy": np.array([[[1, 1, 0.75], [1, 0.5, 0.75]], [[0, 0.5, 0.5], [1, 0.5, 0.5]]]),
        "correct": np.array([[True, True, False, True], [False, True, False, True]]),
    }
    return AccuracyBySamples(**(values | changes))


def test_draws_that_were_not_made_do_not_count():
    values = np.array([[1.0, 3.0, 5.0], [2.0, 4.0, NAN], [7.0, NAN, NAN], [NAN] * 3])
    np.testing.assert_allclose(mean_of_draws(values), [3, 3, 7, NAN])
    # By hand: variance 4 of three draws, 2 of two.
    expected = [math.sqrt(4 / 3), math.sqrt(2 / 2), NAN, NAN]
    np.testing.assert_allclose(error_of_draws(values), expected)


def test_an_infinite_draw_is_not_passed_over():
    values = np.array([[1.0, math.inf, NAN], [1.0, 3.0, NAN]])
    np.testing.assert_allclose(mean_of_draws(values), [math.inf, 2])
    np.testing.assert_allclose(error_of_draws(values), [NAN, 1])
    record = weight_noise(loss=np.array([[1.0, 1.2], [2.0, math.inf], [3.0, 5.0]]))
    np.testing.assert_allclose(record.rise, [0.1, math.inf, 3])


def test_logits_without_variance_are_no_unit():
    record = input_noise(clean_variance=0.0)
    assert np.isnan(record.relative_variance).all()
    assert np.isnan(record.mean_relative_variance).all()
    assert np.isnan(record.relative_variance_error).all()


def test_variance_is_measured_in_that_of_clean_logits():
    record = input_noise()
    assert record.relative_variance.tolist() == [[1, 2], [4, 8]]
    assert record.mean_relative_variance.tolist() == [1.5, 6]
    np.testing.assert_allclose(record.relative_variance_error, [0.5, 2])
    assert record.draws == 2
    assert record.clean_error == pytest.approx(math.sqrt(0.8 * 0.2 / 2))


def test_corruption_error_is_the_mean_over_kinds_and_severities():
    record = corruptions()
    np.testing.assert_allclose(record.mean, [[0.9, 0.5], [0.7, 0.3]])
    np.testing.assert_allclose(record.by_kind, [0.7, 0.5])
    # By draw 0.7 and 0.7; 0.4 and 0.6.
    np.testing.assert_allclose(record.by_kind_error, [0, 0.1], atol=1e-15)
    assert record.corruption_error == pytest.approx(0.4)
    assert record.corruption_error_error == pytest.approx(0.05)
    assert record.sampling_error[0, 1] == pytest.approx(0.05)


def test_a_missing_cell_leaves_no_mean_over_cells():
    accuracy = corruptions().accuracy.copy()
    accuracy[1, 1] = NAN
    record = corruptions(accuracy=accuracy, complete=False)
    assert math.isnan(record.corruption_error)
    np.testing.assert_allclose(record.by_kind, [0.7, NAN])


def test_losses_of_weight_noise_are_differences_from_clean():
    record = weight_noise()
    np.testing.assert_allclose(record.drop, [0, 0.01, 0.4], atol=1e-15)
    np.testing.assert_allclose(record.drop_error, [0, 0.01, 0.1], atol=1e-15)
    np.testing.assert_allclose(record.rise, [0.1, 1, 3])
    np.testing.assert_allclose(record.rise_error, [0.1, 0, 1])
    assert record.draws == 2


def test_the_largest_level_that_costs_so_many_points():
    record = weight_noise()
    assert record.tolerated() == 0.2
    assert record.tolerated(0.5) == 0.1
    assert record.tolerated(39.9) == 0.2
    assert record.tolerated(40) == 0.4
    assert weight_noise(clean_accuracy=0.9).tolerated() == 0


def test_agreement_of_views():
    record = views()
    assert record.mean_agreement == pytest.approx(0.9)
    assert record.agreement_error == pytest.approx(0.1)
    assert record.mean_divergence == pytest.approx(0.2)
    assert record.divergence_error == pytest.approx(0.1)


def test_accuracy_by_samples_has_a_band_and_the_error_of_new_images():
    record = by_samples()
    assert record.samples == 4
    assert record.full.tolist() == [0.75, 0.5]
    assert record.mean.tolist() == [[1, 0.75, 0.75], [0.5, 0.5, 0.5]]
    low, high = record.band
    # Of two orders the percentiles lie between them, 2.5 % of the way in.
    np.testing.assert_allclose(low[1], [0.025, 0.5, 0.5])
    np.testing.assert_allclose(high[1], [0.975, 0.5, 0.5])
    np.testing.assert_allclose(record.standard_error[1], [0.5, 0.5 / math.sqrt(2), 0.25])


def test_differences_are_paired():
    difference = by_samples().difference("a", "b")
    assert difference.mean.tolist() == [0.5, 0.25, 0.25]
    assert difference.full == 0.25
    # Gain 1 0 0 0: variance 3/16.
    np.testing.assert_allclose(difference.standard_error, np.sqrt(3 / 16 / np.array([1, 2, 4])))
    low, high = difference.band
    np.testing.assert_allclose([low[0], high[0]], [0.025, 0.975])
    assert by_samples().difference("b", "a").full == -0.25
    with pytest.raises(ValueError, match="network is 'c'; allowed: a, b"):
        by_samples().difference("a", "c")


def test_perturbation_records_are_frozen():
    for record in (input_noise(), corruptions(), weight_noise(), views(), by_samples()):
        check_frozen(record)
    check_frozen(by_samples().difference("a", "b"))
