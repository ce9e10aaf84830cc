"""Splits, the embedded set, downloads from a local server, and image folders."""

import gzip
import hashlib
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST

from qatviz import datasets
from qatviz.datasets import Dataset, Split, channel_statistics, load, stratified_order


def some_images(n=6, channels=3, size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def some_split(n=6, **changes):
    made = {
        "images": some_images(n),
        "labels": torch.arange(n) % 2,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.1, 0.5),
        "classes": ("cat", "dog"),
    }
    return Split(**(made | changes))


# Split


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(6, 2, 2)}, r"shape \(6, 2, 2\); allowed: \[images, channels"),
        ({"images": torch.zeros(0, 3, 2, 2)}, r"shape \(0, 3, 2, 2\); allowed"),
        ({"images": torch.zeros(6, 3, 2, 2).int()}, r"torch.int32; allowed: torch.uint8"),
        ({"labels": torch.zeros(5).long()}, r"shape \(5,\); allowed: torch.int64 of shape \(6,\)"),
        ({"labels": torch.zeros(6).int()}, r"labels are torch.int32 .* allowed: torch.int64"),
        ({"labels": torch.tensor([0, 1, 0, 1, 0, 2])}, r"from 0 to 2; allowed: .* 0 to 1"),
        ({"labels": torch.tensor([0, 1, 0, 1, 0, -2])}, r"from -2 to 1; allowed: -1"),
        ({"mean": (0.5,)}, r"1 and 3 values; allowed: 3 each"),
        ({"mean": (0.5,), "std": (0.5,)}, r"1 and 1 values; allowed: 3 each"),
        ({"std": (0.2, 0.0, 0.5)}, r"std is \(0.2, 0.0, 0.5\); allowed: .* above 0"),
        ({"std": (0.2, float("nan"), 0.5)}, "allowed: .* above 0"),
        ({"mean": (0.2, float("inf"), 0.5)}, "allowed: finite"),
    ],
)
def test_a_split_that_is_none_says_what_it_got_and_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        some_split(**changes)


def test_images_that_are_not_finite_are_counted_and_the_first_is_named():
    images = torch.zeros(6, 3, 2, 2)
    images[2, 1, 0, 0], images[4, 0, 1, 1] = float("nan"), -float("inf")
    with pytest.raises(
        ValueError, match="2 of 6 images hold NaN or infinity, the first at index 2"
    ):
        some_split(images=images)


def test_uint8_images_are_divided_by_255_and_normalised_per_channel():
    split = some_split()
    got = split.normalise(split.images)
    for n, channel, y, x in [(0, 0, 0, 0), (1, 1, 1, 0), (5, 2, 0, 1)]:
        level = split.images[n, channel, y, x].item()
        expected = (level / 255 - (0.5, 0.4, 0.3)[channel]) / (0.2, 0.1, 0.5)[channel]
        assert got[n, channel, y, x].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert got.dtype == torch.float32


def test_float_images_keep_their_scale_and_are_not_changed_in_place():
    images = torch.full((1, 3, 2, 2), 200.0, dtype=torch.float64)
    got = some_split().normalise(images)
    assert got[0, :, 0, 0].tolist() == pytest.approx([997.5, 1996.0, 399.4])
    assert got.dtype == torch.float32
    same = images.float()
    assert torch.equal(some_split().normalise(same), got)
    assert (same == 200).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_normalised_pixel_is_exact_to_the_last_bit(dtype, layout):
    images = torch.arange(256).view(1, 1, 16, 16).repeat(2, 3, 1, 1).to(dtype)
    images = images.contiguous(memory_format=layout)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    got = some_split(mean=mean, std=std).normalise(images)
    f = np.float32
    for channel in range(3):
        for level in range(256):
            pixel = f(level) / f(255) if dtype == torch.uint8 else f(level)
            expected = (pixel - f(mean[channel])) / f(std[channel])
            assert (got[:, channel].flatten(1)[:, level] == expected.item()).all()
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("normalisation", [{}, {"mean": (), "std": ()}])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalised_images_are_new_ones(normalisation, dtype):
    images = some_images().to(dtype)
    before = images.clone()
    some_split(**normalisation).normalise(images).fill_(-1)
    assert torch.equal(images, before)


def test_without_mean_and_std_pixels_end_in_0_to_1():
    split = some_split(mean=(), std=())
    assert torch.equal(split.normalise(split.images), split.images.float() / 255)


def test_normalise_refuses_another_number_of_channels_and_integers():
    with pytest.raises(ValueError, match=r"shape \(2, 1, 2, 2\); allowed: \[batch, 3, "):
        some_split().normalise(some_images(2, channels=1))
    with pytest.raises(ValueError, match=r"torch\.int64; allowed: torch\.uint8"):
        some_split().normalise(some_images(2).long())


def test_batches_walk_in_order_and_end_with_the_rest():
    split = some_split(7)
    batches = list(split.batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), split.normalise(split.images))
    assert torch.equal(torch.cat([y for _, y in batches]), split.labels)


def test_a_generator_shuffles_images_with_their_labels():
    images = torch.arange(50.0).view(50, 1, 1, 1)
    split = Split(images, torch.arange(50))
    drawn = [
        list(split.batches(8, generator=torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)
    ]
    orders = [torch.cat([y for _, y in batches]).tolist() for batches in drawn]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != list(range(50)) == sorted(orders[0])
    assert all(torch.equal(x.flatten().long(), y) for x, y in drawn[0])


def test_a_limit_takes_the_first_images_of_the_order():
    split = Split(torch.zeros(50, 1, 1, 1), torch.arange(50))
    assert [y.tolist() for _, y in split.batches(4, limit=6)] == [[0, 1, 2, 3], [4, 5]]
    ((_, drawn),) = split.batches(generator=torch.Generator().manual_seed(0), limit=6)
    assert len(set(drawn.tolist())) == 6
    assert max(drawn) > 5
    assert len(list(split.batches(50, limit=1000))) == 1


def test_batches_refuse_sizes_below_1_at_the_call():
    for arguments in ({"size": 0}, {"limit": 0}, {"limit": -1}):
        with pytest.raises(ValueError, match="allowed: 1 or more"):
            some_split().batches(**arguments)


def test_a_subset_is_the_first_images_or_the_chosen_ones():
    split = some_split()
    assert torch.equal(split.subset(2).images, split.images[:2])
    chosen = split.subset(torch.tensor([4, 1]))
    assert torch.equal(chosen.images, torch.stack([split.images[4], split.images[1]]))
    assert chosen.labels.tolist() == [0, 1]
    assert (chosen.mean, chosen.std, chosen.classes) == (split.mean, split.std, split.classes)
    assert len(split.subset(split.labels == 1)) == 3


@pytest.mark.parametrize("count", [0, -1, 7])
def test_a_subset_of_a_wrong_size_is_refused(count):
    with pytest.raises(ValueError, match=f"count is {count}; allowed: 1..6"):
        some_split().subset(count)


def test_a_split_moves_to_another_device_whole():
    moved = some_split().to(torch.device("cpu"))
    assert torch.equal(moved.images, some_split().images)


def test_representations_name_no_address_and_escape_classes():
    split = some_split(labels=torch.tensor([0, 1, 1, -1, 0, 1]), classes=("<b>", "dog"))
    assert repr(split) == (
        "Split(6 images, 3×2×2 uint8, 5 labelled, 2–3 per class; "
        "mean (0.5000, 0.4000, 0.3000), std (0.2000, 0.1000, 0.5000))"
    )
    data = Dataset("tiny", split, split, split, split.subset(4))
    assert repr(data).splitlines() == [
        "Dataset 'tiny'",
        "  train       6 images, 3×2×2 uint8, 5 labelled, 2–3 per class",
        "  validation  6 images, 3×2×2 uint8, 5 labelled, 2–3 per class",
        "  test        6 images, 3×2×2 uint8, 5 labelled, 2–3 per class",
        "  unlabelled  4 images, 3×2×2 uint8, 3 labelled, 1–2 per class",
        "  classes: <b>, dog",
        "  mean (0.5000, 0.4000, 0.3000), std (0.2000, 0.1000, 0.5000)",
    ]
    assert "0–6 per class" in repr(some_split(labels=torch.zeros(6).long()))
    page = data._repr_html_()
    assert "<td>unlabelled</td><td>4</td><td>3×2×2 uint8</td><td>3</td><td>1–2</td>" in page
    assert "&lt;b&gt;, dog" in page
    assert "<b>" not in page + split._repr_html_()


def test_the_splits_of_a_data_set_are_alike():
    split = some_split()
    for what, other in (
        ("images", some_split(images=torch.zeros(6, 3, 2, 4))),
        ("classes", some_split(classes=("cat", "cow"))),
        ("mean", some_split(mean=(0.0, 0.0, 0.0))),
        ("std", some_split(std=(1.0, 1.0, 1.0))),
    ):
        with pytest.raises(ValueError, match=f"{what} of test: .*; allowed, as in train: "):
            Dataset("odd", split, split, other)


# Orders and statistics


def test_classes_of_one_size_take_turns():
    labels = torch.arange(40) // 10
    order = stratified_order(labels)
    assert order.sort().values.tolist() == list(range(40))
    turns = labels[order].view(10, 4)
    assert (turns.sort(1).values == torch.arange(4)).all()
    assert len({tuple(turn) for turn in turns.tolist()}) > 3
    assert not torch.equal(order, stratified_order(labels, seed=1))


def test_a_small_class_is_spread_over_the_whole():
    labels = torch.tensor([0] * 90 + [1] * 10)
    places = (labels[stratified_order(labels)] == 1).nonzero().flatten()
    assert set(places.diff().tolist()) <= {9, 10, 11}
    assert 3 <= places[0] <= 7


def test_the_order_stays_the_same_from_release_to_release():
    order = stratified_order(torch.arange(12) % 3)
    assert order.tolist() == [7, 0, 8, 9, 5, 4, 3, 10, 2, 6, 11, 1]


def test_statistics_are_those_of_all_pixels_of_a_channel():
    images = some_images(50, size=3)
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std(1).tolist(), abs=1e-12)


# load: names and the embedded set


def test_load_says_which_arguments_it_takes(tmp_path):
    with pytest.raises(ValueError, match="'mnist'; allowed: fashion-mini, fashion-mnist, cifar10"):
        load("mnist")
    with pytest.raises(ValueError, match="root is None; allowed: a folder"):
        load("imagefolder")
    with pytest.raises(ValueError, match="nowhere; allowed: a folder"):
        load("imagefolder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="allowed for fashion-mini: None"):
        load("fashion-mini", mirror="https://example.org")


@pytest.fixture(scope="module")
def mini():
    return load("fashion-mini")


def test_the_embedded_set_is_balanced(mini):
    sizes = {"train": 10_000, "validation": 2_000, "test": 5_000}
    for part, size in sizes.items():
        split = getattr(mini, part)
        assert split.images.shape == (size, 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert split.labels.bincount().tolist() == [size // 10] * 10
        assert split.subset(50).labels.bincount().tolist() == [5] * 10
    assert mini.unlabelled.images.shape == (5_000, 1, 28, 28)
    assert set(mini.unlabelled.labels.tolist()) == {-1}
    assert mini.classes[0] == "T-shirt/top"
    assert len(mini.classes) == 10


def test_the_embedded_set_is_normalised_by_its_training_split(mini):
    normal = mini.train.normalise(mini.train.images)
    assert normal.mean().item() == pytest.approx(0, abs=1e-4)
    assert normal.std().item() == pytest.approx(1, abs=1e-4)


def test_a_damaged_embedded_file_is_named_with_both_checksums(tmp_path):
    path = tmp_path / "fashion_mini.npz"
    with pytest.raises(FileNotFoundError, match=r"fashion_mini\.npz is missing"):
        load("fashion-mini", tmp_path)
    path.write_bytes((datasets.DATA / "fashion_mini.npz").read_bytes()[:-1])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = hashlib.sha256((datasets.DATA / "fashion_mini.npz").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path}.*{found}; expected: {expected}"):
        load("fashion-mini", tmp_path)


# Downloads: tiny archives, read by torchvision's own readers, from a server on this machine


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


class Server:
    """Files in memory, with ranges; ``stop_after`` cuts answers short."""

    def __init__(self):
        self.files, self.asked, self.stop_after = {}, [], None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, have = self.path.rpartition("/")[2], self.headers.get("Range")
                server.asked.append((name, have))
                if name not in server.files:
                    return self.send_error(404)
                content = server.files[name]
                start = int(have[6:-1]) if have else 0
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if have else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: server.stop_after])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/mirror"


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def fashion(monkeypatch, server):
    """A Fashion-MNIST of 40 + 20 images of 4 pixels; ten of the 40 are for validation."""
    generator = np.random.default_rng(0)
    raw = {}
    for part, n in (("train", 40), ("t10k", 20)):
        raw[f"{part}-images-idx3-ubyte"] = idx(generator.integers(256, size=(n, 2, 2)))
        raw[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n) % 10)
    server.files |= {f"{name}.gz": gzip.compress(content) for name, content in raw.items()}
    archives = tuple(
        datasets._Archive(
            f"FashionMNIST/raw/{name}.gz", md5(server.files[f"{name}.gz"]), {name: md5(content)}
        )
        for name, content in raw.items()
    )
    source = datasets._Download(FashionMNIST, server.url, 1, archives, (0.3,), (0.3,))
    monkeypatch.setitem(datasets._DOWNLOADS, "fashion-mnist", source)
    monkeypatch.setattr(datasets, "CARVED", 10)
    return raw


@pytest.fixture
def cifar(monkeypatch, server, tmp_path):
    """A CIFAR-10 of one training batch of 40 images and a test batch of 20."""
    generator = np.random.default_rng(0)
    contents = {"batches.meta": {"label_names": [f"class {i}" for i in range(10)]}}
    for name, n in (("data_batch_1", 40), ("test_batch", 20)):
        pixels = generator.integers(256, size=(n, 3072), dtype=np.uint8)
        contents[name] = {"data": pixels, "labels": [i % 10 for i in range(n)]}
    packed = tmp_path / "packed" / "cifar-10-batches-py"
    packed.mkdir(parents=True)
    for name, content in contents.items():
        (packed / name).write_bytes(pickle.dumps(content))
    sums = {name: md5((packed / name).read_bytes()) for name in contents}
    with tarfile.open(tmp_path / "packed" / "tiny.tar.gz", "w:gz") as tar:
        tar.add(packed, arcname=packed.name)
    server.files["tiny.tar.gz"] = (tmp_path / "packed" / "tiny.tar.gz").read_bytes()

    class Tiny(CIFAR10):
        url, filename = f"{server.url}/tiny.tar.gz", "tiny.tar.gz"
        tgz_md5 = md5(server.files["tiny.tar.gz"])
        train_list = (("data_batch_1", sums["data_batch_1"]),)
        test_list = (("test_batch", sums["test_batch"]),)
        meta = CIFAR10.meta | {"md5": sums["batches.meta"]}

    source = datasets._cifar(Tiny, 1, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    monkeypatch.setitem(datasets._DOWNLOADS, "cifar10", source)
    monkeypatch.setattr(datasets, "CARVED", 10)
    return contents


def test_a_set_is_downloaded_once_and_announced(fashion, server, tmp_path, capsys):
    first = load("fashion-mnist", tmp_path)
    out, err = capsys.readouterr()
    assert out == f"Downloading fashion-mnist (1 MB in all) from {server.url} to {tmp_path}\n"
    assert "100%" in err
    asked = len(server.asked)
    again = load("fashion-mnist", tmp_path)
    assert (asked, len(server.asked)) == (4, 4)
    assert capsys.readouterr().out == ""
    assert torch.equal(first.train.images, again.train.images)


def test_the_validation_split_is_a_balanced_part_of_the_training_images(fashion, tmp_path):
    data = load("fashion-mnist", tmp_path)
    assert data.train.labels.bincount().tolist() == [3] * 10
    assert data.validation.labels.bincount().tolist() == [1] * 10
    assert data.test.labels.bincount().tolist() == [2] * 10
    official = np.frombuffer(fashion["train-images-idx3-ubyte"][16:], np.uint8).reshape(-1, 4)
    labels = fashion["train-labels-idx1-ubyte"][8:]
    expected = sorted(
        (*image, label) for image, label in zip(official.tolist(), labels, strict=True)
    )
    got = [
        (*image.flatten().tolist(), label.item())
        for split in (data.train, data.validation)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(got) == expected


def test_cifar_images_come_out_channels_first(cifar, tmp_path):
    data = load("cifar10", tmp_path)
    assert data.train.images.shape == (30, 3, 32, 32)
    assert data.classes[9] == "class 9"
    rows = cifar["test_batch"]["data"].reshape(20, 3, 32, 32)
    order = stratified_order(torch.arange(20) % 10)
    assert np.array_equal(data.test.images.numpy(), rows[order.numpy()])
    assert data.test.images.is_contiguous()


def test_the_published_constants():
    sources = datasets._DOWNLOADS
    assert sources["fashion-mnist"].mean == (0.2860,)
    assert sources["cifar10"].std == (0.2470, 0.2435, 0.2616)
    assert sources["cifar100"].mean == (0.5071, 0.4865, 0.4409)
    assert sources["cifar10"].url == "https://www.cs.toronto.edu/~kriz"


def test_an_interrupted_download_goes_on_where_it_stopped(cifar, server, tmp_path):
    server.stop_after = 1000
    with pytest.raises(ConnectionError, match="was not downloaded"):
        load("cifar10", tmp_path)
    part = tmp_path / "tiny.tar.gz.part"
    assert part.stat().st_size == 1000
    assert not (tmp_path / "tiny.tar.gz").exists()
    server.stop_after = None
    load("cifar10", tmp_path)
    assert server.asked == [("tiny.tar.gz", None), ("tiny.tar.gz", "bytes=1000-")]
    assert not part.exists()


def test_a_download_that_was_complete_is_not_asked_for_again(cifar, server, tmp_path):
    (tmp_path / "tiny.tar.gz.part").write_bytes(server.files["tiny.tar.gz"])
    assert len(load("cifar10", tmp_path).test) == 20


def test_a_wrong_download_is_not_kept(cifar, server, tmp_path):
    right, server.files["tiny.tar.gz"] = server.files["tiny.tar.gz"], b"<html>log in</html>"
    message = f"tiny.tar.gz has MD5 {md5(b'<html>log in</html>')}; expected: {md5(right)}"
    with pytest.raises(ValueError, match=message):
        load("cifar10", tmp_path)
    server.files["tiny.tar.gz"] = right
    assert len(load("cifar10", tmp_path).test) == 20


def test_without_network_the_error_says_what_to_do(cifar, fashion, tmp_path):
    mirror = "http://127.0.0.1:9"  # nobody listens
    with pytest.raises(ConnectionError) as caught:
        load("cifar10", tmp_path / "c", mirror=mirror)
    assert f"put tiny.tar.gz into {tmp_path / 'c'} by hand" in str(caught.value)
    assert 'load("fashion-mini")' in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ConnectionError) as caught:
        load("fashion-mnist", tmp_path / "f", mirror=mirror)
    files = ", ".join(f"{name}.gz" for name in fashion)
    assert f"put {files} into {tmp_path / 'f' / 'FashionMNIST' / 'raw'} by" in str(caught.value)


def test_files_put_there_by_hand_need_no_network(cifar, fashion, server, tmp_path):
    (tmp_path / "tiny.tar.gz").write_bytes(server.files["tiny.tar.gz"])
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for number, (name, content) in enumerate(fashion.items()):
        if number % 2:
            (raw / name).write_bytes(content)
        else:  # packed by somebody else: another archive of the same file
            (raw / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=1))
    assert len(load("cifar10", tmp_path, mirror="http://127.0.0.1:9").test) == 20
    assert len(load("fashion-mnist", tmp_path, mirror="http://127.0.0.1:9").test) == 20
    assert server.asked == []


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:-1] + b"\xff", lambda b: b""])
def test_a_damaged_file_is_named_with_its_expected_checksum(cifar, fashion, tmp_path, damage):
    for name, file in (
        ("fashion-mnist", tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"),
        ("cifar10", tmp_path / "cifar-10-batches-py" / "data_batch_1"),
    ):
        load(name, tmp_path)
        expected = md5(file.read_bytes())
        file.write_bytes(damage(file.read_bytes()))
        found = md5(file.read_bytes())
        message = f"{file} is damaged: its MD5 is {found}, expected: {expected}"
        with pytest.raises(ValueError, match=re.escape(message)):
            load(name, tmp_path)
        file.unlink()
        assert len(load(name, tmp_path).test) == 20


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no archive"])
def test_a_damaged_archive_is_named_and_leaves_nothing(fashion, cifar, server, tmp_path, damage):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path, name in (
        (raw / "train-images-idx3-ubyte.gz", "fashion-mnist"),
        (tmp_path / "tiny.tar.gz", "cifar10"),
    ):
        right = server.files[path.name]
        path.write_bytes(damage(right))
        with pytest.raises(ValueError, match=f"{path} is damaged: .*, expected: {md5(right)}"):
            load(name, tmp_path)
        unpacked = {"train-images-idx3-ubyte", "cifar-10-batches-py"}
        assert not unpacked & {file.name for file in path.parent.iterdir()}
        path.unlink()
        assert len(load(name, tmp_path).test) == 20


def test_another_file_in_an_archive_is_noticed(fashion, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load("fashion-mnist", tmp_path)


# Image folders


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A maker of folders of small images, whose decoded tensors are kept below ``tmp_path``."""
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    generator = np.random.default_rng(0)

    def make(counts, root=tmp_path / "pictures", size=(4, 3)):
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i:04}.png")
        return root

    return make


def read(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def holds(split, paths):
    """Whether the split holds the images at these paths, each once, in any order."""
    expected = sorted(read(path).flatten().tolist() for path in paths)
    return sorted(split.images.flatten(1).tolist()) == expected


def test_folders_are_read_as_they_are_named(folder):
    root = folder(
        {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2, "test/cat": 1, "test/dog": 1}
    )
    data = load("imagefolder", root)
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        split = getattr(data, part)
        for label, kind in enumerate(("cat", "dog")):
            assert holds(split.subset(split.labels == label), (root / name / kind).iterdir())
    assert (data.name, data.classes) == ("pictures", ("cat", "dog"))
    assert (data.mean, data.std) == channel_statistics(data.train.images)
    assert data.train.images.shape == (5, 3, 4, 3)


def test_parts_without_a_folder_are_a_tenth_of_every_class(folder):
    data = load("imagefolder", folder({"cat": 20, "dog": 20, "owl": 20}))
    assert data.train.labels.bincount().tolist() == [16] * 3
    assert data.validation.labels.bincount().tolist() == [2] * 3
    assert data.test.labels.bincount().tolist() == [2] * 3
    everything = [data.train.images, data.validation.images, data.test.images]
    assert len(torch.cat(everything).unique(dim=0)) == 60


def test_with_a_test_folder_only_validation_is_carved(folder):
    root = folder({"train/cat": 10, "train/dog": 10, "test/cat": 3, "test/dog": 3})
    data = load("imagefolder", root)
    assert [len(data.train), len(data.validation), len(data.test)] == [18, 2, 6]
    assert holds(data.test, root.glob("test/*/*"))


def test_images_are_decoded_once_until_a_file_changes(folder, monkeypatch, capsys):
    root = folder({"cat": 10, "dog": 10})
    bitmap = root / "cat" / "grey.bmp"  # of the same size in bytes whatever it shows
    Image.fromarray(np.full((4, 3, 3), 76, np.uint8)).save(bitmap)
    first = load("imagefolder", root)
    assert "decoding" in capsys.readouterr().err
    again = load("imagefolder", root)
    assert capsys.readouterr().err == ""
    assert torch.equal(first.train.images, again.train.images)
    Image.fromarray(np.full((4, 3, 3), 77, np.uint8)).save(bitmap)
    os.utime(bitmap, (1, 1))
    changed = load("imagefolder", root)
    everything = [changed.train.images, changed.validation.images, changed.test.images]
    assert (torch.cat(everything).flatten(1) == 77).all(1).sum() == 1


def test_a_damaged_cache_is_made_again(folder, tmp_path):
    root = folder({"cat": 10, "dog": 10})
    first = load("imagefolder", root)
    (kept,) = (tmp_path / "data" / "cache" / "imagefolder").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(load("imagefolder", root).train.images, first.train.images)
    assert kept.stat().st_size > 100


def test_images_that_cannot_be_kept_are_still_loaded(folder, tmp_path):
    root = folder({"cat": 10, "dog": 10})
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="were not kept"):
        assert len(load("imagefolder", root).train) == 16


def test_the_first_image_of_another_size_is_named(folder):
    root = folder({"cat": 2, "dog": 1})
    folder({"owl": 2}, size=(5, 7))
    message = rf"{root / 'owl' / '0000.png'} is 7×5 .*; allowed, as in .*0000.png: 3×4"
    with pytest.raises(ValueError, match=message):
        load("imagefolder", root)


def test_a_damaged_image_is_named(folder):
    root = folder({"cat": 2, "dog": 2}, size=(40, 40))
    path = root / "dog" / "0001.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path} is damaged or no image"):
        load("imagefolder", root)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/cat": 2, "test/dog": 2}, r"test has the classes \['dog'\]; .*: \['cat'\]"),
        ({"test/cat": 2, "val/cat": 1}, "holds .*val.*; allowed: train and"),
        ({"train/cat": 2, "train/dog": 0}, "no valid file for the classes dog"),
    ],
)
def test_other_layouts_are_refused(folder, counts, message):
    with pytest.raises(ValueError, match=message):
        load("imagefolder", folder(counts))


# torchvision of another build


def test_a_torchvision_built_for_another_torch_is_explained(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    paths = [str(tmp_path), str(Path(datasets.__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {paths}; import qatviz.datasets"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: torchvision was built for another torch: reinstall both together, from "
        "the same index, with `pip install --force-reinstall torch torchvision`."
    )
