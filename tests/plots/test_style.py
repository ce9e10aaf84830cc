import matplotlib as mpl
import pytest
import seaborn as sns
from matplotlib.colors import is_color_like, to_rgb

from qatviz.plots import COLOURS, use_style
from qatviz.plots.style import by_label, check_kind, colours_of, images, joined, plus_minus


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


def test_consistency_has_one_colour_wherever_it_stands():
    for labels in (["LSQ", "CR"], ["CR", "LSQ"], ["float", "LSQ", "frozen", "dampened", "CR"]):
        colours = colours_of(labels)
        assert list(colours) == labels
        assert colours["CR"] == COLOURS["teacher"]
        assert len(set(colours.values())) == len(labels)


@pytest.mark.parametrize("record", [1.0, [1, 2.0], {"a": "text"}, [], {}])
def test_a_record_of_another_kind_is_refused(record):
    with pytest.raises(ValueError, match="draws records of class int, got"):
        check_kind(record, int)


@pytest.mark.parametrize(
    ("record", "ways"),
    [
        (1, {}),
        (1, {"several": True}),
        ({"a": 1}, {"several": True}),
        ({"a": 1, "b": 2}, {"several": True, "one": False}),
    ],
)
def test_a_record_of_the_kind_passes(record, ways):
    check_kind(record, int, **ways)


@pytest.mark.parametrize(
    ("record", "ways", "words"),
    [
        ([1, 2], {"several": True}, "got list of int; allowed: a single one or several by label"),
        ({"a": 1}, {}, "got dict of int; allowed: a single one$"),
        (1, {"several": True, "one": False}, "got int; allowed: several by label in a mapping$"),
        ({}, {"several": True}, "got nothing; allowed"),
        ({"a": [1], "b": "c"}, {"several": True}, "got list of int, str; allowed"),
    ],
)
def test_the_right_record_in_another_container_is_refused(record, ways, words):
    with pytest.raises(ValueError, match=f"this draws records of class int, {words}"):
        check_kind(record, int, **ways)


def test_records_by_label():
    class Named(int):
        label = "LSQ"

    assert by_label({2: 5, "a": 6}, int) == {"2": 5, "a": 6}
    assert by_label(5, int) == {"": 5}
    assert by_label(Named(5), int) == {"LSQ": 5}
    with pytest.raises(ValueError, match="got list of int"):
        by_label([5], int)


@pytest.mark.parametrize(
    ("value", "error", "form", "words"),
    [
        (1.2345, 0.0417, ".3g", "1.23 ± 0.04"),
        (40.0, 12.6, ".1f", "40.0 ± 10"),
        (0.5, float("nan"), ".3g", "0.5"),
        (2.0, 0.0, ".3f", "2.000 ± 0"),
    ],
)
def test_a_number_and_its_error(value, error, form, words):
    assert plus_minus(value, error, form) == words


def test_words_and_counts():
    assert joined("", "a") == "a"
    assert joined("b", "a") == "b: a"
    assert images([2000]) == images(iter([2000, 2000])) == "2,000 images"
    assert images([3, 1, 2]) == "1 to 3 images"
