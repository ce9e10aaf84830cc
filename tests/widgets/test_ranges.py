import pytest
import torch

from qatviz.widgets import range_explorer


def test_moving_the_range_clips_and_moves_the_marker():
    explorer = range_explorer(torch.linspace(-1, 1, 401), label="line", bits=2)
    wide, sweep, share = explorer.result
    assert share == 100
    first = explorer.image
    explorer.controls["share"].value = 50
    narrow, same, share = explorer.result
    assert share == 50
    assert same is sweep  # the curve of the same bits is not computed again
    assert narrow.levels[-1] - narrow.levels[0] == pytest.approx(
        0.5 * (wide.levels[-1] - wide.levels[0])
    )
    assert narrow.mean_squared_error == pytest.approx(sweep.total[49], rel=1e-3)
    assert explorer.image != first


def test_the_face_without_a_kernel_has_a_frame_for_each_stop():
    explorer = range_explorer(torch.randn(50), label="noise")
    assert explorer.static().count("iVBOR") >= 3 * 8


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_bits_outside_the_slider(bits):
    with pytest.raises(ValueError, match=f"bits must be from 1 to 8, got {bits}"):
        range_explorer(torch.randn(8), label="weights", bits=bits)


def test_refuses_a_tensor_that_is_not_finite():
    with pytest.raises(ValueError, match="'weights', not all finite"):
        range_explorer(torch.tensor([1.0, float("inf")]), label="weights")
