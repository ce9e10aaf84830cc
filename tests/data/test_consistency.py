from pathlib import Path

import numpy as np
import pytest

from qatviz.checkpoints import load_tree
from qatviz.studies import read_study

ROOT = Path(__file__).parents[2]


def content():
    return load_tree(ROOT / "data" / "runs" / "consistency_curvature.safetensors")


def test_the_curvature_that_notebook_21_shows_is_of_the_students_of_the_study():
    experiments = read_study(ROOT / "studies" / "consistency_why_laptop.toml")
    students = {e.label: e.hash for e in experiments if e.seed == 0 and e.label in ("LSQ", "CR")}
    found = {network["label"]: network["hash"] for network in content()["networks"]}
    assert found == students | {"float": "float"}
    assert {"processor", "threads", "torch"} <= content()["machine"].keys()


def test_every_eigenvalue_is_within_tolerance_and_of_the_same_images():
    for network in content()["networks"]:
        space = "float" if network["label"] == "float" else "dequantized"
        for name in ("leading", "relative", "trace"):
            record = network[name]
            assert record["complete"]
            assert record["setting"]["space"] == space
            assert record["setting"]["batchnorm"] == "running"
            assert record["setting"]["samples"] == content()["images"] == 200
            assert record["setting"]["relative"] == (name == "relative")
        for name in ("leading", "relative"):
            values, residuals = network[name]["values"], network[name]["residuals"]
            assert len(values) == 50
            assert (np.diff(np.abs(values)) <= 0).all()
            assert np.all(residuals <= network[name]["tolerance"])


def test_traces_and_sizes_are_of_the_runs_of_the_study():
    experiments = read_study(ROOT / "studies" / "consistency_why_laptop.toml")
    named = {(e.label, e.seed): e.hash for e in experiments}
    traces, sizes = content()["traces"], content()["sizes"]
    assert all(named[t["label"], t["seed"]] == t["hash"] for t in traces)
    assert len({t["hash"] for t in traces}) == len(traces) == 25
    assert {(s["label"], s["seed"]) for s in sizes} == named.keys()
    assert all(t["error"] < 0.3 * t["trace"] for t in traces)
    leading = {n["label"]: n for n in content()["networks"]}
    for size in (s for s in sizes if s["seed"] == 0 and s["label"] in leading):
        setting = leading[size["label"]]["leading"]["setting"]
        assert size["norm"] ** 2 == pytest.approx(np.square(setting["norms"]).sum(), rel=1e-4)
