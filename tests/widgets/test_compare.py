import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qatviz import analysis
from qatviz.widgets import compare_explorer
from qatviz.widgets.compare import draw_comparison


@pytest.fixture
def tensors():
    return 0.1 * torch.randn(20, 30), torch.randn(500).relu()


def test_shows_two_quantizers_on_the_weights(tensors):
    curves, histogram, errors = compare_explorer(*tensors, label="conv").result
    assert [c.name for c in curves] == ["LSQ", "EWGS"]
    expected = analysis.zoo_curve("LSQ", tensors[0], bits=2, signed=True)
    np.testing.assert_array_equal(curves[0].curve.y, expected.curve.y)
    assert histogram.counts.sum() == 600
    assert histogram.label == "conv weights, 2 bit"
    assert errors[1].best == analysis.zoo_errors(tensors[0], bits=[2], names=["EWGS"]).best


def test_every_control_changes_the_picture(tensors):
    explorer = compare_explorer(*tensors)
    pictures = {explorer.image}
    for name, value in [
        ("first", "Affine"),
        ("second", "DoReFa"),
        ("bits", 3),
        ("tensor", "activations"),
    ]:
        explorer.controls[name].value = value
        pictures.add(explorer.image)
    assert len(pictures) == 5
    curves, histogram, _ = explorer.result
    assert [c.name for c in curves] == ["Affine", "DoReFa"]
    assert not curves[0].signed
    assert histogram.counts.sum() == 500


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bits": 1}, "LSQ has no signed grid of 1 bit"),
        ({"second": "PACT"}, "PACT is made for activations"),
        ({"second": "AdaRound", "tensor": "activations"}, "AdaRound is made for weights"),
    ],
)
def test_what_does_not_exist_is_said_in_the_picture(tensors, values, sentence):
    explorer = compare_explorer(*tensors)
    values = explorer.values | values
    with pytest.raises(ValueError, match=sentence):
        explorer.compute(**values)
    for name, value in values.items():
        explorer.controls[name].value = value
    assert explorer.result is None
    assert explorer.image.startswith(b"\x89PNG")


def test_draws_the_numbers(tensors):
    figure = Figure(layout="constrained")
    explorer = compare_explorer(*tensors)
    draw_comparison(figure, explorer.result)
    figure.canvas.draw()
    best = explorer.result[2][0].best[0, 0]
    assert f"LSQ {best:.1f} dB; EWGS" in figure.get_suptitle()


def test_every_frame_of_the_static_face_can_be_made(tensors):
    explorer = compare_explorer(*tensors)
    assert set(explorer.frames) == {"second", "bits", "tensor"}
    explorer.frames = {"second": ["PACT", "EWGS"], "tensor": ["weights", "activations"]}
    page = explorer.static()
    assert page.count("iVBOR") >= 4
    # The whole page has 36 frames (9 quantizers, 2 bits, 2 tensors), and should stay below 3 MB.
    assert 36 / 4 * len(page) < 3e6


def test_refuses_bad_starts(tensors):
    weights, activations = tensors
    with pytest.raises(ValueError, match="no quantizer 'LQS'"):
        compare_explorer(weights, activations, first="LQS")
    with pytest.raises(ValueError, match="bits must be from 1 to 8, got 9"):
        compare_explorer(weights, activations, bits=9)
    with pytest.raises(ValueError, match="'activations', not all finite"):
        compare_explorer(weights, activations / 0)
    with pytest.raises(ValueError, match="only weights are negative"):
        compare_explorer(activations, weights)
