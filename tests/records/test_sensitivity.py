import numpy as np
import pytest

from qatviz.records import BitSensitivity, LayerEffects, LayerSQNR, RankAgreement
from tests.records.common import check_frozen

NAN = float("nan")


def layer_sqnr(**changes):
    two = {
        name: np.array([20.0, 10.0])
        for name in ("inputs", "inputs_error", "local", "local_error", "accumulated")
    }
    values = {
        "label": "net",
        "samples": 8,
        "layers": ("a", "b"),
        "granular": np.array([0.01, 0.0]),
        "clipping": np.array([0.09, 0.0]),
        "accumulated_error": np.array([1.0, NAN]),
    }
    return LayerSQNR(**{**values, **two, **changes})


def effects(**changes):
    values = {
        "single": np.array([[1.0, 0.5], [2.0, NAN]]),
        "single_error": np.full((2, 2), 0.1),
        "total_error": np.array([0.2, NAN]),
        "joint": np.array([4.0, NAN]),
        "joint_error": np.array([0.3, NAN]),
    }
    return LayerEffects(**{**values, **changes})


def bit_sensitivity(**changes):
    values = {
        "label": "net",
        "samples": 100,
        "calibration": 0,
        "quantizer": "Affine",
        "part": "weights",
        "leave_out": False,
        "layers": ("a", "b"),
        "bits": np.array([2, 4]),
        "loss": effects(),
        "accuracy": effects(),
        "divergence": effects(),
        "float_loss": 0.5,
        "float_loss_error": 0.01,
        "float_accuracy": 0.8,
        "complete": False,
    }
    return BitSensitivity(**{**values, **changes})


def test_the_sqnr_of_weights_has_both_kinds_of_error():
    # −10·log₁₀(0.01 + 0.09) = 10 dB; without error it is infinite.
    np.testing.assert_allclose(layer_sqnr().weights, [10, np.inf])
    assert np.isnan(layer_sqnr(granular=np.array([NAN, 0.1])).weights[0])


def test_the_sum_of_effects_is_unknown_where_one_is():
    np.testing.assert_array_equal(effects().total, [3, NAN])


def test_the_error_of_an_accuracy_is_that_of_a_share():
    # √(0.8·0.2/100)
    assert bit_sensitivity().float_accuracy_error == pytest.approx(0.04)


def test_records_are_frozen():
    for record in (layer_sqnr(), effects(), bit_sensitivity(), RankAgreement(0.5, 0.1, 4)):
        check_frozen(record)
