import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from qatviz import analysis
from qatviz.calibration import calibrate
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ


@pytest.fixture
def student():
    torch.manual_seed(0)
    found = quantize(small_cnn(width=2), partial(LSQ, 2), partial(LSQ, 4))
    calibrate(found, [torch.rand(8, 1, 8, 8)])
    return found.eval()


@pytest.mark.parametrize(("signed", "low", "high"), [(True, -2, 1), (False, 0, 3)])
def test_the_gradient_of_each_value_is_equation_3(signed, low, high):
    curve = analysis.step_gradient(bits=2, signed=signed, low=-3.3, high=4.4, points=78)
    assert (curve.low, curve.high) == (low, high)
    for ratio, learned, clipped in zip(curve.ratio, curve.learned, curve.clipped_only, strict=True):
        if abs(ratio % 1 - 0.5) < 1e-3:
            continue  # on a threshold rounding decides
        outside = low if ratio <= low else high
        inside = low < ratio < high
        assert learned == pytest.approx(round(ratio) - ratio if inside else outside, abs=1e-5)
        assert clipped == (0 if inside else outside)


def test_the_ratio_is_that_of_one_backward_pass_by_hand(student):
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    found = analysis.step_ratios(student, [(images, labels)])
    twin = copy.deepcopy(student).train()
    cross_entropy(twin(images), labels).backward()
    layer = twin.conv2
    of_weights = layer.weight.grad.norm() / layer.weight.norm()
    of_step = layer.weight_quantizer.step.grad.abs() / layer.weight_quantizer.step
    at = found.names.index("conv2.weight")
    assert found.with_scale[at] == pytest.approx((of_step / of_weights).item(), rel=1e-4)
    assert found.scale[at] == pytest.approx((4 * 2 * 9 * 1) ** -0.5)
    assert found.scale[at + 1] == pytest.approx((2 * 4 * 4 * 15) ** -0.5)
    assert found.without_scale * found.scale == pytest.approx(found.with_scale)
    assert found.is_input.tolist() == [False, True] * 4
    assert not student.training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_ratios_need_a_batch(student):
    with pytest.raises(ValueError, match="batches is empty"):
        analysis.step_ratios(student, [])


def test_the_recorder_writes_down_every_step_size_when_it_is_time(student):
    recorder = analysis.StepRecorder(every=3, label="run")
    for step in range(1, 8):
        with torch.no_grad():
            student.conv1.weight_quantizer.step.fill_(step)
        recorder(step, student)
    trace = recorder.record
    assert trace.steps.tolist() == [1, 3, 6]
    assert trace.sizes.shape == (3, 8)
    assert trace.sizes[:, trace.names.index("conv1.weight")].tolist() == [1, 3, 6]
    assert trace.label == "run"
    with pytest.raises(ValueError, match="1 or more, got 0"):
        analysis.StepRecorder(every=0)


def test_a_recorder_that_saw_nothing_has_an_empty_record():
    assert analysis.StepRecorder().record.sizes.shape == (0, 0)


def test_the_error_of_a_step_is_compared_with_the_least(student):
    images = torch.rand(4, 1, 8, 8)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    first = analysis.step_errors(student, images, p=2.0)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    at = first.names.index("conv2.weight")
    weight, step = student.conv2.weight.detach(), student.conv2.weight_quantizer.step.item()
    tried = np.geomspace(step / 16, step * 16, 2000)
    errors = [
        ((weight / s).round().clamp(-2, 1) * s - weight).square().mean().item() for s in tried
    ]
    assert step / first.ratio[at] == pytest.approx(tried[np.argmin(errors)], rel=0.03)
    mine = ((weight / step).round().clamp(-2, 1) * step - weight).square().mean().item()
    assert first.excess[at] == pytest.approx(mine / min(errors), rel=0.01)


def test_without_scale_the_gradient_of_the_step_is_a_plain_sum():
    v = torch.randn(100)
    quantizer, plain = LSQ(2, signed=True), analysis.LSQWithoutScale(2, signed=True)
    for q in (quantizer, plain):
        q.init_from(v)
        q(v).sum().backward()
    assert torch.equal(quantizer(v), plain(v))
    assert (plain.step.grad * 0.1).item() == pytest.approx(quantizer.step.grad.item(), rel=1e-4)
