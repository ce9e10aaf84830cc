import inspect
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz.widgets import spectrum_explorer
from qatviz.widgets.curvature import draw_spectrum
from tests.records.test_curvature import density, eigenvalues, setting, trace


def pairs(scale):
    return eigenvalues(scale * np.array([8.0, 4.0, 1.0]), np.zeros(3), largest=8.0 * scale)


def bells(scale):
    return density(scale * np.array([[0, 2], [1, 3]]), [[0.25, 0.75], [0.5, 0.5]])


def pictures(explorer):
    return len(re.findall("iVBOR", explorer.static())) - 1  # the one under the frame


def axes_of(explorer):
    figure = Figure()
    explorer.draw(figure, explorer.result)
    return figure.axes[0]


@pytest.mark.parametrize("make", [pairs, bells])
def test_the_slider_chooses_the_bits_and_the_axes_stay(make):
    records = {4: make(1.0), 2: make(3.0)}
    explorer = spectrum_explorer(records)
    seen = {}
    for bits in (2, 4):
        explorer.controls["bits"].value = bits
        assert explorer.result == {f"{bits} bit": records[bits]}
        ax = axes_of(explorer)
        seen[bits] = (explorer.image, ax.get_xlim(), ax.get_ylim())
        assert ax.get_xlabel() == "eigenvalue (nats per weight²)"
    assert seen[2][0] != seen[4][0]
    assert seen[2][1:] == seen[4][1:]
    low, high = seen[2][1]
    assert low <= 0
    assert high >= {pairs: 24, bells: 9}[make]
    assert pictures(explorer) == 2


def test_all_counts_are_in_view():
    explorer = spectrum_explorer({2: pairs(1.0), 3: pairs(0.01)})
    explorer.controls["bits"].value = 3
    ax = axes_of(explorer)
    assert max(patch.get_data().values.max() for patch in ax.patches) == 3
    assert ax.get_ylim()[1] > 3


def test_networks_are_chosen_from_a_list_and_gaps_are_told():
    records = {"LSQ": {2: pairs(1.0), 3: pairs(2.0)}, "CR": {3: pairs(3.0)}}
    explorer = spectrum_explorer(records)
    assert explorer.values == {"bits": 2, "name": "LSQ"}
    explorer.controls["name"].value = "CR"
    assert explorer.result is None
    with pytest.raises(ValueError, match="CR was not measured at 2 bits; there are 3"):
        explorer.compute(bits=2, name="CR")
    explorer.controls["bits"].value = 3
    assert explorer.result == {"CR 3 bit": records["CR"][3]}
    assert pictures(explorer) == 4


@pytest.mark.parametrize("make", [pairs, bells])
def test_the_float_network_stands_behind(make):
    reference = make(5.0)
    explorer = spectrum_explorer({2: make(1.0)}, reference=reference)
    assert list(explorer.result) == ["float", "2 bit"]
    assert explorer.result["float"] is reference
    texts = [text.get_text() for text in axes_of(explorer).get_legend().get_texts()]
    assert texts[0].startswith("float")
    assert axes_of(explorer).get_xlim()[1] >= {pairs: 40, bells: 15}[make]


def test_one_number_everywhere_can_be_shown():
    same = eigenvalues([1.0, 1.0], [0.0, 0.0])
    assert spectrum_explorer({2: same}).image.startswith(b"\x89PNG")
    assert spectrum_explorer({2: density([[1]], [[1]])}).image.startswith(b"\x89PNG")


def test_draws_on_one_pair_of_axes():
    figure = Figure()
    draw_spectrum(figure, {"2 bit": pairs(1.0)}, {"bins": 4, "ylim": (0, 7)})
    assert [ax.get_ylim() for ax in figure.axes] == [(0, 7)]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({}, "in a mapping by bits, got nothing"),
        (pairs(1.0), "in a mapping by bits, got a Eigenvalues"),
        ([pairs(1.0)], "in a mapping by bits, got a list"),
        ({2: [pairs(1.0)]}, "class Eigenvalues, got list of Eigenvalues"),
        ({"LSQ": {2: pairs(1.0)}, "CR": pairs(1.0)}, "got Eigenvalues; allowed: several by label"),
        ({"LSQ": {}}, "got nothing"),
        ({2: pairs(1.0), 3: bells(1.0)}, "class Eigenvalues, got SpectralDensity"),
        ({2: bells(1.0), 3: pairs(1.0)}, "class SpectralDensity, got Eigenvalues"),
        ({2: trace([[1, 2]])}, "class Eigenvalues, got Trace"),
    ],
)
def test_what_cannot_be_shown_is_refused(records, words):
    # Without the type checker of the tests, which refuses some of it first.
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(spectrum_explorer)(records)


def test_other_units_are_refused_at_once():
    relative = eigenvalues(setting=setting(relative=True))
    with pytest.raises(ValueError, match="some records are relative to filters"):
        spectrum_explorer({2: pairs(1.0), 3: relative})
