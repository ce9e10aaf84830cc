import json
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[2] / "data" / "runs"
FIELDS = {"what", "peer", "ours", "theirs", "ratio", "spread", "n", "unit"}


@pytest.mark.parametrize("path", sorted(RUNS.glob("bench_*.json")), ids=lambda path: path.stem)
def test_a_benchmark_has_the_form_of_the_house(path):
    content = json.loads(path.read_text())
    assert content.keys() - {"data"} == {"machine", "versions", "date", "rows"}
    assert content["machine"]["processor"]
    for row in content["rows"]:
        assert row.keys() == FIELDS
        # Medians of ratios and ratios of medians are near each other, not equal.
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"], rel=0.3)


def test_the_training_step_is_measured_beside_every_peer():
    rows = json.loads((RUNS / "bench_quantizers.json").read_text())["rows"]
    step = {row["peer"]: row for row in rows if row["what"] == "qat step"}
    assert step.keys() == {"float", "brevitas", "torchao", "torch fused"}
    assert all(row["n"] >= 20 for row in step.values())


def test_the_way_to_a_batch_is_measured_beside_the_usual_loader():
    content = json.loads((RUNS / "bench_training.json").read_text())
    rows = {(row["what"], row["peer"]): row for row in content["rows"]}
    assert rows.keys() == {
        ("data path", "dataloader"),
        ("data path", "dataloader v2"),
        ("float step", "dataloader"),
        ("lsq step", "dataloader"),
        ("data path in step", "float step"),
    }
    assert all(row["n"] >= 20 for row in rows.values())
    assert content["data"].startswith(("CIFAR-10 (JPEG)", "fashion-mini"))
    assert rows["data path", "dataloader"]["ratio"] <= 1 / 8
    assert rows["data path in step", "float step"]["ratio"] <= 0.03
