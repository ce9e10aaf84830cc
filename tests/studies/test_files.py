"""Studies as TOML files."""

import sys
from functools import partial
from pathlib import Path

import pytest

from qatviz import datasets
from qatviz.augment import crop, flip
from qatviz.datasets import load
from qatviz.methods import CrossEntropy, Dampening
from qatviz.models import small_cnn
from qatviz.quantizers import LSQ, Affine, min_max_range
from qatviz.schedule import Schedule
from qatviz.studies import Experiment, grid
from qatviz.studies.files import read_study
from tests.studies.grids import Counter, Slow, curve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def read(tmp_path, cache):
    def read(text):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return read_study(path, cache)

    return read


def test_a_file_says_what_python_says(read):
    made = read("""
        title = "all that there is"
        [base]
        images = 300
        model = { name = "small_cnn", width = 4 }
        inputs = { name = "Affine", find_range = "min_max_range" }
        ends = "float"
        method = { name = "CrossEntropy", view = { name = "crop", padding = 2 } }
        observers = { n = { name = "tests.studies.grids:Counter", start = 3 } }
        analyses = { c = "tests.studies.grids:curve", h = "weight_histograms" }
        [base.schedule]
        epochs = 2
        milestones = [0.25, 0.5]
        [grid]
        bits = ["float", 2, [2, "float"]]
        seed = [0, 1]
    """)
    from qatviz.analysis import weight_histograms

    base = Experiment(
        images=300,
        model=partial(small_cnn, width=4),
        inputs=partial(Affine, find_range=min_max_range),
        ends="float",
        method=partial(CrossEntropy, view=partial(crop, padding=2)),
        observers={"n": partial(Counter, start=3)},
        analyses={"c": curve, "h": weight_histograms},
        schedule=Schedule(epochs=2, milestones=(0.25, 0.5)),
    )
    assert made == grid(base, bits=[None, 2, (2, None)], seed=[0, 1])


def test_an_arm_changes_of_the_schedule_what_it_names(read):
    made = read("""
        [base.schedule]
        epochs = 2
        rate = 0.3
        [grid.arms]
        plain = { bits = 2 }
        anew = { bits = 2, schedule = { reestimate = 5 } }
    """)
    assert [e.label for e in made] == ["plain", "anew"]
    assert made[0].schedule == Schedule(epochs=2, rate=0.3)
    assert made[1].schedule == Schedule(epochs=2, rate=0.3, reestimate=5)


def test_labels_arms_schedules_and_wrapped_methods(read):
    made = read("""
        [base]
        bits = 2
        [grid]
        schedule.rate = [0.1, 0.01]
        [grid.method]
        plain = "CrossEntropy"
        [grid.method.dampened]
        name = "Dampening"
        strength = 0.2
        method = { name = "CrossEntropy", view = "flip" }
        [grid.arms.channels]
        weights = { name = "LSQ", axis = 0 }
        bits = 3
    """)
    dampened = partial(Dampening, strength=0.2, method=partial(CrossEntropy, view=flip))
    assert made == grid(
        Experiment(bits=2),
        **{"schedule.rate": [0.1, 0.01]},
        method={"plain": CrossEntropy, "dampened": dampened},
        arms={"channels": {"weights": partial(LSQ, axis=0), "bits": 3}},
    )
    assert made[1].label == "rate 0.1 dampened channels"


def test_text_stays_text_where_the_parameter_says_so(read):
    (made,) = read("""
        [base]
        method = { name = "tests.studies.grids:Slow", log = "flip" }
    """)
    assert made.method.func is Slow
    assert made.method.keywords == {"log": "flip"}


def test_a_start_has_the_seed_of_its_cell_unless_it_names_one(read):
    text = "[base]\nbits = 2\n[base.start]\nimages = 9\n{}[grid]\nseed = [3, 4]\n"
    assert [e.start.seed for e in read(text.format(""))] == [3, 4]
    assert [e.start.seed for e in read(text.format("seed = 7\n"))] == [7, 7]
    assert read(text.format(""))[0].start.images == 9
    named = read('[base]\nbits = 2\nstart = "float_small_resnet"\n')
    assert named[0].start == "float_small_resnet"


def test_every_problem_of_a_file_is_said_at_once(read, tmp_path, cache):
    with pytest.raises(ValueError, match="nothing was started, 12 problems") as caught:
        read(f"""
            colour = "blue"
            [base]
            root = "{tmp_path}"
            method = {{ name = "CrossEntropy", view = "flp" }}
            weights = "LQS"
            modle = "small_cnn"
            start = "float_small_resnt"
            ends = "int8"
            analyses = {{ a = "no_such_module:f" }}
            [base.schedule]
            epoch = 3
            rate = -1
            [grid]
            bits = [1, 2]
            sed = [1]
            [grid.model]
            odd = {{ width = 3 }}
        """)
    for words in (
        "the table [colour] is unknown",
        "base.method.view = 'flp' is unknown; did you mean flip",
        "base.weights = 'LQS' is unknown; did you mean LSQ",
        "base.modle is unknown; did you mean model",
        "'float_small_resnt' is unknown; did you mean float_small_resnet?",
        'ends must be None, "float" or',
        "'no_such_module:f' was not found",
        "base.schedule.epoch is unknown; did you mean epochs",
        "Schedule: rate must be a positive number",
        "a grid's choice 'sed' is unknown; did you mean seed",
        "grid.model.odd must be a name, or {name",
        "fashion_mini.npz is missing",
    ):
        assert words in str(caught.value)
    assert not cache.exists()


def test_impossible_bits_unknown_names_and_missing_data_come_together(read, tmp_path):
    with pytest.raises(ValueError, match="nothing was started, 4 problems") as caught:
        read(f"""
            [base]
            root = "{tmp_path}"
            method = "CrossEntropie"
            [grid]
            bits = [1, 2, 9]
        """)
    for words in ("'CrossEntropie' is unknown", "W1A1: ", "W9A9: ", "is missing"):
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["[base", "[base]\nbits = 2\nbits = 3\n"])
def test_what_is_no_toml_is_said(read, text):
    with pytest.raises(ValueError, match="is not a study"):
        read(text)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"is not a study: .*No such file"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "cells", "arms"), [("fast", 4, 2), ("laptop", 12, 4), ("paper", 45, 9)]
)
def test_the_studies_that_come_along_can_be_read(name, cells, arms):
    made = read_study(ROOT / "studies" / f"methods_{name}.toml")
    assert len({e.hash for e in made}) == cells
    assert len({e.arm for e in made}) == len({e.label for e in made}) == arms


def test_the_embedded_data_are_where_the_studies_expect_them():
    assert datasets.DATA.is_dir()
    assert len(load("fashion-mini").train) == 10_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base = 3", "base must be a table, got 3"),
        ("grid = 3", "grid must be a table, got 3"),
        ("[grid]\narms = 3", "arms must be a dictionary of dictionaries of fields, got 3"),
        ("[grid.arms]\nA = 3", "grid.arms.A must be a table, got 3"),
        ("[grid.arms]\nA = {schedule = 3}", "grid.arms.A.schedule must be a table, got 3"),
        ("[grid.arms.A.schedule]\nrat = 1", "grid.arms.A.schedule.rat is unknown; did you mean"),
        ("[grid.arms.A.schedule]\nrate = -1", "rate must be a positive number, got -1"),
        ('[base]\nobservers = "OscillationTracker"', "base.observers must be a table"),
        ("[base]\nlabel = 3", "label must be text, got 3"),
        ("[base]\nroot = 3", "root must be None or a folder, got 3"),
        ("[grid]\nbits = [[2, 3, 4]]", "bits must be None, a whole number, or a pair"),
        ('[base.analyses]\nn = "zoo_names"', "zoo_names cannot be called with a student"),
    ],
)
def test_what_is_of_another_kind_is_refused_with_all_else(read, text, says):
    text = text if text.startswith("base") else text + "\n[base.schedule]\nepoch = 1\n"
    with pytest.raises(ValueError, match="nothing was started") as error:
        read(text)
    assert says in str(error.value)
    assert text.startswith("base") or "did you mean epochs?" in str(error.value)


def test_a_module_beside_the_file_is_found(read, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    text = "from qatviz.methods import CrossEntropy\n\n\nclass Beside(CrossEntropy):\n    pass\n"
    (tmp_path / "beside_the_study.py").write_text(text)
    (e,) = read('[base]\nmethod = "beside_the_study:Beside"')
    assert e.method.__name__ == "Beside"
    sys.modules.pop("beside_the_study")
