"""The trained network of a finished experiment, to be looked at."""

from pathlib import Path

from torch import nn

from qatviz.studies.building import data_of, float_model, quantized, seeded
from qatviz.studies.cells import CACHE, find
from qatviz.studies.experiment import Experiment


def student(experiment: Experiment, cache: str | Path = CACHE) -> nn.Module:
    """The student that a finished experiment trained, in evaluation mode.

    Args:
        experiment: The experiment.
        cache: Folder of the cells; promoted ones are found too. Default:
            ``data/cache/studies``.

    Returns:
        A new module with the weights, and the grids, of the end of training.

    Raises:
        ValueError: If there is no finished cell, or none that has its weights.
    """
    cache = Path(cache)
    cell = find(experiment, cache, weights=True)
    if cell is None:
        lacks = "its weights were not promoted" if find(experiment, cache) else "it is not finished"
        raise ValueError(
            f"there is no student of {experiment.name!r}: {lacks}; run the study, and promote "
            f"it with: python -m qatviz runs promote --weights"
        )
    data = data_of(experiment.data, experiment.root)
    with seeded(experiment.seed):  # first numbers, all replaced
        model = quantized(experiment, float_model(experiment, data, None), data)
    model.load_state_dict(cell.weights())
    return model.eval()
