"""Measure what notebook 21 shows: the 50 leading eigenvalues of float, LSQ and CR, and the trace.

The students are those of seed 0 of ``studies/consistency_why_laptop.toml``. About a minute and a
half a network on one core. Each is kept in ``data/cache/consistency`` as soon as it is done, so
that an interrupted measurement goes on.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from make_seeing import float_model, without_vectors
from torch import nn

from qatviz.analysis.curvature import eigenvalues, trace
from qatviz.checkpoints import load_tree, save_tree
from qatviz.datasets import Split, load
from qatviz.runs import describe_machine
from qatviz.studies import read_study, student

DATA = Path(__file__).parent
KEPT = DATA / "cache" / "consistency"
ARMS = ("LSQ", "CR")
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


def main() -> None:
    """Measure what is missing, and write all of it."""
    torch.set_num_threads(1)
    images, start = load("fashion-mini").train, time.perf_counter()
    experiments = read_study(DATA.parent / "studies" / "consistency_why_laptop.toml")
    chosen = {e.name: e for e in experiments if e.name in ARMS and e.seed == 0}
    KEPT.mkdir(parents=True, exist_ok=True)
    found = []
    for label in ("float", *ARMS):
        key = chosen[label].hash if label in chosen else "float"
        path = KEPT / f"{key}.safetensors"
        if not path.exists():
            model = student(chosen[label]) if label in chosen else float_model()
            save_tree({"label": label, "hash": key, **measure(model, images)}, path)
            print(f"{label}: {time.perf_counter() - start:.0f} s", flush=True)
        found.append(load_tree(path))
    content = {"machine": describe_machine(), "images": IMAGES, "networks": found}
    save_tree(content, DATA / "runs" / "consistency_curvature.safetensors")


if __name__ == "__main__":
    main()
