import base64
import re
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ, DoReFa
from qatviz.widgets import entropy_explorer
from qatviz.widgets.entropy import draw_entropy


@pytest.fixture
def models():
    torch.manual_seed(0)
    model = small_cnn(width=2)
    return {f"{bits} bits": quantize(model, partial(LSQ, bits), None) for bits in (2, 3)}


def literal(weight, step, low, high):
    """Bits, weight by weight."""
    codes = [min(max(round(w / step), low), high) for w in weight.flatten().tolist()]
    shares = [codes.count(k) / len(codes) for k in set(codes)]
    return -sum(p * np.log2(p) for p in shares)


def test_the_step_slider_multiplies_the_step(models):
    explorer = entropy_explorer(models)
    layer = models["2 bits"].get_submodule(explorer.values["layer"])
    step = layer.weight_quantizer.step.item()
    for factor in (1.0, 0.5, 2.0):
        explorer.controls["step"].value = factor
        histogram, record = explorer.result
        assert record.layers == (explorer.values["layer"],)
        assert record.entropy[0] == pytest.approx(literal(layer.weight, factor * step, -2, 1))
        np.testing.assert_allclose(histogram.levels, np.arange(-2, 2) * factor * step, rtol=1e-6)
    assert layer.weight_quantizer.step.item() == step


def test_starts_at_the_layer_with_most_weights_and_shows_others(models):
    explorer = entropy_explorer(models)
    sizes = {
        n: m.weight.numel()
        for n, m in models["2 bits"].named_modules()
        if hasattr(m, "weight_quantizer")
    }
    assert sizes[explorer.values["layer"]] == max(sizes.values())
    other = min(sizes, key=sizes.get)
    explorer.controls["layer"].value = other
    assert explorer.result[1].sizes.tolist() == [sizes[other]]
    assert entropy_explorer(models, layer=other).values["layer"] == other


def test_networks_are_chosen_from_a_list(models):
    explorer = entropy_explorer(models)
    assert explorer.result[1].levels.tolist() == [4]
    explorer.controls["network"].value = "3 bits"
    assert explorer.result[1].levels.tolist() == [8]


@pytest.mark.slow
def test_the_static_face_has_a_frame_for_each_network_and_step(models):
    explorer = entropy_explorer(models)
    explorer.frames["step"] = [0.5, 1.0]
    frames = len(models) * 2
    assert len(re.findall("iVBOR", explorer.static())) == frames + 1
    assert base64.b64encode(explorer.image).decode() in explorer.static()


def test_what_is_drawn(models):
    figure = Figure()
    explorer = entropy_explorer(models)
    draw_entropy(figure, explorer.result)
    left, right = figure.axes
    assert left.get_title().startswith("weights (SQNR")
    assert right.get_title().startswith(f"{explorer.values['layer']}: ")
    assert right.get_title().endswith("of 2 bits")


def test_what_is_refused(models):
    with pytest.raises(ValueError, match="no network"):
        entropy_explorer({})
    with pytest.raises(ValueError, match="layer is 'none'"):
        entropy_explorer(models, layer="none")
    other = quantize(torch.nn.Sequential(torch.nn.Linear(4, 3)), partial(LSQ, 2), None)
    with pytest.raises(ValueError, match="'other' has other layers"):
        entropy_explorer(models | {"other": other})
    with pytest.raises(ValueError, match="train a step"):
        entropy_explorer({"DoReFa": quantize(small_cnn(width=2), partial(DoReFa, 2), None)})
    with pytest.raises(ValueError, match="train a step"):
        entropy_explorer({"float": small_cnn(width=2)})
