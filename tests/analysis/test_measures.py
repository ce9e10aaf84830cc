"""Small measures for studies, against sums written out."""

import math
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.analysis import (
    largest_eigenvalue,
    measures,
    on_test_images,
    on_training_images,
    weight_distance,
    weight_entropy,
)
from qatviz.datasets import Dataset, Split
from qatviz.models import small_cnn
from qatviz.quantize import quantize, quantized_layers
from qatviz.quantizers import LSQ
from tests.analysis.common import unchanged


def split(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 28, 28, generator=generator)
    return Split(images, torch.arange(count) % 10)


@pytest.fixture
def data():
    return Dataset("made", split(12), split(6, 1), split(9, 2))


def test_another_analysis_sees_the_images_that_were_asked_for(data):
    def seen(model, images):
        return model, images

    model = nn.Identity()
    for function, whole in ((on_test_images, data.test), (on_training_images, data.train)):
        again, all_of_them = function(model, data, analysis=seen)
        assert again is model
        assert torch.equal(all_of_them.images, whole.images)
        _, few = function(model, data, analysis=seen, samples=4)
        assert torch.equal(few.images, whole.images[:4])
        _, most = function(model, data, analysis=seen, samples=99)
        assert len(most) == len(whole)


def test_the_largest_eigenvalue_of_a_linear_classifier(data):
    """Of softmax regression the Hessian is the mean of (diag p − p pᵀ) ⊗ x xᵀ."""
    few = Split(data.train.images[..., :3, :3].contiguous(), data.train.labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 10, bias=False)).eval()
    x = few.images.flatten(1)
    p = model(few.images).softmax(1).detach()
    rows = [
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(v, v))
        for q, v in zip(p, x, strict=True)
    ]
    wanted = torch.linalg.eigvalsh(torch.stack(rows).mean(0)).max().item()
    with unchanged(model):
        found = largest_eigenvalue(model, few)
    assert found["value"] == pytest.approx(wanted, rel=1e-3)
    assert 0 <= found["error"] < 1e-2 * wanted
    loss = cross_entropy(model(few.images), few.labels)
    assert loss.item() > 0


def test_the_entropy_of_all_low_bit_weights():
    model = quantize(small_cnn(width=2), partial(LSQ, 2), None, keep=["fc"]).eval()
    layers = quantized_layers(model)
    totals, used, weights = 0.0, 0.0, 0
    for layer in layers.values():
        codes = layer.weight_quantizer.codes(layer.weight).flatten().tolist()
        shares = [codes.count(code) / len(codes) for code in set(codes)]
        entropy = -sum(share * math.log2(share) for share in shares)
        totals, weights = totals + entropy * len(codes), weights + len(codes)
        used += entropy / 2 * len(codes)
    with unchanged(model):
        found = weight_entropy(model)
    assert found["codes"] == pytest.approx(totals / weights)
    assert found["utilisation"] == pytest.approx(used / weights)
    assert found["channels"] <= found["codes"]
    assert math.isfinite(found["latent"])


def test_layers_of_more_bits_are_left_out_and_some_must_be_left():
    first, *_ = names = [
        n for n, m in small_cnn(width=2).named_modules() if isinstance(m, nn.Conv2d)
    ]
    two = quantize(small_cnn(width=2), partial(LSQ, 2), None, only=names)
    torch.manual_seed(0)
    mixed = quantize(
        quantize(small_cnn(width=2), partial(LSQ, 8), None, only=[first]),
        partial(LSQ, 2),
        None,
        only=names[1:],
    )
    assert weight_entropy(mixed.eval())["codes"] <= 2
    assert weight_entropy(mixed, bits=8)["codes"] > weight_entropy(mixed)["codes"]
    with pytest.raises(ValueError, match="no layer has a weight quantizer of at most 1 bits"):
        weight_entropy(two.eval(), bits=1)


def test_the_distance_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "DATA", tmp_path)
    (tmp_path / "runs").mkdir()
    model = small_cnn(width=2)
    save_file(model.state_dict(), tmp_path / "runs" / "here.safetensors")
    assert weight_distance(model, origin="here") == 0
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for weight in weights:
            weight += 0.5
        next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).weight += 9  # no part
    wanted = 0.5 * math.sqrt(sum(w.numel() for w in weights))
    assert weight_distance(model, origin="here") == pytest.approx(wanted, rel=1e-5)
    student = quantize(model, partial(LSQ, 2), None)
    assert weight_distance(student, origin="here") == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="here has no weight of"):
        weight_distance(small_cnn(width=3), origin="here")
