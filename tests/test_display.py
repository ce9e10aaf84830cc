import sys
from functools import partial
from types import SimpleNamespace

import pytest
from IPython.core.formatters import DisplayFormatter
from torch import nn

from qatviz._display import register
from qatviz.quantize import quantize, summary
from qatviz.quantizers import LSQ


@pytest.fixture
def show(monkeypatch):
    """How a notebook in which qatviz was imported shows an object as HTML."""
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    register()
    return shell.display_formatter.formatters["text/html"]


def float_model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())


def test_a_quantized_model_is_shown_as_its_summary(show):
    student = quantize(float_model(), partial(LSQ, bits=2), None)
    assert show(student) == summary(student)._repr_html_()
    assert "LSQ 2 bit signed" in show(student)


def test_a_float_model_is_shown_as_text(show):
    assert show(float_model()) is None


def test_what_shows_itself_goes_on_doing_so(show):
    quantizer = LSQ(3)
    assert show(quantizer) == quantizer._repr_html_()
    assert "<caption>LSQ</caption>" in show(quantizer)


def test_other_objects_are_not_touched(show):
    assert show(3) is None


def test_nothing_happens_outside_a_running_shell(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    register()
