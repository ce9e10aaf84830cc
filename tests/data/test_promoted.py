from pathlib import Path

import pytest

from qatviz.studies import Experiment, read_study
from qatviz.studies.cells import PROMOTED, find

STUDIES = Path(__file__).parents[2] / "studies"
# What notebooks and README show, so that nobody has to run it to see it, and its cells.
SHOWN = {
    "two_rates_laptop": 12,
    "baselines_laptop": 21,
    "seeing_laptop": 18,
    "consistency_why_laptop": 55,
    "consistency_where_laptop": 80,
    "consistency_labels_laptop": 45,
    "consistency_map_laptop": 164,
    "consistency_oscillation_laptop": 45,
    "consistency_confirm_laptop": 90,
    "consistency_strength_laptop": 122,
    "consistency_windows_laptop": 10,
    "consistency_fresh_laptop": 70,
    "consistency_cifar": 14,
}
WITH_WEIGHTS = ("seeing_laptop",)


@pytest.mark.parametrize("name", SHOWN)
def test_every_cell_of_a_shown_study_is_committed(name, tmp_path):
    experiments = read_study(STUDIES / f"{name}.toml", tmp_path)
    assert len(experiments) == SHOWN[name]
    cells = [find(e, tmp_path) for e in experiments]
    assert all(cell is not None for cell in cells)
    for cell in cells:
        assert 0 < cell.run.test < 1
        assert {"processor", "threads", "torch"} <= cell.run.machine.keys()
        assert cell.run.machine["threads"] == 1


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_networks_to_be_looked_at_are_committed(name, tmp_path):
    for experiment in read_study(STUDIES / f"{name}.toml", tmp_path):
        assert find(experiment, tmp_path, weights=True) is not None


def test_nothing_else_is_committed(tmp_path):
    """Cells of studies that are still under way are committed as they finish."""
    cells = [e for path in STUDIES.glob("*.toml") for e in read_study(path, tmp_path)]
    starts = [e.start for e in cells if isinstance(e.start, Experiment)]
    there = {folder.name for folder in PROMOTED.iterdir()}
    assert there <= {e.hash for e in cells + starts}
    files = [file for file in PROMOTED.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) < 0.5e6
    assert sum(file.stat().st_size for file in files) < 16e6
