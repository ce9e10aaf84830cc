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


def test_refuses_an_unknown_precision():
    schedule = Schedule()
    # The type checker of the tests would refuse it in the constructor, which users do not have.
    object.__setattr__(schedule, "precision", "64")
    with pytest.raises(ValueError, match=r"one of \('32-true', .*\), got '64'"):
        schedule.__post_init__()


@pytest.mark.parametrize("name", ["epochs", "batch", "seed"])
def test_counts_are_whole_numbers(name):
    # Replaced inside, because the type checker of the tests refuses the argument first.
    schedule = Schedule()
    object.__setattr__(schedule, name, 2.5)
    with pytest.raises(ValueError, match=f"{name} must be a whole number from .* got 2.5"):
        schedule.__post_init__()
