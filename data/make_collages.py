"""Measure whether consistency carries over to segmentation and detection: five seeds of each arm.

Both toys on collages, with labels for all training collages and with labels for a tenth of them.
About a quarter of an hour a seed on one core. What is finished is kept in ``data/cache/collages``,
one file for each task, labels and seed, so that an interrupted measurement goes on; a file that
was made under another plan is made anew. Give ``--seeds`` to run fewer, ``--jobs 2`` to use two
processes, ``--small`` to see that it works (which writes nothing beside the cache).
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from qatviz.analysis.dense import ARMS, DensePlan, detection_toy, segmentation_toy
from qatviz.runs import describe_machine, write_whole

DATA = Path(__file__).parent
KEPT = DATA / "cache" / "collages"
TOYS = {"segmentation": segmentation_toy, "detection": detection_toy}
PLANS = {"all labels": DensePlan(), "few labels": DensePlan(images=100, unlabelled=900)}
SEEDS = 5
SMALL = {"images": 40, "test": 20, "float_steps": 10, "steps": 5, "batch": 8, "evaluations": 2}
PICTURED = 0  # the seed whose pictures are kept


def small(plan: DensePlan) -> DensePlan:
    """The same with next to no work."""
    return replace(plan, **SMALL, unlabelled=min(plan.unlabelled, 20))


def measure(task: str, labels: str, plan: DensePlan, seed: int, folder: Path = KEPT) -> Path:
    """Train all arms of one seed, or find them trained; where they are kept.

    Args:
        task: "segmentation" or "detection".
        labels: Name of the plan.
        plan: How to train.
        seed: Of everything.
        folder: Where runs are kept.

    Returns:
        A JSON file.
    """
    path = folder / f"{task}_{labels.replace(' ', '_')}_{seed}.json"
    told = described(plan)
    if path.exists() and json.loads(path.read_text())["plan"] == told:
        return path
    torch.set_num_threads(1)
    runs = TOYS[task](ARMS, plan, seed=seed, progress=False)
    if seed != PICTURED:
        runs = {arm: replace(run, pictures=None) for arm, run in runs.items()}
    content = {
        "plan": told,
        "labels": labels,
        "machine": describe_machine(),
        "runs": [run.as_dict() for run in runs.values()],
    }
    write_whole(path, lambda file: file.write(json.dumps(content)))
    return path


def described(plan: DensePlan) -> dict[str, Any]:
    """A plan as plain values.

    Args:
        plan: How to train.

    Returns:
        Field names to values; of the ramp its name.
    """
    ramp = getattr(plan.ramp, "__name__", repr(plan.ramp))
    return asdict(plan) | {"ramp": ramp}


def gathered(paths: list[Path]) -> dict[str, Any]:
    """What several files hold, as one.

    Args:
        paths: What ``measure`` returned.

    Returns:
        Machine, plans by name, seconds of all, and all runs.
    """
    parts = [json.loads(path.read_text()) for path in sorted(paths)]
    runs = [run for part in parts for run in part["runs"]]
    return {
        "machine": parts[0]["machine"],
        "plans": {part["labels"]: part["plan"] for part in parts},
        "seconds": round(sum(run["seconds"] for run in runs)),
        "runs": runs,
    }


def finished(cells: list[tuple], jobs: int) -> Iterator[Path]:
    """Measure, one after the other or at most two at a time.

    Args:
        cells: Arguments of ``measure``.
        jobs: 1 or 2.

    Yields:
        Files, as they come.
    """
    if jobs == 1:
        yield from (measure(*cell) for cell in cells)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, *cell) for cell in cells]):
            yield done.result()


def main() -> None:
    """Measure what is missing, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1)
    parser.add_argument("--small", action="store_true", help="to see that it works")
    chosen = parser.parse_args()
    plans = {name: small(p) for name, p in PLANS.items()} if chosen.small else PLANS
    folder = KEPT / "small" if chosen.small else KEPT
    cells = [(t, n, p, s, folder) for s in chosen.seeds for n, p in plans.items() for t in TOYS]
    bar = tqdm(finished(cells, chosen.jobs), total=len(cells), desc="tasks, labels and seeds")
    paths = list(bar)
    if not chosen.small:
        content = gathered(paths)
        path = DATA / "runs" / "collages.json"
        write_whole(path, lambda file: file.write(json.dumps(content)))


if __name__ == "__main__":
    main()
