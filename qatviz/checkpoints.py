"""Nested states in one file: tensors as safetensors, everything else as JSON in its header.

One file is renamed into place once, so tensors and numbers can never come from two moments.
Nothing is unpickled.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qatviz.runs import write_whole

# What JSON cannot say by itself is an object with one of these keys.
TENSOR, ARRAY, TUPLE, PAIRS = "tensor", "array", "tuple", "pairs"


def save_tree(tree: Any, path: str | Path) -> None:
    """Write a nested state, whole or not at all.

    Args:
        tree: Dictionaries (keys of text or whole numbers), lists and tuples of tensors, NumPy
            arrays, text, numbers, booleans and None.
        path: Where; replaced if it exists.

    Raises:
        TypeError: If the tree holds anything else; says where.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_pack(tree, "", tensors))
    data = safetensors.torch.save(tensors, metadata={"qatviz": plain})
    write_whole(path, lambda file: file.write(data), binary=True)


def load_tree(path: str | Path) -> Any:
    """Read what ``save_tree`` wrote.

    Args:
        path: The file.

    Returns:
        An equal tree, tensors on the CPU.

    Raises:
        ValueError: If the file is not whole, or was not written by ``save_tree``.
    """
    return _read(path, lambda file, key: file.get_tensor(key))


def read_plain(path: str | Path) -> Any:
    """Read what ``save_tree`` wrote without its tensors: only the header of the file.

    Args:
        path: The file.

    Returns:
        The tree, with None for each tensor and array.

    Raises:
        ValueError: If the file is not whole, or was not written by ``save_tree``.
    """
    return _read(path, lambda file, key: None)


def _read(path: str | Path, tensor: Callable[[Any, str], Tensor | None]) -> Any:
    try:
        with safetensors.safe_open(path, "pt") as file:
            plain = json.loads((file.metadata() or {})["qatviz"])
            return _unpack(plain, lambda key: tensor(file, key))
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error!r}") from error


def _pack(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, np.generic):
        tree = tree.item()
    if isinstance(tree, Tensor | np.ndarray):
        return _pack_tensor(tree, place, tensors)
    if isinstance(tree, list | tuple):
        items = [_pack(item, f"{place}/{i}", tensors) for i, item in enumerate(tree)]
        return items if isinstance(tree, list) else {TUPLE: items}
    if isinstance(tree, dict):
        # A list of pairs, because keys of JSON are text.
        return {
            PAIRS: [[_key(k, place), _pack(v, f"{place}/{k}", tensors)] for k, v in tree.items()]
        }
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise TypeError(f"cannot save a {type(tree).__name__} (at {place or 'the top'})")


def _key(key: object, place: str) -> str | int:
    if not isinstance(key, str | int):
        raise TypeError(f"cannot save the key {key!r} (at {place or 'the top'})")
    return key


def _pack_tensor(tree: Any, place: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    is_tensor = isinstance(tree, Tensor)
    value = tree if is_tensor else torch.from_numpy(np.array(tree))
    key = f"{len(tensors)} {place}"
    # A copy, because safetensors refuses two names for one memory.
    tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {TENSOR if is_tensor else ARRAY: key}


def _unpack(plain: Any, tensor: Callable[[str], Tensor | None]) -> Any:
    if isinstance(plain, list):
        return [_unpack(item, tensor) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    if kind == PAIRS:
        return {key: _unpack(item, tensor) for key, item in value}
    if kind == TUPLE:
        return tuple(_unpack(item, tensor) for item in value)
    found = tensor(value)
    return found.numpy() if kind == ARRAY and found is not None else found
