import numpy as np
import pytest

from tests.landscapes import a_line, a_path, a_plane, conditions, with_holes
from tests.records.common import check_frozen


def test_records_are_frozen():
    for record in (conditions(), a_line(), a_plane(), a_path()):
        check_frozen(record)


def test_conditions_say_all_that_matters():
    assert str(conditions()) == (
        "dequantized weights (1,234), activation quantizers on; 100 images"
    )
    latent = conditions(space="latent", requantized=True, batchnorm="re-estimated", reestimate=50)
    assert str(latent) == (
        "latent weights, rounded again at every point (1,234), activation quantizers on, "
        "BatchNorm re-estimated on 50 batches; 100 images"
    )
    plain = conditions(space="float", activation_quantizers=False, batchnorm="batch")
    assert str(plain) == "float weights (1,234), BatchNorm of the images; 100 images"


def test_the_centre_is_in_the_middle():
    assert a_line().centre == pytest.approx(0.1)
    assert a_plane().centre == pytest.approx(0.1)


def test_a_row_is_a_line():
    plane = a_plane()
    row = plane.row(0)
    np.testing.assert_array_equal(row.loss, plane.loss[0])
    np.testing.assert_array_equal(row.accuracy, plane.accuracy[0])
    assert row.direction == "random direction 1 at -1 of random direction 2"
    assert plane.row(2).direction == "random direction 1"
    assert (row.unit, row.length) == ("filter norms", 2.0)


def test_what_is_missing_is_said():
    assert a_plane().complete
    assert "INCOMPLETE" not in repr(a_plane())
    partial = with_holes(a_plane(), endless=2, missing=4)
    assert not partial.complete
    assert "INCOMPLETE: 21 of 25 points" in repr(partial)
    # Finite losses only: 0.1 to 0.1 + 0.25 + 2 (the corners of −1 and of +1 are gone).
    assert "loss 0.1 to 3.1" in repr(with_holes(a_plane(), endless=0))
    assert "nowhere finite" in repr(with_holes(a_line(), endless=5))


def test_a_barrier_is_above_the_chord():
    # L_A = 1, L_B = 3: the chord is 2 in the middle; 4 and 9 lie outside of the way.
    path = a_path(bump=0.7)
    np.testing.assert_allclose(path.chord, [0, 1, 2, 3, 4])
    assert path.barrier == pytest.approx(0.7)
    assert a_path(bump=-0.7).barrier == 0
    assert "barrier 0.7" in repr(path)
    assert "float to W2" in repr(path)


def test_a_barrier_of_what_is_not_finite_or_not_there():
    path = a_path()
    path.loss[2] = np.nan
    assert path.barrier == np.inf
    path.computed[2] = False
    assert path.barrier == 0
    path.computed[1], path.loss[1] = False, np.nan
    assert np.isnan(path.barrier)
