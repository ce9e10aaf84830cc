"""Make fashion_mini.npz, the data set that comes with the repository.

A subset of Fashion-MNIST (Zalando Research, MIT licence: FASHION_MNIST_LICENSE), the same number
of each class: 10,000 training, 2,000 validation and 5,000 unlabelled images, no image twice, out
of the official 60,000 training images, and 5,000 out of the official 10,000 test images. Their
official indices are stored, the labels of the unlabelled ones are not.

    python data/make_fashion_mini.py data/cache

reads the official files in ``data/cache/FashionMNIST/raw`` (``qatviz.datasets.load`` puts them
there), writes ``data/fashion_mini.npz`` and prints its SHA-256, which belongs into
``qatviz/datasets.py``. The same files give the same bytes.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST

from qatviz.datasets import channel_statistics, stratified_order

HERE = Path(__file__).resolve().parent
SIZES = {"train": 10_000, "validation": 2_000, "unlabelled": 5_000}
TEST = 5_000


def make(root: Path, path: Path) -> str:
    """Write the file.

    Args:
        root: The folder that has ``FashionMNIST/raw``.
        path: Of the file to write.

    Returns:
        Its SHA-256.
    """
    official, test = FashionMNIST(root, train=True), FashionMNIST(root, train=False)
    order = stratified_order(official.targets)[: sum(SIZES.values())]
    chosen = dict(zip(SIZES, order.split(list(SIZES.values())), strict=True))
    arrays = {}
    for part, indices in (chosen | {"test": stratified_order(test.targets)[:TEST]}).items():
        source = test if part == "test" else official
        hidden = torch.full_like(indices, -1)
        labels = hidden if part == "unlabelled" else source.targets[indices]
        arrays[f"{part}_images"] = source.data[indices].numpy()
        arrays[f"{part}_labels"] = labels.numpy().astype(np.int8)
        arrays[f"{part}_indices"] = indices.numpy().astype(np.int32)
    mean, std = channel_statistics(official.data[chosen["train"]].unsqueeze(1))
    # savez gives every member the same date (1980), so the bytes depend on the arrays alone.
    np.savez_compressed(
        path,
        **arrays,
        mean=np.array(mean),
        std=np.array(std),
        classes=np.array(official.classes),
        license=np.array((HERE / "FASHION_MNIST_LICENSE").read_text(encoding="utf-8")),
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make fashion_mini.npz.")
    parser.add_argument("root", type=Path, help="the folder that has FashionMNIST/raw")
    target = HERE / "fashion_mini.npz"
    print(f"{make(parser.parse_args().root, target)}  {target.name}  {target.stat().st_size} B")
