import numpy as np
import pytest
import torch

from qatviz import analysis
from qatviz.quantizers import EWGS, LSQ, NIPQ, Affine


@pytest.fixture
def weights():
    return 0.1 * torch.randn(6, 4, 3, 3)


@pytest.fixture
def activations():
    return torch.randn(4, 4, 8, 8).relu()


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
