import inspect

import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import perturbation as plots
from qatviz.plots.style import COLOURS
from qatviz.records import History
from tests.records.test_perturbation import (
    by_samples,
    corruptions,
    input_noise,
    views,
    weight_noise,
)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ends(ax, index=0):
    """The band of one line: x, low, high."""
    (path,) = ax.collections[index].get_paths()
    xs = sorted({round(x, 9) for x in path.vertices[:, 0]})
    ys = [[y for x, y in path.vertices if round(x, 9) == place] for place in xs]
    return xs, [min(y) for y in ys], [max(y) for y in ys]


def test_input_noise_starts_from_clean_images(ax):
    assert plots.input_noise(ax, {"float": input_noise(), "LSQ": input_noise()}) is ax
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [80, 70, 25])
    assert same_color(line.get_color(), COLOURS["float"])
    xs, low, high = ends(ax)
    np.testing.assert_allclose(xs, [0, 0.1, 0.2])
    # Two standard errors: of 0.5, 1.0, 0.6, and of 0.5, 0.0.
    errors = np.array([0, 200 * np.std([0.5, 1, 0.6], ddof=1) / 3**0.5, 50])
    np.testing.assert_allclose(high, np.array([80, 70, 25]) + errors)
    np.testing.assert_allclose(low, np.array([80, 70, 25]) - errors)
    assert legend(ax) == ["float (2 draws, n = 2)", "LSQ (2 draws, n = 2)"]
    assert ax.get_xlabel() == "noise σ (units of a normalised image)"
    assert ax.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize(
    ("of", "expected", "ylabel"),
    [
        ("loss", [0.9, 2, 5], "loss (nats)"),
        ("divergence", [0, 0.1, 0.1], "KL from clean to noisy prediction (nats)"),
        ("flips", [0, 20, 20], "changed predictions (%)"),
        ("variance", [0, 1.5, 6], "variance of logits / clean variance"),
    ],
)
def test_other_numbers_of_input_noise(ax, of, expected, ylabel):
    plots.input_noise(ax, {"net": input_noise()}, of=of)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert ax.get_ylabel() == ylabel


def test_measured_clean_images_are_not_repeated(ax):
    plots.input_noise(ax, {"net": input_noise(sigmas=np.array([0.1, 0.0]))})
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 0.1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [25, 70])


@pytest.mark.parametrize(
    ("of", "expected", "ylabel"),
    [
        ("drop", [0, 0, 1, 40], "lost accuracy (percentage points)"),
        ("rise", [0, 0.1, 1, 3], "added loss (nats)"),
        ("accuracy", [80, 80, 79, 40], "accuracy (%)"),
        ("loss", [1, 1.1, 2, 4], "loss (nats)"),
    ],
)
def test_weight_noise_against_its_level(ax, of, expected, ylabel):
    assert plots.weight_noise(ax, {"net": weight_noise()}, of=of) is ax
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 0.1, 0.2, 0.4])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, atol=1e-12)
    assert ax.get_ylabel() == ylabel
    assert ax.get_xlabel() == "noise ρ (share of each filter's length)"
    assert legend(ax) == ["net (dequantized weights, 2 draws)"]


def test_the_band_of_weight_noise_is_two_standard_errors(ax):
    plots.weight_noise(ax, {"net": weight_noise()})
    _, low, high = ends(ax)
    np.testing.assert_allclose(np.array(high) - low, [0, 0, 4, 40], atol=1e-9)


def test_kinds_of_noise_are_not_mixed(ax):
    records = {"a": weight_noise(), "b": weight_noise(kind="flips")}
    with pytest.raises(ValueError, match="several kinds of noise: filter, flips"):
        plots.weight_noise(ax, records)
    plots.weight_noise(ax, {"b": records["b"]})
    assert ax.get_xlabel() == "flipped codes p (share)"


@pytest.mark.parametrize(
    ("draw", "record"),
    [(plots.input_noise, input_noise()), (plots.weight_noise, weight_noise())],
)
def test_an_unknown_number_is_refused(ax, draw, record):
    with pytest.raises(ValueError, match="of is 'error'; allowed: "):
        draw(ax, {"net": record}, of="error")


def test_corruptions_are_a_table(ax):
    assert plots.corruption_accuracy(ax, corruptions()) is ax
    np.testing.assert_allclose(ax.collections[0].get_array().ravel(), [90, 50, 70, 30])
    assert [t.get_text() for t in ax.texts] == ["90", "50", "70", "30"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "5"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["jpeg", "rotate"]
    assert ax.get_xlabel() == "severity (ours)"
    assert ax.get_title() == (
        # √(0.9·0.1/100) over images; by draw 0.45 and 0.35, so that ± 0.05 over draws.
        "net\nclean accuracy 90.0 ± 3 %, n = 100\nmean corruption error 40.0 ± 5 %"
    )
    assert [a.get_ylabel() for a in ax.figure.axes] == ["", "accuracy (%)"]


def test_means_of_corruptions_are_bars_beside_each_other(ax):
    records = {"float": corruptions(), "LSQ": corruptions(clean_accuracy=0.8)}
    assert plots.corruption_means(ax, records) is ax
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([70, 50, 70, 50])
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert centres == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    clean = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert clean == [90, 80]
    bars = ax.collections[0]
    lengths = [s[1, 1] - s[0, 1] for s in bars.get_segments()]
    assert lengths == pytest.approx([0, 40])  # two standard errors to either side
    assert [t.get_text() for t in ax.get_xticklabels()] == ["jpeg", "rotate"]
    assert legend(ax)[0] == "float: mean corruption error 40.0 ± 5 %"
    assert ax.get_ylabel() == "accuracy over severities (%), dashed: clean"
    other = corruptions(kinds=("jpeg", "blur"))
    with pytest.raises(ValueError, match="'b' has other kinds than 'a'"):
        plots.corruption_means(ax, {"a": corruptions(), "b": other})


def test_views_are_dots_with_their_mean(ax):
    assert plots.view_consistency(ax, {"float": views(), "LSQ": views()}) is ax
    dots, mean, cross = ax.lines[:3]
    assert list(dots.get_ydata()) == [80, 100]
    assert list(mean.get_ydata()) == [90, 90]
    assert list(cross.get_ydata()) == [70]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["float", "LSQ"]
    assert ax.get_ylabel() == "same prediction under flip (%)\nline: mean, ×: in all draws"
    with pytest.raises(ValueError, match="several views: crop, flip"):
        plots.view_consistency(ax, {"a": views(), "b": views(view="crop")})


def test_accuracy_against_the_number_of_images(ax):
    assert plots.accuracy_by_samples(ax, by_samples()) is ax
    assert len(ax.lines) == 6
    np.testing.assert_allclose(ax.lines[3].get_ydata(), [50, 50, 50])
    xs, low, high = ends(ax, 1)
    np.testing.assert_allclose(xs, [1, 2, 4])
    np.testing.assert_allclose(low, [2.5, 50, 50])
    np.testing.assert_allclose(high, [97.5, 50, 50])
    np.testing.assert_allclose(ax.lines[5].get_ydata(), 50 + 100 / np.sqrt([1, 2, 4]))
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "test images (first n of 2 orders)"
    assert ax.get_ylabel() == "accuracy (%)"
    assert legend(ax) == ["a: 75.0 %", "b: 50.0 %"]


def test_the_difference_is_drawn_with_zero(ax):
    assert plots.accuracy_difference(ax, by_samples().difference("a", "b")) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [50, 25, 25])
    error = 200 * np.sqrt(3 / 16 / np.array([1, 2, 4]))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 25 - error)
    assert list(ax.lines[3].get_ydata()) == [0, 0]
    assert ax.get_ylabel() == "a − b (points)"


@pytest.mark.parametrize(
    ("draw", "given", "kind"),
    [
        (plots.input_noise, {"a": History()}, "InputNoise"),
        (plots.weight_noise, {"a": input_noise()}, "WeightNoise"),
        (plots.corruption_accuracy, History(), "CorruptionAccuracy"),
        (plots.corruption_means, {"a": History()}, "CorruptionAccuracy"),
        (plots.view_consistency, {"a": History()}, "ViewConsistency"),
        (plots.accuracy_by_samples, History(), "AccuracyBySamples"),
        (plots.accuracy_difference, by_samples(), "AccuracyDifference"),
    ],
)
def test_another_record_is_refused(ax, draw, given, kind):
    # Without the type checker of the tests, which refuses it first.
    with pytest.raises(ValueError, match=f"records of class {kind}, got "):
        inspect.unwrap(draw)(ax, given)
