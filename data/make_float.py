"""Train the float network that every notebook starts from: about 80 seconds on two cores."""

from pathlib import Path

import torch
from torch import nn

from qatviz.augment import flip
from qatviz.datasets import Dataset, load
from qatviz.methods import CrossEntropy
from qatviz.models import small_resnet
from qatviz.runs import Run, save_weights
from qatviz.schedule import Schedule
from qatviz.training import fit

RUNS = Path(__file__).parent / "runs"


def train_float(data: Dataset, seed: int) -> tuple[nn.Module, Run]:
    """A small ResNet from scratch, on the labels, with mirrored images.

    Args:
        data: The images.
        seed: Seed of the initial weights, batch order and views.

    Returns:
        The trained network and its run.
    """
    torch.manual_seed(seed)
    model = small_resnet()
    schedule = Schedule(epochs=12, rate=0.2, seed=seed)
    method = CrossEntropy(view=flip)
    run = fit(
        model, method, data.train, data.test, schedule, validation=data.validation, label="float"
    )
    return model, run


def main() -> None:
    """Train with seed 0 and write checkpoint and run."""
    torch.set_num_threads(2)
    model, run = train_float(load("fashion-mini"), seed=0)
    save_weights(model.state_dict(), RUNS / "float_small_resnet.safetensors")
    run.save(RUNS / "float_small_resnet.json")
    print(f"{run} in {run.seconds:.0f} s")


if __name__ == "__main__":
    main()
