import copy

import numpy as np
import pytest
import torch
from torch import nn

from qatviz import analysis
from qatviz.quantizers import LSQ, NIPQ, AdaRound, Affine

LEARN_NOTHING = {"Affine", "DoReFa"}


@pytest.fixture
def weights():
    return 0.1 * torch.randn(6, 4, 3, 3)


@pytest.fixture
def activations():
    return torch.randn(4, 4, 8, 8).relu()


@pytest.fixture
def layer(weights):
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer.weight.data = weights.clone()
    return layer


@pytest.mark.parametrize("part", ["weight", "input"])
def test_learning_lowers_the_error_of_the_output(layer, activations, part):
    records = analysis.learn_grids(layer, activations, bits=3, part=part, steps=150)
    missing = {"weight": "PACT", "input": "AdaRound"}[part]
    assert {r.name for r in records} == set(analysis.zoo_names()) - {missing}
    for record in records:
        if record.name in LEARN_NOTHING:
            assert record.before == record.after
            assert record.learned == record.moved == len(record.loss) == 0
        else:
            assert record.after < record.before, record.name
            assert len(record.loss) == 150
            assert record.learned == (216 if record.name == "AdaRound" else record.learned) > 0
        assert record.part == part


@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_is_that_of_the_real_output(activations, groups):
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    for part in ("weight", "input"):
        grid = LSQ(2)
        record = analysis.learn_grid(grid, layer, activations, part=part, steps=3)
        x = layer.weight if part == "weight" else activations
        grid.init_from(x.detach())
        weight, inputs = layer.weight, activations
        weight, inputs = (grid(weight), inputs) if part == "weight" else (weight, grid(inputs))
        conv = nn.functional.conv2d
        wanted = conv(activations, layer.weight, padding=1, groups=groups)
        found = conv(inputs, weight, padding=1, groups=groups)
        error = ((found - wanted).square().sum() / wanted.square().sum()).item()
        assert record.before == pytest.approx(error, rel=1e-4)


def test_a_linear_layer_learns_too():
    layer, inputs = nn.Linear(12, 5), torch.rand(30, 12)
    record = analysis.learn_grid(Affine(2), layer, inputs, steps=1)
    grid = Affine(2)
    grid.init_from(layer.weight.detach())
    wanted = inputs @ layer.weight.T
    found = inputs @ grid(layer.weight).T
    error = ((found - wanted).square().sum() / wanted.square().sum()).item()
    assert record.before == pytest.approx(error, rel=1e-4)


def test_the_error_of_dorefa_is_after_the_best_scalar(layer, activations):
    (record,) = analysis.learn_grids(layer, activations, bits=3, names=["DoReFa"])
    quantizer = analysis.zoo_quantizer("DoReFa", 3, signed=True)
    found = nn.functional.conv2d(activations, quantizer(layer.weight), stride=2, padding=1)
    wanted = nn.functional.conv2d(activations, layer.weight, stride=2, padding=1)
    cosine = torch.cosine_similarity(found.flatten(), wanted.flatten(), 0).item()
    assert record.before == pytest.approx(1 - cosine**2, rel=1e-3)
    levels = torch.linspace(-1, 1, 8).numpy()
    assert record.levels_after == pytest.approx(record.scale[1] * levels, rel=1e-5)


def test_nothing_that_was_passed_in_changes(layer, activations):
    quantizer = LSQ(2)
    quantizer.init_from(layer.weight.detach())
    quantizer.train()
    state, before = copy.deepcopy(quantizer.state_dict()), copy.deepcopy(layer.state_dict())
    inputs, generator = activations.clone(), torch.get_rng_state()
    for part in ("weight", "input"):
        analysis.learn_grid(quantizer, layer, inputs, part=part, steps=3)
    analysis.learn_grid(NIPQ(2), layer, inputs, steps=3)
    assert torch.equal(quantizer.step, state["step"])
    assert quantizer.training
    assert not quantizer.batched
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert torch.equal(inputs, activations)
    assert torch.equal(generator, torch.get_rng_state())


def test_a_calibrated_quantizer_starts_where_it_is(layer, activations):
    quantizer = LSQ(2, signed=True)
    quantizer.step.data = torch.tensor(0.05)
    record = analysis.learn_grid(quantizer, layer, activations, steps=2)
    assert record.levels_before == pytest.approx([-0.1, -0.05, 0, 0.05])
    assert record.parameters_before["step"] == pytest.approx(0.05)
    assert record.parameters_after["step"] != pytest.approx(0.05, rel=1e-3)
    assert record.name == "LSQ"


def test_adaround_keeps_its_levels_and_moves_weights_by_one_code(layer, activations):
    record = analysis.learn_grid(AdaRound(2, axis=None), layer, activations, steps=150)
    np.testing.assert_array_equal(record.levels_before, record.levels_after)
    assert 0 < record.moved < 0.5


def test_a_clip_beyond_the_largest_value_learns_by_its_penalty_alone(layer, activations):
    learn = lambda decay: analysis.learn_grids(  # noqa: E731
        layer, activations, bits=3, part="input", names=["PACT"], decay=decay, steps=50
    )[0]
    assert activations.max() < 10
    assert learn(0.0).parameters_after["clip"] == 10
    assert learn(None).parameters_after["clip"] < 9


def test_refuses_what_cannot_be_learned(layer, activations):
    with pytest.raises(ValueError, match="'weight' or 'input', got 'bias'"):
        analysis.learn_grid(LSQ(2), layer, activations, part="bias")
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        analysis.learn_grid(LSQ(2), layer, activations, steps=0)
    with pytest.raises(ValueError, match="output of the float layer is zero"):
        analysis.learn_grid(LSQ(2), layer, torch.zeros(1, 4, 8, 8))
