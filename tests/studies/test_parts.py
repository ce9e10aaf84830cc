"""Naming parts, and making what they name."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.augment import crop, flip
from qatviz.methods import CrossEntropy
from qatviz.models import small_cnn
from qatviz.quantizers import LSQ
from qatviz.studies.parts import (
    describe,
    find,
    is_part,
    make,
    make_method,
    methods_within,
    name_of,
    short,
)
from tests.studies.grids import Outer, Taught

HERE = "tests.studies.grids"


def test_a_part_is_its_module_its_name_and_its_arguments_by_name():
    expected = {"part": "qatviz.models.small:small_cnn", "with": {"width": 4, "classes": 3}}
    assert describe(partial(small_cnn, 4, classes=3)) == expected
    assert describe(partial(partial(small_cnn, width=4), classes=3)) == expected
    assert describe(small_cnn) == describe(partial(small_cnn))
    assert describe(partial(small_cnn, width=4)) != describe(partial(small_cnn, width=5))


def test_parts_nest_in_arguments_lists_and_dictionaries():
    part = partial(Outer, partial(CrossEntropy, view=partial(crop, padding=2)), others=[Taught])
    crop_part = {"part": "qatviz.augment:crop", "with": {"padding": 2}}
    inner = {"part": "qatviz.methods.base:CrossEntropy", "with": {"view": crop_part}}
    taught = {"part": f"{HERE}:Taught", "with": {}}
    assert describe({"a": part}) == {
        "a": {"part": f"{HERE}:Outer", "with": {"method": inner, "others": [taught]}}
    }


def test_keywords_of_a_function_that_takes_any_are_kept():
    described = describe(partial(_any, 1, b=2))
    assert described["with"] == {"args": [1], "kwargs": {"b": 2}}


def _any(*args, **kwargs):
    return args, kwargs


class Holder:
    class Inside:
        pass

    def method(self):
        pass


def test_a_name_leads_back_to_the_thing():
    for thing in (LSQ, flip, Holder.Inside, nn.ReLU):
        assert find(name_of(thing)) is thing


def test_what_cannot_be_found_again_is_refused():
    def local():
        pass

    for thing, why in (
        (lambda: 0, "lambda"),
        (local, "inside a function"),
        (Holder().method, "something else"),
    ):
        with pytest.raises(ValueError, match=f"cannot be named .*{why}.*: put it in a module"):
            name_of(thing)


def test_what_a_notebook_defines_is_refused():
    class Mine:
        pass

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    with pytest.raises(ValueError, match=r"Mine cannot be named \(.*notebook.*put it in a module"):
        describe(Mine)


@pytest.mark.parametrize(
    "value", [np.arange(3), torch.ones(2), LSQ(2), CrossEntropy(), np.int64(3), {1: 2}, {1, 2}]
)
def test_what_is_neither_plain_nor_a_part_is_refused(value):
    with pytest.raises(ValueError, match=r"give a factory|allowed: text"):
        describe(value)
    with pytest.raises(ValueError, match=r"give a factory|allowed: text"):
        describe(partial(small_cnn, width=value))


def test_an_argument_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"small_cnn: .*'depth'"):
        describe(partial(small_cnn, depth=3))


def test_instances_are_no_parts():
    assert is_part(LSQ)
    assert is_part(flip)
    assert is_part(partial(LSQ, axis=0))
    assert not is_part(LSQ(2))
    assert not is_part("LSQ")


def test_offered_arguments_reach_only_who_takes_and_lacks_them():
    assert make(partial(small_cnn, width=2), classes=3, depth=9).fc.out_features == 3
    assert make(partial(small_cnn, classes=5), classes=3).fc.out_features == 5
    assert make(LSQ, 3, classes=2).bits == 3


def test_wrapped_methods_are_made_and_get_the_teacher_that_they_lack():
    teacher, mine = nn.Linear(1, 1), nn.Linear(2, 2)
    part = partial(Outer, partial(CrossEntropy, view=flip), others=[Taught], strength=0.5)
    method = make_method(part, teacher=teacher)
    assert isinstance(method, Outer)
    assert method.strength == 0.5
    assert method.method.view is flip  # a view is no method: handed over as it is
    assert [m.teacher for m in method.others] == [teacher]
    assert make_method(partial(Taught, mine), teacher=teacher).teacher is mine
    assert [p.func if isinstance(p, partial) else p for p in methods_within(part)] == [
        *(Outer, CrossEntropy, Taught)
    ]


def test_short_names_say_the_methods_inside():
    part = partial(Outer, partial(CrossEntropy, view=flip), strength=0.25)
    assert short(part) == "Outer(CrossEntropy(view=flip), strength=0.25)"
    assert short(small_cnn) == "small_cnn"


@pytest.mark.parametrize("name", ["qatviz.nothing:x", "qatviz.methods:Nothing", "qatviz", ":x"])
def test_a_name_that_leads_nowhere_is_said(name):
    with pytest.raises(ValueError, match="was not found"):
        find(name)
