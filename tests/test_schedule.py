import math

import pytest

from qatviz.schedule import Schedule


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 0.0),
        (0.05, 0.1),  # half of the warm-up
        (0.1, 0.2),
        (0.325, 0.2 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine: cos 45° = √½
        (0.55, 0.1),  # its middle
        (1.0, 0.0),
    ],
)
def test_rate_rises_in_a_line_and_falls_along_a_cosine(progress, rate):
    assert Schedule(rate=0.2, warmup=0.1).rate_at(progress) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.0), (0.05, 0.2), (0.1, 0.4), (0.4999, 0.4), (0.5, 0.2), (0.8, 0.1), (1.0, 0.1)],
)
def test_steps_multiply_at_their_milestones(progress, rate):
    schedule = Schedule(rate=0.4, warmup=0.1, anneal="step", milestones=[0.5, 0.75], factor=0.5)
    assert schedule.rate_at(progress) == pytest.approx(rate)


def test_constant_stays_at_the_top_after_the_warm_up():
    schedule = Schedule(rate=0.4, warmup=0.5, anneal="constant")
    assert [schedule.rate_at(p) for p in (0.25, 0.5, 1.0)] == [0.2, 0.4, 0.4]


def test_another_highest_rate_follows_the_same_curve():
    schedule = Schedule(rate=0.4)
    for progress in (0.05, 0.1, 0.6):
        expected = schedule.rate_at(progress) / 400
        assert schedule.rate_at(progress, 0.001) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("precision", "64", r"\('32-true', .*\)"),
        ("optimizer", "lion", r"\('sgd', 'adam'\)"),
        ("quantizer_optimizer", "lion", r"\('sgd', 'adam', None\)"),
        ("anneal", "linear", r"\(.cosine.*step.*constant.\)"),
        ("keep", "first", r"\(.last.*best.\)"),
    ],
)
def test_refuses_other_words(name, value, allowed):
    schedule = Schedule()
    # The type checker of the tests would refuse it in the constructor, which users do not have.
    object.__setattr__(schedule, name, value)
    with pytest.raises(ValueError, match=f"{name} must be one of {allowed}.*, got '{value}'"):
        schedule.__post_init__()


@pytest.mark.parametrize("milestones", [(0.5, 0.2), (0.0,), (1.0,), (0.5, 0.5)])
def test_refuses_milestones_that_do_not_ascend_inside(milestones):
    with pytest.raises(ValueError, match="milestones must be ascending"):
        Schedule(milestones=milestones)


def test_a_schedule_comes_back_from_its_plain_values():
    schedule = Schedule(milestones=(0.3,), clip=1.0, quantizer_rate=1e-4)
    assert Schedule(**schedule.as_dict()) == schedule
    assert hash(Schedule(**schedule.as_dict())) == hash(schedule)


def test_no_warmup_starts_at_the_top():
    assert Schedule(rate=0.3, warmup=0.0).rate_at(0.0) == 0.3


def test_warmup_alone_only_rises():
    schedule = Schedule(rate=0.4, warmup=1.0)
    assert [schedule.rate_at(p) for p in (0.0, 0.5, 1.0)] == [0, 0.2, 0.4]


def test_defaults_are_those_of_the_docstring():
    assert Schedule().as_dict() == {
        "epochs": 12,
        "batch": 128,
        "rate": 0.1,
        "warmup": 0.1,
        "momentum": 0.9,
        "decay": 5e-4,
        "precision": "32-true",
        "seed": 0,
        "optimizer": "sgd",
        "quantizer_optimizer": None,
        "quantizer_rate": None,
        "quantizer_decay": 0.0,
        "anneal": "cosine",
        "milestones": [0.5, 0.75],
        "factor": 0.1,
        "clip": None,
        "accumulate": 1,
        "reestimate": 0,
        "keep": "last",
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1]),
        ("batch", [0]),
        ("rate", [0.0, -0.1, math.inf, math.nan]),
        ("warmup", [-0.1, 1.1, math.nan]),
        ("momentum", [-0.1, 1.1]),
        ("decay", [-1e-4, math.nan]),
        ("seed", [-1, 2**63]),
        ("quantizer_rate", [0.0, -1.0, math.inf, math.nan]),
        ("quantizer_decay", [-0.1]),
        ("factor", [-0.1, 1.5]),
        ("clip", [0.0, math.nan]),
        ("accumulate", [0]),
        ("reestimate", [-1]),
    ],
)
def test_refuses_numbers_outside_their_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"Schedule: {name} must be .*got {value!r}"):
            Schedule(**{name: value})


def test_accepts_the_ends_of_the_ranges():
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        Schedule(epochs=1, batch=1, warmup=0.0, momentum=0.0, decay=0.0, precision=precision)
    Schedule(warmup=1.0, momentum=1.0, seed=2**63 - 1)


@pytest.mark.parametrize("name", ["epochs", "batch", "accumulate", "reestimate", "seed"])
def test_counts_are_whole_numbers(name):
    # Replaced inside, because the type checker of the tests refuses the argument first.
    schedule = Schedule()
    object.__setattr__(schedule, name, 2.5)
    with pytest.raises(ValueError, match=f"{name} must be a whole number from .* got 2.5"):
        schedule.__post_init__()
