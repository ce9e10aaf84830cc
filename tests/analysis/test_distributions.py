import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis import activation_histograms, histogram, weight_histograms
from qatviz.calibration import calibrate
from qatviz.layers import QuantActivation
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ, Affine, min_max_range


def lsq(step=0.5, bits=2, signed=True):
    quantizer = LSQ(bits, signed=signed)
    quantizer.step.data = torch.tensor(step)
    return quantizer


def student():
    model = small_cnn(width=2)
    # bn1's output goes through a ReLU and an activation quantizer that stands alone.
    model.relu1 = nn.Sequential(nn.ReLU(), QuantActivation(LSQ(4)))
    model = quantize(model, partial(LSQ, bits=3), partial(LSQ, bits=4), keep=["fc"])
    calibrate(model, [torch.randn(6, 1, 8, 8)])
    return model


def test_counts_of_a_handful_of_numbers():
    record = histogram(torch.tensor([[0.0, 0.1], [0.9, 1.0]]), label="w", bins=2)
    assert record.label == "w"
    assert record.counts.tolist() == [2, 2]
    assert record.edges.tolist() == [0, 0.5, 1]
    assert record.levels.shape == record.used.shape == (0,)
    assert record.mean_squared_error == 0
    assert record.signal == pytest.approx((0.01 + 0.81 + 1) / 4)


def test_rounding_of_a_handful_of_numbers():
    x = torch.tensor([-3.0, -0.6, -0.1, 0.2, 0.3, 0.6])
    record = histogram(x, lsq(), bins=5)
    assert record.levels.tolist() == [-1, -0.5, 0, 0.5]
    assert record.used.tolist() == [1, 1, 2, 2]
    errors = [2.0, 0.1, 0.1, -0.2, 0.2, -0.1]
    assert record.mean_squared_error == pytest.approx(sum(e * e for e in errors) / 6)


@pytest.mark.parametrize("signed", [True, False])
def test_everything_against_numpy(signed):
    x = torch.randn(40, 50)
    quantizer = lsq(0.3, bits=4, signed=signed)
    record = histogram(x, quantizer, bins=17)
    a = x.numpy().astype(np.float64)
    low, high = (-8, 7) if signed else (0, 15)
    step = float(np.float32(0.3))
    codes = np.clip(np.round(a / step), low, high)
    counts, edges = np.histogram(a, 17)
    assert record.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(record.edges, edges, atol=1e-5)
    assert record.used.tolist() == [int((codes == code).sum()) for code in range(low, high + 1)]
    np.testing.assert_allclose(record.levels, step * np.arange(low, high + 1), rtol=1e-6)
    noise, signal = ((codes * step - a) ** 2).mean(), (a**2).mean()
    assert record.sqnr == pytest.approx(10 * np.log10(signal / noise), rel=1e-5)


def test_a_fixed_grid_with_a_zero_point():
    quantizer = Affine(2, find_range=min_max_range)
    quantizer.init_from(torch.tensor([-1.0, 2.0]))
    record = histogram(torch.tensor([-5.0, -1.0, 0.2, 1.8]), quantizer)
    assert record.levels.tolist() == [-1, 0, 1, 2]
    assert record.used.tolist() == [2, 1, 0, 1]


def test_a_grid_per_channel_counts_codes():
    quantizer = LSQ(2, signed=True, axis=0)
    quantizer.init_from(torch.ones(2, 1))
    quantizer.step.data = torch.tensor([[1.0], [10.0]])
    record = histogram(torch.tensor([[-2.0, 0.0, 1.0], [-20.0, 1.0, 9.0]]), quantizer)
    assert record.levels.tolist() == [-2, -1, 0, 1]
    assert record.used.tolist() == [2, 0, 2, 2]


def test_an_identity_is_no_grid():
    assert len(histogram(torch.randn(5), nn.Identity()).levels) == 0


@pytest.mark.parametrize(
    ("x", "quantizer", "message"),
    [
        (torch.empty(0), None, r"'w': \[0\] values"),
        (torch.tensor([1.0, float("nan")]), None, "not all finite"),
        (torch.tensor([float("-inf")]), None, "not all finite"),
        (torch.ones(3), LSQ(2), "'w': its quantizer is not calibrated"),
    ],
)
def test_refuses_what_cannot_be_counted(x, quantizer, message):
    with pytest.raises(ValueError, match=message):
        histogram(x, quantizer, label="w")


def test_the_tensor_is_left_as_it_was():
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    quantizer = lsq()
    histogram(x, quantizer)
    assert torch.equal(x, before)
    assert x.grad is None
    assert quantizer.step.grad is None


def test_weight_histograms_see_the_latent_weights():
    model = student()
    records = weight_histograms(model, bins=7)
    assert list(records) == ["conv1", "conv2", "conv3", "fc"]
    for name, record in records.items():
        weight = getattr(model, name).weight.detach().numpy()
        assert record.label == name
        assert record.counts.tolist() == np.histogram(weight, 7)[0].tolist()
        assert len(record.levels) == (0 if name == "fc" else 8)
    assert records["conv2"].used.sum() == model.conv2.weight.numel()


def test_weight_histograms_of_a_float_model():
    records = weight_histograms(small_cnn(width=2))
    assert list(records) == ["conv1", "conv2", "conv3", "fc"]
    assert all(len(record.levels) == 0 for record in records.values())


def test_activation_histograms_see_what_arrives_before_it_is_rounded():
    model, images = student().eval(), torch.randn(5, 1, 8, 8)
    records = activation_histograms(model, images, bins=9)
    arrives = {
        "conv1": images,
        "relu1.1": model[:2](images).relu(),
        "conv2": model[:4](images),
        "conv3": model[:8](images),
        "fc": model[:13](images),
    }
    assert list(records) == list(arrives)  # in the order of the forward pass
    for name, tensor in arrives.items():
        x = tensor.detach().numpy()
        assert records[name].counts.tolist() == np.histogram(x, 9)[0].tolist()
        assert records[name].edges[0] == x.min()
        assert records[name].edges[-1] == x.max()
        assert len(records[name].levels) == (0 if name == "fc" else 16)
    q = model.conv3.input_quantizer
    codes = np.clip(np.round(arrives["conv3"].detach().numpy() / q.step.item()), 0, 15)
    expected = [int((codes == code).sum()) for code in range(16)]
    assert records["conv3"].used.tolist() == expected


def test_activation_histograms_of_a_float_model():
    records = activation_histograms(small_cnn(width=2), torch.randn(3, 1, 8, 8))
    assert list(records) == ["conv1", "conv2", "conv3", "fc"]


@pytest.mark.parametrize("fails", [False, True])
def test_state_modes_and_hooks_are_left_as_they_were(fails):
    model = student().train()
    model.bn2.eval()
    if fails:
        # Finite, but what arrives at the last layer is not.
        model.fc.weight.data.fill_(1.0)
        model.bn3.running_var.fill_(float("nan"))
    before = copy.deepcopy(model.state_dict())
    modes = {name: m.training for name, m in model.named_modules()}
    if fails:
        with pytest.raises(ValueError, match="'fc'"):
            activation_histograms(model, torch.randn(3, 1, 8, 8))
    else:
        activation_histograms(model, torch.randn(3, 1, 8, 8))
        weight_histograms(model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_refuses_a_model_that_is_not_calibrated_and_images_that_do_not_fit():
    raw = quantize(small_cnn(width=2), partial(LSQ, bits=3), partial(LSQ, bits=3))
    with pytest.raises(ValueError, match=r"not calibrated .*conv1\.input_quantizer"):
        activation_histograms(raw, torch.randn(3, 1, 8, 8))
    with pytest.raises(ValueError, match="takes 1 channels"):
        activation_histograms(student(), torch.randn(3, 2, 8, 8))
