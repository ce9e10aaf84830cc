from functools import partial

import numpy as np
import pytest
import torch

from qatviz import analysis
from qatviz.datasets import Split
from qatviz.evaluation import evaluate
from qatviz.models import small_cnn
from qatviz.quantizers import lp_range, min_max_range


def test_clipping_and_rounding_add_up_to_the_error_of_each_value():
    x = torch.tensor([-1.0, -0.3, 0.0, 0.2, 0.9, 2.0])
    sweep = analysis.range_sweep(x, bits=2, points=4, label="x")
    # Half of the range −1 … 2: step 0.5, zero at code 1, levels −0.5, 0, 0.5, 1.
    clipped = [(-1.0, -0.5), (2.0, 1.0)]
    rounded = [(-0.3, -0.5), (0.0, 0.0), (0.2, 0.0), (0.9, 1.0)]
    assert sweep.shares[1] == 0.5
    assert sweep.clipping[1] == pytest.approx(sum((a - b) ** 2 for a, b in clipped) / 6)
    assert sweep.rounding[1] == pytest.approx(sum((a - b) ** 2 for a, b in rounded) / 6)
    assert sweep.signal == pytest.approx(x.square().mean().item())


def test_with_the_whole_range_nothing_is_clipped_and_rounding_grows_with_the_range():
    sweep = analysis.range_sweep(torch.rand(5000), bits=4)
    assert sweep.clipping[-1] == pytest.approx(0, abs=1e-9)
    assert (np.diff(sweep.clipping) <= 1e-9).all()
    assert sweep.rounding[-1] == pytest.approx((1 / 15) ** 2 / 12, rel=0.05)


def test_the_best_range_is_narrower_at_fewer_bits():
    x = torch.randn(5000)
    best = [analysis.range_sweep(x, bits=bits).best for bits in (2, 4, 8)]
    assert best == sorted(best)
    assert best[0] < best[-1]


def test_a_sweep_refuses_what_has_no_signal():
    with pytest.raises(ValueError, match="all 3 values are zero"):
        analysis.range_sweep(torch.zeros(3), bits=2)
    with pytest.raises(ValueError, match="2 or more, got 1"):
        analysis.range_sweep(torch.ones(3), bits=2, points=1)


def test_a_grid_of_its_own_serves_a_small_channel():
    weight = torch.randn(2, 200) * torch.tensor([[1.0], [0.01]])
    found = analysis.channel_sqnr(weight, bits=4, find_range=min_max_range, label="w")
    assert found.per_tensor[1] == pytest.approx(0, abs=0.1)  # all of it rounds to zero
    assert found.per_channel[1] > 15
    assert found.largest == pytest.approx(weight.abs().amax(1).numpy())
    error = (weight[0] - (weight[0] / _step(weight)).round() * _step(weight)).square().sum()
    assert found.per_tensor[0] == pytest.approx(
        10 * np.log10((weight[0].square().sum() / error).item()), abs=0.5
    )
    assert found.tensor_overall <= found.channel_overall


def _step(x, bits=4):
    return (x.max() - x.min()) / (2**bits - 1)


def test_a_bit_brings_six_decibels_to_uniform_data():
    curve = analysis.sqnr_by_bits(
        torch.rand(20_000), bits=range(3, 8), find_range=min_max_range, label="uniform"
    )
    assert np.diff(curve.values) == pytest.approx(6.02, abs=0.6)
    assert curve.bits.tolist() == [3, 4, 5, 6, 7]


def test_symmetric_and_scaled_ranges():
    rows = torch.tensor([[-1.0, 0.0, 3.0]])
    assert [bound.item() for bound in analysis.symmetric_range(rows, 4)] == [-3, 3]
    assert [b.item() for b in analysis.scaled_range(rows, 4, share=0.5)] == [-0.5, 1.5]


def test_accuracy_by_bits_leaves_the_model_alone_and_is_that_of_the_float_one_at_8_bits():
    torch.manual_seed(0)
    model = small_cnn(width=4).eval()
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    data, before = Split(images, labels), {k: v.clone() for k, v in model.state_dict().items()}
    measure = partial(
        analysis.accuracy_by_bits, model, data, data.batches(40), find_range=min_max_range
    )
    curve = measure(bits=[8], label="min-max")
    assert evaluate(model, data) == 1
    assert curve.values[0] >= 0.9
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    alone = analysis.accuracy_by_bits(model, data, [], bits=[2], find_range=lp_range, inputs=False)
    assert 0 <= alone.values[0] <= 1
