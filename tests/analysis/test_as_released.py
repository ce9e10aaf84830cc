import numpy as np
import pytest
import torch

from qatviz import analysis


@pytest.fixture
def weights():
    return 0.1 * torch.randn(6, 4, 3, 3)


@pytest.fixture
def activations():
    return torch.randn(4, 4, 8, 8).relu()


def test_what_was_released_uses_fewer_levels(weights, activations):
    pact, lsq, dorefa, nipq, ewgs = analysis.released(weights, activations, bits=3, delta=0.5)
    for pair in (pact, lsq, dorefa):
        assert pair.used[1] == pytest.approx(0.5, abs=0.13)
        assert pair.used[0] == 1
        assert pair.sqnr[1] < pair.sqnr[0]
        assert pair.label == "activations"
    # −6 to 6 in seven steps.
    assert np.diff(pact.released.levels) == pytest.approx(12 / 7, rel=1e-5)
    largest = max(0.0, weights.max().item())
    assert nipq.released.levels[-1] == pytest.approx(np.log1p(np.exp(largest)), rel=1e-5)
    assert nipq.intended.levels[-1] == pytest.approx(weights.abs().max().item(), rel=1e-5)
    assert nipq.used[1] < nipq.used[0]
    assert ewgs.gradient
    assert not nipq.gradient
    np.testing.assert_array_equal(ewgs.intended.y, ewgs.released.y)
    assert len(np.unique(ewgs.released.gradient.round(5))) == 2
    assert len(np.unique(ewgs.intended.gradient.round(5))) > 10


def test_released_wants_weights_and_activations(weights, activations):
    with pytest.raises(ValueError, match="weights need both signs"):
        analysis.released(activations, activations)
    with pytest.raises(ValueError, match="weights need both signs"):
        analysis.released(weights, weights)
