import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from qatviz.plots import COLOURS, against_bits, density, eigenvalues, spectrum, traces
from tests.records.test_curvature import density as a_density
from tests.records.test_curvature import eigenvalues as some
from tests.records.test_curvature import setting
from tests.records.test_curvature import trace as a_trace

WEIGHTS = "nats per weight²"
FLOAT = {"setting": setting(space="float", samples=500)}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curve(ax):
    """Heights and edges of the outlines of a histogram."""
    return [(p.get_data().values, p.get_data().edges) for p in ax.patches if not p.get_fill()]


def bars(ax):
    """Places, values and half lengths of all error bars."""
    found = []
    for container in ax.containers:
        line, _, (segments,) = container.lines if hasattr(container, "lines") else container
        for (x, y), ends in zip(line.get_xydata(), segments.get_segments(), strict=True):
            found.append((x, y, (ends[1, 1] - ends[0, 1]) / 2))
    return found


# --- spectrum -------------------------------------------------------------------------------


def test_spectrum_counts_in_the_same_bins(ax):
    records = {
        "LSQ": some([1.0, 2.0, 2.1, 6.0], [0.01, 0.02, 0.0, 0.0], largest=6.0),
        "float": some([1.0, 1.1, 1.2, 1.3], [0.0] * 4, **FLOAT),
    }
    assert spectrum(ax, records, bins=5) is ax
    (lsq, edges), (grey, same) = curve(ax)
    assert edges.tolist() == same.tolist() == [1, 2, 3, 4, 5, 6]
    assert lsq.tolist() == [1, 2, 0, 0, 1]
    assert grey.tolist() == [4, 0, 0, 0, 0]
    # Mean 11.1/4, variance (1 + 4 + 4.41 + 36)/4 − 2.775²; the largest residual is 0.02·6.
    assert legend(ax) == [
        "LSQ: max 6, mean 2.77, variance 3.65,\n‖Hv − λv‖ up to 0.1",
        "float: max 1.3, mean 1.15, variance 0.0125,\n‖Hv − λv‖ up to 0",
    ]
    assert ax.get_xlabel() == f"eigenvalue ({WEIGHTS})"
    assert ax.get_ylabel() == "eigenvalues of 4 in a bin"
    assert ax.get_title() == "at dequantized and float weights, 500 to 2,000 images"
    outlines = [patch for patch in ax.patches if not patch.get_fill()]
    assert same_color(outlines[1].get_edgecolor(), COLOURS["float"])
    assert same_color(outlines[0].get_edgecolor(), COLOURS["quantized"])
    assert plt.get_fignums() == []


def test_spectrum_takes_edges_and_one_record(ax):
    spectrum(ax, some([1.0, 4.0], [0.0] * 2), bins=np.array([0.0, 2.0, 4.0, 8.0]))
    ((counts, edges),) = curve(ax)
    assert counts.tolist() == [1, 0, 1]
    assert edges.tolist() == [0, 2, 4, 8]
    assert legend(ax) == ["max 4, mean 2.5, variance 2.25,\n‖Hv − λv‖ up to 0"]


def test_what_was_interrupted_and_where_it_was_taken_is_told(ax):
    other = setting(space="latent", batchnorm="batch", relative=True)
    spectrum(ax, {"a": some(complete=False, setting=other)})
    assert legend(ax)[0].startswith("a (not complete): max 4")
    assert ax.get_title() == "at latent weights, 2,000 images; BatchNorm of the batch"
    assert ax.get_xlabel() == "eigenvalue (nats per squared filter norm)"


# --- eigenvalues ----------------------------------------------------------------------------


def test_eigenvalues_have_error_bars(ax):
    records = {"2 bit": some([9.0, 4.0], [0.01, 0.5], largest=10.0), "4 bit": some([3.0], [0.1])}
    assert eigenvalues(ax, records) is ax
    assert bars(ax) == [
        (1, 9, pytest.approx(0.1)),
        (2, 4, pytest.approx(5)),
        (1, 3, pytest.approx(0.8)),
    ]
    assert legend(ax) == ["2 bit", "4 bit"]
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "rank"
    assert ax.get_ylabel() == f"eigenvalue ({WEIGHTS})"


def test_eigenvalues_that_are_negative_are_seen_too(ax):
    eigenvalues(ax, some([8.0, -5.0, 0.0, 3.0], [0.0] * 4))
    assert [y for _, y, _ in bars(ax)] == [8, 3, 0, -5]
    assert ax.get_yscale() == "symlog"
    assert ax.yaxis.get_transform().linthresh == 3
    eigenvalues(wide := Figure().add_subplot(), some([8.0, -1e-6], [0.0] * 2))
    assert wide.yaxis.get_transform().linthresh == pytest.approx(0.008)
    assert ax.get_legend() is None
    eigenvalues(zero := Figure().add_subplot(), some([0.0], [0.0], largest=0.0))
    assert zero.get_yscale() == "linear"
    ax.figure.canvas.draw()


# --- density --------------------------------------------------------------------------------

HALVES = a_density([[0, 2], [1, 3]], [[0.25, 0.75], [0.5, 0.5]])


def test_density_draws_bells_with_a_band(ax):
    assert density(ax, {"LSQ": HALVES}, width=0.3, span=(-1.0, 4.0)) is ax
    (line,) = ax.lines
    at, middle, error = line.get_xdata(), *HALVES.density(line.get_xdata(), 0.3)
    assert (at[0], at[-1]) == (-1, 4)
    assert np.diff(at).max() < 0.3 / 4
    floor = 0.1 / (0.3 * np.sqrt(2 * np.pi)) / 1000  # a tenth of one of 1000 eigenvalues
    np.testing.assert_allclose(line.get_ydata(), np.maximum(middle, floor))
    assert ax.get_ylim() == pytest.approx((floor, 2 / (0.3 * np.sqrt(2 * np.pi))))
    (band,) = ax.collections
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx((middle + error).max())
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(floor)
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == f"eigenvalue ({WEIGHTS})"
    assert ax.get_ylabel() == "density (each eigenvalue a bell of σ = 0.3)"
    assert legend(ax) == ["LSQ"]
    assert ax.get_title() == "at dequantized weights, 2,000 images\n2 draws of 2 steps"


def test_density_sees_all_with_one_width(ax):
    density(ax, {"a": HALVES, "b": a_density([[9, 10]], [[0.5, 0.5]])})
    assert ax.get_ylabel().endswith("σ = 0.1)")
    one, other = ax.lines
    assert np.array_equal(one.get_xdata(), other.get_xdata())
    assert (one.get_xdata()[0], one.get_xdata()[-1]) == pytest.approx((-0.4, 10.4))
    assert len(ax.collections) == 1  # a single draw has no band
    assert np.isfinite(other.get_ydata()).all()
    assert ax.get_title().endswith("\n2 draws of 2 steps and 1 draws of 2 steps")


def test_a_density_of_one_value_can_be_drawn(ax):
    density(ax, a_density([[0, 0]], [[0.5, 0.5]]))
    ax.figure.canvas.draw()


@pytest.mark.parametrize("width", [0.0, -1.0, 0.002, float("nan")])
def test_density_refuses_a_width_that_is_not_seen(ax, width):
    with pytest.raises(ValueError, match=rf"width is {width}; allowed: 0.003 \(a thousandth"):
        density(ax, HALVES, width=width)


# --- traces ---------------------------------------------------------------------------------


def test_traces_are_bars_with_standard_errors(ax):
    records = {"2 bit": a_trace([[1, 10], [3, 20]]), "3 bit": a_trace([[1], [1]], "hutch++", 4.0)}
    assert traces(ax, records) is ax
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == [17, 5]
    errors = [c.errorbar for c in ax.containers if getattr(c, "errorbar", None)]
    ends = [e.lines[2][0].get_segments()[0][:, 1] for e in errors]
    np.testing.assert_allclose(ends, [[11, 23], [5, 5]])  # (23 − 11)/√2/√2 = 6
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2 bit", "3 bit"]
    assert ax.get_ylabel() == f"trace of the Hessian ({WEIGHTS})"


def test_traces_of_layers_stand_side_by_side(ax):
    records = {"2 bit": a_trace([[1, 10], [3, 20]]), "4 bit": a_trace([[5, -2], [5, -2]])}
    traces(ax, records, layers=True)
    bars = {round(p.get_x() + p.get_width() / 2, 3): p.get_height() for p in ax.patches}
    assert bars == {-0.2: 2, 0.8: 15, 0.2: 5, 1.2: -2}
    assert [text.get_text() for text in ax.get_xticklabels()] == ["conv", "fc"]
    assert legend(ax) == ["2 bit", "4 bit"]


def test_traces_without_layers_are_refused(ax):
    with pytest.raises(ValueError, match="no traces of layers"):
        traces(ax, a_trace([[1], [2]], "hutch++"), layers=True)


# --- against bits ---------------------------------------------------------------------------


def test_against_bits_draws_leading_eigenvalues(ax):
    records = {
        "float": some([2.0], [0.1], largest=2.0, **FLOAT),
        4: some([3.0, 1.0], [0.01, 0.0], largest=3.0),
        2: some([7.0, 1.0], [0.02, 0.0], largest=7.0),
    }
    assert against_bits(ax, records) is ax
    assert bars(ax) == [
        (0, 7, pytest.approx(0.14)),
        (1, 3, pytest.approx(0.03)),
        (2, 2, pytest.approx(0.2)),
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "4", "float"]
    assert ax.get_ylabel() == f"leading λ ({WEIGHTS})"
    assert ax.get_xlabel() == "bits"
    assert ax.get_title() == "at float and dequantized weights, 500 to 2,000 images"
    assert ax.get_legend() is None
    assert ax.get_yscale() == "log"
    colours = [container.lines[0].get_color() for container in ax.containers]
    assert same_color(colours[0], COLOURS["quantized"])
    assert same_color(colours[2], COLOURS["float"])


def test_against_bits_shows_seeds_and_their_deviation(ax):
    seeds = [a_trace([[1, v], [1, v]]) for v in (3.0, 5.0, 7.0)]
    against_bits(ax, {3: seeds, 4: [seeds[0]]}, label="trace, 3 seeds", colour="#123456")
    assert ax.lines[0].get_ydata().tolist() == [4, 6, 8]
    assert bars(ax) == [(0, 6, pytest.approx(2)), (1, 4, 0)]
    assert legend(ax) == ["trace, 3 seeds"]
    assert ax.get_ylabel() == f"trace of the Hessian ({WEIGHTS})"
    assert same_color(ax.containers[0].lines[0].get_color(), "#123456")


def test_against_bits_has_a_plain_scale_where_something_is_negative(ax):
    lowest = {b: some([v], [0.0], which="smallest") for b, v in ((2, -7.0), (3, -1.0))}
    against_bits(ax, lowest)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == f"smallest λ ({WEIGHTS})"


def test_against_bits_refuses_what_does_not_compare(ax):
    with pytest.raises(ValueError, match=r"different orders: \['largest', 'magnitude'\]"):
        against_bits(ax, {2: some(), 3: some(which="largest")})
    with pytest.raises(ValueError, match="class Eigenvalues, got Trace"):
        against_bits(ax, {2: some(), 3: a_trace([[1, 2]])})
    with pytest.raises(ValueError, match="got nothing"):
        against_bits(ax, {})


# --- all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("plot", [spectrum, eigenvalues, density, traces])
def test_other_records_are_refused(ax, plot):
    wrong = HALVES if plot is not density else some()
    for records in (wrong, {"a": wrong}, {}):
        # Without the type checker of the tests, which refuses it first.
        with pytest.raises(ValueError, match="this draws records of class"):
            inspect.unwrap(plot)(ax, records)


@pytest.mark.parametrize("plot", [spectrum, eigenvalues])
def test_other_units_are_refused(ax, plot):
    mixed = {"a": some(), "b": some(setting=setting(relative=True))}
    with pytest.raises(ValueError, match="some records are relative to filters"):
        plot(ax, mixed)
    with pytest.raises(ValueError, match="some records are relative to filters"):
        against_bits(ax, dict(enumerate(mixed.values())))
