"""What an experiment is: its content, its hash, what is impossible, grids."""

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from qatviz.analysis import (
    activation_histograms,
    descent,
    step_ratios,
    weight_histograms,
    zoo_names,
)
from qatviz.augment import crop_flip, flip
from qatviz.datasets import load
from qatviz.methods import CrossEntropy, HintonKD
from qatviz.models import small_cnn, small_resnet
from qatviz.quantizers import LSQ, PACT
from qatviz.runs import save_weights
from qatviz.schedule import Schedule
from qatviz.studies import Experiment, grid
from qatviz.studies.experiment import analysis_arguments
from tests.studies.grids import BASE, TINY, Counter, Mute, Taught, count_parameters, curve

ROOT = Path(__file__).resolve().parents[2]


def test_the_hash_is_the_sha256_of_the_canonical_description():
    e = Experiment(bits=2, seed=3)
    text = json.dumps(e.describe(), sort_keys=True, separators=(",", ":"))
    assert e.hash == hashlib.sha256(text.encode()).hexdigest()[:16]


CHANGES = {
    "data": "cifar10",
    "images": 7,
    "repeat": 3,
    "unlabelled": 2,
    "model": small_cnn,
    "start": "float_small_resnet",
    "bits": (3, 2),
    "weights": partial(LSQ, axis=0),
    "inputs": partial(LSQ, signed=True),
    "ends": "float",
    "method": partial(CrossEntropy, view=crop_flip),
    "schedule": Schedule(rate=0.3),
    "seed": 4,
    "observers": {"n": Counter},
    "analyses": {"c": curve},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts(name):
    base = Experiment(bits=2)
    assert replace(base, **{name: CHANGES[name]}).hash != base.hash


def test_all_fields_are_tried_above_but_those_that_do_not_count():
    assert {f.name for f in fields(Experiment)} - set(CHANGES) == {"label", "root"}
    assert replace(BASE, label="x").hash == BASE.hash
    assert replace(BASE, root="/elsewhere").hash == BASE.hash
    folders = [Experiment(data="imagefolder", root=r).hash for r in ("/a", "/b")]
    assert folders[0] != folders[1], "a folder of images is known by its place alone"


@pytest.mark.parametrize("name", [f.name for f in fields(Schedule) if f.name != "seed"])
def test_every_field_of_the_schedule_counts(name):
    other = {
        **{"epochs": 2, "batch": 2, "rate": 0.2, "warmup": 0.2, "momentum": 0.2, "decay": 0.2},
        **{"precision": "bf16-mixed", "optimizer": "adam", "quantizer_optimizer": "adam"},
        **{"quantizer_rate": 0.2, "quantizer_decay": 0.2, "anneal": "step", "factor": 0.2},
        **{"milestones": (0.2,), "clip": 0.2, "accumulate": 2, "reestimate": 2, "keep": "best"},
    }[name]
    assert replace(BASE, schedule=Schedule(**{name: other})).hash != BASE.hash


def test_what_is_not_used_does_not_count():
    assert Experiment(weights=PACT, ends=4).hash == Experiment().hash
    assert Experiment(bits=(2, None), inputs=PACT).hash == Experiment(bits=(2, None)).hash


def test_the_same_bits_said_in_two_ways_are_one_experiment():
    assert Experiment(bits=2) == Experiment(bits=(2, 2)) == Experiment(bits=[2, 2])
    assert len({Experiment(bits=2), Experiment(bits=(2, 2))}) == 1
    assert Experiment(bits=2) != Experiment(bits=2, label="x")


@pytest.mark.slow
def test_another_process_finds_the_same_hash_and_pickles_keep_it():
    e = replace(BASE, bits=2, observers={"n": partial(Counter, 3)})
    assert pickle.loads(pickle.dumps(e)).hash == e.hash
    code = (
        "from dataclasses import replace; from functools import partial;"
        "from tests.studies.grids import *;"
        "print(replace(BASE, bits=2, observers={'n': partial(Counter, 3)}).hash)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == e.hash


def test_weights_in_a_file_count_by_their_bytes(tmp_path):
    model = TINY()
    for name in ("a", "b"):
        save_weights(model.state_dict(), tmp_path / f"{name}.safetensors")
    same = [replace(BASE, start=str(tmp_path / f"{n}.safetensors")).hash for n in "ab"]
    assert same[0] == same[1] != BASE.hash
    model.fc.bias.data += 1
    save_weights(model.state_dict(), tmp_path / "b.safetensors")
    assert replace(BASE, start=str(tmp_path / "b.safetensors")).hash != same[0]


def test_a_start_counts_with_all_that_it_is():
    one, other = (replace(BASE, start=replace(BASE, seed=s)) for s in (0, 1))
    assert one.hash != other.hash
    assert one.describe()["start"] == BASE.describe()


def test_an_arm_is_what_seeds_have_in_common_with_their_starts():
    ours = [replace(BASE, bits=2, seed=s, start=replace(BASE, seed=s)) for s in (0, 1)]
    assert ours[0].arm == ours[1].arm
    assert ours[0].arm != replace(ours[0], start=replace(BASE, seed=5)).arm
    assert replace(BASE, bits=2).arm != replace(BASE, bits=3).arm


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bits": 1}, r"weights at 1 bits: LSQ on signed numbers allows 2 to 8"),
        ({"bits": 9}, r"weights at 9 bits: .*from 1 to 8.*; inputs at 9 bits"),
        ({"bits": (2, 0)}, r"inputs at 0 bits"),
        ({"bits": 2.0}, r"bits must be None, a whole number, or a pair"),
        ({"bits": True}, r"bits must be"),
        ({"bits": (2, 2, 2)}, r"bits must be"),
        ({"bits": 2, "ends": 1}, r"weights at 1 bits"),
        ({"bits": 2, "ends": "int8"}, r'ends must be None, "float" or'),
        ({"bits": 2, "weights": PACT}, r"weights: PACT has no signed grid"),
        ({"bits": 2, "weights": small_cnn}, r"weights must make|weights at 2 bits"),
        ({"bits": 2, "weights": LSQ(2)}, r"weights must be a class, a function or a partial"),
        ({"bits": 2, "weights": partial(LSQ, 2)}, r"weights at 2 bits: .*bits"),
        ({"bits": 2, "weights": partial(LSQ, steps=2)}, r"weights: LSQ: .*'steps'"),
        ({"model": lambda: 0}, r"model: .*lambda.* cannot be named"),
        ({"method": CrossEntropy()}, r"method must be a class"),
        ({"method": HintonKD}, r"HintonKD needs a teacher: name trained weights as start"),
        ({"schedule": Schedule(seed=1)}, r"seed of the schedule must stay 0"),
        ({"schedule": {}}, r"schedule must be a Schedule"),
        ({"seed": -1}, r"seed must be a whole number"),
        ({"seed": "0"}, r"seed must be a whole number"),
        ({"images": 0}, r"images must be None or a whole number from 1"),
        ({"repeat": 0}, r"repeat must be a whole number from 1, got 0"),
        ({"unlabelled": -1}, r"unlabelled must be a whole number from 0, got -1"),
        ({"unlabelled": None}, r"unlabelled must be a whole number from 0, got None"),
        ({"start": "float_small_resnt"}, r"is unknown; did you mean float_small_resnet\?"),
        ({"start": "/no/such.safetensors"}, r"/no/such.safetensors does not exist"),
        ({"start": 3}, r"start must be None, a name, a file or an Experiment"),
        ({"observers": {"m": Mute}}, r"observer 'm': Mute has none of record"),
        ({"analyses": {"c": lambda: 0}}, r"analysis 'c': .*cannot be named"),
    ],
)
def test_the_impossible_is_refused_at_once(wrong, says):
    with pytest.raises(ValueError, match=says):
        Experiment(**wrong)


def test_all_that_is_impossible_is_said_together():
    with pytest.raises(ValueError, match="impossible experiment") as caught:
        Experiment(bits=1, seed=-1, images=0, start="nowhere")
    for word in ("1 bits", "seed must", "images must", "'nowhere' is unknown"):
        assert word in str(caught.value)


def test_a_method_with_a_teacher_is_possible_from_trained_weights():
    Experiment(method=Taught, start="float_small_resnet")


def test_a_grid_is_all_combinations_with_labels_of_what_varies():
    made = grid(BASE, bits=[None, 2, (3, 4)], seed=range(2))
    assert [(e.label, e.bits, e.seed) for e in made] == [
        *(("float", None, 0), ("float", None, 1), ("W2A2", 2, 0), ("W2A2", 2, 1)),
        *(("W3A4", (3, 4), 0), ("W3A4", (3, 4), 1)),
    ]
    assert len({e.hash for e in made}) == 6


def test_keys_of_a_choice_are_labels_and_arms_set_several_fields():
    choices = {"plain": CrossEntropy, "mirrored": partial(CrossEntropy, view=flip)}
    assert [e.label for e in grid(replace(BASE, label="b"), method=choices)] == [
        *("b plain", "b mirrored")
    ]
    arms = {"mine": {"weights": partial(LSQ, axis=0), "bits": 2}, "yours": {"bits": 4}}
    mine, yours = grid(BASE, arms=arms)
    assert (mine.label, mine.bits, mine.weights.keywords) == ("mine", 2, {"axis": 0})
    assert (yours.label, yours.bits, yours.weights) == ("yours", 4, LSQ)


def test_fields_of_the_schedule_are_reached():
    made = grid(BASE, **{"schedule.rate": [0.1, 0.01], "schedule.epochs": {"long": 5}})
    assert [(e.schedule.rate, e.schedule.epochs, e.schedule.batch) for e in made] == [
        *((0.1, 5, 64), (0.01, 5, 64))
    ]
    assert [e.label for e in made] == ["rate 0.1 long", "rate 0.01 long"]


def test_a_grid_says_all_that_is_impossible():
    with pytest.raises(ValueError, match=r"W1A1: .*1 bits[\s\S]*W2A0: .*0 bits"):
        grid(BASE, bits=[1, 2, (2, 0)], seed=range(3))
    with pytest.raises(ValueError, match=r"'bit' is unknown; did you mean bits[\s\S]*'schedule.r"):
        grid(BASE, bit=[2], **{"schedule.rat": [1]})
    with pytest.raises(ValueError, match=r"'weigths' is unknown; did you mean weights"):
        grid(BASE, arms={"a": {"weigths": LSQ}})
    with pytest.raises(ValueError, match="bits: a choice of nothing"):
        grid(BASE, bits=[])
    with pytest.raises(ValueError, match="a choice is a list"):
        grid(BASE, data="fashion-mini")


def test_names_are_made_of_the_parts_and_the_repr_is_stable():
    assert Experiment().name == "float small_resnet, CrossEntropy"
    assert Experiment(bits=(2, 4), inputs=PACT).name == "LSQ + PACT W2A4, CrossEntropy"
    e = replace(BASE, bits=2, label="mine", seed=3)
    assert repr(e) == f"Experiment('mine', fashion-mini, seed 3, {e.hash})"
    assert Experiment(model=small_resnet, analyses={"n": count_parameters}).label == ""


def test_paths_are_text_and_a_start_is_absolute(tmp_path, monkeypatch):
    save_weights({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    e = Experiment(start=Path("w.safetensors"), root=Path("a"))
    assert (e.start, e.root) == ("w.safetensors", "a")
    assert e.start_file == tmp_path / "w.safetensors"


@pytest.mark.parametrize("arms", [["a"], {"a": 3}, 3])
def test_arms_that_are_no_dictionaries_are_refused(arms):
    with pytest.raises(ValueError, match="arms must be a dictionary of dictionaries"):
        grid(Experiment(), arms=arms)


def test_observers_are_a_dictionary():
    with pytest.raises(ValueError, match="observers must be dictionaries"):
        Experiment(observers=[Counter])


def test_a_problem_of_all_layers_is_said_once():
    with pytest.raises(ValueError, match="PACT has no signed grid") as error:
        Experiment(weights=PACT, bits=2)
    assert str(error.value).count("no signed grid") == 1


def test_an_analysis_gets_what_it_asks_for():
    data = load("fashion-mini")
    images, labels = next(data.train.batches(64, limit=64))
    given = analysis_arguments(activation_histograms, "student", data)
    assert given.args[0] == "student"
    assert torch.equal(given.arguments["images"], images)
    assert torch.equal(analysis_arguments(descent, "student", data).arguments["labels"], labels)
    assert len(analysis_arguments(step_ratios, "student", data).arguments["batches"]) == 1
    assert analysis_arguments(weight_histograms, "student", data).args == ("student",)
    assert analysis_arguments(curve, "student", data).args == ("student", data)
    with pytest.raises(ValueError, match="zoo_names cannot be called"):
        Experiment(analyses={"n": zoo_names})


def test_one_problem_of_many_cells_is_said_once():
    with pytest.raises(ValueError, match="impossible experiments") as error:
        grid(Experiment(), bits=[2, 4], **{"schedule.rate": [-1]}, seed=range(2))
    assert str(error.value).count("rate must be") == 1
    assert "W2A2 rate -1 and 1 more: " in str(error.value)
