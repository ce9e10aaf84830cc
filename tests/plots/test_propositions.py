import inspect

import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots import propositions as plots
from qatviz.plots.style import COLOURS
from tests.records.test_propositions import mismatch, noise, propagation, sharpness


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bars(container):
    """Lower and upper ends of error bars."""
    (lines,) = container[2]
    return np.array([segment[:, 1] for segment in lines.get_segments()])


def test_the_ratio_against_the_length(ax):
    late = sharpness(
        lengths=np.array([1.0, 0.1]),
        divergence=np.array([[2.0, 4.0], [1.0, 1.0]]),
        quadratic=np.array([[1.0, 1.0], [1.0, 1.0]]),
    )
    assert plots.divergence_as_sharpness(ax, {"float": sharpness(), "LSQ": late}) is ax
    first, second = (container[0] for container in ax.containers)
    np.testing.assert_allclose(first.get_xydata(), [[0.1, 1], [1, 1]])
    np.testing.assert_allclose(second.get_xydata(), [[0.1, 1], [1, 3]])  # in order of length
    np.testing.assert_allclose(bars(ax.containers[0]), [[0, 2], [1 / 3, 5 / 3]])
    np.testing.assert_allclose(bars(ax.containers[1]), [[1, 1], [1, 5]])
    assert same_color(first.get_color(), COLOURS["float"])
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[1, 1]]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.get_xlabel() == "length of the displacement ‖δ‖ (L2 norm, of all weights)"
    assert ax.get_ylabel() == "KL(p_T ‖ p_S) / ½δᵀFδ (ratio of means)"
    assert legend(ax) == ["float (n = 2)", "LSQ (n = 2)"]


def test_ratios_of_images_say_so_and_do_not_mix_with_weights(ax):
    plots.divergence_as_sharpness(ax, {"net": sharpness(of="images")})
    assert ax.get_xlabel().endswith("of each image)")
    plots.divergence_as_sharpness(ax, {"net": sharpness(of="images")}, log=True)
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="images and weights"):
        plots.divergence_as_sharpness(ax, {"a": sharpness(of="images"), "b": sharpness()})


def test_what_is_left_against_the_size(ax):
    one = mismatch(height=4, width=4, positions=16, alone=np.array([0.3]), together=0.3)
    records = {"noise": [mismatch(), one], "shift": [mismatch(alone=np.array([0.2, 0.2]))]}
    assert plots.convolution_mismatch(ax, records) is ax
    noise_dots, shift_dots = (container[0] for container in ax.containers)
    np.testing.assert_allclose(noise_dots.get_xydata(), [[16, 0.3], [64, 0.5]])
    np.testing.assert_allclose(bars(ax.containers[0]), [[0.3, 0.3], [0.3, 0.7]])
    np.testing.assert_allclose(shift_dots.get_xydata(), [[64, 0.2]])
    squares = [line for line in ax.lines if line.get_marker() == "s"]
    np.testing.assert_allclose(squares[0].get_xydata(), [[64, 0.8]])  # one image has no batch
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[0].get_xydata(), [[16, 0], [64, 0.5]])
    assert ax.get_xlabel() == "pixels of an image (height × width)"
    assert ax.get_ylabel() == "residual ‖ΔW·P − W·ΔP‖ / ‖W·ΔP‖"
    assert sorted(legend(ax)) == [
        "noise",
        "noise, one ΔW for 2 images",
        "shift",
        "shift, one ΔW for 2 images",
    ]


def test_what_arrives_by_depth(ax):
    assert plots.error_propagation(ax, {"float": propagation()}) is ax
    solid = ax.containers[0][0]
    np.testing.assert_allclose(solid.get_xydata(), [[0, 0.2], [1, 0.4]])
    np.testing.assert_allclose(bars(ax.containers[0]), [[0, 0.4], [0.4, 0.4]], atol=1e-12)
    (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dashed.get_ydata(), [0.15, 0.4])
    np.testing.assert_allclose(dotted.get_ydata(), [1.5, 4])
    assert {line.get_color() for line in (solid, dashed, dotted)} == {COLOURS["float"]}
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["conv1", "fc"]
    assert ax.get_ylabel() == "change of the output / its norm"
    assert sorted(legend(ax)) == ["float (n = 2)", "float, first order", "float, product of norms"]


def test_networks_of_other_layers_do_not_mix(ax):
    other = propagation(layers=("a", "b"))
    with pytest.raises(ValueError, match="'LSQ' has other layers than 'float'"):
        plots.error_propagation(ax, {"float": propagation(), "LSQ": other})


@pytest.mark.parametrize(
    ("plot", "wrong"),
    [
        (plots.divergence_as_sharpness, {"a": noise()}),
        (plots.divergence_as_sharpness, {}),
        (plots.convolution_mismatch, {"a": [mismatch()], "b": [noise()]}),
        (plots.convolution_mismatch, {"a": []}),
        (plots.error_propagation, {"a": mismatch()}),
        (plots.error_propagation, {}),
    ],
)
def test_records_of_another_kind_are_refused(ax, plot, wrong):
    # Without the type checker of the tests, which refuses some of them first.
    with pytest.raises(ValueError, match="this draws"):
        inspect.unwrap(plot)(ax, wrong)
