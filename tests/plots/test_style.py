import matplotlib as mpl
import pytest
import seaborn as sns
from matplotlib.colors import is_color_like, to_rgb

from qatviz.plots import COLOURS, use_style
from qatviz.plots.style import check_kind, colours_of


@pytest.fixture(autouse=True)
def _restore():
    with mpl.rc_context():
        yield


def test_every_thing_has_a_colour_of_its_own():
    assert set(COLOURS) == {"float", "quantized", "teacher", "rounded", "gradient", "levels"}
    assert all(is_color_like(colour) for colour in COLOURS.values())
    assert len({to_rgb(colour) for colour in COLOURS.values()}) == 6


def test_colours_are_of_the_colour_blind_safe_palette():
    safe = {to_rgb(colour) for colour in sns.color_palette("colorblind")}
    assert {to_rgb(c) for name, c in COLOURS.items() if name != "float"} <= safe


def test_the_style_sets_these_things():
    mpl.rcdefaults()
    assert mpl.rcParams["axes.spines.top"]
    use_style()
    assert not mpl.rcParams["axes.spines.top"]
    assert not mpl.rcParams["axes.spines.right"]
    assert not mpl.rcParams["legend.frameon"]
    assert mpl.rcParams["figure.constrained_layout.use"]
    assert mpl.rcParams["figure.dpi"] == 96


def test_importing_the_plots_changes_no_style():
    mpl.rcdefaults()
    before = dict(mpl.rcParams)
    import importlib

    import qatviz.plots.style

    importlib.reload(qatviz.plots.style)
    assert dict(mpl.rcParams) == before


def test_float_networks_are_grey_and_others_differ():
    colours = colours_of(["float", "LSQ W2A2", "float, wide", "dampened"])
    assert colours["float"] == colours["float, wide"] == COLOURS["float"]
    assert len({colours["float"], colours["LSQ W2A2"], colours["dampened"]}) == 3
    assert list(colours) == ["float", "LSQ W2A2", "float, wide", "dampened"]


@pytest.mark.parametrize("record", [1.0, [1, 2.0], {"a": "text"}, [], {}])
def test_a_record_of_another_kind_is_refused(record):
    with pytest.raises(ValueError, match="draws records of class int, got"):
        check_kind(record, int)


@pytest.mark.parametrize("record", [1, [1, 2], {"a": 1}])
def test_a_record_of_the_kind_passes(record):
    check_kind(record, int)
