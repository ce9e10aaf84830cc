"""Axes for every plot, on which showing or making a figure is an error."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure


@pytest.fixture
def ax(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plot shows nothing and makes no figure")

    monkeypatch.setattr(plt, "show", refuse)
    monkeypatch.setattr(plt, "figure", refuse)
    return Figure().add_subplot()
