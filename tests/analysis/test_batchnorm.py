"""Accuracy with statistics estimated anew, against a network whose statistics were spoilt."""

import copy
from dataclasses import replace

import pytest
import torch

from qatviz.analysis import reestimated_accuracy
from qatviz.datasets import Dataset
from qatviz.evaluation import evaluate, predict
from tests.methods.common import TEST, TRAIN, same, tiny

DATA = Dataset(name="tiny", train=TRAIN, validation=TEST, test=TEST)


def by_hand(model, size):
    """The plain average over all whole batches in the order of the seed."""
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))
    convolution = copy.deepcopy(model)[0]
    means, variances = [], []
    for start in range(0, len(TRAIN) - size + 1, size):
        images = TRAIN.images[order[start : start + size]]
        maps = convolution((images / 255 - 0.45) / 0.25).detach()
        means.append(maps.mean((0, 2, 3)))
        variances.append(maps.var((0, 2, 3)))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def test_it_is_the_accuracy_with_the_statistics_of_the_training_images():
    model = tiny().eval()
    model[5].bias.data.zero_()
    model[1].running_mean += torch.tensor([3.0, -3.0, 1.0, -1.0])
    anew = copy.deepcopy(model)
    anew[1].running_mean[:], anew[1].running_var[:] = by_hand(model, 13)
    # Right is what the network says once its statistics are right.
    test = replace(TEST, labels=predict(anew, TEST)[0].argmax(1))
    spoilt = evaluate(model, test)
    before = copy.deepcopy(model.state_dict())
    found = reestimated_accuracy(model, replace(DATA, test=test), size=13)
    assert same(before, model.state_dict())
    assert found == {"running": spoilt, "reestimated": 1.0}
    assert spoilt < 1


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="allowed: 1 or more"):
        reestimated_accuracy(tiny().eval(), DATA, batches=0)
