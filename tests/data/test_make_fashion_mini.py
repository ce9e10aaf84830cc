"""The committed file is what its script makes of the official files."""

import hashlib
import importlib.util
import io
import zipfile

import numpy as np
import pytest

from qatviz import datasets

PARTS = {"train": 10_000, "validation": 2_000, "unlabelled": 5_000, "test": 5_000}
PATH = datasets.DATA / "fashion_mini.npz"
RAW = datasets.DATA / "cache" / "FashionMNIST" / "raw"


@pytest.fixture(scope="module")
def mini():
    with np.load(PATH) as file:
        return dict(file)


@pytest.fixture(scope="module")
def script():
    path = datasets.DATA / "make_fashion_mini.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_the_file_is_small_and_the_one_that_the_library_expects():
    content = PATH.read_bytes()
    assert len(content) <= 10_000_000
    assert hashlib.sha256(content).hexdigest() == datasets.MINI_SHA256


def test_sizes_and_labels(mini):
    for part, size in PARTS.items():
        assert mini[f"{part}_images"].shape == (size, 28, 28)
        assert mini[f"{part}_indices"].shape == mini[f"{part}_labels"].shape == (size,)
        expected = {-1: size} if part == "unlabelled" else dict.fromkeys(range(10), size // 10)
        labels, counts = np.unique(mini[f"{part}_labels"], return_counts=True)
        assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == expected


def test_no_official_image_is_in_two_splits(mini):
    official = [mini[f"{part}_indices"] for part in ("train", "validation", "unlabelled")]
    assert len(np.unique(np.concatenate(official))) == 17_000
    assert np.concatenate(official).max() < 60_000
    assert len(np.unique(mini["test_indices"])) == 5_000
    assert mini["test_indices"].max() < 10_000


def test_the_licence_travels_with_the_images(mini):
    licence = mini["license"].item()
    assert "Copyright © 2017 Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence
    assert licence == (datasets.DATA / "FASHION_MNIST_LICENSE").read_text(encoding="utf-8")


def test_the_bytes_hold_no_time_of_making():
    with zipfile.ZipFile(io.BytesIO(PATH.read_bytes())) as file:
        assert {member.date_time[:3] for member in file.infolist()} == {(1980, 1, 1)}


def test_a_small_one_is_made_twice_alike(script, monkeypatch, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, labels = {}, {}
    for part, n in (("train", 600), ("t10k", 100)):
        images[part], labels[part] = generator.integers(256, size=(n, 4, 4)), np.arange(n) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    monkeypatch.setattr(script, "SIZES", {"train": 100, "validation": 20, "unlabelled": 50})
    monkeypatch.setattr(script, "TEST", 50)
    first = script.make(tmp_path, tmp_path / "first.npz")
    assert script.make(tmp_path, tmp_path / "second.npz") == first
    with np.load(tmp_path / "first.npz") as made:
        for part, source in (("train", "train"), ("unlabelled", "train"), ("test", "t10k")):
            indices = made[f"{part}_indices"]
            assert np.array_equal(made[f"{part}_images"], images[source][indices])
            assert np.bincount(labels[source][indices]).tolist() == [len(indices) // 10] * 10
        assert np.array_equal(made["test_labels"], labels["t10k"][made["test_indices"]])
        assert set(made["unlabelled_labels"].tolist()) == {-1}
        assert made["mean"][0] == pytest.approx(made["train_images"].mean() / 255)


@pytest.mark.skipif(not RAW.is_dir(), reason="the official files are not in data/cache")
def test_the_official_files_give_the_committed_arrays(script, mini, tmp_path):
    script.make(RAW.parents[1], tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        assert set(again) == set(mini)
        assert all(np.array_equal(again[name], mini[name]) for name in mini)
