"""A data set is images and labels as tensors in memory.

``load("fashion-mini")`` comes with the repository and needs no network; ``"fashion-mnist"``,
``"cifar10"`` and ``"cifar100"`` are downloaded once; ``"imagefolder"`` reads a folder of yours.
Your own tensors are a data set too: build a ``Split`` from them.

Images stay uint8 until they are used, because views (``qatviz.augment``) work on raw images and
a float copy is four times as large: ``split.normalise`` comes last.
"""

import gzip
import hashlib
import html
import io
import os
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

try:
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, ImageFolder
    from torchvision.datasets.folder import default_loader
    from torchvision.datasets.utils import extract_archive
    from torchvision.transforms.functional import pil_to_tensor
except RuntimeError as error:
    # "operator torchvision::nms does not exist": torchvision was built for another torch.
    raise ImportError(
        "torchvision was built for another torch: reinstall both together, from the same "
        "index, with `pip install --force-reinstall torch torchvision`."
    ) from error

__all__ = ["Dataset", "Split", "channel_statistics", "load", "stratified_order"]

DATA = Path(__file__).resolve().parents[1] / "data"
MINI_SHA256 = "bb8de1a78e1eed4fba0b30f28f851a7e6a6170c9fff59a64936ab363c8acb942"
SEED = 0  # ours: of every order and every carved split
CARVED = 5000  # ours: validation images taken from a downloaded training set
FRACTION = 0.1  # ours: of an image folder's training images, for each part that has no folder


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, and how to normalise them.

    Attributes:
        images: ``[images, channels, height, width]``; uint8 in 0..255, or finite floats,
            customarily in [0, 1].
        labels: ``[images]``, int64: a class from 0, or −1 for an image without a label.
        mean: Per channel, in units of [0, 1]. Default: ``()``, no normalisation (ours).
        std: Per channel, in units of [0, 1], above 0. Default: ``()``, no normalisation (ours).
        classes: The name of each class. Default: ``()``, names and number unknown (ours).

    Raises:
        ValueError: At construction, if a tensor has another shape or dtype, an image is not
            finite, a label is no class, or ``mean`` and ``std`` do not fit the channels.
    """

    # No shapes in these types: __post_init__ checks them always, and says it in one sentence.
    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.classes))
        _check_normalisation(self.mean, self.std, self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)

    def normalise(
        self, images: Shaped[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Return ``(images − mean) / std`` per channel.

        Args:
            images: ``[batch, channels, height, width]``; uint8 is divided by 255 first, floats
                are taken as they are, in the units of ``mean``.

        Returns:
            New float32 images of the same shape, on the same device.

        Raises:
            ValueError: If the images have another number of channels, or are neither uint8
                nor floating.
        """
        _check_dtype(images)
        channels = self.images.shape[1]
        if images.ndim != 4 or images.shape[1] != channels:
            # A single channel would broadcast against three means without a word.
            raise ValueError(
                f"images have shape {tuple(images.shape)}; "
                f"allowed: [batch, {channels}, height, width]"
            )
        # In place on the one new tensor: fetching fresh memory takes longer than the arithmetic.
        floats = images.to(torch.float32, copy=True)
        if images.dtype == torch.uint8:
            floats.div_(255)
        if self.mean:
            mean, std = (floats.new_tensor(s).view(1, -1, 1, 1) for s in (self.mean, self.std))
            floats.sub_(mean).div_(std)
        return floats

    def batches(
        self,
        size: int = 256,
        *,
        generator: torch.Generator | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[Float32[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]]:
        """Walk once through the split in normalised batches.

        Args:
            size: Images in a batch, at least 1; the last batch may be smaller. Default: 256
                (ours).
            generator: Draws a random order, at the call. Default: None, the stored order
                (ours).
            limit: At most so many images, at least 1, the first of that order. Default: None,
                all (ours).

        Returns:
            An iterator over ``(images, labels)``.

        Raises:
            ValueError: If ``size`` or ``limit`` is below 1.
        """
        for name, value in (("size", size), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        if generator is None:
            order = torch.arange(len(self), device=self.labels.device)
        else:
            order = torch.randperm(len(self), generator=generator, device=generator.device)
        chosen = order[:limit].to(self.labels.device).split(size)
        return ((self.normalise(self.images[i]), self.labels[i]) for i in chosen)

    def subset(self, which: int | Shaped[Tensor, " chosen"]) -> "Split":
        """Return some of the images, with the same classes and normalisation.

        Splits from ``load`` are stored in a ``stratified_order``: any first images hold the
        classes in nearly the proportions of the whole.

        Args:
            which: A number of images, the first of the split, 1 to ``len(split)``; or a tensor
                of indices, or of booleans, one per image.

        Returns:
            A split of copies.

        Raises:
            ValueError: If a number is outside 1..``len(split)``.
        """
        if isinstance(which, int):
            if not 1 <= which <= len(self):
                raise ValueError(f"count is {which}; allowed: 1..{len(self)}")
            which = torch.arange(which)
        which = which.to(self.labels.device)
        return replace(self, images=self.images[which], labels=self.labels[which])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on another device; a small one then needs no copies in training."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def __repr__(self) -> str:
        return f"Split({', '.join(_cells(self))}; {_normalisation(self)})"

    def _repr_html_(self) -> str:
        return _table({"": self}, self)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of one set of images: alike in shape, classes and normalisation.

    Attributes:
        name: What ``load`` calls it.
        train: To train on.
        validation: To choose settings by.
        test: To report.
        unlabelled: More images, all labels −1. Default: None (ours).

    Raises:
        ValueError: At construction, if a split differs from ``train`` in the shape of an
            image, the classes, the mean or the standard deviation.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    unlabelled: Split | None = None

    def __post_init__(self) -> None:
        for part, split in self._splits().items():
            for what, got, allowed in (
                ("images", tuple(split.images.shape[1:]), tuple(self.train.images.shape[1:])),
                ("classes", split.classes, self.classes),
                ("mean", split.mean, self.mean),
                ("std", split.std, self.std),
            ):
                if got != allowed:
                    raise ValueError(f"{what} of {part}: {got}; allowed, as in train: {allowed}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.train.classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in units of [0, 1]."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in units of [0, 1]."""
        return self.train.std

    def _splits(self) -> dict[str, Split]:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return splits if self.unlabelled is None else splits | {"unlabelled": self.unlabelled}

    def __repr__(self) -> str:
        rows = [f"  {part:<11} {', '.join(_cells(s))}" for part, s in self._splits().items()]
        names = ", ".join(self.classes)
        return "\n".join(
            [
                f"Dataset {self.name!r}",
                *rows,
                f"  classes: {names}",
                f"  {_normalisation(self)}",
            ]
        )

    def _repr_html_(self) -> str:
        return f"<strong>{html.escape(self.name)}</strong>" + _table(self._splits(), self)


def load(name: str, root: str | Path | None = None, mirror: str | None = None) -> Dataset:
    """Load a data set by name.

    * ``"fashion-mini"``: 22,000 images of Fashion-MNIST that come with the repository.
    * ``"fashion-mnist"``, ``"cifar10"``, ``"cifar100"``: downloaded once, as announced by a
      line and a progress bar. 5,000 of the training images, the same number of each class,
      are the validation split. Without network: ``ConnectionError``, which says which files
      to put where by hand.
    * ``"imagefolder"``: ``root/train/<class>/*`` and, if they exist, ``validation`` (or
      ``val``) and ``test``; or only ``root/<class>/*``. A part without a folder is 10 % of
      every class of the training images. Decoded as RGB, once: the tensors are kept in
      ``data/cache`` until a file's name, size or time changes. The mean and standard deviation
      are those of the training split.

    Every order and every carved split is the same each time (seed 0: ours). Damaged files are a
    ``ValueError`` with the checksum found and the checksum expected.

    Args:
        name: One of the names above.
        root: Where the files are. Default: ``data`` of this repository for the embedded set,
            ``data/cache`` for a downloaded one (ours); an image folder has to be named.
        mirror: The address of a folder that has the archives under their usual names. Default:
            None, the address torchvision knows.

    Returns:
        The data set, as uint8 tensors in memory.

    Raises:
        ValueError: If the name is unknown, or ``root`` or ``mirror`` does not suit it.
    """
    allowed = ("fashion-mini", *_DOWNLOADS, "imagefolder")
    if name not in allowed:
        raise ValueError(f"name is {name!r}; allowed: {', '.join(allowed)}")
    if mirror is not None and name not in _DOWNLOADS:
        raise ValueError(f"mirror is {mirror!r}; allowed for {name}: None")
    root = None if root is None else Path(root).expanduser()
    if name == "fashion-mini":
        return _load_mini(root or DATA)
    if name in _DOWNLOADS:
        return _load_download(name, root or DATA / "cache", mirror)
    if root is None or not root.is_dir():
        raise ValueError(f"root is {root}; allowed: a folder of images")
    return _load_folder(root)


def stratified_order(
    labels: Int64[Tensor, " images"], seed: int = SEED
) -> Int64[Tensor, " images"]:
    """Return a random order in which the classes take turns.

    The k-th of the n images of a class comes at (k − ½)/n of the way, so that any first images
    hold the classes in nearly the proportions of the whole; where all classes have the same n,
    to within one image.

    Args:
        labels: ``[images]``, int64.
        seed: Of the order. Default: 0 (ours).

    Returns:
        A permutation of the indices, ``[images]``.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.unique(return_counts=True)[1].tolist()
    place = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts])
    # Shuffled again, so that classes of one size do not always follow in the same order.
    again = torch.randperm(len(labels), generator=generator)
    return by_class[again[place[again].argsort(stable=True)]]


def channel_statistics(
    images: UInt8[Tensor, "images channels height width"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation over all pixels of each channel.

    Args:
        images: ``[images, channels, height, width]``, uint8.

    Returns:
        Two tuples of one number per channel, in units of [0, 1].
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        # A histogram is exact and needs no float copy of the images.
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        means.append((share @ levels).item())
        stds.append((share @ (levels - means[-1]) ** 2).sqrt().item())
    return tuple(means), tuple(stds)


# What a split must be, and how it shows itself


def _check_dtype(images: Tensor) -> None:
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; allowed: torch.uint8 or floating")


def _check_images(images: Tensor) -> None:
    _check_dtype(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; "
            "allowed: [images, channels, height, width], none of them 0"
        )
    if images.is_floating_point():
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(images)} images hold NaN or infinity, the first at index "
                f"{bad[0]}; allowed: finite values"
            )


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (images,):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"allowed: torch.int64 of shape ({images},), one per image"
        )
    low, high = labels.min().item(), labels.max().item()
    if low < -1 or (classes and high >= classes):
        top = f"{classes - 1}" if classes else "the last class"
        raise ValueError(f"labels go from {low} to {high}; allowed: -1 (no label), 0 to {top}")


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if len(mean) != len(std) or len(mean) not in (0, channels):
        raise ValueError(
            f"mean and std have {len(mean)} and {len(std)} values; "
            f"allowed: {channels} each, one per channel, or none"
        )
    if not (np.isfinite(mean).all() and all(0 < s < np.inf for s in std)):
        raise ValueError(f"mean is {mean}, std is {std}; allowed: finite, std above 0")


def _cells(split: Split) -> tuple[str, str, str, str]:
    # images, shape, labelled, per class
    labelled = split.labels[split.labels >= 0]
    counts = torch.bincount(labelled, minlength=len(split.classes)).tolist() or [0]
    low, high = min(counts), max(counts)
    return (
        f"{len(split)} images",
        "×".join(map(str, split.images.shape[1:])) + f" {split.images.dtype}".replace("torch.", ""),
        f"{len(labelled)} labelled",
        f"{low} per class" if low == high else f"{low}–{high} per class",
    )


def _normalisation(source: Split | Dataset) -> str:
    if not source.mean:
        return "no normalisation"
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (source.mean, source.std))
    return f"mean ({mean}), std ({std})"


def _table(splits: dict[str, Split], source: Split | Dataset) -> str:
    heads = "".join(f"<th>{h}</th>" for h in ("split", "images", "shape", "labelled", "per class"))
    rows = ""
    for part, split in splits.items():
        images, shape, labelled, per_class = _cells(split)
        numbers = (part, images.split()[0], shape, labelled.split()[0], per_class.split()[0])
        rows += "<tr>" + "".join(f"<td>{cell}</td>" for cell in numbers) + "</tr>"
    names = html.escape(", ".join(source.classes)) or "unknown"
    return (
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>classes: {names}<br>normalisation: {_normalisation(source)}</p>"
    )


# The embedded set


def _load_mini(root: Path) -> Dataset:
    path = root / "fashion_mini.npz"
    restore = "it is part of the repository, `git checkout -- data/fashion_mini.npz` restores it"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {restore}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MINI_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}; expected: {MINI_SHA256}; {restore}")
    with np.load(io.BytesIO(content)) as file:
        mini = dict(file)
    splits = {
        part: Split(
            torch.from_numpy(mini[f"{part}_images"]).unsqueeze(1),
            torch.from_numpy(mini[f"{part}_labels"]).long(),
            tuple(mini["mean"].tolist()),
            tuple(mini["std"].tolist()),
            tuple(mini["classes"].tolist()),
        )
        for part in ("train", "validation", "test", "unlabelled")
    }
    return Dataset("fashion-mini", **splits)


# Downloaded sets. torchvision knows the addresses and checksums, and reads the files. The
# download is ours: torchvision's has no timeout, starts over after every interruption, and
# writes in place, so that an interrupted one leaves damaged files that are later believed.


@dataclass(frozen=True)
class _Archive:
    path: str  # below the root; its members are unpacked beside it
    md5: str
    members: dict[str, str]  # path: MD5


@dataclass(frozen=True)
class _Download:
    kind: type[FashionMNIST] | type[CIFAR10]
    url: str
    megabytes: int
    archives: tuple[_Archive, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _cifar(kind: type[CIFAR10], megabytes: int, mean, std) -> _Download:
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    members = {f"{kind.base_folder}/{file}": md5 for file, md5 in files}
    archive = _Archive(kind.filename, kind.tgz_md5, members)
    return _Download(kind, kind.url.rpartition("/")[0], megabytes, (archive,), mean, std)


# torchvision checks only the archives of Fashion-MNIST; these are the files in them, so that
# damaged ones are noticed too (computed from archives with the published checksums).
_FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

# Means and standard deviations over all pixels of the official training images. For CIFAR-10,
# (0.2023, 0.1994, 0.2010) is also in wide use: that is the average of the images' own standard
# deviations, which leaves out how the images differ from each other, so that pixels normalised
# by it deviate by 1.2 to 1.3 and not by 1.
_DOWNLOADS = {
    "fashion-mnist": _Download(
        FashionMNIST,
        FashionMNIST.mirrors[0],
        31,
        tuple(
            _Archive(f"FashionMNIST/raw/{file}", md5, {file[:-3]: _FASHION_MD5[file[:-3]]})
            for file, md5 in FashionMNIST.resources
        ),
        (0.2860,),
        (0.3530,),
    ),
    "cifar10": _cifar(CIFAR10, 170, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _cifar(CIFAR100, 169, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def _load_download(name: str, root: Path, mirror: str | None) -> Dataset:
    source = _DOWNLOADS[name]
    _provide(name, root, mirror)
    parts = {}
    for part in ("train", "test"):
        files = source.kind(root, train=part == "train")
        images = torch.as_tensor(files.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        labels = torch.as_tensor(files.targets, dtype=torch.int64)
        order = stratified_order(labels)
        parts[part] = images[order], labels[order]
        classes = tuple(files.classes)
    images, labels = parts["train"]
    parts["train"] = images[CARVED:], labels[CARVED:]
    parts["validation"] = images[:CARVED], labels[:CARVED]
    return Dataset(
        name,
        **{
            part: Split(images.contiguous(), labels, source.mean, source.std, classes)
            for part, (images, labels) in parts.items()
        },
    )


def _provide(name: str, root: Path, mirror: str | None) -> None:
    """Have every file of a downloaded set in place, and right."""
    source = _DOWNLOADS[name]
    packed = []
    for archive in source.archives:
        folder = (root / archive.path).parent
        if not all((folder / member).is_file() for member in archive.members):
            packed.append(archive)
            continue
        for member, md5 in archive.members.items():
            if _md5(folder / member) != md5:
                raise _damaged(folder / member, md5)
    absent = [archive for archive in packed if not (root / archive.path).is_file()]
    if absent:
        _download(name, absent, root, (mirror or source.url).rstrip("/"))
    for archive in packed:
        _unpack(root / archive.path, archive)


def _download(name: str, archives: list[_Archive], root: Path, url: str) -> None:
    size = f"{_DOWNLOADS[name].megabytes} MB in all"
    tqdm.write(f"Downloading {name} ({size}) from {url} to {root}")
    paths = [root / archive.path for archive in archives]
    for archive, path in zip(archives, paths, strict=True):
        try:
            _fetch(f"{url}/{path.name}", path, archive.md5)
        except (OSError, HTTPException) as error:
            files = ", ".join(p.name for p in paths)
            raise ConnectionError(
                f"{url}/{path.name} was not downloaded: {error}. Call load({name!r}) again, "
                f"which goes on where it stopped; or pass a mirror; or put {files} into "
                f'{path.parent} by hand; or use load("fashion-mini"), which needs no network.'
            ) from error


def _fetch(url: str, path: Path, md5: str) -> None:
    """Download into ``<path>.part``, which gets its name when it is complete and right."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "qatviz"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as reply:
            _append(reply, part, have if reply.status == 206 else 0)
    except HTTPError as error:
        error.close()
        if error.code != 416:  # nothing beyond what we have: the checksum decides
            raise
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(f"{url} has MD5 {found}; expected: {md5}; it was not kept")
    os.replace(part, path)


def _append(reply, part: Path, have: int) -> None:
    length = reply.headers["Content-Length"]
    total = None if length is None else have + int(length)
    with (
        part.open("ab" if have else "wb") as file,
        tqdm.wrapattr(reply, "read", total, initial=have, desc=part.stem, miniters=1) as counted,
    ):
        copyfileobj(counted, file)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"stopped after {part.stat().st_size} of {total} bytes")


def _unpack(path: Path, archive: _Archive) -> None:
    """Unpack beside the archive, each file appearing only when it is complete and right."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        try:
            extract_archive(str(path), scratch)
            right = all(_md5(Path(scratch, m)) == md5 for m, md5 in archive.members.items())
        except (
            EOFError,
            FileNotFoundError,
            gzip.BadGzipFile,
            tarfile.TarError,
            zlib.error,
        ) as error:
            raise _damaged(path, archive.md5) from error
        if not right:
            raise _damaged(path, archive.md5)
        for member in archive.members:
            target = path.parent / member
            target.parent.mkdir(exist_ok=True)
            os.replace(Path(scratch, member), target)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _damaged(path: Path, expected: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: its MD5 is {_md5(path)}, expected: {expected}; delete it and load "
        "again"
    )


# Image folders


def _load_folder(root: Path) -> Dataset:
    folders = _find_parts(root)
    classes = tuple(folders["train"].classes)
    for folder in folders.values():
        if tuple(folder.classes) != classes:
            raise ValueError(
                f"{folder.root} has the classes {folder.classes}; "
                f"allowed, as in {folders['train'].root}: {list(classes)}"
            )
    paths = [Path(path) for folder in folders.values() for path, _ in folder.samples]
    images = _decoded_once(paths, root).split([len(f) for f in folders.values()])
    parts = {}
    for (part, folder), pixels in zip(folders.items(), images, strict=True):
        labels = torch.tensor(folder.targets)
        order = stratified_order(labels)
        parts[part] = pixels[order], labels[order]
    pixels, labels = parts["train"]
    share = max(1, round(FRACTION * len(labels)))
    for part in [part for part in ("validation", "test") if part not in parts]:
        parts[part] = pixels[:share], labels[:share]
        pixels, labels = pixels[share:], labels[share:]
    parts["train"] = pixels, labels
    mean, std = channel_statistics(pixels)
    splits = {part: Split(*tensors, mean, std, classes) for part, tensors in parts.items()}
    return Dataset(root.resolve().name, **splits)


def _find_parts(root: Path) -> dict[str, ImageFolder]:
    names = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    parts = {part: root / name for name, part in names.items() if (root / name).is_dir()}
    parts = parts or {"train": root}
    if "train" not in parts:
        raise ValueError(
            f"{root} holds {', '.join(path.name for path in parts.values())}; "
            "allowed: train and, if they exist, validation and test; or only classes"
        )
    try:
        return {part: ImageFolder(folder) for part, folder in parts.items()}
    except FileNotFoundError as error:
        raise ValueError(
            f"{root}: {error}; allowed: images in train/<class> or in <class>"
        ) from error


def _decoded_once(paths: list[Path], root: Path) -> UInt8[Tensor, "images 3 height width"]:
    # Kept under a digest of the files' names, sizes and times.
    listing = hashlib.sha256()
    for path in paths:
        status = path.stat()
        entry = f"{path.relative_to(root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        listing.update(entry.encode())
    kept = DATA / "cache" / "imagefolder" / f"{listing.hexdigest()[:32]}.safetensors"
    try:
        return load_file(kept)["images"]
    except (OSError, SafetensorError):
        images = _decode(paths)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            save_file({"images": images}, Path(scratch, kept.name))
            os.replace(Path(scratch, kept.name), kept)
    except OSError as error:
        # The images are here: a full or read-only disk costs only the next call's time.
        warnings.warn(f"the decoded images of {root} were not kept: {error}", stacklevel=4)
    return images


def _decode(paths: list[Path]) -> UInt8[Tensor, "images 3 height width"]:
    images = torch.empty(0)
    for index, path in enumerate(tqdm(paths, desc="decoding", unit=" images")):
        try:
            image = pil_to_tensor(default_loader(path))
        except (OSError, SyntaxError) as error:  # PIL raises either, and not always with a name
            raise ValueError(f"{path} is damaged or no image: {error}") from error
        if index == 0:
            images = image.new_empty(len(paths), *image.shape)
        if image.shape != images.shape[1:]:
            (_, h, w), (_, height, width) = image.shape, images.shape[1:]
            raise ValueError(
                f"{path} is {w}×{h} (width × height); allowed, as in {paths[0]}: {width}×{height}"
            )
        images[index] = image
    return images
