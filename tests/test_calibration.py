import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qatviz.calibration import activation_quantizers, as_taken, calibrate, check_images
from qatviz.layers import QuantActivation
from qatviz.models import small_cnn
from qatviz.quantize import quantize, quantizers
from qatviz.quantizers import LSQ, PACT, Affine, min_max_range

W3, A2 = partial(LSQ, bits=3), partial(LSQ, bits=2)


def student(**arguments):
    model = small_cnn(width=2, **arguments)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(-1, 1)
    return quantize(model, W3, A2)


def same_state(model, before):
    state = model.state_dict()
    assert list(state) == list(before)
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0, equal_nan=True, msg=key)


def literal_steps(model, x):
    """Layer by layer: each reads what the quantized layers before it made (LSQ, section 2.1)."""
    steps, signs = {}, {}

    def rounded(t, step, low, high):
        return torch.clamp(torch.round(t / step), low, high) * step

    for i in (1, 2, 3, "fc"):
        layer = model.fc if i == "fc" else getattr(model, f"conv{i}")
        name = "fc" if i == "fc" else f"conv{i}"
        if i == "fc":
            x = x.flatten(1)
        signs[name] = bool((x < 0).any())
        low, high = (-2, 1) if signs[name] else (0, 3)
        steps[name] = 2 * x.abs().mean() / high**0.5
        x = rounded(x, steps[name], low, high)
        weight = layer.weight.detach()
        weight = rounded(weight, 2 * weight.abs().mean() / 3**0.5, -4, 3)
        if i == "fc":
            return steps, signs
        x = F.conv2d(x, weight, padding=1)
        bn = getattr(model, f"bn{i}")
        scale = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
        shift = bn.bias.detach() - bn.running_mean * scale
        x = F.relu(x * scale[:, None, None] + shift[:, None, None])
        x = F.max_pool2d(x, 2) if i < 3 else x.mean((2, 3), keepdim=True)
    return None


@pytest.mark.parametrize("pairs", [False, True])
def test_grids_are_those_of_a_literal_walk_through_the_layers(pairs):
    model = student()
    batches = [torch.randn(5, 1, 8, 8), torch.randn(3, 1, 8, 8)]
    steps, signs = literal_steps(model, torch.cat(batches))
    if pairs:
        batches = ((b, torch.zeros(len(b), dtype=torch.int64)) for b in batches)
    calibrate(model, batches)
    assert signs == {"conv1": True, "conv2": False, "conv3": False, "fc": False}
    for name, step in steps.items():
        quantizer = model.get_submodule(name).input_quantizer
        torch.testing.assert_close(quantizer.step.detach(), step, rtol=1e-5, atol=0)
        assert quantizer.signed is signs[name]


def test_images_of_one_sign_make_an_unsigned_grid():
    model = student()
    calibrate(model, [torch.rand(4, 1, 8, 8)])
    assert model.conv1.input_quantizer.signed is False


def test_nothing_but_the_input_grids_changes():
    model = student().train()
    model.bn2.eval()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(4, 1, 8, 8)
    random = torch.get_rng_state()
    calibrate(model, [images])
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {
        f"{name}.input_quantizer.{entry}"
        for name in ("conv1", "conv2", "conv3", "fc")
        for entry in ("step", "_extra_state")
    }
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_parameters_stay_the_same_objects():
    model = student()
    before = [id(p) for p in model.parameters()]
    calibrate(model, [torch.randn(4, 1, 8, 8)])
    assert [id(p) for p in model.parameters()] == before


def test_calibrating_again_follows_the_new_images():
    model, images = student(), torch.randn(4, 1, 8, 8)
    calibrate(model, [images])
    first = model.conv1.input_quantizer.step.item()
    calibrate(model, [3 * images])
    assert model.conv1.input_quantizer.step.item() == pytest.approx(3 * first)


def test_quantized_activations_are_calibrated_too():
    model = nn.Sequential(nn.Linear(3, 3), QuantActivation(LSQ(2)), nn.Flatten())
    images = torch.randn(6, 3, 1, 3)
    calibrate(model, [images])
    arrived = model[0](images)
    expected = 2 * arrived.abs().mean() / 1**0.5
    torch.testing.assert_close(model[1].quantizer.step.detach(), expected.detach())


def test_grids_per_channel_and_other_quantizers():
    factory = partial(Affine, bits=8, axis=1, find_range=min_max_range)
    model = quantize(nn.Sequential(nn.Conv2d(2, 1, 1)), None, factory)
    images = torch.randn(5, 2, 4, 4)
    calibrate(model, [images])
    width = images.amax((0, 2, 3)) - images.amin((0, 2, 3))
    step = model[0].input_quantizer.step
    assert step.shape == (1, 2, 1, 1)
    torch.testing.assert_close(step.flatten(), width / 255)


def test_activation_quantizers_are_those_of_inputs():
    assert list(activation_quantizers(student())) == [
        *("conv1.input_quantizer", "conv2.input_quantizer"),
        *("conv3.input_quantizer", "fc.input_quantizer"),
    ]
    assert activation_quantizers(small_cnn()) == {}


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Conv2d(1, 2, 3)
        self.unused = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.used(x)


BAD = torch.randn(4, 1, 8, 8)
BAD[2, 0, 3, 3] = float("nan")


@pytest.mark.parametrize(
    ("make", "batches", "message"),
    [
        (lambda: quantize(Skips(), W3, A2), [BAD[:2]], "did not reach unused.input_quantizer$"),
        (student, [BAD], "not finite, first in image 2"),
        (student, [BAD[:2], BAD[3:] / 0], "not finite, first in image 2"),
        (student, [], "batches is empty"),
        (
            student,
            [torch.randn(2, 3, 8, 8)],
            r"shape \[3, 8, 8\].*first convolution 'conv1' takes 1 channels",
        ),
        (student, [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 9, 9)], "one shape, got .*8.*9"),
        (student, [torch.randn(0, 1, 8, 8)], "batches is empty"),
        (lambda: quantize(small_cnn(width=2), W3, None), [BAD[:2]], "no activation quantizer"),
    ],
)
def test_refuses_and_changes_nothing(make, batches, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        calibrate(model, batches)
    same_state(model, before)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_factory_that_cannot_take_the_data_changes_nothing():
    # One bit is allowed for what follows a ReLU, not for images of both signs.
    model = quantize(small_cnn(width=2), W3, {"conv2": A2, "fc": partial(LSQ, bits=1)})
    model.pool3 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="signed grid must be an integer from 2 to 8, got 1"):
        calibrate(model, [torch.randn(4, 1, 8, 8)])
    same_state(model, before)


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (nn.Conv2d(3, 4, 3), torch.randn(2, 1, 9, 9), "'' takes 3 channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), torch.randn(2, 1, 3, 3), "takes 7 features"),
        (nn.Unflatten(1, (2, 2)), torch.randn(2, 3, 3, 3), "no convolution and no linear layer"),
    ],
)
def test_check_images_says_what_the_model_takes(model, images, message):
    with pytest.raises(ValueError, match=message):
        check_images(model, images)


def test_check_images_leaves_batch_statistics_and_modes_alone():
    model = small_cnn(width=2).train()
    before = copy.deepcopy(model.state_dict())
    check_images(model, torch.randn(4, 1, 8, 8))
    same_state(model, before)
    assert model.training
    assert all(m.training for m in model.modules())


def test_every_quantizer_is_ready_afterwards():
    model = student()
    assert not all(q.calibrated for q in quantizers(model).values())
    calibrate(model, [torch.randn(4, 1, 8, 8)])
    assert all(q.calibrated for q in quantizers(model).values())


def test_a_quantizer_that_refuses_its_tensor_is_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    student = quantize(model, None, partial(PACT, bits=2))
    message = r"calibrate: 0.input_quantizer: PACT has no signed grid, but .* negative values"
    with pytest.raises(ValueError, match=message):
        calibrate(student, [torch.randn(2, 1, 8, 8)])


def test_images_take_the_type_of_the_first_floating_parameter():
    images = torch.rand(2, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    model.register_parameter("count", nn.Parameter(torch.tensor(1), requires_grad=False))
    assert torch.equal(as_taken(model, images), images.double())
    assert as_taken(model, images).dtype == torch.float64
    assert as_taken(nn.ReLU(), images) is images
    assert check_images(model, images).dtype == torch.float64
