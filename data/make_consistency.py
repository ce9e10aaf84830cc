"""Measure curvature for notebooks 21 and 25: leading eigenvalues of three networks, many traces.

The students are those of ``studies/consistency_why_laptop.toml``: seed 0 for the 50 eigenvalues of
float, LSQ and CR, about a minute and a half a network on one core; all seeds for the traces, about
10 seconds each, and for the sizes of weights. Those need the weights of the runs, of which only
some are committed: run the study with ``--anew`` before. Each network is kept in
``data/cache/consistency`` as soon as it is done, so that an interrupted measurement goes on.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from make_seeing import float_model, without_vectors
from torch import nn
from tqdm import tqdm

from qatviz.analysis.curvature import eigenvalues, trace
from qatviz.analysis.surface import Surface
from qatviz.checkpoints import load_tree, save_tree
from qatviz.datasets import Split, load
from qatviz.runs import describe_machine
from qatviz.studies import Experiment, read_study, student

DATA = Path(__file__).parent
KEPT = DATA / "cache" / "consistency"
ARMS = ("LSQ", "CR")
TRACED = (*ARMS, "LSQ, two views with labels", "LSQ, label smoothing", "LSQ, twice the rate")
IMAGES, LEADING, PRODUCTS = 200, 50, 30


def measure(model: nn.Module, images: Split) -> dict[str, Any]:
    """Curvature of one network, at the weights as it multiplies them.

    Args:
        model: In evaluation mode.
        images: Training images, without augmentation.

    Returns:
        Records as dictionaries, by name; without eigenvectors.
    """
    few, how = images.subset(IMAGES), {"tolerance": 1e-3, "progress": False}
    found = {
        "leading": eigenvalues(model, few, LEADING, **how),
        "relative": eigenvalues(model, few, LEADING, relative=True, **how),
        "trace": trace(model, few, products=PRODUCTS, progress=False),
    }
    return {name: asdict(without_vectors(record)) for name, record in found.items()}


def leading(experiments: list[Experiment], images: Split) -> list[dict[str, Any]]:
    """Eigenvalues and trace of float, LSQ and CR, seed 0.

    Args:
        experiments: Of the study.
        images: Training images.

    Returns:
        A dictionary for each network.
    """
    chosen = {e.name: e for e in experiments if e.name in ARMS and e.seed == 0}
    found = []
    for label in tqdm(("float", *ARMS), desc="eigenvalues", unit="network"):
        key = chosen[label].hash if label in chosen else "float"
        path = KEPT / f"{key}.safetensors"
        if not path.exists():
            model = student(chosen[label]) if label in chosen else float_model()
            save_tree({"label": label, "hash": key, **measure(model, images)}, path)
        found.append(load_tree(path))
    return found


def traces(experiments: list[Experiment], images: Split) -> list[dict[str, Any]]:
    """The trace of all seeds of some arms, on the images of the eigenvalues.

    Args:
        experiments: Of the study.
        images: Training images.

    Returns:
        A dictionary for each run: label, seed, hash, trace and its standard error.
    """
    found = []
    for e in tqdm([e for e in experiments if e.name in TRACED], desc="traces", unit="network"):
        path = KEPT / f"trace_{e.hash}.safetensors"
        if not path.exists():
            record = trace(student(e), images.subset(IMAGES), products=PRODUCTS, progress=False)
            values = {"trace": float(record.value), "error": float(record.standard_error)}
            save_tree({"label": e.name, "seed": e.seed, "hash": e.hash, **values}, path)
        found.append(load_tree(path))
    return found


def sizes(experiments: list[Experiment]) -> list[dict[str, Any]]:
    """How long the weights of all runs are as they are multiplied, and how far from the start.

    Args:
        experiments: Of the study.

    Returns:
        A dictionary for each run: label, seed, ‖ŵ‖ and ‖ŵ − w₀‖.
    """
    start, found = Surface(float_model()).point, []
    for e in tqdm(experiments, desc="sizes", unit="network"):
        point = Surface(student(e)).point
        size = {"norm": float(point.norm()), "distance": float((point - start).norm())}
        found.append({"label": e.name, "seed": e.seed, **size})
    return found


def main() -> None:
    """Measure what is missing, and write all of it."""
    torch.set_num_threads(1)
    images = load("fashion-mini").train
    experiments = read_study(DATA.parent / "studies" / "consistency_why_laptop.toml")
    KEPT.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": describe_machine(),
        "images": IMAGES,
        "networks": leading(experiments, images),
        "traces": traces(experiments, images),
        "sizes": sizes(experiments),
    }
    save_tree(content, DATA / "runs" / "consistency_curvature.safetensors")


if __name__ == "__main__":
    main()
