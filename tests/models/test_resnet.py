import pytest
import torch
import torchvision

from qatviz.models import resnet18


@pytest.fixture(scope="module")
def pair():
    # Ours under the weights of an untrained one of torchvision.
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(weights=None)
    model = resnet18()
    model.load_state_dict(reference.state_dict(), strict=True)
    return model, reference


def shapes(model):
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def test_names_shapes_and_order_are_torchvisions(pair):
    model, reference = pair
    assert shapes(model) == shapes(reference)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in reference.named_parameters()
    ]


@pytest.mark.parametrize("classes", [1, 10])
def test_names_are_torchvisions_with_other_classes(classes):
    with torch.device("meta"):
        reference = torchvision.models.resnet18(num_classes=classes)
        assert shapes(resnet18(classes)) == shapes(reference)


def test_weights_go_back_to_torchvision(pair):
    model, reference = pair
    reference.load_state_dict(model.state_dict(), strict=True)


def test_training_outputs_and_statistics_are_torchvisions(pair):
    model, reference = (network.train() for network in pair)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 224])
def test_eval_outputs_are_torchvisions(pair, size):
    model, reference = (network.eval() for network in pair)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (1, 1000)
        torch.testing.assert_close(logits, reference(x), rtol=1e-5, atol=1e-5)


def test_cifar_stem_has_the_same_names_and_one_other_shape(pair):
    cifar, imagenet = shapes(resnet18(stem="cifar")), shapes(pair[0])
    assert set(cifar) - set(imagenet) == {("conv1.weight", (64, 3, 3, 3))}
    assert [name for name, _ in cifar] == [name for name, _ in imagenet]


def test_cifar_stem_keeps_the_image():
    model = resnet18(10, "cifar").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        sizes = [tuple(model[:n](x).shape[2:]) for n in (3, 4, 5, 6, 7)]
    assert sizes == [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]


def test_initial_weights_are_spread_as_torchvisions(pair):
    torch.manual_seed(1)
    ours = resnet18().state_dict()
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    for name, tensor in theirs.items():
        if tensor.dim() > 1:
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.06), name
        elif not name.startswith("fc"):
            assert torch.equal(ours[name], tensor), name
