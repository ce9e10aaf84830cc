from functools import partial

import numpy as np
import pytest
import torch

from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged


def assign(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


def hook(model):
    model.bn1.register_forward_hook(lambda *_: None)


CHANGES = {
    "nothing": lambda model: None,
    "a parameter": lambda model: model.fc.weight.data.add_(1),
    "a buffer": lambda model: model.bn1.running_mean.add_(1),
    "a gradient": lambda model: setattr(model.fc.weight, "grad", torch.ones(10, 8)),
    "whether it has one": lambda model: model.fc.weight.requires_grad_(False),
    "the mode": lambda model: model.bn1.train(),
    "a hook": hook,
    "the momentum": assign("bn1", "momentum", None),
    "the eps": assign("bn1", "eps", 7.0),
    "the stride": assign("conv1", "stride", (3, 3)),
    "the bits": assign("conv1.weight_quantizer", "bits", 5),
    "signed or not": assign("conv1.weight_quantizer", "signed", False),
    "another attribute": assign("conv1", "kept", object()),
    "a module": assign("", "conv1", small_cnn(width=2).conv1),
    "the generator of torch": lambda model: torch.rand(1),
    "the generator of NumPy": lambda model: np.random.rand(),  # noqa: NPY002
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_noticed(what):
    model = quantize(small_cnn(width=2), partial(LSQ, 2), partial(LSQ, 2)).eval()

    def look():
        with unchanged(model):
            CHANGES[what](model)

    if what == "nothing":
        look()
    else:
        with pytest.raises(AssertionError):
            look()


def test_a_change_is_noticed_where_an_exception_passes_through():
    model = small_cnn(width=2)

    def leave(eps):
        with unchanged(model):
            model.bn1.eps = eps
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave(model.bn1.eps)
    with pytest.raises(AssertionError):
        leave(7.0)
