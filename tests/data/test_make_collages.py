"""The script keeps what is finished, and makes one file of it."""

import importlib.util
import json

import pytest

from qatviz.analysis import dense
from qatviz.datasets import DATA
from qatviz.records import DenseRun
from tests.records.test_dense import run


@pytest.fixture
def script(monkeypatch):
    path = DATA / "make_collages.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []

    def toy(arms, plan, *, seed, progress):
        module.calls.append((plan, seed))
        return {arm: run(arm, seed) for arm in arms}

    monkeypatch.setattr(module, "TOYS", dict.fromkeys(module.TOYS, toy))
    return module


def test_what_is_finished_is_not_made_again(script, tmp_path):
    plan = script.small(script.PLANS["few labels"])
    assert (plan.images, plan.unlabelled, plan.steps) == (40, 20, 5)
    paths = [script.measure("segmentation", "few labels", plan, s, tmp_path) for s in (0, 1, 0)]
    assert len(script.calls) == 2
    assert paths[0] == paths[2]
    script.measure("segmentation", "few labels", script.PLANS["few labels"], 0, tmp_path)
    assert len(script.calls) == 3  # another plan


def test_one_file_of_all(script, tmp_path):
    cells = [
        (task, name, script.small(plan), seed, tmp_path)
        for task in script.TOYS
        for name, plan in script.PLANS.items()
        for seed in (0, 1)
    ]
    content = script.gathered(list(script.finished(cells, 1)))
    assert content["plans"].keys() == {"all labels", "few labels"}
    assert content["plans"]["few labels"]["unlabelled"] == 20
    assert content["plans"]["few labels"]["ramp"] == "sigmoid_up"
    assert {"processor", "threads", "torch", "python"} <= content["machine"].keys()
    assert content["seconds"] == round(4.5 * 4 * len(cells))
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content, allow_nan=False))
    found = DenseRun.read(path)
    assert len(found) == 4 * len(cells)
    assert {r.arm for r in found} == set(dense.ARMS)
    assert {r.seed for r in found if r.pictures is not None} == {0}


def test_what_is_committed_is_complete_and_of_these_plans(script):
    content = json.loads((DATA / "runs" / "collages.json").read_text())
    assert content["plans"] == {name: script.described(p) for name, p in script.PLANS.items()}
    assert content["machine"]["threads"] == 1
    found = DenseRun.read(DATA / "runs" / "collages.json")
    wanted = [
        (task, plan.images, seed, arm)
        for task in script.TOYS
        for plan in script.PLANS.values()
        for seed in range(script.SEEDS)
        for arm in dense.ARMS
    ]
    assert sorted((r.task, r.labelled, r.seed, r.arm) for r in found) == sorted(wanted)
    pictured = [r.task for r in found if r.pictures is not None]
    assert sorted(pictured) == sorted(2 * len(dense.ARMS) * list(script.TOYS))
