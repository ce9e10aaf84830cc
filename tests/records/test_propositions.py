import math

import numpy as np
import pytest

from qatviz.records import (
    ConvolutionMismatch,
    DivergenceAsSharpness,
    ErrorPropagation,
    PACBayesBound,
    ToleratedNoise,
    WeightChange,
)
from tests.records.common import check_frozen

NAN = float("nan")


def sharpness(**changes):
    values = {
        "label": "net",
        "of": "weights",
        "space": "float",
        "direction": "random direction 1",
        "lengths": np.array([0.1, 1.0]),
        "divergence": np.array([[1.0, 3.0], [2.0, 4.0]]),
        "expected_rise": np.array([[1.0, 3.0], [2.0, 4.25]]),
        "quadratic": np.array([[2.0, 2.0], [1.0, 5.0]]),
        "rise": np.array([[-1.0, -3.0], [2.0, 2.0]]),
    }
    return DivergenceAsSharpness(**(values | changes))


def bound(**changes):
    values = {"error": 0.25, "distance": 2.0, "sigma": 1.0, "images": 100, "confidence": 0.1}
    return PACBayesBound(**(values | changes))


def noise(**changes):
    values = {
        "label": "net",
        "samples": 400,
        "space": "float",
        "size": 10,
        "points": 10.0,
        "sigmas": np.array([0.1, 0.2, 0.4]),
        "accuracy": np.array([[0.8, 0.8], [0.6, 0.8], [0.4, NAN]]),
        "clean_accuracy": 0.8,
        "complete": False,
    }
    return ToleratedNoise(**(values | changes))


def weight_change(**changes):
    values = {
        "weight": np.eye(2),
        "change": np.array([[3.0, 0.0], [0.0, -4.0]]),
        "wanted": np.array([3.0, 4.0]),
        "reached": np.array([3.0, 4.5]),
        "bound": 5.0,
    }
    return WeightChange(**(values | changes))


def mismatch(**changes):
    values = {
        "label": "noise",
        "height": 8,
        "width": 8,
        "unknowns": 48,
        "positions": 64,
        "alone": np.array([0.4, 0.6]),
        "together": 0.8,
    }
    return ConvolutionMismatch(**(values | changes))


def propagation(**changes):
    values = {
        "label": "net",
        "layers": ("conv1", "fc"),
        "disturbance": np.array([0.1, 0.2]),
        "change": np.array([[0.1, 0.3], [0.4, 0.4]]),
        "predicted": np.array([[0.1, 0.2], [0.3, 0.5]]),
        "mismatch": np.array([[0.1, 0.3], [0.5, 0.5]]),
        "steps": np.full((2, 2), NAN),
        "spectral": np.array([2.0, 3.0]),
        "lipschitz": np.array([2.0, 6.0]),
        "bound": np.array([[1.0, 2.0], [3.0, 5.0]]),
    }
    return ErrorPropagation(**(values | changes))


def test_means_and_errors_of_the_divergence():
    record = sharpness()
    assert record.samples == 2
    np.testing.assert_allclose(record.mean_divergence, [2, 3])
    np.testing.assert_allclose(record.divergence_error, [1, 1])  # √2/√2
    np.testing.assert_allclose(record.mean_quadratic, [2, 3])
    np.testing.assert_allclose(record.mean_rise, [-2, 2])
    np.testing.assert_allclose(record.rise_error, [1, 0])
    assert record.identity_error == 0.25
    np.testing.assert_allclose(record.ratio, [1, 1])
    # Residuals −1, 1 over 2, and 1, −1 over 3.
    np.testing.assert_allclose(record.ratio_error, [1 / 2, 1 / 3])


def test_one_image_has_no_error_and_no_displacement_no_ratio():
    one = {n: np.ones((2, 1)) for n in ("divergence", "expected_rise", "quadratic", "rise")}
    assert np.isnan(sharpness(**one).ratio_error).all()
    assert np.isnan(sharpness(**one).rise_error).all()
    none = {n: np.zeros((2, 2)) for n in ("divergence", "expected_rise", "quadratic", "rise")}
    assert np.isnan(sharpness(**none).ratio).all()


def test_the_error_of_a_ratio_is_what_draws_of_images_show():
    generator = np.random.default_rng(0)

    def draw():
        quadratic = generator.exponential(size=(1, 200))
        divergence = quadratic * (1.2 + 0.3 * generator.standard_normal((1, 200)))
        rest = {"expected_rise": divergence, "rise": divergence, "lengths": np.ones(1)}
        return sharpness(divergence=divergence, quadratic=quadratic, **rest)

    records = [draw() for _ in range(1000)]
    spread = np.std([r.ratio[0] for r in records])
    assert np.mean([r.ratio_error[0] for r in records]) == pytest.approx(spread, rel=0.1)


def test_the_parts_of_the_bound():
    record = bound()
    assert record.divergence == 2
    assert record.complexity == pytest.approx(math.sqrt((2 + math.log(200)) / 200))
    assert record.bound == pytest.approx(0.25 + math.sqrt((2 + math.log(200)) / 200))
    assert not record.vacuous
    assert bound(error=1.0).vacuous


def test_tolerated_noise_is_the_largest_with_a_small_enough_drop():
    record = noise()
    assert record.draws == 1
    assert record.clean_error == pytest.approx(0.02)  # √(0.16/400)
    np.testing.assert_allclose(record.drop, [0, 0.1, 0.4])
    np.testing.assert_allclose(record.drop_error, [0, 0.1, NAN])
    np.testing.assert_allclose(record.error, [0.2, 0.3, 0.6])
    assert record.fits.tolist() == [True, True, False]
    assert (record.tolerated, record.at_the_end) == (0.2, False)
    assert noise(points=5.0).tolerated == 0.1
    assert noise(clean_accuracy=1.0).tolerated == 0
    assert noise(points=50.0).at_the_end


def test_the_norm_and_the_residual_of_a_change():
    record = weight_change()
    assert record.norm == 4
    assert record.residual == pytest.approx(0.1)
    assert weight_change(wanted=np.zeros(2)).residual == 0
    kernel = record.change.reshape(2, 2, 1, 1)
    kernels = weight_change(weight=kernel, change=kernel)
    assert kernels.norm == 4


def test_what_is_left_of_a_change():
    record = mismatch()
    assert record.samples == 2
    assert record.mean == pytest.approx(0.5)
    assert record.error == pytest.approx(0.1)
    assert record.white == 0.5  # √(1 − 48/64)
    assert mismatch(positions=4).white == 0
    assert math.isnan(mismatch(alone=np.ones(1)).error)


def test_means_over_images_of_what_arrives():
    record = propagation()
    assert record.samples == 2
    np.testing.assert_allclose(record.mean_change, [0.2, 0.4])
    np.testing.assert_allclose(record.change_error, [0.1, 0], atol=1e-15)
    np.testing.assert_allclose(record.mean_predicted, [0.15, 0.4])
    np.testing.assert_allclose(record.mean_mismatch, [0.2, 0.5])
    np.testing.assert_allclose(record.mismatch_error, [0.1, 0], atol=1e-15)
    np.testing.assert_allclose(record.mean_bound, [1.5, 4])
    np.testing.assert_allclose(record.amplification, [[1, 1.5], [4, 2]])


@pytest.mark.parametrize("make", [sharpness, bound, noise, weight_change, mismatch, propagation])
def test_records_are_frozen(make):
    check_frozen(make())
