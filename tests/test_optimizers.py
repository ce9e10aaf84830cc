from functools import partial

import pytest
import torch
from torch import nn

from qatviz.methods import CrossEntropy
from qatviz.optimizers import make_optimizers, set_rates
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.schedule import Schedule


@pytest.fixture
def student():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    return quantize(model, partial(LSQ, bits=3), partial(LSQ, bits=3))


WEIGHTS = {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
STEPS = {f"{n}.{kind}_quantizer.step" for n in (0, 3) for kind in ("weight", "input")}


def groups(student, **settings):
    """(kind, group without its parameters, names of its parameters) of each group."""
    names = {id(p): name for name, p in student.named_parameters()}
    optimizers = make_optimizers(student, CrossEntropy(), Schedule(**settings))
    return [
        (type(o).__name__, group, {names[id(p)] for p in group["params"]})
        for o in optimizers
        for group in o.param_groups
    ]


def test_weights_and_quantizers_are_two_groups_of_one_optimizer(student):
    (one, weights, first), (other, grids, second) = groups(student, decay=0.3, momentum=0.7)
    assert (one, other) == ("SGD", "SGD")
    assert (first, second) == (WEIGHTS, STEPS)
    assert (weights["weight_decay"], grids["weight_decay"]) == (0.3, 0.0)
    for group in (weights, grids):
        assert (group["momentum"], group["nesterov"], group["highest"]) == (0.7, True, 0.1)


def test_rates_and_decays_of_their_own(student):
    settings = {"rate": 0.2, "quantizer_rate": 0.003, "decay": 0.1, "quantizer_decay": 0.4}
    (_, weights, _), (_, grids, _) = groups(student, **settings, optimizer="adam")
    assert (weights["highest"], grids["highest"]) == (0.2, 0.003)
    assert (weights["weight_decay"], grids["weight_decay"]) == (0.1, 0.4)
    assert weights["betas"] == grids["betas"] == (0.9, 0.999)
    assert weights["eps"] == 1e-8


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("sgd", None, ["SGD", "SGD"]),
        ("adam", None, ["Adam", "Adam"]),
        ("sgd", "adam", ["SGD", "Adam"]),
        ("adam", "sgd", ["Adam", "SGD"]),
    ],
)
def test_two_kinds_are_two_optimizers(student, first, second, kinds):
    optimizers = make_optimizers(
        student, CrossEntropy(), Schedule(optimizer=first, quantizer_optimizer=second)
    )
    assert len(optimizers) == len(set(kinds))
    assert [type(o).__name__ for o in optimizers for _ in o.param_groups] == kinds


def test_a_float_model_has_one_group_and_frozen_parameters_none(student):
    student[0].weight.requires_grad_(False)
    assert groups(student)[0][2] == WEIGHTS - {"0.weight"}
    model = nn.Linear(2, 2)
    assert [names for _, _, names in groups(model)] == [{"weight", "bias"}]


def test_rates_follow_the_schedule(student):
    schedule = Schedule(rate=0.2, quantizer_rate=0.01, quantizer_optimizer="adam")
    optimizers = make_optimizers(student, CrossEntropy(), schedule)
    for progress in (0.05, 0.1, 0.7):
        assert set_rates(optimizers, schedule, progress) == schedule.rate_at(progress)
        rates = [group["lr"] for o in optimizers for group in o.param_groups]
        assert rates == [schedule.rate_at(progress), schedule.rate_at(progress, 0.01)]


def test_one_step_is_the_formula_of_each_kind():
    """SGD with Nesterov's momentum and L2 decay; Adam's first step is rate·sign of the gradient."""
    model = nn.Linear(2, 1)
    quantized = quantize(model, partial(LSQ, bits=3), partial(LSQ, bits=3))
    quantized.input_quantizer.init_from(torch.tensor([[1.0, -2.0], [0.5, 1.5]]))
    schedule = Schedule(
        rate=0.1, momentum=0.5, decay=0.2, quantizer_optimizer="adam", quantizer_rate=0.01
    )
    optimizers = make_optimizers(quantized, CrossEntropy(), schedule)
    set_rates(optimizers, schedule, 0.1)  # the top of the curve
    before = {name: p.detach().clone() for name, p in quantized.named_parameters()}
    for p in quantized.parameters():
        p.grad = torch.full_like(p, 0.25)
    for optimizer in optimizers:
        optimizer.step()
    for name, p in quantized.named_parameters():
        if "quantizer" in name:
            expected = before[name] - 0.01
        else:
            gradient = 0.25 + 0.2 * before[name]
            expected = before[name] - 0.1 * (gradient + 0.5 * gradient)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
