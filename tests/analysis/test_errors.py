import numpy as np
import pytest
import torch

from qatviz import analysis
from qatviz.quantizers import Affine


@pytest.fixture
def weights():
    return 0.1 * torch.randn(6, 4, 3, 3)


def test_decibels_with_and_without_the_best_scalar():
    x, quantized = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 4.0])
    assert analysis.decibels(x, quantized) == pytest.approx(10 * np.log10(25 / 1))
    cosine = 28 / (5 * np.sqrt(32))
    best = analysis.decibels(x, quantized, best=True)
    assert best == pytest.approx(-10 * np.log10(1 - cosine**2))
    assert analysis.decibels(x, 100 * quantized, best=True) == pytest.approx(best)
    assert analysis.decibels(x, x) == np.inf
    assert analysis.decibels(x, 0 * x, best=True) == 0


def test_errors_of_all_against_bits(weights):
    record = analysis.zoo_errors(weights, bits=[1, 2, 4, 8], label="w")
    row = {name: record.best[i] for i, name in enumerate(record.names)}
    assert "AdaRound" not in row
    assert np.isnan(row["PACT"]).all()
    assert np.isnan(row["LSQ"][0])
    assert np.isfinite(row["LSQ"][1:]).all()
    assert (np.diff(row["Affine"]) > 0).all()
    plain = {name: record.plain[i] for i, name in enumerate(record.names)}
    assert np.isnan(plain["DoReFa"]).all()
    both = np.isfinite(record.plain)
    assert (record.best[both] >= record.plain[both] - 1e-9).all()
    grid = Affine(4)
    grid.init_from(weights)
    histogram = analysis.histogram(weights, grid)
    assert plain["Affine"][2] == pytest.approx(histogram.sqnr, abs=1e-6)
    assert record.values == weights.numel()


def test_a_large_tensor_is_drawn_from_and_keeps_its_largest_value():
    x = torch.randn(5000)
    x[1234] = 50.0
    few = analysis.zoo_errors(x, bits=[8], names=["NIPQ"], most=100)
    again = analysis.zoo_errors(x, bits=[8], names=["NIPQ"], most=100)
    assert few.values == 100
    np.testing.assert_array_equal(few.best, again.best)
    # NIPQ's first range is the largest magnitude: 50/127 is the step, all else is noise.
    expected = 10 * np.log10((50**2 + 99) / (99 * (50 / 127) ** 2 / 12))
    assert few.best[0, 0] == pytest.approx(expected, abs=1)
    with pytest.raises(ValueError, match=r"no quantizer \['X'\]"):
        analysis.zoo_errors(x, names=["X"])
