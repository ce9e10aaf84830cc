import inspect

import numpy as np
import pytest
from matplotlib.colors import same_color

from qatviz.plots.entropy import bits_used, code_occupancy, entropy_by_layer, network_entropy
from qatviz.plots.style import COLOURS
from qatviz.records import GaussianCodes, History
from tests.records.test_entropy import record

NORMAL = GaussianCodes("LSQ, 2 bits", 2, -2, np.array([0.25, 0.25, 0.25, 0.25]), 100)


def heights(ax, colour):
    bars = [p for p in ax.patches if same_color(p.get_facecolor()[:3], colour)]
    return [bar.get_height() for bar in bars]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bits_used_stand_within_bits_available(ax):
    assert bits_used(ax, record()) is ax
    assert heights(ax, COLOURS["levels"]) == [3, 2]
    assert heights(ax, COLOURS["quantized"]) == pytest.approx([1, 1.75])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "bits per weight"
    assert legend(ax) == ["available: 2.33 bits", "used: 1.5 ± 0.3 bits"]
    assert ax.get_title() == "net"


def test_bits_of_inputs_are_per_input(ax):
    assert bits_used(ax, record(of="inputs")).get_ylabel() == "bits per input"


def test_occupancy_is_in_per_cent_with_the_entropy_above(ax):
    assert code_occupancy(ax, record(), "b", reference=NORMAL) is ax
    assert heights(ax, COLOURS["quantized"]) == [50, 25, 12.5, 12.5]
    assert [bar.get_center()[0] for bar in ax.patches] == pytest.approx([-2, -1, 0, 1])
    assert [t.get_text() for t in ax.texts] == ["50%", "25%", "12%", "12%"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("code", "share of weights (%)")
    assert ax.get_title() == "b: 1.750 ± 0.4 of 2 bits"
    (dashes,) = ax.collections
    assert [s[0][1] for s in dashes.get_segments()] == [25] * 4
    assert legend(ax) == ["normal weights, LSQ, 2 bits: 2.000 bits"]


def test_many_codes_have_no_words(ax):
    counts = (np.ones(16, int), np.array([4, 2, 1, 1]))
    code_occupancy(ax, record(counts=counts), "a")
    assert len(ax.texts) == 0
    assert ax.get_legend() is None


def test_an_unknown_layer_and_another_grid_are_refused(ax):
    with pytest.raises(ValueError, match="layer is 'c'; allowed: a, b"):
        code_occupancy(ax, record(), "c")
    with pytest.raises(ValueError, match="reference has 4 codes, the layer has 8"):
        code_occupancy(ax, record(), "a", reference=NORMAL)


def test_a_line_for_each_network_and_a_dashed_one_before_training(ax):
    records = {"LSQ": record(), "dampened": record(error=np.array([0.1, 0.2]))}
    assert entropy_by_layer(ax, records, reference=NORMAL) is ax
    for container in ax.containers:
        np.testing.assert_allclose(container[0].get_ydata(), [1, 1.75])
    (bars,) = ax.containers[1][2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.9, 1.1], [1.55, 1.95]])
    assert legend(ax) == [
        "normal weights: 2.000 bits",
        "LSQ: 1.500 ± 0.3 bits",
        "dampened: 1.500 ± 0.1 bits",
    ]
    assert ax.get_ylabel() == "entropy (bits per weight)"
    assert ax.lines[-1].get_linestyle() == "--"


def test_the_correction_can_be_drawn(ax):
    entropy_by_layer(ax, {"LSQ": record()}, corrected=True)
    np.testing.assert_allclose(ax.containers[0][0].get_ydata(), record().corrected)
    assert legend(ax) == [f"LSQ: {record().mean_corrected:.3f} ± 0.3 bits"]
    assert record().mean_corrected > record().mean + 0.001


def test_networks_of_other_layers_are_refused(ax):
    with pytest.raises(ValueError, match="'two' has other layers than 'one'"):
        entropy_by_layer(ax, {"one": record(), "two": record(layers=("a", "c"))})


def test_a_bar_for_each_network(ax):
    assert network_entropy(ax, {"float init": record(), "LSQ": record()}) is ax
    assert heights(ax, COLOURS["levels"]) == pytest.approx([28 / 12] * 2)
    assert heights(ax, COLOURS["float"]) == heights(ax, COLOURS["quantized"]) == [1.5]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["float init", "LSQ"]
    assert ax.get_ylabel() == "bits per weight"
    assert [t.get_text() for t in ax.texts] == ["1.500 ± 0.3"] * 2


@pytest.mark.parametrize(
    ("draw", "given"),
    [
        (bits_used, [History()]),
        (code_occupancy, [History(), "a"]),
        (entropy_by_layer, [{"a": History()}]),
        (network_entropy, [{"a": record(), "b": History()}]),
    ],
)
def test_another_record_is_refused(ax, draw, given):
    # Without the type checker of the tests, which refuses it first.
    with pytest.raises(ValueError, match="records of class CodeEntropy, got History"):
        inspect.unwrap(draw)(ax, *given)
