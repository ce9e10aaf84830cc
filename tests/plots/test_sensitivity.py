import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import COLOURS, layer_sqnr, sensitivity_lines, sensitivity_map
from tests.records import test_sensitivity as records


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_bars_are_local_and_accumulated_ratios(ax):
    record = records.layer_sqnr(
        local=np.array([30.0, np.inf]),
        local_error=np.array([2.0, np.nan]),
        accumulated=np.array([12.0, np.nan]),
    )
    assert layer_sqnr(ax, record) is ax
    local, accumulated = (c for c in ax.containers if hasattr(c, "patches"))
    np.testing.assert_array_equal([bar.get_height() for bar in local], [30, np.nan])
    np.testing.assert_array_equal([bar.get_height() for bar in accumulated], [12, np.nan])
    assert all(same_color(bar.get_facecolor(), COLOURS["quantized"]) for bar in accumulated)
    np.testing.assert_allclose([bar.get_x() + 0.2 for bar in local], [-0.2, 0.8])
    segment = local.errorbar.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(segment[:, 1], [28, 32])
    # What is infinite has no bar, and says so.
    assert texts(ax) == ["∞"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "SQNR (dB)"
    assert ax.get_title() == "net"
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["only this layer quantized", "all layers quantized"]
    assert plt.get_fignums() == []


def test_weights_and_inputs_may_be_marked(ax):
    layer_sqnr(ax, records.layer_sqnr(), parts=True)
    marks = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(marks["weight"], [10, np.nan])
    np.testing.assert_allclose(marks["input"], [20, 10])


def test_the_map_shows_every_effect_and_brackets_those_within_the_noise(ax):
    divergence = records.effects(
        single=np.array([[1.0, 0.15], [2.0, np.nan]]), single_error=np.full((2, 2), 0.1)
    )
    assert sensitivity_map(ax, records.bit_sensitivity(divergence=divergence)) is ax
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), divergence.single)
    assert texts(ax) == ["1", "(0.15)", "2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "4"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xlabel() == "bits of weights, one layer (brackets: within 2 s.e. of 0)"
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "KL(float ‖ quantized) (nats)"
    assert ax.images[0].norm.linear_width == pytest.approx(0.1)
    assert ax.images[0].get_clim() == (0, 2)
    assert ax.images[0].cmap.name == "Reds"
    assert plt.get_fignums() == []


def test_accuracy_is_in_points_and_a_loss_of_it_is_red_like_a_rise_of_the_loss(ax):
    accuracy = records.effects(single=np.array([[-0.5, 0.0], [-0.1, -0.2]]))
    sensitivity_map(ax, records.bit_sensitivity(accuracy=accuracy, leave_out=True), "accuracy")
    assert texts(ax) == ["-50", "(0)", "(-10)", "(-20)"]
    assert ax.images[0].cmap.name == "RdBu"  # red is low
    assert ax.images[0].get_clim() == (-50, 50)
    assert ax.images[0].norm(0) == pytest.approx(0.5)
    assert "all layers but one" in ax.get_xlabel()
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "change of accuracy (points)"


def test_differences_of_divergences_have_two_colours(ax):
    effects = records.effects(single=np.array([[1.0, -2.0], [0.5, 0.1]]))
    sensitivity_map(ax, records.bit_sensitivity(divergence=effects, leave_out=True))
    assert ax.images[0].cmap.name == "RdBu_r"  # red is high
    assert ax.images[0].get_clim() == (-2, 2)


def test_lines_are_effects_by_layer_and_the_legend_compares_the_sum(ax):
    loss = records.effects(
        single=np.array([[1.0, 0.5], [2.0, -0.25]]), joint=np.array([4.0, 0.125])
    )
    assert sensitivity_lines(ax, records.bit_sensitivity(loss=loss, part="both"), "loss") is ax
    lines = [container.lines[0] for container in ax.containers]
    np.testing.assert_array_equal(lines[0].get_ydata(), [1, 2])
    np.testing.assert_array_equal(lines[1].get_ydata(), [0.5, -0.25])
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [0.9, 1.1])
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == [
        "2 bit: sum 3 ± 0.2,\ntogether 4 ± 0.3",
        "4 bit: sum 0.25,\ntogether 0.12",
    ]
    assert ax.get_ylabel() == "change of loss (nats)"
    assert ax.get_title() == "net weights and inputs, one layer, 100 images"
    assert ax.get_yscale() == "symlog"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", [sensitivity_map, sensitivity_lines])
def test_a_single_image_or_nothing_measured_can_be_drawn(plot, ax):
    nothing = records.effects(
        single=np.full((2, 2), np.nan), single_error=np.full((2, 2), np.nan),
        joint=np.full(2, np.nan),
    )  # fmt: skip
    plot(ax, records.bit_sensitivity(loss=nothing), "loss")
    ax.figure.canvas.draw()
    some = records.effects(single_error=np.full((2, 2), np.nan))
    plot(ax, records.bit_sensitivity(loss=some), "loss")


@pytest.mark.parametrize("plot", [sensitivity_map, sensitivity_lines])
def test_other_quantities_are_refused(plot, ax):
    with pytest.raises(ValueError, match="quantity is 'kl'; allowed: loss, accuracy, divergence"):
        plot(ax, records.bit_sensitivity(), "kl")


@pytest.mark.parametrize(
    ("plot", "given", "words"),
    [
        (sensitivity_map, records.layer_sqnr(), "class BitSensitivity, got LayerSQNR"),
        (sensitivity_lines, records.layer_sqnr(), "class BitSensitivity, got LayerSQNR"),
        (layer_sqnr, records.bit_sensitivity(), "class LayerSQNR, got BitSensitivity"),
    ],
)
def test_another_record_is_refused(plot, given, words, ax):
    # Without the type checker of the tests, which refuses it first.
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(plot)(ax, given)
