import math

import numpy as np
import pytest

from qatviz.records import Eigenvalues, Setting, SpectralDensity, Trace
from tests.records.common import check_frozen


def setting(**changes):
    given = {
        "space": "dequantized",
        "names": ("conv.weight", "fc.weight"),
        "sizes": (900, 100),
        "norms": (3.0, 4.0),
        "samples": 2000,
        "loss": 0.25,
        "activation_quantizers": True,
        "batchnorm": "running",
        "relative": False,
        "asymmetry": 0.0,
    }
    return Setting(**{**given, **changes})


def eigenvalues(values=(-8.0, 4.0), residuals=(0.01, 0.02), **changes):
    given = {
        "setting": setting(),
        "which": "magnitude",
        "values": np.array(values),
        "residuals": np.array(residuals),
        "largest": 8.0,
        "vectors": np.zeros((len(values), 1000)),
        "tolerance": 0.1,
        "products": 30,
        "seconds": 1.0,
        "complete": True,
        "backend": "qatviz",
    }
    return Eigenvalues(**{**given, **changes})


def trace(draws, method="hutchinson", exact=0.0, **changes):
    costs = {"products": len(draws), "seconds": 1.0, "complete": True, "backend": "qatviz"}
    return Trace(setting(), method, exact, np.array(draws, float), **{**costs, **changes})


def density(nodes, weights):
    costs = {"products": 4, "seconds": 1.0, "complete": True, "backend": "qatviz"}
    return SpectralDensity(setting(), np.array(nodes, float), np.array(weights, float), **costs)


def test_a_setting_counts_and_tells():
    assert setting().size == 1000
    assert setting().squared_norm == 25
    assert str(setting()) == (
        "dequantized weights (1,000), activation quantizers on; 2,000 images, loss 0.25"
    )
    other = setting(space="latent", relative=True, batchnorm="batch", activation_quantizers=False)
    assert str(other) == (
        "latent weights (1,000), relative to filters, BatchNorm of the batch; 2,000 images, "
        "loss 0.25"
    )


def test_errors_are_in_the_unit_of_the_eigenvalues():
    np.testing.assert_allclose(eigenvalues().errors, [0.08, 0.16])
    # Also where the largest magnitude is not among those asked for.
    small = eigenvalues((-0.5,), (0.001,), which="smallest", largest=20.0)
    np.testing.assert_allclose(small.errors, [0.02])
    nothing = eigenvalues((0.0,), (0.0,), largest=0.0)
    assert nothing.errors == [0]


def test_scale_free_eigenvalues():
    np.testing.assert_allclose(eigenvalues().scale_free, [-200, 100])


def test_eigenvalues_tell():
    told = repr(eigenvalues())
    assert told.startswith("Eigenvalues(-8 ± 0.08, 4 ± 0.2; dequantized weights (1,000)")
    assert told.endswith("30 products)")
    many = eigenvalues([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], [0.0] * 6, complete=False)
    assert ", 1 ± 0, …; deq" in repr(many)
    assert "NOT all within tolerance" in repr(many)


def test_a_trace_is_a_mean_with_its_standard_error():
    record = trace([[1, 10], [3, 20], [5, 60]])
    totals = [11, 23, 65]
    assert record.value == 33
    deviation = math.sqrt(sum((t - 33) ** 2 for t in totals) / 2)
    assert record.standard_error == pytest.approx(deviation / math.sqrt(3))
    assert record.layers["conv.weight"] == pytest.approx((3, 2 / math.sqrt(3)))
    assert record.layers["fc.weight"][0] == 30
    assert repr(record).startswith("Trace(33 ± 2e+01; hutchinson, 3 products; dequantized")


def test_hutch_plus_plus_adds_what_is_exact_and_has_no_layers():
    record = trace([[1], [2]], "hutch++", exact=40.0)
    assert record.value == 41.5
    assert record.standard_error == pytest.approx(0.5)
    assert record.layers == {}
    single = Setting("float", ("w",), (3,), (1.0,), 5, 0.1, False, "running", False, 0.0)
    one = Trace(single, "hutch++", 40.0, np.ones((2, 1)), 6, 1.0, True, "qatviz")
    assert one.layers == {}


def test_one_draw_has_no_standard_error():
    assert math.isnan(trace([[1, 2]]).standard_error)
    record = density([[1, 2]], [[0.5, 0.5]])
    assert math.isnan(record.trace[1])
    assert np.isnan(record.density(np.zeros(3), 1.0)[1]).all()


def test_a_density_is_a_mean_of_bells():
    record = density([[0, 2], [1, 3]], [[0.25, 0.75], [0.5, 0.5]])
    at, width = np.array([-0.5, 0.7, 2.2]), 0.4

    def bell(x, centre):
        return math.exp(-((x - centre) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))

    first = np.array([0.25 * bell(x, 0) + 0.75 * bell(x, 2) for x in at])
    second = np.array([0.5 * bell(x, 1) + 0.5 * bell(x, 3) for x in at])
    middle, error = record.density(at, width)
    np.testing.assert_allclose(middle, (first + second) / 2)
    np.testing.assert_allclose(error, abs(first - second) / 2)
    wide = np.linspace(-5, 8, 2001)
    assert np.trapezoid(record.density(wide, width)[0], wide) == pytest.approx(1, abs=1e-8)


def test_a_density_knows_the_trace():
    record = density([[0, 2], [1, 3]], [[0.25, 0.75], [0.5, 0.5]])
    assert record.trace == pytest.approx((1750, 250))  # of 1000·1.5 and 1000·2
    assert repr(record) == (
        "SpectralDensity(0 to 3, trace 1750 ± 2e+02; 2 draws of 2 steps; " + str(setting()) + ")"
    )


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_bell_has_a_width(width):
    with pytest.raises(ValueError, match=f"width is {width}; allowed: above 0"):
        density([[1]], [[1]]).density(np.zeros(2), width)


def test_they_are_frozen():
    for record in (setting(), eigenvalues(), trace([[1, 2]]), density([[1]], [[1]])):
        check_frozen(record)
