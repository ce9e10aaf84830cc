import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.analysis import batchnorm_drift, bin_distances, oscillation_lottery, oscillation_toy
from qatviz.analysis import oscillation as module
from qatviz.datasets import Split
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ, AdaRound, Affine, DoReFa
from qatviz.tracking import OscillationTracker
from tests.analysis.common import unchanged
from tests.methods.common import CE, split, tiny, trained

# --- Where weights lie between thresholds


def line(positions, step=0.25, bits=3):
    """One layer whose weights are at given places on its grid; powers of two, so exactly."""
    model = nn.Sequential(nn.Linear(len(positions), 1, bias=False))
    model = quantize(model, partial(LSQ, bits, signed=True), None)
    model[0].weight_quantizer.step.data.fill_(step)
    model[0].weight.data.copy_(step * torch.tensor([positions]))
    return model


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-6 * 256, 5 * 256).filter(lambda n: n % 128), min_size=1, max_size=30))
def test_distances_are_those_of_the_definition(numerators):
    # Binary fractions, no ties: u is exact. Codes −4 to 3.
    positions = [n / 256 for n in numerators]
    record = bin_distances(line(positions))
    counts, clipped = [0] * 100, 0
    for n in numerators:
        if n < -4 * 256 or n > 3 * 256:
            clipped += 1
            continue
        level = (n + 128) // 256  # the nearest whole number
        counts[(n - 256 * level + 128) * 100 // 256] += 1
    assert record.counts.tolist() == [counts]
    assert record.clipped.tolist() == [clipped]


def test_distances_name_layers_and_network():
    student = tiny(partial(EWGS, bits=2))
    record = bin_distances(student, label="EWGS")
    assert (record.layers, record.without, record.label) == (("0", "5"), (), "EWGS")
    weight, q = student[0].weight, student[0].weight_quantizer
    place = 3 * (weight - q.lower) / (q.upper - q.lower)
    assert record.clipped[0] == int(((place < 0) | (place > 3)).sum())
    assert record.counts[0].sum() == int(((place >= 0) & (place <= 3)).sum())


def test_layers_without_a_position_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model = quantize(model, {"0": partial(DoReFa, 1), "1": partial(LSQ, 2)}, None)
    record = bin_distances(model)
    assert (record.layers, record.without) == (("1",), ("0",))
    assert record.counts.shape == (1, 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "no quantized weight"),
        (lambda: tiny(partial(AdaRound, 3)), "learns whether to round"),
        (lambda: tiny(partial(DoReFa, 1)), "takes the sign"),
    ],
)
def test_networks_without_distances_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        bin_distances(make())


def test_a_network_that_is_not_calibrated_has_no_distances():
    student = tiny()
    student[0].weight_quantizer.step.data.fill_(math.nan)
    with pytest.raises(ValueError, match="not calibrated"):
        bin_distances(student)


def test_distances_change_nothing():
    student = tiny()
    with unchanged(student):
        bin_distances(student)


# --- The regression of one weight


def literal_toy(target, rate, updates, cosine):
    """One weight, one update at a time; lengths in steps of the grid."""
    weight, last, events, above = module.START, 0, [], []
    level = round(weight)
    path = [weight]
    for number in range(updates):
        above.append(level)
        now = rate * (1 + math.cos(math.pi * number / updates)) / 2 if cosine else rate
        weight = weight - now * (level - target)
        path.append(weight)
        new = round(weight)
        change = (new > level) - (new < level)
        events.append(change != 0 and change == -last)
        last = change or last
        level = new
    return events, above, path


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_toy_is_the_literal_loop(schedule):
    targets = [0.07, 0.3, 0.5, 0.81]
    record = oscillation_toy(
        targets, rate=0.03, updates=300, windows=6, schedule=schedule, shown=0.75
    )
    for index, target in enumerate(targets):
        events, above, path = literal_toy(target, 0.03, 300, schedule == "cosine")
        assert record.events[index] == pytest.approx(sum(events[150:]) / 150)
        assert record.upper[index] == pytest.approx(sum(above[150:]) / 150)
        for window in range(6):
            part = slice(50 * window, 50 * window + 50)
            assert record.window_events[window, index] == pytest.approx(sum(events[part]) / 50)
            spread = max(path[1:][part]) - min(path[1:][part])
            assert record.window_spread[window, index] == pytest.approx(spread)
    assert record.shown == 3
    np.testing.assert_allclose(record.position, path)
    assert record.code.tolist() == [round(w) for w in path]
    assert (record.counted, record.window, record.schedule) == (150, 50, schedule)


def test_the_rate_is_two_d_over_s():
    # Section 10, anchor 6: 0.30 s makes 1199 of 2000, 0.45 s 1799, and so on.
    record = oscillation_toy([0.05, 0.1, 0.25, 0.3, 0.4, 0.45, 0.5, 0.6, 0.95])
    expected = [0.1, 0.2, 0.5, 0.6, 0.8, 0.9, 1.0, 0.8, 0.1]
    assert record.events.tolist() == pytest.approx(expected, abs=2 * record.resolution)
    assert record.upper.tolist() == pytest.approx(record.targets.tolist(), abs=0.001)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.02, 0.98), st.floats(0.001, 0.2))
def test_the_rate_is_two_d_over_s_at_any_learning_rate(target, rate):
    record = oscillation_toy([target], rate=rate)
    assert record.events[0] == pytest.approx(2 * min(target, 1 - target), abs=0.0015)
    assert record.upper[0] == pytest.approx(target, abs=0.0015)


def test_what_decays_is_how_far_not_how_often():
    targets = [0.11, 0.28, 0.43, 0.62, 0.9]
    record = oscillation_toy(targets, schedule="cosine", updates=20000)
    often = record.window_events[1:-1]
    np.testing.assert_allclose(often, np.tile(record.predicted_events, (18, 1)), atol=0.004)
    # The last tenth before the end goes a tenth as far as the beginning, and never beyond ηs.
    assert (record.window_spread[-2] < 0.1 * record.window_spread[1]).all()
    largest = record.rates.reshape(20, -1).max(1)
    assert (record.window_spread[1:] <= largest[1:, None] * 1.001).all()
    assert (record.window_spread[1:-2] > 0.75 * largest[1:-2, None]).all()


def test_in_the_exact_middle_a_decay_halves_the_rate():
    assert oscillation_toy([0.5]).events[0] == pytest.approx(1.0)
    record = oscillation_toy([0.5], schedule="cosine")
    assert record.window_events[5:15].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [0.0, 0.5]}, "strictly between 0 and 1"),
        ({"targets": []}, "strictly between 0 and 1"),
        ({"targets": [math.nan]}, "strictly between 0 and 1"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": 1.5}, "rate must be above 0"),
        ({"updates": 101}, "multiple of windows"),
        ({"windows": 0}, "multiple of windows"),
        ({"schedule": "linear"}, "one of constant, cosine, got 'linear'"),
    ],
)
def test_toys_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        oscillation_toy(**options)


# --- The lottery


@pytest.fixture(scope="module")
def watched():
    """A student of 2 bits, trained for a little while, and its tracker."""
    student = tiny(partial(LSQ, bits=2, axis=0))
    tracker = OscillationTracker(student, momentum=0.1)
    trained(CE(), student, observers=[tracker])
    return student.eval(), tracker


DATA = split(40)
DATA = Split(DATA.images, DATA.labels.clamp(min=0), DATA.mean, DATA.std)


def draw(watched, **options):
    options = {"draws": 4, "above": 0.02, "progress": False} | options
    return oscillation_lottery(*watched, DATA, **options)


def score(model):
    """Accuracy and loss in one forward pass."""
    with torch.no_grad():
        logits = model(DATA.normalise(DATA.images))
    right = sum(int(row.argmax()) == int(y) for row, y in zip(logits, DATA.labels, strict=True))
    return right / len(DATA), cross_entropy(logits, DATA.labels).item()


def placed(student, tracker, choose):
    """The student with codes chosen weight by weight, its latent weights put on their levels."""
    twin = copy.deepcopy(student)
    parts = [tracker.split(v) for v in (tracker.frequency, tracker.mean)]
    for name in tracker.names:
        layer = twin.get_submodule(name)
        step = layer.weight_quantizer.step.detach().expand(layer.weight.shape)
        codes = layer.weight_quantizer.codes(layer.weight).detach()
        for place in np.ndindex(*layer.weight.shape):
            if parts[0][name][place] > 0.02:
                code = choose(parts[1][name][place].item())
                layer.weight.data[place] = code * step[place]
            else:
                layer.weight.data[place] = codes[place] * step[place]
    return twin


def test_checkpoint_and_settled_are_the_literal_networks(watched):
    student, tracker = watched
    record = draw(watched, label="LSQ")
    accuracy, loss = score(student)
    assert record.checkpoint_accuracy == pytest.approx(accuracy)
    assert record.checkpoint_loss == pytest.approx(loss, rel=1e-5)
    accuracy, loss = score(placed(student, tracker, round))
    assert record.settled_accuracy == pytest.approx(accuracy)
    assert record.settled_loss == pytest.approx(loss, rel=1e-5)
    assert record.drawn == int((tracker.frequency > 0.02).sum()) > 3
    assert record.settled_loss != record.checkpoint_loss
    assert (record.weights, record.apart, record.samples) == (84, 0, 40)
    assert (record.complete, record.label, record.above) == (True, "LSQ", 0.02)
    assert len(record.accuracy) == len(record.loss) == len(record.moved) == 4


def test_each_draw_is_the_literal_network(watched, monkeypatch):
    # All numbers that are drawn are 0.37: the upper code where the share of it is larger.
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), 0.37))
    record = draw(watched, draws=1)
    chosen = placed(*watched, lambda q: math.floor(q) + (q - math.floor(q) > 0.37))
    accuracy, loss = score(chosen)
    assert record.accuracy[0] == pytest.approx(accuracy)
    assert record.loss[0] == pytest.approx(loss, rel=1e-5)
    assert record.loss[0] not in (record.checkpoint_loss, record.settled_loss)


def test_codes_are_drawn_with_the_observed_shares():
    # One weight of two, a quarter of the time at 1, else at 0.
    model = nn.Sequential(nn.Flatten(), *line([0.7, 2.0], step=1.0), Two()).eval()
    tracker = OscillationTracker(model)
    tracker.frequency[0], tracker.mean[0] = 0.1, 0.25
    data = (torch.eye(2)[[0, 0, 1, 1]].reshape(4, 1, 1, 2), torch.tensor([1, 1, 1, 1]))
    record = oscillation_lottery(model, tracker, data, draws=400, progress=False)
    values = sorted(set(record.loss.round(5).tolist()))
    share = (record.loss.round(5) == values[0]).mean()  # a larger code, a smaller loss
    assert len(values) == 2
    # Four standard deviations of 400 draws.
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    assert record.moved.mean() == pytest.approx(1 - share)
    assert record.drawn == 1
    # Code 0 or 1 for the images that show the weight, 2 for the others: −log σ of it.
    expected = [(math.log1p(math.exp(-c)) + math.log1p(math.exp(-2))) / 2 for c in (1, 0)]
    assert values == pytest.approx(expected, abs=1e-5)


class Two(nn.Module):
    """One logit beside a zero."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], dim=1)


def test_the_same_seed_draws_the_same(watched):
    first, again, other = (draw(watched, seed=seed).loss.tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_nothing_oscillates_nothing_is_drawn(watched):
    record = draw(watched, above=1.0)
    assert record.drawn == 0
    assert set(record.loss) == {record.checkpoint_loss} == {record.settled_loss}
    assert np.isnan(record.moved).all()


def test_a_network_that_went_on_is_told_apart(watched):
    student, tracker = watched
    other = copy.deepcopy(student)
    with torch.no_grad():
        other[0].weight.neg_()
    codes = [m[0].weight_quantizer.codes(m[0].weight) for m in (student, other)]
    record = draw((other, tracker))
    assert record.apart == pytest.approx(int((codes[0] != codes[1]).sum()) / 84)


def test_an_interrupted_lottery_keeps_its_draws(watched, monkeypatch):
    scores, calls = module._scores, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:  # the network, the settled one, two draws
            raise KeyboardInterrupt
        return scores(*args)

    whole = draw(watched)
    monkeypatch.setattr(module, "_scores", interrupted)
    with unchanged(watched[0]), pytest.warns(UserWarning, match="interrupted after 2 of 4 draws"):
        record = draw(watched)
    assert record.loss.tolist() == whole.loss[:2].tolist()
    assert not record.complete


def test_the_lottery_changes_nothing(watched):
    student, tracker = watched
    before = copy.deepcopy(tracker.state_dict())
    with unchanged(student):
        draw(watched)
    with unchanged(student), pytest.raises(ZeroDivisionError):
        draw(watched, loss=lambda logits, labels: 1 / 0)
    after = tracker.state_dict()
    assert all(
        torch.equal(before[k], after[k]) for k in before if isinstance(before[k], torch.Tensor)
    )


def test_networks_that_are_refused(watched):
    student = copy.deepcopy(watched[0])
    student[1].train()
    with pytest.raises(ValueError, match="training mode"):
        draw((student, watched[1]))
    student.eval()[0].weight_quantizer.step.data.fill_(math.nan)
    with pytest.raises(ValueError, match="not calibrated"):
        draw((student, watched[1]))


def test_another_network_is_refused(watched):
    other = quantize(small_cnn(width=2), partial(LSQ, 2), None).eval()
    images = (torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="of layer '0', which the model does not have"):
        oscillation_lottery(other, watched[1], images, progress=False)


def test_levels_that_are_not_computed_with_are_refused():
    student = tiny(partial(DoReFa, 1)).eval()
    with pytest.raises(ValueError, match="DoReFa of layer '0' computes with other numbers"):
        draw((student, OscillationTracker(student)))


@pytest.mark.parametrize("draws", [0, -1])
def test_at_least_one_draw(watched, draws):
    with pytest.raises(ValueError, match="draws must be at least 1"):
        draw(watched, draws=draws)


@pytest.mark.parametrize(
    "weights", [partial(EWGS, bits=2), partial(DoReFa, bits=2), partial(Affine, 2), AdaRound]
)
def test_other_quantizers_take_part(weights):
    student = tiny(partial(weights, 2) if weights is AdaRound else weights).eval()
    tracker = OscillationTracker(student)
    tracker.frequency.fill_(1)
    tracker.mean.add_(0.5).clamp_(max=3)
    record = draw((student, tracker), draws=2)
    assert record.checkpoint_loss == pytest.approx(score(student)[1], rel=1e-5)
    assert record.drawn == 84


# --- BatchNorm


def normed(groups=2):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3, groups=groups, bias=False),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(12, 3),
        nn.BatchNorm1d(3),
    ).eval()


def kl(mean, variance, other, wide):
    """The integral of p·ln(p/q) over both normal densities, summed on a fine grid."""
    x = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 200001)
    p = np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    log_q = -((x - other) ** 2) / (2 * wide) - 0.5 * math.log(2 * math.pi * wide)
    log_p = -((x - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
    return float(((log_p - log_q) * p).sum() * (x[1] - x[0]))


def test_the_divergence_is_the_integral():
    model = normed()
    record = batchnorm_drift(model, DATA, batches=1, size=20)
    assert record.layers == ("1", "4", "6", "9")
    assert record.kinds == ("convolution", "depthwise", "pointwise", "linear")
    assert record.images == 20
    # Of the first layer, which sees the images themselves: 20 of them, drawn by seed 0.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:20]
    seen = model[0](DATA.normalise(DATA.images[order])).detach().double()
    for channel in range(2):
        values = seen[:, channel]
        mean, variance = values.mean().item(), values.var(correction=1).item()
        expected = kl(0.0, 1 + 1e-5, mean, variance + 1e-5)
        assert record.divergence[0][channel] == pytest.approx(expected, rel=1e-4)


def test_no_drift_after_a_new_estimate():
    model = normed()
    module.reestimate_batchnorm(model, DATA, 2, 20, 0)
    record = batchnorm_drift(model, DATA, batches=2, size=20)
    assert all(np.allclose(values, 0, atol=1e-10) for values in record.divergence)
    # Halves of the images still differ.
    assert all((values > 1e-6).any() for values in record.noise)


def test_more_drift_where_it_was_put():
    model = normed()
    module.reestimate_batchnorm(model, DATA, 2, 20, 0)
    with torch.no_grad():
        model[4].running_mean[1] += 3 * model[4].running_var[1].sqrt()
    record = batchnorm_drift(model, DATA, batches=2, size=20)
    # (3σ)²/(2σ²) nats; the layers behind see other numbers only in training mode.
    assert record.divergence[1][1] == pytest.approx(4.5, rel=1e-3)
    assert record.means[1] > 100 * record.means[[0, 2]].max()


def test_noise_is_between_halves_of_the_images():
    model = normed()
    record = batchnorm_drift(model, DATA, size=128)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    halves = [
        model[0](DATA.normalise(DATA.images[p])).detach().double() for p in (order[:20], order[20:])
    ]
    for channel in range(2):
        numbers = [
            (h[:, channel].mean().item(), h[:, channel].var(correction=1).item() + 1e-5)
            for h in halves
        ]
        expected = kl(*numbers[0], *numbers[1])
        assert record.noise[0][channel] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert record.images == 40


def test_a_dead_channel_is_finite():
    model = normed()
    model[0].weight.data[0] = 0
    model[1].running_var[0] = 0
    record = batchnorm_drift(model, DATA, size=20)
    assert record.divergence[0][0] == pytest.approx(0, abs=1e-9)


def test_drift_changes_nothing(monkeypatch):
    model = normed()
    with unchanged(model):
        batchnorm_drift(model, DATA, size=10)

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_divergence", stopped)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        batchnorm_drift(model, DATA, size=10)


def test_drifts_that_are_refused():
    with pytest.raises(ValueError, match="no BatchNorm"):
        batchnorm_drift(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval(), DATA)
    with pytest.raises(ValueError, match="training mode"):
        batchnorm_drift(normed().train(), DATA)
    with pytest.raises(ValueError, match="at least 4 images"):
        batchnorm_drift(normed(), DATA.subset(3))
