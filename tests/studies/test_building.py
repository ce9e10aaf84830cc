"""From an experiment to a student."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from qatviz.datasets import load
from qatviz.models import small_resnet
from qatviz.quantize import check_ready, float_state, quantized_layers
from qatviz.quantizers import LSQ, PACT, Affine
from qatviz.runs import load_weights
from qatviz.schedule import Schedule
from qatviz.studies.building import build, data_of, float_model, kept, seeded, train
from qatviz.studies.experiment import RUNS, Experiment
from tests.studies.grids import BASE, TINY, Counter, Forgetful, Taught


@pytest.fixture(scope="module")
def data():
    return load("fashion-mini")


def bits_of(student):
    return {
        name: tuple(
            getattr(getattr(layer, f"{part}_quantizer"), "bits", None)
            for part in ("weight", "input")
        )
        for name, layer in quantized_layers(student).items()
    }


@pytest.mark.parametrize(
    ("bits", "ends", "inner", "outer"),
    [
        (2, 8, (2, 2), (8, 8)),
        ((2, 4), 6, (2, 4), (6, 6)),
        (3, None, (3, 3), (3, 3)),
        ((2, None), 8, (2, None), (8, None)),
        ((None, 4), 8, (None, 4), (None, 8)),
    ],
)
def test_bits_of_the_layers_and_of_the_ends(data, bits, ends, inner, outer):
    student, _, _ = build(replace(BASE, bits=bits, ends=ends), data, None)
    expected = {"conv1": outer, "conv2": inner, "conv3": inner, "fc": outer}
    assert bits_of(student) == expected
    check_ready(student)


def test_ends_can_stay_float(data):
    student, _, _ = build(replace(BASE, bits=2, ends="float", inputs=PACT), data, None)
    assert bits_of(student) == {"conv2": (2, 2), "conv3": (2, 2)}


def test_the_quantizers_are_those_that_were_named(data):
    e = replace(BASE, bits=4, weights=partial(LSQ, axis=0), inputs=Affine)
    layers = quantized_layers(build(e, data, None)[0]).values()
    assert {type(x.input_quantizer) for x in layers} == {Affine}
    assert {x.weight_quantizer.axis for x in layers} == {0}


def test_the_seed_decides_the_weights_and_the_global_generator_stays(data):
    before = torch.get_rng_state()
    a, b, c = (build(replace(BASE, seed=s), data, None)[0].state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


def test_classes_and_channels_come_from_the_data_unless_they_are_given(data):
    model = float_model(Experiment(model=TINY), data, None)
    assert (model.fc.out_features, model.conv1.in_channels) == (10, 1)
    given = replace(BASE, model=partial(TINY, classes=12))
    assert float_model(given, data, None).fc.out_features == 12


def test_weights_to_begin_from_leave_quantizers_out(data):
    student, _, _ = build(replace(BASE, bits=4), data, None)
    again, _, _ = build(replace(BASE, bits=2, seed=5), data, student.state_dict())
    old, new = float_state(student), float_state(again)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_the_teacher_is_the_float_network_that_was_quantized(data):
    e = Experiment(start="float_small_resnet", bits=2, method=Taught)
    state = load_weights(RUNS / "float_small_resnet.safetensors")
    _, method, _ = build(e, data, state)
    assert type(method.teacher) is type(small_resnet())
    assert all(torch.equal(method.teacher.state_dict()[k], v) for k, v in state.items())
    floating, method, _ = build(replace(e, bits=None), data, state)
    assert method.teacher is not floating, "the student of a float run is a copy"


def test_training_takes_the_first_images_and_the_seed_of_the_experiment(data):
    e = replace(BASE, images=100, schedule=Schedule(epochs=2, batch=50), seed=7)
    steps = []
    student, run, _ = train(e, data, None, watch=steps.append)
    assert steps == [1, 2, 3, 4]
    assert (run.schedule.seed, run.schedule.epochs) == (7, 2)
    assert len(run.history.validation) == 2
    assert not student.training


def test_observers_get_the_student_and_begin_anew_where_they_forget(data, tmp_path):
    path = tmp_path / "checkpoint"
    e = replace(BASE, observers={"forgets": Forgetful, "counts": partial(Counter, 10)})
    for _ in range(2):
        _, _, observers = train(e, data, None, checkpoint=path)
        assert kept(observers["forgets"])["seen"] == [1, 2]
        assert kept(observers["forgets"])["names"][0] == "conv1"
        assert kept(observers["counts"]) == {"steps": 12}
    e = replace(BASE, observers={"counts": Counter})
    steps = []
    train(e, data, None, checkpoint=tmp_path / "other", watch=steps.append)
    _, _, observers = train(e, data, None, checkpoint=tmp_path / "other", watch=steps.append)
    assert steps == [1, 2], "a run with states is not trained again"
    assert kept(observers["counts"]) == {"steps": 2}


def test_a_data_set_is_kept_in_memory():
    assert data_of("fashion-mini", None) is data_of("fashion-mini", None)


def test_seeded_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    with seeded(3):
        a = torch.rand(2)
    with seeded(3):
        assert torch.equal(a, torch.rand(2))
    assert torch.equal(torch.get_rng_state(), before)
