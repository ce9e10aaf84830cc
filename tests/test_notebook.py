import html
import inspect
import re
from importlib.metadata import version

import pytest

from qatviz.notebook import at_scale, show_source, versions
from qatviz.quantizers import LSQ, straight_through


@pytest.mark.parametrize("thing", [LSQ, straight_through])
def test_the_source_shown_is_the_source_imported(thing):
    text = html.unescape(re.sub(r"<[^>]+>", "", show_source(thing).data))
    assert text.strip() == inspect.getsource(thing).strip()


def test_the_source_is_coloured():
    assert re.search(r'<span style="color: #\w+[^>]*>class</span>', show_source(LSQ).data)


@pytest.mark.parametrize(("scale", "number"), [(None, 30), ("laptop", 30), ("fast", 1)])
def test_scale_comes_from_the_environment(monkeypatch, scale, number):
    monkeypatch.delenv("QATVIZ_SCALE", raising=False)
    if scale is not None:
        monkeypatch.setenv("QATVIZ_SCALE", scale)
    assert at_scale(laptop=30, fast=1) == number


def test_refuses_an_unknown_scale(monkeypatch):
    monkeypatch.setenv("QATVIZ_SCALE", "huge")
    with pytest.raises(ValueError, match=r"one of \('laptop', 'fast'\), got 'huge'"):
        at_scale(laptop=30, fast=1)


def test_versions_are_those_installed():
    names = ("qatviz", "torch", "torchvision", "matplotlib")
    assert versions().split(", ") == [f"{name} {version(name)}" for name in names]
