from pathlib import Path

import pytest

from qatviz.studies import Experiment, read_study
from qatviz.studies.cells import PROMOTED, find

STUDIES = Path(__file__).parents[2] / "studies"
# What notebooks and README show, so that nobody has to run it to see it.
SHOWN = (
    "two_rates_laptop",
    "baselines_laptop",
    "seeing_laptop",
    "consistency_why_laptop",
    "consistency_where_laptop",
    "consistency_labels_laptop",
    "consistency_oscillation_laptop",
    "consistency_confirm_laptop",
    "consistency_strength_laptop",
    "consistency_windows_laptop",
    "consistency_fresh_laptop",
)
WITH_WEIGHTS = ("seeing_laptop",)


@pytest.mark.parametrize("name", SHOWN)
def test_every_cell_of_a_shown_study_is_committed(name, tmp_path):
    experiments = read_study(STUDIES / f"{name}.toml", tmp_path)
    assert len(experiments) >= 10
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
