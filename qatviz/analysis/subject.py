"""What every analysis of a network checks first: the model, and the images to look at it with."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qatviz.datasets import Dataset, Split
from qatviz.evaluation import check_fit

Loss = Callable[[Tensor, Tensor], Tensor]
# A Split, (images, labels), or a loader: told apart below, in one sentence where it is neither.
Data = Any


def subject(model: nn.Module, data: Data, samples: int | None = None) -> Split:
    """Refuse a model or images that no number could be trusted on; else the images, fixed.

    Args:
        model: A classifier in evaluation mode, float or quantized and calibrated.
        data: A ``Split``; or ``(images, labels)``, images as the model takes them; or a loader
            of such batches, which is read once, so that every pass sees the same images; of a
            ``Dataset`` the training images (which is what an analysis in a study is given).
        samples: How many images, the first. Default: None: all.

    Returns:
        The images and labels.

    Raises:
        ValueError: If a module is in training mode, a quantizer is not calibrated, there are no
            images or fewer than ``samples``, some are not labelled, or they do not fit the
            model.
    """
    check_evaluating(model)
    split = _as_split(data, samples)
    if samples is not None:
        if samples < 1:
            raise ValueError(f"samples is {samples}; allowed: 1 or more, or None for all")
        if samples > len(split):
            raise ValueError(f"samples is {samples}, but there are {len(split)} images")
        if samples < len(split):
            split = split.subset(samples)
    if (split.labels < 0).any():
        raise ValueError("some images have no label (−1): a loss needs one for every image")
    check_fit(model, split)
    return split


def check_evaluating(model: nn.Module) -> None:
    """Refuse a model whose numbers depend on what else is in the batch, or on chance.

    Args:
        model: Any module.

    Raises:
        ValueError: If a module is in training mode; names the first.
    """
    for name, module in model.named_modules():
        if module.training:
            where = f"its module {name!r}" if name else "the model"
            raise ValueError(
                f"{where} is in training mode, in which BatchNorm and dropout make every number "
                f"depend on the batch; call model.eval() first"
            )


def device_of(model: nn.Module) -> torch.device:
    """Where a model lives.

    Args:
        model: Any module.

    Returns:
        The device of its first parameter; the CPU if it has none.
    """
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _as_split(data: Data, samples: int | None) -> Split:
    if isinstance(data, Split | Dataset):
        return data if isinstance(data, Split) else data.train
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        if not len(data[0]):
            raise ValueError("there are no images: the tensors are empty")
        return Split(*data)
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data must be a Split, a Dataset, (images, labels) or a loader, got "
            f"{type(data).__name__}"
        )
    images, labels, count = [], [], 0
    with torch.random.fork_rng():  # a loader draws its order from the global generator
        for batch in data:
            images.append(batch[0])
            labels.append(batch[1])
            count += len(batch[1])
            if samples is not None and count >= samples:
                break
    if not count:
        raise ValueError("there are no images: the loader is empty")
    return Split(torch.cat(images).cpu(), torch.cat(labels).cpu())
