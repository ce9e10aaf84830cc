import copy

import numpy as np
import pytest
import torch
from torch import nn

from qatviz import analysis
from qatviz.quantizers import EWGS, LSQ, NIPQ, AdaRound, Affine

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


# ---------------------------------------------------------------- the view


def test_the_table_has_a_row_for_each_and_a_measured_coefficient():
    table = analysis.unified_view(delta=0.25)
    assert tuple(table.index) == analysis.zoo_names()
    mu = table["μ"]
    assert mu["EWGS"] == "0.25·|∂L/∂x_q|"
    assert {mu[n] for n in ("Affine", "AffineLSQ", "LSQ", "LSQPlus", "PACT", "DoReFa")} == {"0"}
    assert "outside of the view" in mu["NIPQ"]
    assert "outside of the view" in mu["AdaRound"]
    assert not table.isna().any(axis=None)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 5])
def test_the_coefficient_of_ewgs_is_its_delta(bits, signed):
    m, k = analysis.measured_mu("EWGS", bits=bits, signed=signed, delta=0.5)
    assert (m, k) == pytest.approx((0, 0.5), abs=1e-9)
    m, k = analysis.measured_mu("EWGS", bits=bits, signed=signed)
    assert k == pytest.approx(0.001, abs=1e-9)  # the float32 of its own default


def test_what_is_outside_of_the_view_has_no_coefficient():
    with pytest.raises(ValueError, match="NIPQ is outside of the view: training adds noise"):
        analysis.measured_mu("NIPQ")
    with pytest.raises(ValueError, match="there is no quantizer"):
        analysis.measured_mu("Nobody")


def test_table_parameters_are_those_the_quantizers_have():
    table = analysis.unified_view()
    for name, row in table.iterrows():
        signed = name != "PACT"
        count = len(list(analysis.zoo_quantizer(name, 3, signed=signed).parameters()))
        told = [t for t in (row["clip learns"], row["rounding learns"]) if t != "none"]
        told = [
            p for t in told for p in t.split(", ") if p not in ("one per weight", "β (the bits)")
        ]
        assert len(told) == count, name


# ---------------------------------------------------------------- making


@pytest.mark.parametrize(
    ("name", "bits", "signed", "message"),
    [
        ("PACT", 2, True, "PACT is made for activations after a ReLU: it has no signed grid"),
        ("AdaRound", 2, False, "AdaRound is made for weights: it has no unsigned grid"),
        ("LSQ", 1, True, "LSQ has no signed grid of 1 bit: it has 2 to 8 bits"),
        ("Nobody", 2, True, "there is no quantizer 'Nobody' here; there are Affine,"),
    ],
)
def test_says_why_a_grid_does_not_exist(name, bits, signed, message):
    with pytest.raises(ValueError, match=message):
        analysis.zoo_quantizer(name, bits, signed=signed)


def test_makes_what_was_asked_for():
    quantizer = analysis.zoo_quantizer("EWGS", 3, signed=False, delta=0.5)
    assert isinstance(quantizer, EWGS)
    assert (quantizer.bits, quantizer.signed, quantizer.batched) == (3, False, True)
    assert quantizer.delta == 0.5
    assert isinstance(analysis.zoo_quantizer("NIPQ", 2, signed=True), NIPQ)


# ---------------------------------------------------------------- staircases


def test_each_curve_is_that_of_its_quantizer_on_the_sample(weights):
    records = {r.name: r for r in analysis.zoo_curves(weights, bits=2, points=101)}
    assert set(records) == set(analysis.zoo_names()) - {"PACT"}
    quantizer = LSQ(2)
    quantizer.init_from(weights)
    curve, reach = records["LSQ"].curve, weights.abs().max().item()
    assert (curve.x[0], curve.x[-1]) == pytest.approx((-reach, reach))
    step = quantizer.step.item()
    np.testing.assert_allclose(curve.y, np.clip(np.round(curve.x / step), -2, 1) * step, rtol=1e-6)
    assert records["LSQ"].signed
    assert records["LSQ"].scale == 1


def test_unsigned_curves_for_activations(activations):
    records = {r.name: r for r in analysis.zoo_curves(activations, bits=2, points=101)}
    assert set(records) == set(analysis.zoo_names()) - {"AdaRound"}
    assert records["PACT"].curve.levels == pytest.approx([0, 10 / 3, 20 / 3, 10])
    assert all(r.curve.y[0] == pytest.approx(0, abs=1e-6) for r in records.values())


def test_only_the_gradient_of_ewgs_depends_on_where_it_is_carried(weights):
    records = analysis.zoo_curves(weights, bits=2, delta=0.5, points=201)
    assert [r.name for r in records if r.asymmetric] == ["EWGS"]
    record = next(r for r in records if r.name == "EWGS")
    # The mean of both directions is the straight-through one, 2|s|/(u − l) inside.
    quantizer = EWGS(2)
    quantizer.init_from(weights)
    slope = (2 * quantizer.scale / (quantizer.upper - quantizer.lower)).item()
    inside = record.curve.gradient != 0
    mean = (record.curve.gradient + record.opposed)[inside] / 2
    np.testing.assert_allclose(mean, slope, rtol=1e-5)


def test_levels_of_dorefa_are_brought_to_the_unit_of_the_tensor(weights):
    (record,) = analysis.zoo_curves(weights, bits=2, names=["DoReFa"])
    t = torch.tanh(weights)
    x_hat = 2 * torch.round(3 * (t / (2 * t.abs().max()) + 0.5)) / 3 - 1
    c = ((weights * x_hat).sum() / x_hat.square().sum()).item()
    assert record.scale == pytest.approx(c, rel=1e-5)
    assert record.curve.levels == pytest.approx(c * np.array([-1, -1 / 3, 1 / 3, 1]), rel=1e-5)


def test_bands_of_noise_and_of_undecided_rounding(weights):
    records = {r.name: r for r in analysis.zoo_curves(weights, bits=3, points=101)}
    nipq, ada = records["NIPQ"], records["AdaRound"]
    alpha = weights.abs().max().item()
    inside = np.abs(nipq.curve.x) < 0.999 * alpha
    for band, sign in zip(nipq.band, (-1, 1), strict=True):
        expected = nipq.curve.x + sign * alpha / 3 / 2
        np.testing.assert_allclose(band[inside], expected[inside], atol=1e-6)
    grid = Affine(3)
    grid.init_from(weights)
    step, levels = grid.step.item(), grid.levels().numpy()
    down = np.clip(np.floor(ada.curve.x / step) * step, levels[0], levels[-1])
    up = np.clip((np.floor(ada.curve.x / step) + 1) * step, levels[0], levels[-1])
    away = np.abs(ada.curve.x / step - np.round(ada.curve.x / step)) > 1e-3
    np.testing.assert_allclose(ada.band[0][away], down[away], atol=1e-6)
    np.testing.assert_allclose(ada.band[1][away], up[away], atol=1e-6)
    np.testing.assert_allclose(ada.curve.levels, levels, atol=1e-6)
    assert (ada.curve.gradient == 0).all()
    assert not records["LSQ"].band_label
    assert records["LSQ"].band[0].size == 0


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.empty(0), torch.tensor([1.0, float("nan")])])
def test_refuses_what_has_no_grid(bad):
    with pytest.raises(ValueError, match="not all finite or all zero"):
        analysis.zoo_curves(bad, bits=2)
    with pytest.raises(ValueError, match="not all finite or all zero"):
        analysis.zoo_errors(bad)


# ---------------------------------------------------------------- learning


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


# ---------------------------------------------------------------- errors


def test_decibels_with_and_without_the_best_scalar():
    x, quantized = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 4.0])
    assert analysis.decibels(x, quantized) == pytest.approx(10 * np.log10(25 / 1))
    cosine = 28 / (5 * np.sqrt(32))
    best = analysis.decibels(x, quantized, best=True)
    assert best == pytest.approx(-10 * np.log10(1 - cosine**2))
    assert analysis.decibels(x, 100 * quantized, best=True) == pytest.approx(best)
    assert analysis.decibels(x, x) == np.inf
    assert analysis.decibels(x, 0 * x, best=True) == 0


def test_errors_of_all_against_bits(weights):
    record = analysis.zoo_errors(weights, bits=[1, 2, 4, 8], label="w")
    row = {name: record.best[i] for i, name in enumerate(record.names)}
    assert "AdaRound" not in row
    assert np.isnan(row["PACT"]).all()
    assert np.isnan(row["LSQ"][0])
    assert np.isfinite(row["LSQ"][1:]).all()
    assert (np.diff(row["Affine"]) > 0).all()
    plain = {name: record.plain[i] for i, name in enumerate(record.names)}
    assert np.isnan(plain["DoReFa"]).all()
    both = np.isfinite(record.plain)
    assert (record.best[both] >= record.plain[both] - 1e-9).all()
    grid = Affine(4)
    grid.init_from(weights)
    histogram = analysis.histogram(weights, grid)
    assert plain["Affine"][2] == pytest.approx(histogram.sqnr, abs=1e-6)
    assert record.values == weights.numel()


def test_a_large_tensor_is_drawn_from_and_keeps_its_largest_value():
    x = torch.randn(5000)
    x[1234] = 50.0
    few = analysis.zoo_errors(x, bits=[8], names=["NIPQ"], most=100)
    again = analysis.zoo_errors(x, bits=[8], names=["NIPQ"], most=100)
    assert few.values == 100
    np.testing.assert_array_equal(few.best, again.best)
    # NIPQ's first range is the largest magnitude: 50/127 is the step, all else is noise.
    expected = 10 * np.log10((50**2 + 99) / (99 * (50 / 127) ** 2 / 12))
    assert few.best[0, 0] == pytest.approx(expected, abs=1)
    with pytest.raises(ValueError, match=r"no quantizer \['X'\]"):
        analysis.zoo_errors(x, names=["X"])


# ---------------------------------------------------------------- as released


def test_what_was_released_uses_fewer_levels(weights, activations):
    pact, lsq, dorefa, nipq, ewgs = analysis.released(weights, activations, bits=3, delta=0.5)
    for pair in (pact, lsq, dorefa):
        assert pair.used[1] == pytest.approx(0.5, abs=0.13)
        assert pair.used[0] == 1
        assert pair.sqnr[1] < pair.sqnr[0]
        assert pair.label == "activations"
    # −6 to 6 in seven steps.
    assert np.diff(pact.released.levels) == pytest.approx(12 / 7, rel=1e-5)
    largest = max(0.0, weights.max().item())
    assert nipq.released.levels[-1] == pytest.approx(np.log1p(np.exp(largest)), rel=1e-5)
    assert nipq.intended.levels[-1] == pytest.approx(weights.abs().max().item(), rel=1e-5)
    assert nipq.used[1] < nipq.used[0]
    assert ewgs.gradient
    assert not nipq.gradient
    np.testing.assert_array_equal(ewgs.intended.y, ewgs.released.y)
    assert len(np.unique(ewgs.released.gradient.round(5))) == 2
    assert len(np.unique(ewgs.intended.gradient.round(5))) > 10


def test_released_wants_weights_and_activations(weights, activations):
    with pytest.raises(ValueError, match="weights need both signs"):
        analysis.released(activations, activations)
    with pytest.raises(ValueError, match="weights need both signs"):
        analysis.released(weights, weights)
