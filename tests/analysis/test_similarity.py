"""CKA against the formula of HSIC₁, batch by batch and pair by pair."""

import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis.similarity import centred_gram, jackknife, linear_cka, watching
from qatviz.models import small_cnn
from tests.analysis.common import unchanged
from tests.analysis.wide import cnn, cnn_data, low_bit

LAYERS = ("1.conv1", "1.conv2", "1.conv3", "1.fc")


def hsic(x, y):
    """HSIC₁ of Nguyen et al. as it is printed, of rows of features."""
    n, one = len(x), np.ones(len(x))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    first = np.trace(k @ l)
    second = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ l @ one)
    return (first + second - third) / (n * (n - 3))


def outputs(model, images, name):
    found = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.append(output.flatten(1).detach().numpy())
    )
    model(images)
    handle.remove()
    return found[-1]


def literal_cka(a, b, batches, left, right):
    """CKA of two layers, of all batches but those that are left out."""
    sums = np.zeros(3)
    for images in batches:
        x, y = outputs(a, images, left), outputs(b, images, right)
        sums += hsic(x, y), hsic(x, x), hsic(y, y)
    return sums[0] / np.sqrt(sums[1] * sums[2])


@pytest.fixture
def pair():
    a = cnn(seed=0)
    return a, low_bit(a)


def test_cka_of_every_pair_of_layers_is_the_formula(pair):
    images, labels = cnn_data(count=26)
    record = linear_cka(*pair, (images, labels), batch=8, progress=False)
    assert record.rows == record.columns == record.matched == LAYERS
    assert (record.samples, record.batch, record.batches) == (24, 8, 3)
    batches = images[:24].split(8)
    for i, left in enumerate(LAYERS):
        for j, right in enumerate(LAYERS):
            expected = literal_cka(*pair, batches, left, right)
            assert record.cka[i, j] == pytest.approx(expected, abs=1e-9)
            without = [
                literal_cka(*pair, [*batches[:k], *batches[k + 1 :]], left, right) for k in range(3)
            ]
            error = np.sqrt(2 / 3 * sum((w - np.mean(without)) ** 2 for w in without))
            assert record.cka_error[i, j] == pytest.approx(error, abs=1e-9)
    assert 0.3 < record.cka[0, 0] < 1
    np.testing.assert_array_equal(record.matched_cka, np.diag(record.cka))
    np.testing.assert_array_equal(record.matched_cka_error, np.diag(record.cka_error))


def test_cosine_and_distance_of_layers_that_match(pair):
    images, labels = cnn_data(count=26)
    record = linear_cka(*pair, (images, labels), batch=13, progress=False)
    for index, name in enumerate(LAYERS):
        x, y = (outputs(model, images, name) for model in pair)
        cosines = [x[i] @ y[i] / np.sqrt(x[i] @ x[i] * (y[i] @ y[i])) for i in range(26)]
        assert record.cosine[index] == pytest.approx(np.mean(cosines))
        assert record.cosine_error[index] == pytest.approx(np.std(cosines, ddof=1) / np.sqrt(26))
        assert record.distance[index] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
        without = []
        for i in range(26):
            p, q = np.delete(x, i, 0), np.delete(y, i, 0)
            without.append(np.linalg.norm(q - p) / np.linalg.norm(p))
        error = np.sqrt(25 / 26 * np.sum((without - np.mean(without)) ** 2))
        assert record.distance_error[index] == pytest.approx(error)


def test_a_network_is_the_same_as_itself(pair):
    a, _ = pair
    record = linear_cka(a, a, cnn_data(), batch=10, progress=False, labels=("one", "one"))
    np.testing.assert_allclose(np.diag(record.cka), 1)
    np.testing.assert_allclose(np.diag(record.cka_error), 0, atol=1e-9)
    np.testing.assert_allclose(record.cka, record.cka.T)
    np.testing.assert_allclose(record.cosine, 1)
    assert (record.distance == 0).all()
    assert (record.distance_error == 0).all()
    assert record.labels == ("one", "one")
    assert record.complete


class Linear(nn.Module):
    """Features that are a fixed linear map of the pixels."""

    def __init__(self, matrix):
        super().__init__()
        self.map = nn.Linear(*matrix.shape[::-1], bias=False)
        self.map.weight.data = matrix

    def forward(self, x):
        return self.map(x.flatten(1))


def test_rotation_scale_and_shift_do_not_count_but_cosines_see_them():
    matrix = torch.randn(6, 4)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    data = torch.randn(64, 1, 2, 2), torch.arange(64) % 6
    a, b = Linear(matrix).eval(), Linear(-3 * rotation @ matrix).eval()
    b.map.bias = nn.Parameter(torch.full((6,), 100.0))
    record = linear_cka(a, b, data, batch=16, progress=False)
    np.testing.assert_allclose(record.cka, 1, atol=1e-5)
    assert record.distance[0] > 3
    assert abs(record.cosine[0]) < 0.9


def test_the_estimate_for_unrelated_features_is_about_zero_and_may_be_negative():
    # Two halves of the pixels: independent, so the expectation of HSIC is zero.
    halves = torch.eye(8).split(4)
    labels = torch.zeros(160, dtype=torch.long)
    a, b = (Linear(half.clone()).eval() for half in halves)
    found = []
    for seed in range(5):
        images = torch.randn(160, 1, 2, 4, generator=torch.Generator().manual_seed(seed))
        record = linear_cka(a, b, (images, labels), batch=8, progress=False)
        found.append(record.cka[0, 0])
        assert np.isfinite(record.cka_error).all()
        assert abs(record.cka[0, 0]) < 5 * record.cka_error[0, 0]
    # The biased estimate would be about 4·4/(8·√(4·4))= 0.5 with 8 images a batch.
    assert abs(np.mean(found)) < 0.15
    assert min(found) < 0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_constant_outputs_count_as_zero(offset):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 5)
            self.first.weight.data.zero_()
            self.first.bias.data.fill_(offset + 0.1)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)) + x.flatten(1)[:, :3])

    data = torch.randn(20, 1, 2, 2), torch.arange(20) % 5
    record = linear_cka(Constant().eval(), Constant().eval(), data, batch=5, progress=False)
    assert record.rows == ("first", "last")
    assert (record.cka[0] == 0).all()
    assert (record.cka[:, 0] == 0).all()
    assert record.cka[1, 1] > 0.1
    for array in (record.cka_error, record.cosine, record.cosine_error, record.distance):
        assert np.isfinite(array).all()


def test_a_layer_of_zeros_has_no_angle_and_no_relative_distance():
    zero, other = Linear(torch.zeros(3, 4)).eval(), Linear(torch.randn(3, 4)).eval()
    data = torch.randn(12, 1, 2, 2), torch.arange(12) % 3
    record = linear_cka(zero, other, data, batch=6, progress=False)
    assert (record.cosine[0], record.distance[0]) == (0, np.inf)
    assert np.isnan(record.distance_error[0])
    same = linear_cka(zero, zero, data, batch=6, progress=False)
    assert (same.cosine[0], same.distance[0]) == (0, 0)


def test_pooled_features_are_averages_over_pixels(pair):
    images, labels = cnn_data(count=16)
    record = linear_cka(*pair, (images, labels), batch=16, pool=True, progress=False)
    x, y = (outputs(m, images, "1.conv1").reshape(16, 2, -1).mean(2) for m in pair)
    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert record.cka[0, 0] == pytest.approx(expected)
    assert record.pooled
    assert np.isnan(record.cka_error).all()  # of one batch
    assert np.isfinite(record.cosine_error).all()


def test_layers_are_chosen_by_pattern_in_the_order_in_which_they_run(pair):
    record = linear_cka(*pair, cnn_data(), layers=("1.fc", "1.relu?"), batch=10, progress=False)
    assert record.rows == record.columns == ("1.relu1", "1.relu2", "1.relu3", "1.fc")


def test_other_architectures_have_fewer_layers_in_common():
    torch.manual_seed(1)
    a, b = small_cnn(width=2).eval(), small_cnn(width=3).eval()
    record = linear_cka(a, b, cnn_data(), batch=10, progress=False)
    assert record.cka.shape == (4, 4)
    assert record.matched == ("fc",)
    deeper = nn.Sequential(nn.Flatten(), nn.Linear(144, 10)).eval()
    record = linear_cka(a, deeper, cnn_data(), batch=10, progress=False)
    assert (record.cka.shape, record.matched) == ((4, 1), ())
    assert record.matched_cka.shape == record.cosine.shape == record.distance_error.shape == (0,)


def test_what_works_in_place_afterwards_does_not_count():
    def network(inplace):
        torch.manual_seed(2)
        layers = [nn.Flatten(), nn.Linear(144, 8), nn.ReLU(inplace), nn.Linear(8, 10)]
        return nn.Sequential(*layers).eval()

    (a, b), data = (network(True) for _ in range(2)), cnn_data()
    with torch.no_grad():
        b[1].weight += 0.05
    got = linear_cka(a, b, data, batch=10, progress=False)
    c, d = network(False), network(False)
    d.load_state_dict(b.state_dict())
    expected = linear_cka(c, d, data, batch=10, progress=False)
    for field in ("cka", "cosine", "distance"):
        np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))


def test_a_module_that_runs_twice_counts_with_its_last_output():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.relu(self.fc(self.relu(x.flatten(1))))

    model, images = Twice().eval(), torch.randn(12, 1, 2, 2)
    record = linear_cka(
        model, model, (images, torch.arange(12) % 4), layers=["*"], batch=12, progress=False
    )
    assert record.rows == ("relu", "fc")
    x, y = (outputs(model, images, name) for name in record.rows)
    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert record.cka[0, 1] == pytest.approx(expected, abs=1e-5)


def test_a_centred_gram_matrix_gives_the_formula():
    x, y = torch.randn(9, 5).double(), torch.randn(9, 7).double() + 3
    y[:, :5] += x
    got = (centred_gram(x) * centred_gram(y)).sum() / (9 * 6)
    assert got.item() == pytest.approx(hsic(x.numpy(), y.numpy()))
    # The centre does not matter, not even in single precision.
    far = centred_gram((x + 1e3).float())
    torch.testing.assert_close(far, centred_gram(x), atol=1e-2, rtol=1e-2)


def test_the_jackknife_of_a_mean_is_the_standard_error():
    x = np.random.default_rng(0).normal(size=(12, 2))
    value, error = jackknife(np.asarray, x)
    np.testing.assert_allclose(value, x.mean(0))
    np.testing.assert_allclose(error, x.std(0, ddof=1) / np.sqrt(12))
    assert np.isnan(jackknife(np.asarray, x[:1])[1]).all()


def test_nothing_is_changed_and_no_hook_stays(pair):
    a, b = pair
    data = cnn_data()
    with unchanged(a), unchanged(b):
        linear_cka(a, b, data, batch=10, progress=False)


class Failing(nn.Module):
    """Raises at one of its calls."""

    def __init__(self, at, error):
        super().__init__()
        self.calls, self.at, self.error = [], at, error

    def forward(self, x):
        self.calls.append(len(x))
        if len(self.calls) == self.at:
            raise self.error("stop")
        return x


def failing(at, error):
    """Fails at a call of its own; the images are tried on a copy, once."""
    model = cnn()
    model.append(Failing(at, error).eval())
    return model


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_an_exception_leaves_nothing_behind(at, error):
    model = failing(at, error)
    with unchanged(model), pytest.raises(error, match="stop"):
        linear_cka(model, model, cnn_data(), batch=10, progress=False)
    assert model[2].calls == [10] * at


def test_an_interruption_of_the_first_batch_keeps_nothing():
    model = failing(2, KeyboardInterrupt)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        linear_cka(model, model, cnn_data(), batch=10, progress=False)


def test_an_interruption_keeps_the_batches_that_are_done():
    model = failing(4, KeyboardInterrupt)
    data = cnn_data()
    with unchanged(model), pytest.warns(UserWarning, match="interrupted after 1 of 2 batches"):
        record = linear_cka(model, model, data, layers=LAYERS, batch=10, progress=False)
    assert not record.complete
    assert (record.samples, record.batches) == (10, 1)
    np.testing.assert_allclose(np.diag(record.cka), 1)


def test_the_global_generator_is_left_alone_by_hooks():
    model, seen = cnn(), []
    with watching({"fc": model[1].fc}, lambda name, x, y: seen.append((name, x.shape, y.shape))):
        model(cnn_data()[0])
    assert seen == [("fc", (23, 8), (23, 10))]
    model(cnn_data()[0])
    assert len(seen) == 1


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.inner(x.flatten(1)[:, None])[0][:, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 3}, "batch is 3, images are 23; allowed: 4 or more"),
        ({"samples": 3}, "images are 3"),
        ({"layers": "1.fc"}, "sequence of patterns, got the string"),
        (
            {"layers": ("1.fc", "nowhere*")},
            "'nowhere\\*' matches no module; there are: 0, 1, 1.con",
        ),
        ({"samples": 24}, "there are 23 images"),
    ],
)
def test_bad_arguments_are_refused(pair, options, words):
    with pytest.raises(ValueError, match=words):
        linear_cka(*pair, cnn_data(), **{"progress": False, **options})


def test_outputs_that_are_no_features_are_refused(pair):
    a, _ = pair
    with pytest.raises(ValueError, match="training mode"):
        linear_cka(a, cnn().train(), cnn_data(), progress=False)
    model = Pair().eval()
    data = torch.randn(8, 1, 2, 2), torch.arange(8) % 3
    with unchanged(model), pytest.raises(ValueError, match="'inner' returns tuple"):
        linear_cka(model, model, data, layers=("inner",), progress=False)
    with pytest.raises(ValueError, match="none of the layers was reached"):
        linear_cka(model, model, data, progress=False)
