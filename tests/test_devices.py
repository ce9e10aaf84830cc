"""Training on several devices: two processes of the CPU."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from qatviz.augment import crop_flip
from qatviz.checkpoints import read_plain
from qatviz.evaluation import evaluate
from qatviz.methods import CrossEntropy, Method
from qatviz.methods.base import labelled_cross_entropy
from qatviz.training import fit
from tests.test_resume import Counter
from tests.test_training import (
    LABELLED,
    TEST,
    VALIDATION,
    Tempered,
    assert_equal_states,
    settings,
    tiny,
    without_norm,
)

pytestmark = pytest.mark.slow  # each process imports torch

two = partial(fit, accelerator="cpu", devices=2, progress=False)
one = partial(fit, accelerator="cpu", progress=False)


def assert_close_states(first, second, tolerance):
    for key, value in first.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                second.state_dict()[key], value, rtol=tolerance, atol=tolerance
            )


def test_without_batchnorm_two_processes_are_one():
    """Cut in three parts, clipped, and with a parameter of the method's own."""
    alone, pair, counter = without_norm(), without_norm(), Counter()
    method, others = Tempered(), Tempered()
    schedule = settings(batch=6, epochs=3, clip=1.0)
    run = one(alone, method, LABELLED, TEST, schedule, validation=VALIDATION)
    schedule = settings(batch=6, epochs=3, clip=1.0, accumulate=3)
    many = two(pair, others, LABELLED, TEST, schedule, [counter], validation=VALIDATION)
    for key, value in alone.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(pair.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    assert not torch.equal(pair[0].weight, without_norm()[0].weight)
    torch.testing.assert_close(method.temperature, others.temperature, rtol=1e-5, atol=1e-6)
    assert others.temperature.item() != pytest.approx(2.0, abs=1e-3)
    assert not any(module.training for module in pair.modules())
    assert many.test == evaluate(pair, TEST) == run.test
    np.testing.assert_array_equal(many.history.validation, run.history.validation)
    assert many.machine["processes"] == 2
    assert counter.seen["steps"] == list(range(1, 10))  # its state came back


class Watch:
    """Keeps the running mean after the first step; may stop the run."""

    def __init__(self, stop=0):
        self.stop, self.mean = stop, torch.zeros(4)

    def __call__(self, step, model):
        if step == 1:
            self.mean = model[1].running_mean.clone()
        if step == self.stop:
            raise RuntimeError(f"stopped at step {step}")

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def test_two_processes_resume_to_the_same_bits_and_batchnorm_sees_half(tmp_path):
    torch.manual_seed(0)
    first = tiny()
    stopped, again = copy.deepcopy(first), copy.deepcopy(first)
    schedule = settings(batch=22, epochs=3)

    def train(student, watch, file, resume=False):
        method = CrossEntropy(crop_flip)
        path = tmp_path / file
        more = {"checkpoint": path, "resume": resume}
        return two(student, method, LABELLED, TEST, schedule, [watch], **more)

    watch = Watch()
    twin = copy.deepcopy(first).train()
    run = train(first, watch, "whole")
    with pytest.raises(Exception, match=r"stopped at step 2"):
        train(stopped, Watch(2), "stopped")
    assert read_plain(tmp_path / "stopped")["epoch"] == 1
    assert_equal_states(stopped, twin)  # the parent's student is as it was
    resumed = train(again, Watch(), "stopped", resume=True)
    assert_equal_states(first, again)
    assert resumed.test == run.test
    # The running mean after the first step is that of the images of the first process.
    torch.manual_seed(schedule.seed)
    own = torch.randperm(22)[::2]
    seen = twin[0](LABELLED.normalise(crop_flip(LABELLED.images[own]))).mean((0, 2, 3))
    torch.testing.assert_close(watch.mean, 0.1 * seen.detach())


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"batch of 5 .* into 2 equal parts \(2 processes, acc"):
        two(tiny(), CrossEntropy(), LABELLED, TEST, settings(batch=5))


class Headed(Method):
    """Trains a layer of its own, whose first weights are drawn."""

    def prepare(self, student, data):
        self.head = torch.nn.Linear(3, 3)

    def loss(self, forward, images, labels):
        return {"ce": labelled_cross_entropy(self.head(forward(images)), labels)}


def test_all_processes_prepare_the_same_method():
    alone, pair, method, others = without_norm(), without_norm(), Headed(), Headed()
    one(alone, method, LABELLED, TEST, settings(batch=6))
    two(pair, others, LABELLED, TEST, settings(batch=6))
    assert_close_states(alone, pair, 1e-5)
    assert_close_states(method, others, 1e-5)
