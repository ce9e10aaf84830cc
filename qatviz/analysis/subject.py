"""What every analysis of a network checks first: the model, and the images to look at it with."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qatviz.datasets import Dataset, Split
from qatviz.evaluation import check_fit

Loss = Callable[[Tensor, Tensor], Tensor]
# A Split, (images, labels), or a loader: told apart below, in one sentence where it is neither.
Data = Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put all global generators of random numbers back afterwards, however the context ends.

    Those of torch (on the CPU and on CUDA devices), of NumPy and of Python: a network may draw in
    evaluation mode, a loader or a loss too. Also a decorator: ``@undisturbed()``.

    Yields:
        Nothing.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    of_python = random.getstate()
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


@undisturbed()
def subject(model: nn.Module, data: Data, samples: int | None = None) -> Split:
    """Refuse a model or images that no number could be trusted on; else the images, fixed.

    Args:
        model: A classifier in evaluation mode, float or quantized and calibrated.
        data: A ``Split``; or ``(images, labels)``, images as the model takes them: normalised;
            or a loader of such batches, which is read once, so that every pass sees the same
            images; of a ``Dataset`` the training images (which is what an analysis in a study is
            given).
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


def clean_loss(logits: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> float:
    """The loss of undisturbed answers, refused where it means nothing.

    Args:
        logits: One row per image.
        labels: Class numbers.
        loss: ``(logits, labels) -> mean``. Default: cross-entropy.

    Returns:
        A finite number.

    Raises:
        ValueError: If a logit or the loss is not finite, or the loss is not one number.
    """
    if not (fine := logits.isfinite().flatten(1).all(1)).all():
        raise ValueError(
            f"the logits of the model are not finite for {int((~fine).sum())} of {len(fine)} "
            f"images, first for image {int((~fine).nonzero()[0])}"
        )
    value = one_number(loss(logits, labels))
    if not value.isfinite():
        raise ValueError(f"the loss of the model on these images is {value.item()}: not finite")
    return value.item()


def one_number(loss: Tensor) -> Tensor:
    """Refuse what a loss returned if it is not one number.

    Args:
        loss: What it returned.

    Returns:
        The same.

    Raises:
        ValueError: If it is several.
    """
    if loss.numel() != 1:
        raise ValueError(
            f"loss must return one number, the mean over the images, got {list(loss.shape)}"
        )
    return loss


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
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise ValueError(
            f"data must be a Split, a Dataset or a loader, or give (images, labels); got "
            f"{type(data).__name__}"
        )
    return _read(data, samples)


def _read(loader: Iterable, samples: int | None) -> Split:
    images, labels, count = [], [], 0
    for batch in loader:
        if isinstance(batch, Tensor):
            raise ValueError("a loader must give (images, labels), this one gives a tensor")
        images.append(batch[0])
        labels.append(batch[1])
        count += len(batch[1])
        if samples is not None and count >= samples:
            break
    if not count:
        raise ValueError("there are no images: the loader is empty")
    return Split(torch.cat(images).cpu(), torch.cat(labels).cpu())
