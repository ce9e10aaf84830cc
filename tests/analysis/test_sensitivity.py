"""SQNR and sensitivity against sums written out, image by image."""

import copy
import itertools
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from qatviz.analysis.sensitivity import bit_sensitivity, layer_sqnr, rank_agreement
from qatviz.calibration import calibrate
from qatviz.layers import QuantActivation
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, NIPQ, AdaRound, Affine, DoReFa
from tests.analysis.common import unchanged
from tests.analysis.wide import Wide, cnn, cnn_data, low_bit

LAYERS = ("1.conv1", "1.conv2", "1.conv3", "1.fc")


def decibels(x, rounded):
    return 10 * np.log10((x**2).sum() / ((x - rounded) ** 2).sum())


def jackknifed(function, count):
    """Standard error from the values without each image in turn."""
    without = [function([i for i in range(count) if i != left]) for left in range(count)]
    return np.sqrt((count - 1) / count * np.sum((without - np.mean(without)) ** 2))


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.first, self.last = Wide(), nn.Conv2d(1, 3, 3), nn.Linear(12, 4)

    def forward(self, x):
        return self.last(self.first(self.wide(x)).relu_().flatten(1))


@pytest.fixture
def two():
    images = torch.randn(9, 1, 4, 4)
    model = TwoLayers().double().eval()
    student = quantize(model, partial(LSQ, 3), partial(LSQ, 4)).double().eval()
    calibrate(student, [images])
    return student, images, torch.arange(9) % 4


def by_hand(student, images):
    """Input, its rounding, output, local and accumulated output of both layers."""
    first, last = student.first, student.last
    x = images.double()
    with torch.no_grad():
        x_hat = first.input_quantizer(x)
        y = conv2d(x, first.weight, first.bias)
        y_hat = conv2d(x_hat, first.weight_quantizer(first.weight), first.bias)
        z, z_hat = y.relu().flatten(1), y_hat.relu().flatten(1)
        w, w_hat = last.weight, last.weight_quantizer(last.weight)
        out = z @ w.T + last.bias
        local = last.input_quantizer(z) @ w_hat.T + last.bias
        final = last.input_quantizer(z_hat) @ w_hat.T + last.bias
    np.testing.assert_allclose(final, student(images).detach())
    rows = [(x, x_hat, y, y_hat, y_hat), (z, last.input_quantizer(z).detach(), out, local, final)]
    return [[tensor.numpy() for tensor in row] for row in rows]


def test_ratios_are_those_written_out(two):
    student, images, labels = two
    record = layer_sqnr(student, (images, labels), batch=4, label="net")
    assert record.layers == ("first", "last")
    assert (record.label, record.samples) == ("net", 9)
    for index, (x, x_hat, y, local, final) in enumerate(by_hand(student, images)):
        for name, signal, rounded in (
            ("inputs", x, x_hat),
            ("local", y, local),
            ("accumulated", y, final),
        ):
            assert getattr(record, name)[index] == pytest.approx(decibels(signal, rounded))
            error = jackknifed(lambda i, s=signal, r=rounded: decibels(s[i], r[i]), 9)
            assert getattr(record, f"{name}_error")[index] == pytest.approx(error)
    # Before the first layer there is no noise; before the last there is.
    assert record.local[0] == pytest.approx(record.accumulated[0])
    assert record.local[1] != pytest.approx(record.accumulated[1], abs=0.01)


@pytest.mark.parametrize("axis", [None, 0])
def test_the_error_of_weights_is_split_at_the_outermost_levels(two, axis):
    student, images, labels = two
    with torch.no_grad():
        student.last.weight[:, :2] *= 4  # beyond the levels on both sides
    grid = LSQ(2, axis=axis).double()
    grid.init_from(student.last.weight.detach())
    student.last.weight_quantizer = grid.eval()
    record = layer_sqnr(student, (images, labels))
    weight, granular, clipping = student.last.weight.detach().numpy(), 0.0, 0.0
    for channel, row in enumerate(weight):
        step = grid.step.detach().reshape(-1)[0 if axis is None else channel].item()
        for w in row:
            error = (min(max(round(w / step), -2), 1) * step - w) ** 2
            if -2 * step <= w <= step:
                granular += error
            else:
                clipping += error
    signal = (weight**2).sum()
    assert record.granular[1] == pytest.approx(granular / signal)
    assert record.clipping[1] == pytest.approx(clipping / signal)
    assert clipping > 0
    rounded = grid(student.last.weight).detach().numpy()
    assert record.weights[1] == pytest.approx(decibels(weight, rounded))


def test_what_is_not_quantized_has_no_noise_and_activations_have_no_weight():
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), QuantActivation(LSQ(2)), nn.Linear(8, 4)]
    model = quantize(nn.Sequential(*body), partial(LSQ, 4), None, only=("4",)).eval()
    images, labels = torch.randn(9, 1, 4, 4), torch.arange(9) % 4
    calibrate(model, [images])
    record = layer_sqnr(model, (images, labels))
    assert record.layers == ("3", "4")
    x = model[:3](images).detach().double().numpy()
    rounded = model[3].quantizer(model[:3](images)).detach().double().numpy()
    expected = decibels(x, rounded)
    np.testing.assert_allclose(
        [record.inputs[0], record.local[0], record.accumulated[0]], expected, rtol=1e-6
    )
    assert np.isnan([record.weights[0], record.granular[0], record.clipping[0]]).all()
    assert record.inputs[1] == np.inf  # its inputs pass as they are
    assert np.isnan(record.inputs_error[1])
    assert np.isfinite([record.local[1], record.accumulated[1], record.weights[1]]).all()


def test_a_layer_that_is_not_reached_and_a_float_weight(two):
    student, images, labels = two
    student.spare = copy.deepcopy(student.last)
    student.first.weight_quantizer = nn.Identity().eval()
    record = layer_sqnr(student, (images, labels))
    assert record.layers == ("first", "last", "spare")
    assert record.weights[0] == np.inf
    assert record.weights[2] == record.weights[1]
    assert np.isnan([record.inputs[2], record.local[2], record.accumulated_error[2]]).all()


@pytest.mark.parametrize("kind", [DoReFa, EWGS, NIPQ, AdaRound, partial(Affine, axis=0)])
def test_every_quantizer_of_weights_is_measured(kind):
    student = quantize(small_cnn(width=2), partial(kind, 4), None).eval()
    record = layer_sqnr(student, cnn_data())
    assert np.isfinite([record.weights, record.local, record.accumulated]).all()
    assert (record.granular >= 0).all()
    assert (record.clipping >= 0).all()
    assert (record.inputs == np.inf).all()


def test_more_bits_make_less_noise_by_six_decibels_each():
    model, data = cnn(), cnn_data()
    few, many = (layer_sqnr(low_bit(model, bits), data) for bits in (6, 8))
    for name in ("inputs", "local", "accumulated"):
        gain = getattr(many, name) - getattr(few, name)
        # LSQ's first step shrinks as 1/√Q_P, so by 6.02/2 dB a bit.
        np.testing.assert_allclose(gain, 6.02, atol=3)


def test_a_network_that_is_not_quantized_is_refused():
    with pytest.raises(ValueError, match="no quantized layer"):
        layer_sqnr(cnn(), cnn_data())
    with pytest.raises(ValueError, match="training mode"):
        layer_sqnr(low_bit(cnn()).train(), cnn_data())


class Failing(nn.Module):
    """Fails at one of its calls, counted together with those of its copies."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.calls = at, error, []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.calls.append(len(x))
        if len(self.calls) == self.at:
            raise self.error("stop")
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_sqnr_leaves_the_network_as_it_was(error):
    student = low_bit(cnn())
    with unchanged(student):
        layer_sqnr(student, cnn_data(), batch=10)
    student.append(Failing(5, error).eval())
    with unchanged(student), pytest.raises(error, match="stop"):
        layer_sqnr(student, cnn_data(), batch=10)
    # Two images to see whether they fit; the reference and the network, which has hooks now.
    assert student[2].calls == [2, 10, 10, 10, 10]


def answers(model, images, labels):
    """Loss, whether it is right and the logarithms of the probabilities of each image."""
    with torch.no_grad():
        logits = model(images).double().numpy()
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = np.array([-logs[i, label] for i, label in enumerate(labels.tolist())])
    return losses, (logits.argmax(1) == labels.numpy()).astype(float), logs


def measured(model, student, images, labels):
    """What quantizing changes of loss and accuracy, and KL, image by image."""
    loss, right, logs = answers(model, images, labels)
    their_loss, their_right, their_logs = answers(student, images, labels)
    divergence = (np.exp(logs) * (logs - their_logs)).sum(1)
    return np.stack([their_loss - loss, their_right - right, divergence])


def quantized(model, names, bits, part, images):
    grid = partial(LSQ, bits)
    weights, inputs = grid if part != "inputs" else None, grid if part != "weights" else None
    student = quantize(model, weights, inputs, only=names).eval()
    if inputs:
        calibrate(student, [images])
    return student


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("part", ["weights", "inputs", "both"])
def test_effects_are_those_written_out(part, leave_out):
    model, (images, labels) = cnn(), cnn_data(count=40)
    record = bit_sensitivity(
        model, (images, labels), bits=(2, 4), make=LSQ, part=part, leave_out=leave_out,
        calibration=(images[:15], labels[:15]), label="net", progress=False,
    )  # fmt: skip
    assert record.layers == LAYERS
    assert record.bits.tolist() == [2, 4]
    assert (record.label, record.part, record.leave_out) == ("net", part, leave_out)
    assert (record.samples, record.quantizer, record.complete) == (40, "LSQ", True)
    assert record.calibration == (0 if part == "weights" else 15)
    loss, right, _ = answers(model, images, labels)
    assert record.float_loss == pytest.approx(loss.mean())
    assert record.float_loss_error == pytest.approx(loss.std(ddof=1) / np.sqrt(40))
    assert record.float_accuracy == pytest.approx(right.mean())
    p = right.mean()
    assert record.float_accuracy_error == pytest.approx(np.sqrt(p * (1 - p) / 40))
    for place, bits in enumerate((2, 4)):
        student = quantized(model, LAYERS, bits, part, images[:15])
        joint = measured(model, student, images, labels)
        singles = []
        for index, name in enumerate(LAYERS):
            student = quantized(model, LAYERS if leave_out else [name], bits, part, images[:15])
            if leave_out:
                student.get_submodule(name).weight_quantizer = nn.Identity()
                student.get_submodule(name).input_quantizer = nn.Identity()
            effect = measured(model, student, images, labels)
            singles.append(joint - effect if leave_out else effect)
            for got, expected in zip(three(record), singles[-1], strict=True):
                check(got.single[index, place], got.single_error[index, place], expected)
        for got, expected, all_of in zip(
            three(record), joint, np.sum(singles, axis=0), strict=True
        ):
            check(got.joint[place], got.joint_error[place], expected)
            check(got.total[place], got.total_error[place], all_of)
    assert (np.abs(record.loss.single) > 1e-5).all()


def three(record):
    return record.loss, record.accuracy, record.divergence


def check(mean, error, values):
    assert mean == pytest.approx(values.mean(), abs=1e-6)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)), abs=1e-6)


def test_divergence_is_never_negative_and_fewer_bits_cost_more():
    record = bit_sensitivity(cnn(), cnn_data(count=40), bits=(8, 2), progress=False)
    assert record.quantizer == "Affine"
    assert (record.divergence.single >= 0).all()
    assert (record.divergence.single[:, 1] > 10 * record.divergence.single[:, 0]).all()


def test_layers_are_chosen_by_pattern_and_calibrated_on_the_first_images():
    model, (images, labels) = cnn(), cnn_data(count=30)
    options = {"bits": (2,), "make": LSQ, "part": "inputs", "progress": False}
    record = bit_sensitivity(model, (images, labels), layers=("*conv?",), **options)
    assert record.layers == LAYERS[:3]
    assert record.calibration == 30
    given = bit_sensitivity(
        model, (images, labels), layers=("*conv?",), calibration=(images, labels), **options
    )
    np.testing.assert_array_equal(record.loss.single, given.loss.single)
    one = bit_sensitivity(model, (images, labels), layers=("*fc",), leave_out=True, **options)
    # Alone or left out of itself: the same.
    np.testing.assert_allclose(one.loss.single[0], one.loss.joint)


def test_a_single_image_has_no_error():
    record = bit_sensitivity(cnn(), cnn_data(), bits=(2,), samples=1, progress=False)
    assert np.isfinite(record.loss.single).all()
    assert np.isnan(record.loss.single_error).all()
    assert np.isnan(record.float_loss_error)


def test_a_scan_leaves_the_network_as_it_was():
    model = cnn()
    with unchanged(model):
        bit_sensitivity(model, cnn_data(), bits=(2,), part="both", progress=False)


def stopping(after, error):
    """A factory that fails once it has made some quantizers."""
    count = itertools.count(1)

    def make(bits):
        if next(count) > after:
            raise error("stop")
        return LSQ(bits)

    return make


def test_an_exception_leaves_the_network_as_it_was():
    model = cnn()
    with unchanged(model), pytest.raises(RuntimeError, match="stop"):
        bit_sensitivity(model, cnn_data(), make=stopping(9, RuntimeError), progress=False)


def test_an_interruption_keeps_what_was_measured():
    model, data = cnn(), cnn_data()
    options = {"bits": (2, 4), "progress": False}
    whole = bit_sensitivity(model, data, make=LSQ, **options)
    # Two to try the bits, four for all layers together, one for each of two layers.
    make = stopping(2 + 4 + 2, KeyboardInterrupt)
    message = "interrupted after 3 of 10 evaluations"
    with unchanged(model), pytest.warns(UserWarning, match=message):
        part = bit_sensitivity(model, data, make=make, **options)
    assert not part.complete
    for got, all_of in zip(three(part), three(whole), strict=True):
        np.testing.assert_array_equal(got.single[:2, 0], all_of.single[:2, 0])
        assert np.isnan(got.single[2:, 0]).all()
        assert np.isnan(got.single[:, 1]).all()
        assert got.joint[0] == all_of.joint[0]
        assert np.isnan([got.joint[1], *got.total, *got.total_error]).all()
    with pytest.raises(KeyboardInterrupt):
        bit_sensitivity(model, data, make=stopping(2, KeyboardInterrupt), **options)


def test_leaving_out_may_be_interrupted_too():
    # Two to try the bits, four for all layers together at 2 bits, none for all but one.
    make = stopping(2 + 4, KeyboardInterrupt)
    with pytest.warns(UserWarning, match="interrupted after 5 of 10"):
        record = bit_sensitivity(
            cnn(), cnn_data(), bits=(2, 4), make=make, leave_out=True, progress=False
        )
    assert np.isfinite(record.loss.single[:, 0]).all()
    assert np.isnan(record.loss.single[:, 1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "weight"}, "part is 'weight'; allowed: weights, inputs, both"),
        ({"bits": ()}, "bits are \\[\\]"),
        ({"bits": (2, 2)}, "each once"),
        ({"bits": (9,)}, "got 9"),
        ({"make": lambda bits: nn.ReLU()}, "make must make a quantizer"),
        ({"part": "both", "make": partial(LSQ, axis=0)}, "axis 0, which is no axis of inputs"),
        ({"layers": ("nothing",)}, "matches nothing; there are: 1.conv1"),
        ({"layers": "1.fc"}, "got the string '1.fc'"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bit_sensitivity(cnn(), cnn_data(), **{"progress": False, **options})


def test_a_quantized_network_is_refused():
    with pytest.raises(ValueError, match=r"takes a float model; these are quantizers: 1\.conv1"):
        bit_sensitivity(low_bit(cnn()), cnn_data(), progress=False)


def test_rank_agreement_is_the_correlation_of_ranks():
    effects, scores = [0.5, 0.1, 0.9, 0.2, 0.3], [50, 0, 1000, 60, 10]
    ranks = np.array([4, 1, 5, 2, 3]), np.array([3, 1, 5, 4, 2])
    # Without ties Spearman's ρ = 1 − 6∑d²/(n(n² − 1)).
    rho = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (5 * 24)
    record = rank_agreement(effects, scores)
    assert record.correlation == pytest.approx(rho)
    assert record.layers == 5
    assert 0.1 < record.p_value < 0.5
    assert rank_agreement(effects, [-e for e in effects]).correlation == pytest.approx(-1)


@pytest.mark.parametrize(
    ("effects", "scores", "words"),
    [
        ([1, 2], [1, 2], "3 or more"),
        ([1, 2, 3], [1, 2], "shapes"),
        ([1, np.nan, 2], [1, 2, 3], "effects have no order"),
        ([1, 2, 3], [1, 1, 1], "scores have no order"),
    ],
)
def test_what_has_no_order_is_refused(effects, scores, words):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=words):
        rank_agreement(effects, scores)
