"""Measure what notebook 00 shows over five seeds: float, rounded to 2 bits, trained at 2 bits.

For each seed: a float network from scratch; the same network with weights and inputs rounded
to the nearest of four levels; and the same network fine-tuned with LSQ. Two to
three minutes a seed on two cores. Give seeds as arguments to run fewer.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from make_float import train_float
from matplotlib.figure import Figure
from torch import nn

from qatviz import plots
from qatviz.augment import flip
from qatviz.calibration import calibrate
from qatviz.datasets import Dataset, load
from qatviz.evaluation import evaluate
from qatviz.methods import CrossEntropy
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ, Affine, min_max_range
from qatviz.runs import Run, describe_machine, write_whole
from qatviz.schedule import Schedule
from qatviz.training import fit

RUNS = Path(__file__).parent / "runs"
ENDS = ("conv1", "fc")  # first and last layer: 8 bits


def round_to_nearest(data: Dataset, model: nn.Module) -> nn.Module:
    """Four levels for weights (per output channel) and inputs, placed by the L2.4 search."""
    weights, inputs = partial(Affine, 2, axis=0), partial(Affine, 2)
    eight = partial(Affine, 8, find_range=min_max_range)
    student = quantize(quantize(model, weights, inputs, keep=ENDS), eight, eight, only=ENDS)
    calibrate(student, data.train.batches(64, limit=64))
    return student


def train_lsq(data: Dataset, model: nn.Module, seed: int) -> Run:
    """Four levels for weights and inputs, one learned step per layer."""
    two, eight = partial(LSQ, 2), partial(LSQ, 8)
    student = quantize(quantize(model, two, two, keep=ENDS), eight, eight, only=ENDS)
    calibrate(student, data.train.batches(64, limit=64))
    schedule = Schedule(epochs=4, rate=0.1, seed=seed)
    method = CrossEntropy(view=flip)
    return fit(
        student,
        method,
        data.train,
        data.test,
        schedule,
        validation=data.validation,
        label="LSQ W2A2",
    )


def main() -> None:
    """Train, measure, and write the table."""
    torch.set_num_threads(2)
    seeds = [int(word) for word in sys.argv[1:]] or range(5)
    data, rows, start = load("fashion-mini"), [], time.perf_counter()
    for seed in seeds:
        model, float_run = train_float(data, seed)
        results = {
            "float": float_run.test,
            "rounded W2A2": evaluate(round_to_nearest(data, model), data.test),
            "LSQ W2A2": train_lsq(data, model, seed).test,
        }
        rows += [{"seed": seed, "model": m, "test accuracy": a} for m, a in results.items()]
        print(f"seed {seed}: {results}, {time.perf_counter() - start:.0f} s", flush=True)
    content = {
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - start),
        "data": f"fashion-mini, {len(data.test)} test images",
        "rows": rows,
    }
    text = json.dumps(content, indent=1) + "\n"
    write_whole(RUNS / "start_here.json", lambda file: file.write(text))
    draw(content)


def draw(content: dict) -> None:
    """The README's figure: one dot per seed."""
    plots.use_style()
    table = pd.DataFrame(content["rows"])
    groups = {name: rows["test accuracy"] for name, rows in table.groupby("model", sort=False)}
    colours = [plots.COLOURS[kind] for kind in ("float", "rounded", "quantized")]
    figure = Figure(figsize=(6, 3.6), dpi=120)
    ax = plots.accuracy_dots(figure.subplots(), groups, dict(zip(groups, colours, strict=True)))
    ax.set_title(f"{table.seed.nunique()} seeds, {content['data']}; mean ± standard deviation")
    figure.savefig(RUNS / "start_here.png")


if __name__ == "__main__":
    main()
