"""Every study that comes along can be read, and each of its distinct cells can be trained."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qatviz import datasets
from qatviz.models import small_cnn
from qatviz.schedule import Schedule
from qatviz.studies import Experiment, dry_run, read_study
from qatviz.studies.building import data_of
from qatviz.studies.checks import with_starts
from qatviz.studies.parts import target_of

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
EMBEDDED = "fashion-mini"
BATCH = 8  # two steps of so few images: what is looked for are errors, not numbers
TINY = partial(small_cnn, width=2)
SHORT = Schedule(epochs=1, batch=BATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty tiny colour images of ten classes, where a study expects CIFAR."""
    root = tmp_path_factory.mktemp("colour")
    noise = np.random.default_rng(0).integers(0, 256, (2, 10, 6, 8, 8, 3), np.uint8)
    for part, images in zip(("train", "test"), noise, strict=True):
        for label, of_class in enumerate(images):
            (root / part / str(label)).mkdir(parents=True)
            for number, image in enumerate(of_class):
                Image.fromarray(image).save(root / part / str(label) / f"{number}.png")
    return str(root)


def small(e, folder, networks):
    """The same parts on few images; a tiny network for all cells but the first of their kind."""
    where = {} if e.data == EMBEDDED else {"data": "imagefolder", "root": folder}
    schedule = replace(e.schedule, epochs=1, batch=BATCH)
    # How many images there are and how often they are repeated does not change what is built.
    short = {"images": 4 * BATCH, "repeat": 1, "seed": 0, "label": "", "schedule": schedule}
    # Observers and analyses may name layers: where the network is a tiny one, they are left out.
    watched = e.describe()
    watched = str((watched["observers"], watched["analyses"]))
    network = target_of(e.model).__name__, type(e.start), watched
    if network in networks:
        tiny = Experiment(**where, model=TINY, images=4 * BATCH, schedule=SHORT)
        unseen = {"observers": {}, "analyses": {}}
        return replace(e, **where, **short, **unseen, model=TINY, start=e.start and tiny)
    networks.add(network)
    start = e.start
    if isinstance(start, Experiment):
        start = replace(start, **where, images=4 * BATCH, repeat=1, seed=0, schedule=SHORT)
    return replace(e, **where, **short, start=start)


@pytest.mark.slow
def test_the_distinct_cells_of_all_studies_take_two_steps(folder, tmp_path, monkeypatch):
    data_of(EMBEDDED, None)  # kept, as its files are elsewhere from here on
    networks, cells = set(), {}
    for path in STUDIES:
        for e in read_study(path, tmp_path):
            # Beyond W2A2 the papers' grids have the same parts.
            if e.pair in ((None, None), (2, 2)) or e.data == EMBEDDED:
                made = small(e, folder, networks)
                # Cells that differ in a rate or a strength alone are built alike.
                parts = re.sub(r"\d+\.\d+(e-?\d+)?", "", made.content)
                cells.setdefault(parts, (f"{path.stem}: {e.name}", made))
    assert {name for name, *_ in networks} == {
        *("small_resnet", "small_cnn", "resnet20", "resnet18", "mobilenet_v2"),
    }
    monkeypatch.setattr(datasets, "DATA", tmp_path)  # where decoded images are kept
    names = {e.hash: name for name, e in cells.values()}
    failed = dry_run([e for _, e in cells.values()], tmp_path, "cpu")
    assert {names.get(key, "a start"): text for key, text in failed.items()} == {}
    assert len(cells) > 30


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_read_and_names_its_arms(path, tmp_path):
    experiments = read_study(path, tmp_path)
    assert len(experiments) >= 4
    assert len({e.hash for e in experiments}) == len(experiments)
    by_label = {e.label: e.arm for e in experiments}
    assert len(by_label) == len(set(by_label.values())) == len({e.arm for e in experiments})


def test_the_paper_studies_start_from_the_float_rows(tmp_path):
    paths = {path.stem: path for path in STUDIES if path.stem.startswith("consistency_paper")}
    rows = read_study(paths.pop("consistency_paper_float"), tmp_path)
    augmented = {e.hash for e in rows if e.label.startswith("FP+aug")}
    started = {e.start.hash for e in read_study(paths.pop("consistency_paper_why"), tmp_path)}
    for path in paths.values():
        cells = read_study(path, tmp_path)
        assert len(cells) == 10 * 3 * 3
        started |= {e.start.hash for e in cells if e.images is None}
        # Few labels are few from the start on.
        assert all(e.start.images == e.images for e in cells)
    assert started == augmented
    assert len(started) == 12


def test_no_cell_of_the_colour_study_takes_longer_than_its_budget(tmp_path):
    (path,) = (path for path in STUDIES if path.stem == "consistency_cifar")
    cells = read_study(path, tmp_path)
    total = 0.0
    for e in with_starts(cells):
        assert e.schedule.epochs <= 12
        seen = e.schedule.epochs * (e.images or 45_000) * e.repeat * (1 + e.unlabelled)
        # Seconds of one core for a step of 128 images, as the file says.
        step = 0.3 if not e.quantized else 0.45 if e.label.startswith("LSQ") else 0.65
        minutes = seen / 128 * step / 60
        assert minutes < 40
        total += minutes / 60
    assert total == pytest.approx(1.94, abs=0.1)
    assert "1.9 hours of one core" in path.read_text()
