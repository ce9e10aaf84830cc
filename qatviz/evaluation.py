"""One number for a model on a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qatviz.calibration import as_taken, check_images
from qatviz.datasets import Split
from qatviz.quantize import check_ready

Logits = Float[Tensor, "images classes"]
Labels = Int[Tensor, "images"]


def accuracy(logits: Logits, labels: Labels) -> float:
    """The share of images whose largest logit is that of the label.

    Args:
        logits: One row per image.
        labels: Class numbers; images with label −1 are left out.

    Returns:
        0 to 1; NaN if no image is labelled.
    """
    return (logits.argmax(1) == labels)[labels >= 0].float().mean().item()


def evaluate(
    model: nn.Module, data: Split, metric: Callable[[Logits, Labels], float] = accuracy
) -> float:
    """Apply a metric to a model's predictions on a split, in evaluation mode.

    Args:
        model: A classifier, float or quantized and calibrated. Its mode is restored.
        data: The images and labels.
        metric: ``(logits, labels) -> number``. Default: ``accuracy``.

    Returns:
        The metric.

    Raises:
        ValueError: If a quantizer is not calibrated or the images do not fit the model.
    """
    check_fit(model, data)
    return metric(*predict(model, data))


@torch.no_grad()
def predict(model: nn.Module, data: Split) -> tuple[Logits, Labels]:
    """The logits of a model on a split, in evaluation mode.

    Args:
        model: A classifier. Its mode is restored.
        data: The images and labels.

    Returns:
        Logits ``[images, classes]`` and labels ``[images]``, on the CPU.
    """
    with evaluating(model):
        logits = [model(as_taken(model, images)).float().cpu() for images, _ in data.batches(500)]
    return torch.cat(logits), data.labels.cpu()


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, data: Split, batches: int = 50, size: int = 128, seed: int = 0
) -> None:
    """Estimate the running statistics of BatchNorm anew, in place, from training images.

    Each running mean and variance becomes the plain average over the batches; everything else
    of the model is as in evaluation. While quantized weights jump from level to level, the
    moving average of training lags behind what they are now.

    Args:
        model: A classifier, float or quantized and calibrated. Its mode is restored.
        data: Training images; seen as they are, without a view (ours).
        batches: Batches to average over, ≥ 1. Default: 50 (Nagel et al. 2022, arXiv
            2203.11086, released code).
        size: Images in a batch; a smaller last one is left out. Default: 128 (as training).
        seed: Of the order in which images are drawn; the global generators stay as they are.
            Default: 0 (ours).

    Raises:
        ValueError: If ``batches`` is less than 1.

    Source: Nagel et al. 2022, arXiv 2203.11086.
    """
    if batches < 1:
        raise ValueError(f"batches is {batches}; allowed: 1 or more")
    norms = running_norms(model).values()
    momenta = {norm: norm.momentum for norm in norms}
    size = min(size, len(data))
    generator = torch.Generator().manual_seed(seed)
    limit = min(batches, len(data) // size) * size
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for the plain average
                norm.train()
            for images, _ in data.batches(size, generator=generator, limit=limit):
                model(as_taken(model, images))
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def running_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm modules of a model that keep running statistics.

    Args:
        model: Any module.

    Returns:
        Modules by name.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each of its modules back in its own afterwards.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_fit(model: nn.Module, data: Split) -> None:
    """Refuse a model that is not calibrated, or data that do not fit it.

    Args:
        model: Any module.
        data: The images that will be shown to it.

    Raises:
        ValueError: As ``quantize.check_ready`` and ``calibration.check_images``; or if the
            model does not return a logit for every class among the labels.
    """
    check_ready(model)
    images, _ = next(iter(data.batches(2)))
    logits, highest = check_images(model, images), int(data.labels.max())
    if logits.ndim != 2 or logits.shape[1] <= highest:
        raise ValueError(
            f"the model returns {list(logits.shape[1:])} numbers per image, the labels go up "
            f"to {highest}: {highest + 1} logits are needed"
        )
