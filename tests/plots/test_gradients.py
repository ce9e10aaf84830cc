import numpy as np
from matplotlib.figure import Figure

from qatviz.plots import descent, gradient_agreement
from qatviz.records import Descent, GradientAgreement


def test_agreement_is_drawn_layer_by_layer():
    ax = Figure().subplots()
    cosine = np.array([1.0, np.nan])
    records = [
        GradientAgreement(("conv1", "fc"), cosine, np.zeros(2), 20, 20, label)
        for label in ("4 bits", "2 bits")
    ]
    assert gradient_agreement(ax, records) is ax
    assert [t.get_text() for t in ax.get_xticklabels()] == ["conv1", "fc"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["4 bits", "2 bits"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), cosine)
    assert "cosine" in ax.get_ylabel()


def test_descent_shows_every_shuffle_and_names_their_number():
    ax = Figure().subplots()
    record = Descent(np.array([0.0, 0.01]), np.array([1.0, 0.5]), np.ones((3, 2)), "3 bits")
    assert descent(ax, record) is ax
    assert len(ax.lines) == 4
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [0, 1])
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["shuffled gradient (3 draws)", "gradient"]
    assert (ax.get_ylabel(), ax.get_title()) == ("loss (nats)", "3 bits")
    assert "%" in ax.get_xlabel()
