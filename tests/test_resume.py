"""A run that stops anywhere ends where the uninterrupted one does, to the bit."""

import copy
import os
import resource
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import qatviz.runs
import qatviz.training
from qatviz.calibration import calibrate
from qatviz.checkpoints import load_tree, read_plain, save_tree
from qatviz.datasets import Split
from qatviz.evaluation import evaluate
from qatviz.methods import AveragedWeights, CrossEntropy
from qatviz.quantize import quantize, quantizers
from qatviz.quantizers import NIPQ
from qatviz.training import fit
from tests.test_training import (
    TEST,
    TRAIN,
    VALIDATION,
    Tempered,
    assert_equal_states,
    crop_flip,
    settings,
    tiny,
)


class Counter:
    """An observer with a state."""

    def __init__(self, stop=10**9):
        self.stop, self.seen = stop, {"steps": [], "norm": torch.zeros(2)}

    def __call__(self, step, model):
        self.seen["steps"].append(step)
        self.seen["norm"] = self.seen["norm"] + model[0].weight.detach().norm()
        if step == self.stop:
            raise KeyboardInterrupt

    def state_dict(self):
        return self.seen

    def load_state_dict(self, state):
        self.seen = state


def start(schedule, counter, path, method, **more):
    """Train as a script does: everything made anew, then ``fit``."""
    torch.manual_seed(3)
    student, method = tiny(), method()
    options = {"validation": VALIDATION, "resume": path is not None, "progress": False} | more
    fitted = partial(fit, student, method, TRAIN, TEST, schedule, [counter])
    return student, method, fitted(checkpoint=path, accelerator="cpu", **options)


CASES = {
    "sgd": ({}, partial(CrossEntropy, crop_flip)),
    "adam": ({"optimizer": "adam", "quantizer_rate": 0.01}, partial(CrossEntropy, crop_flip)),
    "two optimizers": ({"quantizer_optimizer": "adam"}, partial(CrossEntropy, crop_flip)),
    "its own parameters": ({}, Tempered),
    "best": ({"keep": "best"}, partial(CrossEntropy, crop_flip)),
    "re-estimated": ({"reestimate": 2, "keep": "best"}, partial(CrossEntropy, crop_flip)),
    "clipped, in steps": (
        {"clip": 0.1, "anneal": "step", "batch": 6, "accumulate": 2},
        partial(CrossEntropy, crop_flip),
    ),
    "bfloat16": ({"precision": "bf16-mixed"}, partial(CrossEntropy, crop_flip)),
}


@pytest.mark.parametrize(("changes", "method"), CASES.values(), ids=CASES)
def test_a_run_stopped_three_times_ends_in_the_same_bits(changes, method, tmp_path):
    schedule = settings(epochs=4, **changes)
    whole = Counter()
    student, own, run = start(schedule, whole, None, method)
    per_epoch = len(whole.seen["steps"]) // 4
    for stop in (1, per_epoch + 1, 3 * per_epoch):  # early, in the middle, at the end of an epoch
        with pytest.raises(KeyboardInterrupt):
            start(schedule, Counter(stop), tmp_path / "c", method)
    counter = Counter()
    again, other, resumed = start(schedule, counter, tmp_path / "c", method)
    assert_equal_states(student, again)
    assert_equal_states(own, other)
    assert counter.seen["steps"] == list(range(1, 4 * per_epoch + 1))
    assert torch.equal(counter.seen["norm"], whole.seen["norm"])
    assert (resumed.test, resumed.kept_epoch) == (run.test, run.kept_epoch)
    for name in ("rate", "validation", "accuracy"):
        np.testing.assert_array_equal(getattr(resumed.history, name), getattr(run.history, name))
    for name, values in run.history.terms.items():
        np.testing.assert_array_equal(resumed.history.terms[name], values)


METHOD = partial(CrossEntropy, crop_flip)


def test_the_same_objects_may_go_on_after_an_interruption(tmp_path):
    """As in a notebook, where student and method are still there."""
    expected, _, _ = start(settings(), Counter(), None, partial(AveragedWeights, METHOD()))
    torch.manual_seed(3)
    student, method = tiny(), AveragedWeights(METHOD())
    go = partial(fit, student, method, TRAIN, TEST, settings(), checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        go([Counter(6)])
    assert not torch.equal(student[0].weight, expected[0].weight)
    go([Counter()], resume=True)
    assert_equal_states(student, expected)


def test_a_finished_run_is_returned_without_training(tmp_path):
    student, _, run = start(settings(), Counter(), tmp_path / "c", METHOD)
    counter = Counter()
    again, _, same = start(settings(), counter, tmp_path / "c", METHOD)
    assert counter.seen["steps"] == list(range(1, 9))  # from the file
    assert_equal_states(student, again)
    assert same.test == run.test == evaluate(again, TEST)
    assert same.seconds >= read_plain(tmp_path / "c")["seconds"]


def test_the_file_says_what_it_is_without_reading_tensors(tmp_path):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    plain = read_plain(tmp_path / "c")
    assert (plain["epoch"], plain["step"]) == (2, 8)
    assert plain["identity"]["schedule.rate"] == 0.1
    assert plain["student"]["0.weight"] is None
    assert {p.name for p in tmp_path.iterdir()} == {"c", "c.lock"}


def test_an_existing_file_is_not_overwritten_by_accident(tmp_path):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    with pytest.raises(ValueError, match=r"c exists: resume=True goes on from it; to start anew"):
        start(settings(), Counter(), tmp_path / "c", METHOD, resume=False)


def test_resuming_needs_a_file_to_be_named():
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        start(settings(), Counter(), None, METHOD, resume=True)


class Louder(CrossEntropy):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength


DARKER = Split(TRAIN.images // 2, TRAIN.labels, TRAIN.mean, TRAIN.std)


@pytest.mark.parametrize(
    ("changes", "method", "train", "message"),
    [
        ({"rate": 0.2}, partial(Louder, 1.0), TRAIN, "schedule.rate 0.1 there, 0.2 here"),
        ({}, METHOD, TRAIN, "method 'Louder' there, 'CrossEntropy' here; method.strength 1.0"),
        ({}, partial(Louder, 2.0), TRAIN, "run's: method.strength 1.0 there, 2.0 here$"),
        ({}, partial(Louder, 1.0), DARKER, "train '22 images, .*' there, '22 images, .*' here"),
    ],
)
def test_another_run_s_file_is_refused_and_says_what_differs(
    changes, method, train, message, tmp_path
):
    start(settings(), Counter(), tmp_path / "c", partial(Louder, 1.0))
    before = (tmp_path / "c").read_bytes()
    student = tiny()
    with pytest.raises(ValueError, match=message):
        fit(
            *(student, method(), train, TEST, settings(**changes), [Counter()]),
            validation=VALIDATION,
            checkpoint=tmp_path / "c",
            resume=True,
        )
    assert (tmp_path / "c").read_bytes() == before


def test_two_processes_do_not_share_a_file(tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / "c.lock", is_singleton=False),
        pytest.raises(RuntimeError, match=r"another process trains with .*c"),
    ):
        start(settings(), Counter(), tmp_path / "c", METHOD)


def test_another_number_of_threads_is_said(tmp_path):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    content = load_tree(tmp_path / "c")
    save_tree(content | {"threads": 77}, tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="written with 77 threads, now there are"):
            start(settings(), Counter(), tmp_path / "c", METHOD)


def test_a_damaged_file_is_refused(tmp_path):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-1])
    with pytest.raises(ValueError, match="c is not a whole checkpoint"):
        start(settings(), Counter(), tmp_path / "c", METHOD)


def full(epoch_to_fail, limit):
    """Calls ``limit`` when the checkpoint of an epoch is about to be written."""
    real, calls = qatviz.runs.write_whole, []

    def write(path, *args, **more):
        calls.append(path)
        if len(calls) == epoch_to_fail:
            limit()
        return real(path, *args, **more)

    return write


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    """The kernel refuses to let the file grow, as it does on a full disk."""
    student, _, _ = start(settings(epochs=4), Counter(), None, METHOD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, before[1]))
    monkeypatch.setattr("qatviz.checkpoints.write_whole", full(3, limit))
    try:
        with pytest.raises(OSError, match="c could not be written and is as it was before: File"):
            start(settings(epochs=4), Counter(), tmp_path / "c", METHOD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert {p.name for p in tmp_path.iterdir()} == {"c", "c.lock"}
    assert read_plain(tmp_path / "c")["epoch"] == 2
    again, _, _ = start(settings(epochs=4), Counter(), tmp_path / "c", METHOD)
    assert_equal_states(student, again)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_space_left_is_the_reason_given(tmp_path, monkeypatch):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    before = (tmp_path / "c").read_bytes()

    def on_full_disk(dir, prefix):
        link = tmp_path / f"{prefix}x"
        link.symlink_to("/dev/full")
        return os.open(link, os.O_WRONLY), str(link)

    monkeypatch.setattr("tempfile.mkstemp", on_full_disk)
    with pytest.raises(OSError, match="c could not be written and is as it was before: No space"):
        save_tree({"w": torch.zeros(9)}, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"c", "c.lock"}


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; a checkpoint is one file"):
        start(settings(), Counter(), tmp_path, METHOD)


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    """Not an editor's file, and not what another run writes at this moment."""
    for name in (".c.swp", ".c.d.abcdefgh", ".cc.abcdefgh", ".c.ab_defg7"):
        (tmp_path / name).touch()
    start(settings(), Counter(), tmp_path / "c", METHOD)
    left = {".c.swp", ".c.d.abcdefgh", ".cc.abcdefgh", "c", "c.lock"}
    assert {p.name for p in tmp_path.iterdir()} == left


def test_images_of_any_floating_type_have_a_fingerprint(tmp_path):
    data = Split((TRAIN.images / 255).bfloat16(), TRAIN.labels, TRAIN.mean, TRAIN.std)
    for resume in (False, True):
        fit(tiny(), METHOD(), data, TEST, settings(), checkpoint=tmp_path / "c", resume=resume)


def test_another_student_is_refused_and_stays_as_it_is(tmp_path):
    start(settings(), Counter(), tmp_path / "c", METHOD)
    student = tiny(quantized=False)
    student[5] = torch.nn.Linear(16, 4)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"5\.bias \[3\] there, \[4\] here"):
        fit(
            student,
            METHOD(),
            TRAIN,
            TEST,
            settings(),
            [Counter()],
            validation=VALIDATION,
            checkpoint=tmp_path / "c",
            resume=True,
        )
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("learn_bits", [True, False])
def test_a_student_that_cannot_go_back_is_refused(learn_bits, tmp_path):
    """The noise of NIPQ ended after the checkpoint: without a word it would stay ended."""

    def new():
        torch.manual_seed(3)
        nipq = partial(NIPQ, bits=4, learn_bits=learn_bits)
        student = quantize(tiny(quantized=False), nipq, nipq)
        calibrate(student, TRAIN.batches(22))
        return student

    def end(step, model):
        if step == 6:
            for quantizer in quantizers(model).values():
                quantizer.end_noise()

    def go(student, *observers):
        path = {"checkpoint": tmp_path / "c", "resume": True}
        fit(student, METHOD(), TRAIN, TEST, settings(), [end, *observers], **path)

    interrupted, whole = new(), new()
    with pytest.raises(KeyboardInterrupt):
        go(interrupted, Counter(7))
    with pytest.raises(ValueError, match=r"changed for good .* \(0\.weight_quantizer\._extra"):
        go(interrupted, Counter())
    fresh = new()
    go(fresh, Counter())
    fit(whole, METHOD(), TRAIN, TEST, settings(), [end])
    assert_equal_states(fresh, whole)


def test_the_bar_of_a_resumed_run_counts_its_own_steps_only(tmp_path, monkeypatch):
    bars = []

    class Bar(qatviz.training.tqdm):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            bars.append(self)

    with pytest.raises(KeyboardInterrupt):
        start(settings(), Counter(6), tmp_path / "c", METHOD)
    monkeypatch.setattr(qatviz.training, "tqdm", Bar)
    start(settings(), Counter(), tmp_path / "c", METHOD, progress=True)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(4, 8, 8)]
