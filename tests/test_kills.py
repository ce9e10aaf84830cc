"""Kill −9 at many moments of a run: every resume ends in the weights of the uninterrupted one."""

from collections import Counter

import pytest
import torch

from qatviz.augment import crop_flip
from qatviz.checkpoints import load_tree
from qatviz.methods import AveragedWeights, CrossEntropy, IterativeFreezing
from qatviz.runs import save_weights
from qatviz.training import fit
from tests.killing import in_process
from tests.test_training import TEST, TRAIN, VALIDATION, settings, tiny

pytestmark = pytest.mark.slow  # a process per moment, and one more

# 4 epochs of 4 steps, a checkpoint after each; SGD for weights, Adam for quantizers.
MOMENTS = [
    *[("forward", n) for n in (1, 6, 16)],
    *[("step", n) for n in (4, 7, 9, 15)],
    *[("write", n) for n in (1, 3, 4)],
    *[("written", n) for n in (1, 2, 4)],
    *[("rename", n) for n in (1, 2, 4)],
    *[("renamed", n) for n in (1, 3, 4)],
]


def train(folder):
    """All that a run may hold: an average, frozen weights, two optimizers, the best epoch."""
    torch.manual_seed(3)
    student = tiny()
    freezing = IterativeFreezing(CrossEntropy(crop_flip), momentum=0.3, start=0.0)
    method = AveragedWeights(freezing, decay=0.9)
    schedule = settings(epochs=4, keep="best", quantizer_optimizer="adam", quantizer_rate=0.01)
    fit(
        *(student, method, TRAIN, TEST, schedule),
        validation=VALIDATION,
        checkpoint=folder / "checkpoint",
        resume=True,
        accelerator="cpu",
        progress=False,
    )
    save_weights(
        {k: v for k, v in student.state_dict().items() if isinstance(v, torch.Tensor)},
        folder / "weights",
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert in_process(train, folder) == 0
    return folder


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"seconds", "first_steps"}:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize(("phase", "moment"), MOMENTS)
def test_a_killed_run_ends_in_the_same_weights(phase, moment, uninterrupted, tmp_path):
    assert in_process(train, tmp_path, phase=phase, moment=moment) == -9
    left = tmp_path / "checkpoint"
    if left.exists():
        load_tree(left)  # whole, whenever it is there
    assert in_process(train, tmp_path) == 0
    assert_same(load_tree(left), load_tree(uninterrupted / "checkpoint"))
    weights = (tmp_path / "weights").read_bytes()
    assert weights == (uninterrupted / "weights").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "checkpoint.lock", "weights"}


def test_every_phase_is_tried():
    counts = Counter(phase for phase, _ in MOMENTS)
    assert len(MOMENTS) == 19
    assert min(counts.values()) >= 3
