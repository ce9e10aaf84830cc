"""A file in which values of a long computation are kept, so that it can be taken up again."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from qatviz.datasets import Split
from qatviz.runs import write_whole

SKETCHES = 8  # random sums that stand for a vector (ours)
SAME = 1e-5  # relative distance of vectors that are the same up to rounding (ours)


class Table:
    """Values of a function at numbered places, and which of them were computed.

    Args:
        shape: Of the grid of places.

    Attributes:
        loss: NaN where not computed.
        accuracy: NaN where not computed.
        computed: Whether they were.
        seconds: Duration so far.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.loss, self.accuracy = np.full(shape, np.nan), np.full(shape, np.nan)
        self.computed, self.seconds = np.zeros(shape, bool), 0.0

    def put(self, place: tuple[int, ...], values: tuple[float, float]) -> None:
        """Note the values at a place.

        Args:
            place: Index.
            values: Loss and accuracy.
        """
        self.loss[place], self.accuracy[place] = values
        self.computed[place] = True  # last: an interruption leaves no half of it


class Kept:
    """A file with a table, and with what the table is of.

    It is written whole or not at all. A file made for anything else is refused by the name of
    what differs. Vectors are compared by random sums, so that a file serves on another machine,
    which rounds otherwise; all else to the bit.

    Args:
        path: The file; None: nothing is kept.
        names: A name and a digest for everything that the values depend on.
        vectors: Vectors that they depend on, too.
    """

    def __init__(
        self, path: str | Path | None, names: Mapping[str, str], vectors: Iterable[Tensor]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.names = dict(names)
        self.sketch = np.empty(0) if path is None else sketch(vectors)

    def load(self, table: Table) -> None:
        """Fill a table with what the file has; nothing if there is no file.

        Args:
            table: To be filled.

        Raises:
            ValueError: If the file is damaged, or was made for something else.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            with self.path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            others = [k for k in self.names if self.names[k] != str(found[f"of {k}"])]
            if not _alike(self.sketch, found["directions"]):
                others.append("directions")
            kept = [found[name] for name in ("loss", "accuracy", "computed")]
            seconds = float(found["seconds"])
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise ValueError(f"{self.path} is no kept landscape: {error!r}") from error
        if others:
            raise ValueError(
                f"{self.path} was made with another {', another '.join(others)}: its values do "
                f"not belong here. Name another file, or delete this one"
            )
        table.loss, table.accuracy, table.computed = kept
        table.seconds = seconds

    def save(self, table: Table) -> None:
        """Write the table.

        Args:
            table: What to keep.
        """
        if self.path is None:
            return
        content = {
            **{f"of {name}": np.array(digest) for name, digest in self.names.items()},
            "directions": self.sketch,
            "loss": table.loss,
            "accuracy": table.accuracy,
            "computed": table.computed,
            "seconds": np.array(table.seconds),
        }
        write_whole(self.path, lambda file: np.savez(file, **content), binary=True)


def digest_of_model(model: nn.Module) -> str:
    """A digest of every number and every module of a model.

    Args:
        model: Any module.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        kind = type(module)
        plain = {k: v for k, v in sorted(vars(module).items()) if k[0] != "_" and _plain(v)}
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__} {plain}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode())
        _add(digest, tensor)
    return digest.hexdigest()


def digest_of_images(split: Split) -> str:
    """A digest of the images, the labels and how they are normalised.

    Args:
        split: Any.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{split.mean} {split.std}".encode())
    _add(digest, split.images)
    _add(digest, split.labels)
    return digest.hexdigest()


def sketch(vectors: Iterable[Tensor]) -> np.ndarray:
    """Sums of each vector with random signs, the same signs on every machine.

    The distance of two vectors is about that of their sums over √8.

    Args:
        vectors: Of any length.

    Returns:
        A row of 8 sums per vector.
    """
    rows = []
    for vector in vectors:
        generator = torch.Generator().manual_seed(0)
        vector = vector.detach().double().cpu()
        row = []
        for _ in range(SKETCHES):
            heads = torch.randint(2, (len(vector),), generator=generator, dtype=torch.int8)
            row.append((2 * vector[heads.bool()].sum() - vector.sum()).item())
        rows.append(row)
    return np.array(rows).reshape(len(rows), SKETCHES)


def loss_name(loss: Callable) -> str:
    """What a loss is called.

    Args:
        loss: Any callable.

    Returns:
        Its name, or that of its class.
    """
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def _alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape:
        return False
    apart = np.linalg.norm(ours - theirs, axis=1)
    return bool((apart <= SAME * np.linalg.norm(ours, axis=1)).all())


def _plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float)


def _add(digest: "hashlib._Hash", tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{plain.dtype} {list(plain.shape)}".encode())
    digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
