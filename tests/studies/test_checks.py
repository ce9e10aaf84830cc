"""What is refused before anything starts."""

import json
from dataclasses import replace
from functools import partial

import pytest

from qatviz.models import small_resnet
from qatviz.quantizers import PACT
from qatviz.runs import save_weights
from qatviz.studies import experiment as module
from qatviz.studies import study
from qatviz.studies.checks import check, problems, with_starts
from tests.studies.grids import BASE, TINY, Outer

COMMON = "e" * 16


def test_a_good_study_has_no_problem(cache):
    start = replace(BASE, seed=4)
    assert problems([BASE, replace(BASE, start=start, bits=2)], cache) == []
    check([], cache)


def test_starts_come_first_and_once():
    a = replace(BASE, seed=1)
    b = replace(BASE, start=a, bits=4)
    c = replace(BASE, start=b, bits=2)
    order = [e.hash for e in with_starts([c, BASE, a, c])]
    assert order == [a.hash, b.hash, c.hash, BASE.hash]


def test_two_experiments_of_one_hash_are_refused(cache, monkeypatch):
    monkeypatch.setattr(module, "DIGITS", 0)
    a, b = replace(BASE, seed=5), replace(BASE, seed=6)
    assert a.hash == b.hash == ""
    with pytest.raises(ValueError, match="have one hash"):
        study([a, b], cache=cache)
    assert not cache.exists()


def test_a_folder_of_the_same_hash_but_other_content_is_refused(cache, promoted):
    for root in (cache, promoted):
        (root / BASE.hash).mkdir(parents=True)
        content = {"experiment": BASE.describe() | {"seed": 99}}
        (root / BASE.hash / "experiment.json").write_text(json.dumps(content))
    found = problems([BASE], cache)
    assert len(found) == 2
    assert all("has the hash of" in text and "differs in seed" in text for text in found)


def test_one_experiment_under_two_labels_is_refused(cache):
    twins = [replace(BASE, label=label) for label in ("a", "b")]
    assert problems(twins, cache) == ["the same experiment has two labels, 'a' and 'b'"]


def test_one_label_for_two_arms_is_refused(cache):
    arms = [replace(BASE, label="a", bits=bits, seed=bits) for bits in (2, 3)]
    assert problems(arms, cache) == ["the label 'a' names two arms, which differ in bits, seed"]


def test_a_missing_data_set_is_said_once(cache, tmp_path):
    lost = [replace(BASE, root=str(tmp_path), seed=s) for s in (0, 1)]
    found = problems(lost, cache)
    assert len(found) == 1
    assert "fashion_mini.npz is missing" in found[0]
    (found,) = problems([replace(BASE, data="fashion")], cache)
    assert "data set 'fashion'" in found
    assert "allowed: fashion-mini" in found


def test_weights_of_another_network_are_refused(cache, tmp_path):
    path = tmp_path / "other.safetensors"
    save_weights(small_resnet().state_dict(), path)
    (found,) = problems([replace(BASE, start=str(path))], cache)
    assert "size mismatch" in found or "Missing key" in found
    wide = replace(BASE, model=partial(TINY, classes=12))
    (found,) = problems([replace(BASE, start=wide)], cache)
    assert "size mismatch for fc" in found


def test_a_file_that_changed_since_is_refused(cache, tmp_path):
    path = tmp_path / "start.safetensors"
    save_weights(TINY().state_dict(), path)
    e = replace(BASE, start=str(path))
    save_weights({k: v + 1 for k, v in TINY().state_dict().items()}, path)
    (found,) = problems([e], cache)
    assert "has changed since" in found


def test_what_only_building_shows_is_refused(cache):
    (found,) = problems([replace(BASE, bits=2, inputs=PACT, seed=s) for s in (0, 1)], cache)
    assert "PACT" in found
    assert "conv1" in found, "the first layer sees negative pixels"
    assert problems([replace(BASE, bits=2, inputs=PACT, ends="float")], cache) == []
    (found,) = problems([replace(BASE, images=10_001)], cache)
    assert "images is 10001, fashion-mini has 10000" in found


def test_a_method_that_refuses_its_arguments_is_refused(cache):
    wrong = replace(BASE, method=partial(Outer, method=BASE.method, others=[3]))
    assert problems([wrong], cache) == []
    with pytest.raises(ValueError, match=r"lacks the argument method"):
        replace(BASE, method=Outer)


def test_everything_is_said_at_once_and_nothing_is_started(cache, tmp_path):
    with pytest.raises(ValueError, match=r"nothing was started, 3 problems") as caught:
        study(
            [
                *(replace(BASE, label=label) for label in ("a", "b")),
                replace(BASE, root=str(tmp_path), seed=1),
                replace(BASE, images=99_999),
            ],
            cache=cache,
        )
    for word in ("two labels", "is missing", "images is 99999"):
        assert word in str(caught.value)
    assert not cache.exists()
    with pytest.raises(ValueError, match="an Experiment was expected, got 3"):
        study([3], cache=cache)
