from pathlib import Path

import numpy as np

from qatviz.checkpoints import load_tree
from qatviz.studies import read_study

ROOT = Path(__file__).parents[2]
ARMS = {"LSQ W2A2", "dampened W2A2", "LSQ W3A3", "LSQ W4A4", "LSQ W8A8"}


def test_the_curvature_that_notebook_31_shows_is_of_the_committed_students():
    content = load_tree(ROOT / "data" / "runs" / "seeing_curvature.safetensors")
    students = read_study(ROOT / "studies" / "seeing_laptop.toml")
    expected = {(e.label, e.seed): e.hash for e in students if e.label in ARMS}
    found = {(n["label"], n["seed"]): n["hash"] for n in content["networks"]}
    assert found == expected | {("float", 0): "float"}
    assert {"processor", "threads", "torch"} <= content["machine"].keys()


def test_every_eigenvalue_is_within_tolerance_and_of_the_same_images():
    content = load_tree(ROOT / "data" / "runs" / "seeing_curvature.safetensors")
    for network in content["networks"]:
        spaces = {"float"} if network["label"] == "float" else {"dequantized"}
        for name in ("largest", "smallest", "relative", "trace"):
            record = network[name]
            assert record["complete"]
            assert record["setting"]["space"] in spaces
            assert record["setting"]["batchnorm"] == "running"
            assert record["setting"]["samples"] == content["images"]
        assert len(network["largest"]["values"]) == 10
        assert network["smallest"]["values"][0] < 0 < network["largest"]["values"].min()
        assert np.all(network["largest"]["residuals"] <= network["largest"]["tolerance"])
