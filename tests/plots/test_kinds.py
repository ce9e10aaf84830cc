"""What every plot does with a record of another class, and with the right one in a container."""

import inspect
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from qatviz import analysis, plots, records
from qatviz.analysis import oscillation_toy
from qatviz.plots import (
    confidence,
    curvature,
    entropy,
    landscape,
    oscillation,
    perturbation,
    sensitivity,
    sharpness,
    similarity,
)
from qatviz.records import History
from tests.landscapes import a_line, a_path, a_plane, a_sharpness
from tests.oscillations import oscillation as an_oscillation
from tests.plots.test_oscillation import bins, drift, lottery, path
from tests.records import test_perturbation as disturbed
from tests.records.test_confidence import record as reliability
from tests.records.test_curvature import density, eigenvalues, trace
from tests.records.test_entropy import record as code_entropy
from tests.records.test_sensitivity import bit_sensitivity, layer_sqnr
from tests.records.test_similarity import similarity as alike

MODULES = (confidence, curvature, entropy, landscape, oscillation, perturbation, sensitivity,
           sharpness, similarity)  # fmt: skip

SINGLE = {
    "accuracy_by_samples": disturbed.by_samples,
    "accuracy_difference": lambda: disturbed.by_samples().difference("a", "b"),
    "batchnorm_drift": drift,
    "bits_used": code_entropy,
    "code_occupancy": code_entropy,
    "corruption_accuracy": disturbed.corruptions,
    "layer_sqnr": layer_sqnr,
    "loss_contour": a_plane,
    "loss_relief": a_plane,
    "oscillation_causes": an_oscillation,
    "oscillation_toy": lambda: oscillation_toy([0.2], updates=40, windows=2),
    "reliability": reliability,
    "sensitivity_lines": bit_sensitivity,
    "sensitivity_map": bit_sensitivity,
    "similarity_map": alike,
    "toy_decay": lambda: oscillation_toy([0.2], updates=40, windows=2),
    "trajectories": path,
}
SEVERAL = {
    "bin_distances": bins,
    "code_survival": an_oscillation,
    "corruption_means": disturbed.corruptions,
    "density": lambda: density([[0, 2], [1, 3]], [[0.25, 0.75], [0.5, 0.5]]),
    "eigenvalues": eigenvalues,
    "entropy_by_layer": code_entropy,
    "frequency_spread": an_oscillation,
    "input_noise": disturbed.input_noise,
    "loss_contours": a_plane,
    "loss_line": a_line,
    "loss_path": a_path,
    "network_entropy": code_entropy,
    "oscillating_layers": an_oscillation,
    "oscillation_lottery": lottery,
    "oscillation_series": an_oscillation,
    "reliability_curves": reliability,
    "sharpness_points": lambda: a_sharpness([0.1, 0.2], average=True),
    "similarity_lines": alike,
    "spectrum": eigenvalues,
    "traces": lambda: trace([[1, 10], [3, 20]]),
    "view_consistency": disturbed.views,
    "weight_noise": disturbed.weight_noise,
}
NEITHER = {"against_bits", "sharpness_panels"}  # several by bits; several measures of several


def draw(name, given):
    """With fresh axes, without the type checker of the tests, which would refuse it first."""
    relief = name == "loss_relief"
    ax = Figure().add_subplot(projection="3d") if relief else Figure().add_subplot()
    on = [ax] if name in ("loss_contours", "sharpness_panels") else ax
    rest = ["a"] if name == "code_occupancy" else []
    inspect.unwrap(getattr(plots, name))(on, given, *rest)


def test_every_plot_is_here():
    public = {
        name
        for module in MODULES
        for name, found in vars(module).items()
        if name in plots.__all__ and getattr(found, "__module__", "") == module.__name__
    }
    assert public == set(SINGLE) | set(SEVERAL) | NEITHER


@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_a_single_record_is_drawn(name):
    draw(name, (SINGLE | SEVERAL)[name]())


@pytest.mark.parametrize("name", SEVERAL)
def test_several_by_label_are_drawn(name):
    record = SEVERAL[name]()
    draw(name, {"a": record} if name == "loss_contours" else {"a": record, 2: record})


OTHERS = [
    (History(), "History"),
    ("words", "str"),
    (None, "NoneType"),
    ([History()], "list of History"),
    ([], "list"),
    (np.zeros(2), "ndarray"),
]


@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL, *sorted(NEITHER)])
def test_another_record_is_refused_by_name(name):
    for given, got in OTHERS:
        got = r"\w+" if name == "against_bits" else got  # which looks into lists first
        with pytest.raises(ValueError, match=rf"records of class \w+, got {got}.*; allowed: "):
            draw(name, given)


@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_a_list_is_refused(name):
    record = (SINGLE | SEVERAL)[name]()
    kind = type(record).__name__
    words = "a single one" + (" or several by label in a mapping" if name in SEVERAL else "")
    with pytest.raises(ValueError, match=rf"class {kind}, got list of {kind}; allowed: {words}$"):
        draw(name, [record, record])


@pytest.mark.parametrize("name", SINGLE)
def test_a_mapping_is_refused_where_one_is_drawn(name):
    record = SINGLE[name]()
    kind = type(record).__name__
    with pytest.raises(ValueError, match=rf"got dict of {kind}; allowed: a single one$"):
        draw(name, {"a": record})
    with pytest.raises(ValueError, match=r"got dict; allowed: a single one$"):
        draw(name, {})


@pytest.mark.parametrize("name", SEVERAL)
def test_a_mapping_of_others_is_refused(name):
    with pytest.raises(ValueError, match="got History, NoneType; allowed"):
        draw(name, {"a": SEVERAL[name](), "b": History(), "c": None})
    with pytest.raises(ValueError, match=r"got list of .*; allowed"):
        draw(name, {"a": [SEVERAL[name]()]})
    with pytest.raises(ValueError, match="got nothing; allowed"):
        draw(name, {})


@pytest.mark.parametrize("given", [eigenvalues(), trace([[1, 2]]), [eigenvalues()], {}])
def test_against_bits_needs_bits(given):
    with pytest.raises(ValueError, match="allowed: several by label in a mapping"):
        draw("against_bits", given)
    with pytest.raises(ValueError, match="got dict of Eigenvalues"):
        draw("against_bits", {2: {"a": eigenvalues()}})


def test_panels_are_of_one_network_or_several():
    record = a_sharpness([0.5])
    draw("sharpness_panels", {"ball": record})
    draw("sharpness_panels", {"W2": {"ball": record}, "W3": {"ball": record}})
    for given in (record, [record], {"W2": [record]}, [{"ball": record}]):
        with pytest.raises(ValueError, match=r"class Sharpness, got .*several by label in a mapp"):
            draw("sharpness_panels", given)
    with pytest.raises(ValueError, match="must have the same measures"):
        draw("sharpness_panels", {})


def kinds_in(annotation):
    """The classes of records that an annotation names."""
    words = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return {word for word in re.findall(r"\w+", words) if word in records.__all__}


def measures():
    for name in sorted(analysis.__all__):
        found = getattr(analysis, name)
        if inspect.isfunction(found):
            for kind in sorted(kinds_in(inspect.signature(found).return_annotation)):
                yield name, kind


@pytest.mark.parametrize(("name", "kind"), list(measures()))
def test_what_measures_says_what_draws_it(name, kind):
    """In its section on what it returns: the class of records, and plots that draw that class."""
    draws = {
        plot
        for plot in plots.__all__
        if inspect.isfunction(getattr(plots, plot))
        for given in inspect.signature(getattr(plots, plot)).parameters.values()
        if kind in kinds_in(given.annotation)
    }
    told = inspect.getdoc(getattr(analysis, name)).split("Returns:")[1].split("\n\n")[0]
    assert f"`records.{kind}`" in told
    named = set(re.findall(r"plots\.(\w+)", told)) - {"accuracy_difference"}
    assert bool(named) == bool(draws) or name == "fit_temperature"
    assert named <= draws or name == "fit_temperature"
