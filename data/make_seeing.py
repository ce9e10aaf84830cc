"""Measure what notebook 31 shows over three seeds: the curvature at 2, 3, 4, 8 bits and in float.

The students are those of ``studies/seeing_laptop.toml``; a student that is not trained yet is left
out. One to two minutes a network on one core. Each is kept in ``data/cache/seeing`` as soon as it
is done, so that an interrupted measurement goes on. Which ones can be named: ``make_seeing.py 0``
takes seed 0 only.
"""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qatviz.analysis.curvature import eigenvalues, spectral_density, trace
from qatviz.checkpoints import load_tree, save_tree
from qatviz.datasets import Split, load
from qatviz.models import small_resnet
from qatviz.runs import describe_machine, load_weights
from qatviz.studies import Experiment, read_study, student
from qatviz.studies.cells import CACHE, find

DATA = Path(__file__).parent
KEPT = DATA / "cache" / "seeing"
ARMS = ("LSQ W2A2", "dampened W2A2", "LSQ W3A3", "LSQ W4A4", "LSQ W8A8")
IMAGES = 200
SIZES = {50: 4, 200: 2, 800: 1}  # images, and how many disjoint sets of them


def measure(model: nn.Module, images: Split, *, density: bool) -> dict[str, Any]:
    """Curvature of one network, at the weights as it multiplies them.

    Args:
        model: In evaluation mode.
        images: Training images, without augmentation.
        density: Whether to measure the spectral density, too, which takes longest.

    Returns:
        Records as dictionaries, by name; without eigenvectors.
    """
    few = images.subset(IMAGES)
    quiet = {"progress": False}
    found = {
        "largest": eigenvalues(model, few, 10, tolerance=1e-3, **quiet),
        "smallest": eigenvalues(model, few, 1, which="smallest", tolerance=1e-3, **quiet),
        "relative": eigenvalues(model, few, 1, relative=True, tolerance=1e-3, **quiet),
        "trace": trace(model, few, products=30, **quiet),
    }
    if density:
        found["density"] = spectral_density(model, few, draws=3, steps=30, **quiet)
    return {name: asdict(without_vectors(record)) for name, record in found.items()}


def sizes(model: nn.Module, images: Split) -> dict[int, list[float]]:
    """λ₁ on several disjoint sets of images of several sizes."""
    found: dict[int, list[float]] = {}
    for size, count in SIZES.items():
        found[size] = []
        for part in range(count):
            chosen = _slice(images, part * size, (part + 1) * size)
            record = eigenvalues(model, chosen, 1, tolerance=1e-3, progress=False)
            found[size].append(float(record.values[0]))
    return found


def main() -> None:
    """Measure what is missing, and write everything that is there."""
    torch.set_num_threads(1)
    wanted = {int(word) for word in sys.argv[1:]} or {0, 1, 2}
    images, start = load("fashion-mini").train, time.perf_counter()
    experiments = read_study(DATA.parent / "studies" / "seeing_laptop.toml")
    chosen = [e for e in experiments if e.label in ARMS and find(e, CACHE, weights=True)]
    KEPT.mkdir(parents=True, exist_ok=True)
    networks: list[tuple[str, Experiment | None]] = [("float", None)]
    networks += [(e.hash, e) for e in chosen]
    found = []
    for key, experiment in networks:
        path = KEPT / f"{key}.safetensors"
        seed = experiment.seed if experiment else 0
        if not path.exists() and seed in wanted:
            model = student(experiment) if experiment else float_model()
            label = experiment.label if experiment else "float"
            content = {
                "label": label,
                "seed": seed,
                "hash": key,
                **measure(model, images, density=seed == 0),
            }
            if seed == 0 and label in ("float", "LSQ W2A2"):
                content["sizes"] = sizes(model, images)
            save_tree(content, path)
            print(f"{label}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        if path.exists():
            found.append(load_tree(path))
    content = {"machine": describe_machine(), "images": IMAGES, "networks": found}
    save_tree(content, DATA / "runs" / "seeing_curvature.safetensors")


def float_model() -> nn.Module:
    """The float network that all others were made from, in evaluation mode."""
    model = small_resnet().eval()
    model.load_state_dict(load_weights(DATA / "runs" / "float_small_resnet.safetensors"))
    return model


def _slice(images: Split, first: int, last: int) -> Split:
    return replace(images, images=images.images[first:last], labels=images.labels[first:last])


def without_vectors(record: Any) -> Any:
    """A record as it is, or without eigenvectors, which are as large as the network."""
    if not hasattr(record, "vectors"):
        return record
    return replace(record, vectors=np.empty((len(record.values), 0), np.float32))


if __name__ == "__main__":
    main()
