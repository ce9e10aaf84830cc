"""Kill −9 at many moments of a run: every resume ends in the weights of the uninterrupted one."""

from collections import Counter

import pytest
import torch

from qatviz.augment import crop_flip
from qatviz.checkpoints import load_tree
from qatviz.methods import AveragedWeights, CrossEntropy, IterativeFreezing
from qatviz.runs import Run, save_weights
from qatviz.schedule import Schedule
from qatviz.studies import Experiment, grid, study
from qatviz.training import fit
from tests.killing import in_process
from tests.studies.grids import TINY
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
    assert sum(counts.values()) + len(IN_A_STUDY) == 25
    assert min(counts.values()) >= 3
    assert len(BETWEEN_CELLS) == 3


# Two cells of 2 epochs of 2 steps; a cell renames 7 files, of which run.json is the last.
BETWEEN_CELLS = [("renamed", 7), ("rename", 8), ("write", 8)]
IN_A_STUDY = [*BETWEEN_CELLS, ("step", 6), ("written", 7), ("rename", 12)]


def two_cells(cache):
    base = Experiment(model=TINY, images=128, bits=2, schedule=Schedule(epochs=2, batch=64))
    study(grid(base, seed=[0, 1]), cache=cache, progress=False)


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert in_process(two_cells, folder) == 0
    return folder


@pytest.mark.parametrize(("phase", "moment"), IN_A_STUDY)
def test_a_killed_study_loses_no_cell(phase, moment, whole_study, tmp_path):
    assert in_process(two_cells, tmp_path, phase=phase, moment=moment) == -9
    finished = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("*/run.json")}
    if (phase, moment) in BETWEEN_CELLS:
        assert len(finished) == 1
    assert in_process(two_cells, tmp_path) == 0
    names = {p.name for p in whole_study.iterdir() if not p.name.startswith(".")}
    assert len(names) == 2
    for name in names:
        cell, other = tmp_path / name, whole_study / name
        assert (cell / "weights.safetensors").read_bytes() == (
            other / "weights.safetensors"
        ).read_bytes()
        one, whole = Run.load(cell / "run.json"), Run.load(other / "run.json")
        assert one.test == whole.test
        assert one.history.terms["cross_entropy"].tolist() == (
            whole.history.terms["cross_entropy"].tolist()
        )
        if name in finished:  # and was not run again
            assert (cell / "run.json").stat().st_mtime_ns == finished[name]
