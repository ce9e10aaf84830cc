import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest

from qatviz.plots import similarity_lines, similarity_map
from tests.records.test_similarity import similarity


def test_the_map_shows_every_pair_of_layers(ax):
    record = similarity()
    assert similarity_map(ax, record) is ax
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), record.cka)
    assert image.get_clim() == (0, 1)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["0.10", "0.90", "0.80", "0.20", "0.30", "0.40"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["b", "a"]
    assert ax.get_xlabel() == "layers of student"
    assert ax.get_ylabel() == "layers of float"
    assert ax.get_title() == "24 images, 3 batches"
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "linear CKA"
    assert plt.get_fignums() == []


def test_a_large_map_has_no_numbers(ax):
    names = tuple(f"layer{i}" for i in range(13))
    cka = np.zeros((13, 2))
    similarity_map(ax, similarity(rows=names, cka=cka, cka_error=cka, matched=()))
    assert list(ax.texts) == []


@pytest.mark.parametrize(
    ("quantity", "values", "errors", "label"),
    [
        ("cka", [0.9, 0.8], [0.09, 0.08], "linear CKA"),
        ("cosine", [0.5, 0.6], [0.05, 0.06], "cosine of the outputs"),
        ("distance", [1.5, 1.6], [0.15, 0.16], "relative distance ‖b − a‖/‖a‖"),
    ],
)
def test_lines_are_layers_that_match(ax, quantity, values, errors, label):
    record = similarity()
    pairs = {"two seeds": record, "float and student": similarity(cka=record.cka / 2)}
    assert similarity_lines(ax, pairs, quantity) is ax
    first, second = ax.containers
    np.testing.assert_array_equal(first.lines[0].get_ydata(), values)
    half = [v / 2 for v in values] if quantity == "cka" else values
    np.testing.assert_array_equal(second.lines[0].get_ydata(), half)
    for bar, value, error in zip(first.lines[2][0].get_segments(), values, errors, strict=True):
        np.testing.assert_allclose(bar[:, 1], [value - error, value + error])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(pairs)
    assert ax.get_ylabel() == label
    assert plt.get_fignums() == []


def test_other_records_layers_and_quantities_are_refused(ax):
    # Without the type checker of the tests, which refuses them first.
    with pytest.raises(ValueError, match="draws records of class Similarity, got str"):
        inspect.unwrap(similarity_map)(ax, "similar")
    with pytest.raises(ValueError, match="draws records of class Similarity, got str"):
        inspect.unwrap(similarity_lines)(ax, {"a": similarity(), "b": "similar"})
    with pytest.raises(ValueError, match="draws records of class Similarity, got nothing"):
        similarity_lines(ax, {})
    with pytest.raises(ValueError, match="quantity is 'l2'; allowed: cka, cosine, distance"):
        similarity_lines(ax, {"a": similarity()}, "l2")
    other = similarity(matched=("b", "a"))
    with pytest.raises(ValueError, match="'b' has other layers than 'a'"):
        similarity_lines(ax, {"a": similarity(), "b": other})
