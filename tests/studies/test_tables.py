"""The tables of a study, from runs that are made up."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qatviz.methods import CrossEntropy
from qatviz.records import History
from qatviz.runs import Run
from qatviz.schedule import Schedule
from qatviz.studies import Cell, grid
from qatviz.studies.tables import COLUMNS, Study
from tests.studies.grids import BASE


class Made(Cell):
    """A cell that was never run."""

    run = None
    stale = False


def made(validation, test, kept=0, stale=False):
    history = History({}, np.zeros(len(validation)), np.array(validation))
    run = Run("made", history, test, 2.5, Schedule(), {"threads": 3}, kept_epoch=kept)
    cell = Made(Path("nowhere"))
    vars(cell).update(run=run, stale=stale)
    return cell


def made_study(scores, **options):
    """Scores: {bits: [(validation, test) by seed]}."""
    cells, experiments = {}, []
    for bits, pairs in scores.items():
        for e, pair in zip(grid(BASE, bits=[bits], seed=range(len(pairs))), pairs, strict=True):
            experiments.append(e)
            if pair is not None:
                cells[e.hash] = made([0.0, pair[0]], pair[1], **options)
    errors = {e.hash: "it broke" for e in experiments if e.hash not in cells}
    return Study(experiments, cells, errors)


SCORES = {2: [(0.5, 0.4), (0.6, 0.5)], 4: [(0.7, 0.3), (0.9, 0.2)]}


def test_a_row_is_an_experiment_and_a_column_one_thing():
    table = made_study(SCORES).table
    assert list(table.columns) == COLUMNS
    first = table.iloc[0].to_dict()
    e = grid(BASE, bits=[2], seed=[0])[0]
    assert first == {
        **{"label": "W2A2", "data": "fashion-mini", "model": "small_cnn(width=2)"},
        **{"weight_bits": 2, "input_bits": 2, "method": "CrossEntropy(view=flip)", "seed": 0},
        **{"validation": 0.5, "test": 0.4, "seconds": 2.5, "threads": 3, "stale": False},
        **{"error": "", "hash": e.hash},
    }


def test_validation_is_that_of_the_epoch_that_was_kept():
    e = BASE
    for kept, expected in ((0, 0.3), (1, 0.1), (2, 0.9), (3, 0.3)):
        study = Study([e], {e.hash: made([0.1, 0.9, 0.3], 0.5, kept)}, {})
        assert study.table.validation[0] == expected


def test_the_summary_is_over_the_seeds_of_an_arm():
    row = made_study(SCORES).summary().loc["W4A4"]
    # 0.7 and 0.9: mean 0.8, s = 0.1·√2, half-width = 12.706·s/√2 = 1.2706
    assert row["n"] == 2
    assert row["validation mean"] == pytest.approx(0.8)
    assert row["validation sd"] == pytest.approx(0.1 * math.sqrt(2))
    assert row["validation high"] - row["validation mean"] == pytest.approx(1.2706, abs=1e-4)
    assert row["test mean"] == pytest.approx(0.25)


def test_differences_are_paired_by_seed():
    table = made_study(SCORES).paired("W2A2")
    assert list(table.index) == ["W4A4"]
    # 0.7 − 0.5 and 0.9 − 0.6: mean 0.25, s = 0.05·√2, half = 12.706·0.05
    row = table.loc["W4A4"]
    assert row["validation mean"] == pytest.approx(0.25)
    assert row["validation low"] == pytest.approx(0.25 - 12.7062 * 0.05, abs=1e-4)
    assert row["test mean"] == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="baseline is 'W3A3'; allowed: W2A2, W4A4"):
        made_study(SCORES).paired("W3A3")


def test_each_arm_can_have_a_baseline_of_its_own():
    study = made_study({2: [(0.5, 0.4), (0.6, 0.5)], 4: [(0.7, 0.5), None], 8: [(0.8, 0.7)]})
    table = study.differences({"W4A4": "W2A2", "W8A8": "W4A4"})
    assert list(zip(table.label, table.seed, strict=True)) == [
        ("W4A4", 0),
        ("W4A4", 1),
        ("W8A8", 0),
    ]
    assert table.test[0] == pytest.approx(0.1)
    assert math.isnan(table.test[1])  # what failed
    assert table.validation[2] == pytest.approx(0.1)
    assert list(study.paired({"W8A8": "W4A4", "W4A4": "W2A2"})["n"]) == [1, 1]
    with pytest.raises(ValueError, match="baseline is 'W3A3'; allowed: W2A2, W4A4, W8A8"):
        study.differences({"W4A4": "W3A3"})


def test_the_best_is_chosen_by_validation_whatever_the_test_says():
    assert made_study(SCORES).best() == "W4A4"
    better_tested = {2: [(0.5, 0.9)], 4: [(0.7, 0.1)]}
    assert made_study(better_tested).best() == "W4A4"
    with pytest.raises(ValueError, match="no cell is finished"):
        made_study({2: [None]}).best()


def test_one_seed_has_no_interval():
    row = made_study({2: [(0.5, 0.4)]}).summary().loc["W2A2"]
    assert row["n"] == 1
    assert math.isnan(row["test low"])
    assert math.isnan(row["test sd"])


def test_what_failed_has_a_row_and_is_left_out_of_the_means():
    study = made_study({2: [(0.5, 0.4), None, (0.7, 0.6)]})
    assert list(study.table.error) == ["", "it broke", ""]
    assert math.isnan(study.table.test[1])
    assert study.summary().loc["W2A2", "n"] == 2
    assert len(study.runs) == 2
    with pytest.raises(ValueError, match="is not finished: it broke"):
        study.cell(study.experiments[1])


def test_two_arms_of_one_name_are_told_apart():
    arms = [replace(BASE, bits=2, method=partial(CrossEntropy, view=v)) for v in VIEWS]
    study = Study(arms, {e.hash: made([0.5], 0.5) for e in arms}, {})
    labels = list(study.table.label)
    assert len(set(labels)) == 2
    assert all(label.startswith("LSQ W2A2, CrossEntropy #") for label in labels)
    assert len(study.summary()) == 2


def test_the_repr_says_what_there_is_and_never_changes():
    study = made_study({2: [(0.5, 0.4), None]}, stale=True)
    text = repr(study)
    assert text == repr(study)
    assert text.startswith("Study(2 runs, 1 arms, 1 failed, 1 stale; accuracies in %")
    assert "40.0" in text
    html = study._repr_html_()
    assert "40.0" in html
    assert "it broke" in html
    assert "0 runs" in repr(Study([], {}, {}))


def _views():
    from qatviz.augment import crop_flip, flip

    return flip, crop_flip


VIEWS = _views()
