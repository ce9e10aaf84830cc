import inspect
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from qatviz import plots
from qatviz.analysis import oscillation_toy
from qatviz.records import BatchNormDrift, BinDistances, OscillationLottery, Trajectories
from tests.oscillations import oscillation


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def words(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def path():
    codes = np.array([[0, -1], [1, -1], [0, -1]])
    latent = np.array([[0.4, -0.8], [0.6, -0.9], [0.3, -1.1]])
    return Trajectories("conv1", np.array([1, 5]), np.array([7, 8, 9]), latent, codes, -4, 3, 0)


def test_trajectories_are_latent_lines_over_code_steps(ax):
    record = path()
    assert plots.trajectories(ax, record) is ax
    stepped = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    smooth = [x for x in ax.lines if x.get_drawstyle() == "default" and len(x.get_xdata()) == 3]
    for index in range(2):
        assert stepped[index].get_ydata().tolist() == record.codes[:, index].tolist()
        assert smooth[index].get_ydata().tolist() == record.positions[:, index].tolist()
        assert stepped[index].get_xdata().tolist() == [7, 8, 9]
        assert to_hex(stepped[index].get_color()) == to_hex(smooth[index].get_color())
    thresholds = [x.get_ydata()[0] for x in ax.lines if x.get_linestyle() == ":"]
    assert thresholds == [-1.5, -0.5, 0.5, 1.5]
    assert ax.get_xlabel() == "training step"
    assert ax.get_ylabel() == "weight w/s (codes)"
    assert ax.get_title() == "conv1"


def test_fewer_trajectories(ax):
    plots.trajectories(ax, path(), count=1)
    assert sum(len(line.get_xdata()) == 3 for line in ax.lines) == 2


def bins(low=1, label=""):
    counts = np.array([[low, 0, 0, 3], [0, 4, 0, 0]])
    return BinDistances(("a", "b"), counts, np.array([0, 0]), (), label)


@pytest.mark.parametrize(
    ("options", "shares", "first"),
    [
        ({}, [12.5, 50, 0, 37.5], -0.5),
        ({"layer": "a"}, [25, 0, 0, 75], -0.5),
        ({"layer": "b"}, [0, 100, 0, 0], -0.5),
        ({"folded": True}, [50, 50], 0),
        ({"folded": True, "layer": "a"}, [0, 100], 0),
    ],
)
def test_bin_distances_are_shares(ax, options, shares, first):
    plots.bin_distances(ax, bins(), **options)
    (stairs,) = ax.patches
    values, edges, _ = stairs.get_data()
    assert values.tolist() == shares
    assert (edges[0], edges[-1]) == (first, 0.5)
    # Evenly spread weights.
    (even,) = ax.lines
    assert even.get_ydata()[0] == 100 / len(shares)
    folded = "|w/s − round(w/s)|" if options.get("folded") else "w/s − round(w/s)"
    assert ax.get_xlabel() == f"{folded} (steps of the grid)"
    assert ax.get_ylabel() == "share of weights (%)"


def test_several_networks_lie_over_each_other(ax):
    plots.bin_distances(ax, {"LSQ": bins(), "CR": bins(low=5)})
    assert [p.get_data().values[0] for p in ax.patches] == pytest.approx([12.5, 500 / 12])
    assert words(ax) == ["LSQ", "CR"]


def test_a_bar_for_each_layer(ax):
    plots.oscillating_layers(ax, oscillation())
    assert [bar.get_height() for bar in ax.patches] == [50, 10]
    assert [bar.get_hatch() for bar in ax.patches] == [None, "///"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["first", "second"]
    assert ax.get_ylabel() == "weights with frequency above 0.005 (%)"
    assert ax.get_legend() is None


def test_bars_of_several_runs_stand_side_by_side(ax):
    other = oscillation(oscillating=np.array([0.2, 0.3]))
    plots.oscillating_layers(ax, {"LSQ": oscillation(), "CR": other})
    assert [bar.get_height() for bar in ax.patches] == [50, 10, 20, 30]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert centres == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    assert words(ax) == ["LSQ", "CR"]
    with pytest.raises(ValueError, match="'CR' has other layers"):
        plots.oscillating_layers(ax, {"LSQ": other, "CR": oscillation(layers=("first", "third"))})


def test_causes(ax):
    plots.oscillation_causes(ax, oscillation())
    assert [bar.get_height() for bar in ax.patches] == [5, 1.5, 1.5, 0.75, 6, 2]
    assert words(ax) == ["weight moved", "grid changed", "all changes"]
    assert ax.get_ylabel() == "changes of code per weight, 20 steps"


@pytest.mark.parametrize(
    ("series", "label", "values"),
    [
        ("above", "weights that oscillate (%)", [30, 20]),
        ("changed", "codes that change in a step (%)", [3, 2]),
        ("oscillated", "weights that turn back in a step (%)", [2, 1]),
    ],
)
def test_series_over_steps(ax, series, label, values):
    twice = oscillation(**{series: 2 * np.array(values) / 100})
    plots.oscillation_series(ax, {"LSQ": oscillation(), "CR": twice}, series=series)
    assert lines(ax)["LSQ"].get_ydata().tolist() == pytest.approx(values)
    assert lines(ax)["CR"].get_ydata().tolist() == pytest.approx([2 * v for v in values])
    assert lines(ax)["LSQ"].get_xdata().tolist() == [10, 20]
    assert ax.get_xlabel() == "training step"
    assert ax.get_ylabel() == label
    assert lines(ax)["LSQ"].get_color() != lines(ax)["CR"].get_color()


def test_an_unknown_series_is_refused(ax):
    with pytest.raises(ValueError, match="series must be one of above, changed, oscillated"):
        plots.oscillation_series(ax, oscillation(), series="below")


def test_survival_is_the_mean_over_weights(ax):
    plots.code_survival(ax, oscillation())
    (line,) = ax.lines
    # (10·1 + 30·0.9)/40, (10·0.8 + 30·0.8)/40, (10·0.4 + 30·0.6)/40
    assert line.get_ydata().tolist() == pytest.approx([92.5, 80, 55])
    assert line.get_xdata().tolist() == [1, 10, 20]
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("last steps", "codes that did not change (%)")


def test_frequencies_without_those_at_rest(ax):
    plots.frequency_spread(ax, {"LSQ": oscillation()})
    (stairs,) = ax.patches
    values, edges, _ = stairs.get_data()
    assert values.tolist() == [10, 10, 10]
    assert edges.tolist() == [0.001, 0.01, 0.1, 1]
    assert words(ax) == ["LSQ: 70.0 % at rest"]
    assert ax.lines[0].get_xdata()[0] == 0.005
    assert ax.get_xlabel() == "frequency (oscillations per step)"
    ax.figure.canvas.draw()


@pytest.fixture(scope="module")
def toy():
    return oscillation_toy([0.2, 0.3, 0.6], updates=200, windows=4)


def test_toy_points_over_the_predicted_line(ax, toy):
    plots.oscillation_toy(ax, toy)
    events = lines(ax)["oscillations per update"]
    assert events.get_xdata().tolist() == [0.2, 0.3, 0.6]
    assert events.get_ydata().tolist() == toy.events.tolist()
    assert lines(ax)["share of time at the upper level"].get_ydata().tolist() == toy.upper.tolist()
    tent, straight = (x for x in ax.lines if len(x.get_xdata()) > 3)
    grid = tent.get_xdata()
    assert tent.get_ydata()[grid == 0.25] == pytest.approx(0.5)
    assert tent.get_ydata()[grid == 0.9] == pytest.approx(0.2)
    assert straight.get_ydata().tolist() == grid.tolist()
    assert ax.get_xlabel() == "target above the lower level (w* − ŵ↓)/s"


def test_toy_decay_is_relative(ax, toy):
    plots.toy_decay(ax, replace(toy, schedule="cosine"))
    often = toy.window_events[:, 1] / 0.6
    assert lines(ax)["how often / (2d/s)"].get_ydata().tolist() == pytest.approx(often.tolist())
    far = toy.window_spread[:, 1] / 0.01
    assert lines(ax)["how far / (η₀s)"].get_ydata().tolist() == pytest.approx(far.tolist())
    assert lines(ax)["learning rate / first"].get_ydata().tolist() == [1] * 4
    assert lines(ax)["learning rate / first"].get_xdata().tolist() == [50, 100, 150, 200]
    assert ax.get_title() == "cosine learning rate"


def lottery(first=0.7, samples=100):
    return OscillationLottery(
        *(np.array([first, 0.8, 0.75]), np.ones(3), 0.8, 0.5, 0.85, 0.4),
        **{"drawn": 4, "weights": 9, "moved": np.ones(3), "apart": 0.0, "above": 0.005},
        **{"samples": samples, "complete": True, "label": "LSQ"},
    )


def test_lottery_dots_line_and_band(ax):
    plots.oscillation_lottery(ax, lottery())
    drawn = lines(ax)
    assert drawn["draws"].get_ydata().tolist() == pytest.approx([70, 80, 75])
    assert drawn["network ± standard error"].get_ydata().tolist() == [80, 80]
    assert drawn["at mean codes"].get_ydata().tolist() == [85]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    # √(0.8·0.2/100) = 4 %
    assert (heights.min(), heights.max()) == (pytest.approx(76), pytest.approx(84))
    assert ax.get_ylabel() == "accuracy (%), 100 images"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["LSQ"]


def test_lotteries_of_several_networks(ax):
    plots.oscillation_lottery(ax, {"LSQ": lottery(), "CR": lottery(0.6, samples=50)})
    assert [text.get_text() for text in ax.get_xticklabels()] == ["LSQ", "CR"]
    assert ax.get_ylabel() == "accuracy (%), 50 to 100 images"
    assert len(words(ax)) == 3


def drift():
    return BatchNormDrift(
        layers=("bn1", "bn2"),
        kinds=("convolution", "depthwise"),
        divergence=(np.array([0.1, 0.3]), np.array([2.0])),
        noise=(np.array([0.01, 0.03]), np.array([0.1])),
        images=10,
    )


def test_drift_dots_and_means(ax):
    plots.batchnorm_drift(ax, drift())
    heights = [line.get_ydata().tolist() for line in ax.lines]
    expected = [[0.1, 0.3], [0.2, 0.2], [0.02, 0.02], [2.0], [2.0, 2.0], [0.1, 0.1]]
    np.testing.assert_allclose(np.concatenate(heights), np.concatenate(expected))
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names == ["bn1", "bn2\n(depthwise)"]
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "KL(running ‖ estimated anew) (nats)"
    assert words(ax) == ["mean of the layer", "between halves of the images"]
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("plot", "kind"),
    [
        (plots.trajectories, "Trajectories"),
        (plots.bin_distances, "BinDistances"),
        (plots.oscillating_layers, "Oscillation"),
        (plots.oscillation_causes, "Oscillation"),
        (plots.oscillation_series, "Oscillation"),
        (plots.code_survival, "Oscillation"),
        (plots.frequency_spread, "Oscillation"),
        (plots.oscillation_toy, "OscillationToy"),
        (plots.toy_decay, "OscillationToy"),
        (plots.oscillation_lottery, "OscillationLottery"),
        (plots.batchnorm_drift, "BatchNormDrift"),
    ],
)
def test_other_records_are_refused(ax, plot, kind):
    wrong = drift() if kind != "BatchNormDrift" else oscillation()
    with pytest.raises(ValueError, match=rf"class {kind}, got {type(wrong).__name__}"):
        inspect.unwrap(plot)(ax, wrong)  # the type checker of the tests would refuse it first
