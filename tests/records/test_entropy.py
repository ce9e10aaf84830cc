import math

import numpy as np
import pytest

from qatviz.records import CodeEntropy, GaussianCodes
from qatviz.records.entropy import corrected_entropy, entropy_error, plug_in_entropy
from tests.records.common import check_frozen

QUARTERS = np.array([1, 1, 1, 1])
UNEVEN = np.array([4, 2, 1, 1])  # 1/2, 1/4, 1/8, 1/8: 1.75 bits


def record(**changes):
    """Two layers: four weights of three bits at two codes, eight of two bits at four."""
    first, second = np.array([0, 0, 0, 2, 2, 0, 0, 0]), UNEVEN
    values = {
        "label": "net",
        "of": "weights",
        "layers": ("a", "b"),
        "bits": np.array([3, 2]),
        "low": np.array([-4, -2]),
        "counts": (first, second),
        "nonzero": (np.array([0, 0, 0, 2, 0, 0, 0, 0]), np.array([4, 2, 0, 1])),
        "channels": (
            np.array([[0, 0, 0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 2, 0, 0, 0]]),
            np.array([[2, 2, 0, 0], [2, 0, 1, 1]]),
        ),
        "error": np.array([0.3, 0.4]),
        "differential": np.array([1.0, 2.0]),
        "compressed": np.array([2.0, 5.0]),
        "filters": np.array([2, 2]),
        "dead": np.array([1, 0]),
        "samples": 0,
    }
    return CodeEntropy(**(values | changes))


def test_entropies_known_by_heart():
    assert plug_in_entropy(QUARTERS) == 2
    assert plug_in_entropy(UNEVEN) == pytest.approx(1.75)
    assert plug_in_entropy(np.array([0, 7, 0])) == 0
    assert math.copysign(1, plug_in_entropy(np.array([7]))) == 1
    assert np.isnan(plug_in_entropy(np.zeros(3, int)))


def test_rows_are_distributions_of_their_own():
    rows = np.stack([QUARTERS, UNEVEN, np.zeros(4, int)])
    np.testing.assert_allclose(plug_in_entropy(rows), [2, 1.75, np.nan])
    expected = [2 + 3 / (8 * math.log(2)), 1.75 + 3 / (16 * math.log(2)), np.nan]
    np.testing.assert_allclose(corrected_entropy(rows), expected)


def test_the_correction_counts_the_codes_that_occur():
    assert corrected_entropy(np.array([0, 9, 0])) == 0
    counts = np.array([5, 0, 0, 5])
    assert corrected_entropy(counts) == pytest.approx(1 + 1 / (20 * math.log(2)))


def test_the_correction_removes_most_of_the_bias_of_small_samples():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    counts = np.random.default_rng(0).multinomial(40, shares, size=20_000)
    plain = plug_in_entropy(counts).mean() - 1.75
    corrected = corrected_entropy(counts).mean() - 1.75
    assert plain == pytest.approx(-3 / (80 * math.log(2)), rel=0.1)
    assert abs(corrected) < 0.1 * abs(plain)


def test_the_standard_error_is_the_spread_of_many_samples():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    counts = np.random.default_rng(0).multinomial(400, shares, size=20_000)
    # √((∑ p log² p − H²)/N) by hand: (0.5·1 + 0.25·4 + 0.25·9 − 1.75²)/400.
    by_hand = math.sqrt((0.5 + 1 + 2.25 - 1.75**2) / 400)
    assert entropy_error(400 * shares) == pytest.approx(by_hand)
    assert plug_in_entropy(counts).std() == pytest.approx(by_hand, rel=0.03)
    assert entropy_error(QUARTERS) == 0


def test_numbers_of_each_layer():
    net = record()
    assert net.sizes.tolist() == [4, 8]
    assert net.levels.tolist() == [8, 4]
    np.testing.assert_allclose(net.entropy, [1, 1.75])
    np.testing.assert_allclose(net.utilisation, [1 / 3, 1.75 / 2])
    np.testing.assert_allclose(
        net.corrected, [1 + 1 / (8 * math.log(2)), 1.75 + 3 / (16 * math.log(2))]
    )
    assert net.used.tolist() == [2, 4]
    np.testing.assert_allclose(net.zero, [0.5, 1 / 8])
    np.testing.assert_allclose(net.ends, [0, 5 / 8])
    np.testing.assert_allclose(net.without_zeros, [0, plug_in_entropy(np.array([4, 2, 1]))])


def test_codes_that_take_a_thousandth_or_less_are_not_common():
    counts = (np.array([1, 999, 0, 0, 0, 0, 0, 0]), np.array([2, 998, 0, 0]))
    net = record(counts=counts)
    assert net.used.tolist() == [2, 2]
    assert net.common.tolist() == [1, 2]


def test_channels_are_averaged():
    net = record()
    np.testing.assert_allclose(net.channel_entropy, [0, (1 + 1.5) / 2])
    one, two = 1 + 1 / (8 * math.log(2)), 1.5 + 2 / (8 * math.log(2))
    np.testing.assert_allclose(net.channel_corrected, [0, (one + two) / 2])
    # Two values half a bit apart: their mean is uncertain by half of that.
    np.testing.assert_allclose(net.channel_error, [0, 0.25])


def test_the_network_is_weighed_by_numbers():
    net = record()
    assert net.bits_used.tolist() == [4, 14]
    assert net.bits_available.tolist() == [12, 16]
    assert net.mean == pytest.approx(18 / 12)
    assert net.mean_error == pytest.approx(math.hypot(4 * 0.3, 8 * 0.4) / 12)
    assert net.mean_utilisation == pytest.approx(18 / (4 * 3 + 8 * 2))
    assert net.mean_compressed == pytest.approx((4 * 2 + 8 * 5) / 12)
    by_layer = 4 / (8 * math.log(2)) + 8 * 3 / (16 * math.log(2))
    assert net.mean_corrected == pytest.approx((18 + by_layer) / 12)


def test_three_levels_hold_less_than_two_bits():
    codes = GaussianCodes("NIPQ", 2, -1, np.full(3, 1 / 3), 9)
    assert codes.entropy == pytest.approx(math.log2(3))
    assert codes.utilisation == pytest.approx(1)
    assert GaussianCodes("q", 1, 0, np.array([1.0, 0.0]), 9).entropy == 0


def test_inputs_have_no_channels():
    net = record(channels=(np.zeros((0, 8), int), np.zeros((0, 4), int)))
    assert np.isnan(net.channel_entropy).all()
    assert np.isnan(net.channel_error).all()


def test_entropy_records_are_frozen():
    check_frozen(record())
    check_frozen(GaussianCodes("q", 1, 0, np.ones(2) / 2, 9))
