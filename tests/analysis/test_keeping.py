import numpy as np
import pytest
import torch
from torch import nn

from qatviz.analysis.keeping import (
    Kept,
    Table,
    digest_of_images,
    digest_of_model,
    loss_name,
    sketch,
)
from qatviz.datasets import Split
from tests.analysis.wide import cnn, cnn_data, low_bit

VECTORS = [torch.arange(50.0), torch.ones(50)]


def filled():
    table = Table((2, 3))
    table.put((0, 1), (0.5, 0.9))
    table.put((1, 2), (float("inf"), 0.1))
    table.seconds = 4.5
    return table


def test_a_table_comes_back(tmp_path):
    path = tmp_path / "new" / "values.npz"
    kept = Kept(path, {"model": "abc"}, VECTORS)
    empty = Table((2, 3))
    kept.load(empty)  # no file yet
    assert not empty.computed.any()
    kept.save(filled())
    kept.load(empty)
    np.testing.assert_array_equal(empty.loss, [[np.nan, 0.5, np.nan], [np.nan, np.nan, np.inf]])
    np.testing.assert_array_equal(empty.accuracy[0], [np.nan, 0.9, np.nan])
    np.testing.assert_array_equal(empty.computed, [[False, True, False], [False, False, True]])
    assert empty.seconds == 4.5
    assert [p.name for p in path.parent.iterdir()] == ["values.npz"]


def test_a_file_of_something_else_is_refused_by_name(tmp_path):
    path = tmp_path / "values.npz"
    Kept(path, {"model": "abc", "images": "x", "grid": "g"}, VECTORS).save(filled())
    other = Kept(path, {"model": "def", "images": "x", "grid": "h"}, VECTORS)
    table = Table((2, 3))
    with pytest.raises(ValueError, match=r"values\.npz was made with another model, another grid:"):
        other.load(table)
    assert not table.computed.any()


@pytest.mark.parametrize(
    "vectors", [VECTORS[::-1], VECTORS[:1], [VECTORS[0], VECTORS[1] + 1e-3 * torch.eye(50)[0]]]
)
def test_other_directions_are_refused(tmp_path, vectors):
    path = tmp_path / "values.npz"
    Kept(path, {}, VECTORS).save(filled())
    with pytest.raises(ValueError, match="another directions"):
        Kept(path, {}, vectors).load(Table((2, 3)))


def test_directions_may_be_rounded_otherwise(tmp_path):
    path = tmp_path / "values.npz"
    Kept(path, {}, VECTORS).save(filled())
    table = Table((2, 3))
    Kept(path, {}, [v * (1 + 1e-7 * torch.randn(50)) for v in VECTORS]).load(table)
    assert table.computed.sum() == 2


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "values.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no kept landscape"):
        Kept(path, {}, VECTORS).load(Table((2, 3)))


def test_a_file_cut_in_two_is_refused(tmp_path):
    path = tmp_path / "values.npz"
    Kept(path, {}, VECTORS).save(filled())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="no kept landscape"):
        Kept(path, {}, VECTORS).load(Table((2, 3)))


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = Kept(None, {}, VECTORS)
    kept.save(filled())
    kept.load(Table((2, 3)))
    assert list(tmp_path.iterdir()) == []


def test_sums_tell_how_far_vectors_are_apart():
    a, b = torch.randn(2, 3000)
    sums = sketch([a, b])
    assert sums.shape == (2, 8)
    rows = [sketch([a]), sketch([b])]
    np.testing.assert_array_equal(sums, np.concatenate(rows))  # the same signs for all
    apart = np.linalg.norm(sums[0] - sums[1]) / np.sqrt(8)
    assert 0.4 < apart / (a - b).norm().item() < 1.8
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, (3000,), generator=generator, dtype=torch.int8).double() - 1
    assert sums[0, 0] == pytest.approx((signs * a).sum().item())


def test_a_digest_is_of_every_number_and_every_module():
    model = low_bit(cnn())
    digests = {digest_of_model(model)}
    assert digests == {digest_of_model(low_bit(cnn()))}
    changes = [
        lambda m: m[1].fc.bias.data.add_(1e-7),
        lambda m: m[1].bn1.running_mean.add_(1e-7),
        lambda m: m[1].conv1.weight_quantizer.step.data.mul_(1.001),
        lambda m: setattr(m[1].conv2.input_quantizer, "bits", 3),
        lambda m: setattr(m[1], "relu1", nn.GELU()),
        lambda m: setattr(m[1].bn2, "eps", 1e-3),
    ]
    for number, change in enumerate(changes):
        model = low_bit(cnn())
        change(model)
        digests.add(digest_of_model(model))
        assert len(digests) == number + 2


def test_a_digest_of_images_is_of_labels_and_normalisation_too():
    images, labels = cnn_data()
    splits = [
        Split(images, labels),
        Split(images + 1e-3, labels),
        Split(images, labels.flip(0)),
        Split(images, labels, mean=(0.1,), std=(1.0,)),
    ]
    assert len({digest_of_images(s) for s in splits}) == 4
    assert digest_of_images(splits[0]) == digest_of_images(Split(images.clone(), labels))


def test_losses_have_names():
    assert loss_name(nn.functional.cross_entropy) == "cross_entropy"
    assert loss_name(nn.CrossEntropyLoss()) == "CrossEntropyLoss"
