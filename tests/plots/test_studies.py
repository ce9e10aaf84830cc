import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import COLOURS, grouped_intervals, paired_intervals, study_dots

NAN = math.nan
SEEDS = {"a": [0.8, 0.9], "b": [0.5, NAN]}
INTERVALS = {"a": (0.85, 0.65, 0.95), "b": (0.5, NAN, NAN)}


def bars(ax):
    """Each error bar's two ends, by arm."""
    return [c.lines[2][0].get_segments() for c in ax.containers]


def dots(ax):
    return [line for line in ax.lines if line.get_marker() == "o" and line.get_mfc() == "white"]


def test_study_dots_draws_every_seed_that_finished(ax):
    assert study_dots(ax, SEEDS, INTERVALS) is ax
    first, second = dots(ax)
    np.testing.assert_allclose(first.get_xydata(), [(-0.12, 80), (-0.12, 90)])
    np.testing.assert_allclose(second.get_xydata(), [(0.88, 50)])
    assert plt.get_fignums() == []


def test_study_dots_draws_mean_and_interval_beside(ax):
    study_dots(ax, SEEDS, INTERVALS)
    means = [c.lines[0].get_xydata()[0] for c in ax.containers]
    np.testing.assert_allclose(means, [(0.12, 85), (1.12, 50)])
    one, none = bars(ax)
    np.testing.assert_allclose(one, [[(0.12, 65), (0.12, 95)]])
    assert not np.isfinite([y for end in none for _, y in end]).any()


def test_study_dots_says_arms_n_and_unit(ax):
    study_dots(ax, SEEDS, INTERVALS)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a\nn = 2", "b\nn = 1"]
    assert ax.get_ylabel() == "test accuracy (%)"
    assert ax.get_xlim() == (-0.5, 1.5)


def test_study_dots_draws_the_arms_of_the_intervals_alone(ax):
    study_dots(ax, SEEDS, {"b": INTERVALS["b"]})
    (seeds,) = dots(ax)
    np.testing.assert_allclose(seeds.get_xydata(), [(-0.12, 50)])


def test_study_dots_takes_colours_by_arm(ax):
    study_dots(ax, SEEDS, INTERVALS, {"b": "#123456"})
    first, second = dots(ax)
    assert same_color(first.get_color(), COLOURS["quantized"])
    assert same_color(second.get_color(), "#123456")
    assert same_color(ax.containers[1].lines[0].get_color(), "#123456")


def test_paired_intervals_draws_points_ends_and_zero(ax):
    assert paired_intervals(ax, {"a": (0.05, -0.15, 0.15), "b": (-0.3, NAN, NAN)}) is ax
    means = [c.lines[0].get_xydata()[0] for c in ax.containers]
    np.testing.assert_allclose(means, [(5, 0), (-30, 1)])
    np.testing.assert_allclose(bars(ax)[0], [[(-15, 0), (15, 0)]])
    assert any(list(line.get_xdata()) == pytest.approx([0, 0]) for line in ax.lines)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xlabel() == "difference in test accuracy (points)"
    assert ax.get_ylim() == (1.5, -0.5)
    assert plt.get_fignums() == []


GROUPS = {
    "bits": {"W2A2": (-0.02, -0.03, -0.01), "W4A4": (0.01, -0.01, 0.03)},
    "labels": {"500": (0.02, 0.01, 0.03), "one seed": (0.2, NAN, NAN)},
}
OF_SEEDS = {
    "W2A2": [-0.025, -0.015],
    "W4A4": [0.0, 0.02, NAN],
    "500": [0.02, 0.02],
    "one seed": [0.2],
}


def test_grouped_intervals_says_headings_arms_and_seeds(ax):
    assert grouped_intervals(ax, GROUPS, OF_SEEDS) is ax
    names = ["bits", "W2A2 (n = 2)", "W4A4 (n = 2)", "labels", "500 (n = 2)", "one seed (n = 1)"]
    assert [text.get_text() for text in ax.get_yticklabels()] == names
    weights = [text.get_fontweight() for text in ax.get_yticklabels()]
    assert [w == "bold" for w in weights] == [True, False, False, True, False, False]
    assert ax.get_xlabel() == "difference in test accuracy (points)"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_grouped_intervals_draws_every_seed_mean_and_interval(ax):
    grouped_intervals(ax, GROUPS, OF_SEEDS)
    found = [d.get_xydata().tolist() for d in dots(ax)]
    np.testing.assert_allclose(found[0], [(-2.5, 1), (-1.5, 1)])
    np.testing.assert_allclose(found[1], [(0, 2), (2, 2)])
    means = [c.lines[0].get_xydata()[0] for c in ax.containers]
    np.testing.assert_allclose(means, [(-2, 1), (1, 2), (2, 4), (20, 5)])
    np.testing.assert_allclose(bars(ax)[0][0], [(-3, 1), (-1, 1)])


def test_grouped_intervals_colours_what_is_certain(ax):
    grouped_intervals(ax, GROUPS, OF_SEEDS)
    wanted = [COLOURS["rounded"], "0.45", COLOURS["quantized"], "0.45"]
    for container, colour in zip(ax.containers, wanted, strict=True):
        assert same_color(container.lines[0].get_color(), colour)


def test_grouped_intervals_marks_what_lies_beyond_the_ends(ax):
    grouped_intervals(ax, GROUPS, OF_SEEDS, limits=(-2, 4))
    assert ax.get_xlim() == (-2, 4)
    arrows = {
        line.get_marker(): line.get_xydata()[0] for line in ax.lines if line.get_marker() in "<>"
    }
    np.testing.assert_allclose(arrows["<"], (-2, 1))
    np.testing.assert_allclose(arrows[">"], (4, 5))
