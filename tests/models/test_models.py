"""What every network keeps to, whatever its family."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import qatviz.models
from qatviz.models import (
    mobilenet_v2,
    resnet18,
    resnet20,
    resnet32,
    small_cnn,
    small_resnet,
)

# name: constructor, image shape, parameters (those of torchvision where it has the network).
MODELS = {
    "small_cnn": (small_cnn, (1, 28, 28), 24_058),
    "small_resnet": (small_resnet, (1, 28, 28), 77_754),
    "resnet20": (resnet20, (3, 32, 32), 269_722),
    "resnet32": (resnet32, (3, 32, 32), 464_154),
    "resnet18": (resnet18, (3, 64, 64), 11_689_512),
    "resnet18-cifar": (partial(resnet18, 10, "cifar"), (3, 32, 32), 11_173_962),
    "mobilenet_v2": (mobilenet_v2, (3, 64, 64), 3_504_872),
    "mobilenet_v2-cifar": (partial(mobilenet_v2, 10, "cifar"), (3, 32, 32), 2_236_682),
}
ACTIVATIONS = (nn.ReLU, nn.ReLU6)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


@pytest.fixture(scope="module")
def images(name):
    return torch.randn(2, *MODELS[name][1], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(model, images):
    with torch.no_grad():
        return model(images)


def units(model):
    # What nested sequences hold, in the order it runs.
    if type(model) is not nn.Sequential:
        return [model]
    return [unit for child in model for unit in units(child)]


def test_everything_exported_exists():
    assert all(callable(getattr(qatviz.models, name)) for name in qatviz.models.__all__)


def test_parameter_count(name, model):
    assert sum(p.numel() for p in model.parameters()) == MODELS[name][2]


def test_logits_are_finite_numbers_of_the_right_shape(model, logits):
    classes = units(model)[-1].out_features
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_every_slice_is_a_model(model, images, logits):
    """At every top-level split, prefix then suffix is the whole, under the same names."""
    for split in range(len(model) + 1):
        prefix, suffix = model[:split], model[split:]
        assert [*prefix.state_dict(), *suffix.state_dict()] == list(model.state_dict())
        with torch.no_grad():
            assert torch.equal(suffix(prefix(images)), logits), split


def test_every_split_between_units(model, images, logits):
    """At every split inside the stages too, going on from the tensor gives the whole."""
    parts = units(model)
    with torch.no_grad():
        features = [images]
        for part in parts:
            features.append(part(features[-1]))
        assert torch.equal(features[-1], logits)
        for split, feature in enumerate(features):
            assert torch.equal(nn.Sequential(*parts[split:])(feature), logits), split


def test_units_do_not_write_on_their_input(model, images):
    features = images
    with torch.no_grad():
        for part in units(model):
            before = features.clone()
            after = part(features)
            assert torch.equal(features, before), part
            features = after


def test_every_leaf_runs_exactly_once(model, images):
    """A module reached twice would share one activation quantizer between two tensors."""
    leaves = {key: m for key, m in model.named_modules() if not list(m.children())}
    calls = dict.fromkeys(leaves, 0)

    def count(key, *_):
        calls[key] += 1

    handles = [m.register_forward_hook(partial(count, key)) for key, m in leaves.items()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    assert {key: n for key, n in calls.items() if n != 1} == {}
    assert any(isinstance(m, ACTIVATIONS) for m in leaves.values())


def test_no_activation_works_in_place(model):
    assert not any(m.inplace for m in model.modules() if isinstance(m, ACTIVATIONS))


def test_every_rectification_is_a_module(model, images):
    """None is hidden in a forward as a function, where no quantizer could reach it."""
    names = {"relu", "relu_", "relu6", "hardtanh", "clamp"}
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ in names:
                seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        model(images)
    assert len(seen) == sum(isinstance(m, ACTIVATIONS) for m in model.modules())


def test_state_is_unique_and_unshared(model):
    state = model.state_dict()
    named = [*model.named_parameters(remove_duplicate=False)]
    named += model.named_buffers(remove_duplicate=False)
    assert len(named) == len(state)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_twins_agree_and_share_nothing(model, images, logits, twin):
    other = twin(model)
    with torch.no_grad():
        assert torch.equal(other(images), logits)
    assert repr(other) == repr(model)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in pointers for p in other.parameters())


def test_every_parameter_gets_a_gradient(model, images):
    student = copy.deepcopy(model).train()
    student(images).square().mean().backward()
    assert [key for key, p in student.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("classes", [0, -3])
@pytest.mark.parametrize(
    "constructor", [small_cnn, small_resnet, resnet20, resnet32, resnet18, mobilenet_v2]
)
def test_classes_below_one_are_refused(constructor, classes):
    with pytest.raises(ValueError, match=f"classes: got {classes}, allowed: 1 or more"):
        constructor(classes=classes)


@pytest.mark.parametrize("constructor", [resnet18, mobilenet_v2])
def test_unknown_stems_are_refused(constructor):
    with pytest.raises(ValueError, match="stem: got 'mnist', allowed: 'imagenet', 'cifar'"):
        constructor(stem="mnist")
