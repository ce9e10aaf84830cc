"""What BatchNorm's running statistics cost a network whose weights jump between levels."""

from copy import deepcopy

from torch import nn

from qatviz.datasets import Dataset
from qatviz.evaluation import evaluate, reestimate_batchnorm


def reestimated_accuracy(
    model: nn.Module, data: Dataset, *, batches: int = 50, size: int = 128, seed: int = 0
) -> dict[str, float]:
    """Test accuracy with BatchNorm's running statistics, and with statistics estimated anew.

    Args:
        model: A classifier in evaluation mode; it does not change.
        data: The data set: its training images for the estimate, its test images for accuracy.
        batches: As ``evaluation.reestimate_batchnorm``.
        size: The same.
        seed: The same.

    Returns:
        ``running`` and ``reestimated``, 0 to 1.

    Raises:
        ValueError: As ``evaluation.reestimate_batchnorm``.

    Source: Nagel et al. 2022, arXiv 2203.11086.
    """
    anew = deepcopy(model)
    reestimate_batchnorm(anew, data.train, batches, size, seed)
    return {"running": evaluate(model, data.test), "reestimated": evaluate(anew, data.test)}
