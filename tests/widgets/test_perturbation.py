from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qatviz.corruptions import CORRUPTIONS, corrupt
from qatviz.datasets import Split
from qatviz.models import small_cnn
from qatviz.widgets import corruption_explorer
from qatviz.widgets.perturbation import draw_corruption
from tests.analysis.common import unchanged

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 12, 12), dtype=torch.uint8)
    return Split(images, torch.arange(30) % 10, (0.5,), (0.25,), NAMES)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(1)
    return {"float": small_cnn(width=2).eval(), "other": small_cnn(width=2).eval()}


@pytest.fixture
def explorer(models, split):
    kinds = ("gaussian_noise", "contrast")
    return corruption_explorer(models, split, kinds=kinds, shown=4, samples=20)


def answers(model, split, kind, severity):
    """The classes predicted for the first 20 images, literally."""
    images = split.images[:20]
    if severity:
        images = corrupt(images, kind, severity)
    with torch.no_grad():
        return model((images.float() / 255 - 0.5) / 0.25).argmax(1)


def test_the_controls_begin_with_the_first_kind(explorer):
    assert explorer.values == {"kind": "gaussian_noise", "severity": 2}
    assert explorer.frames == {"kind": ["gaussian_noise", "contrast"], "severity": [*range(6)]}


def test_answers_and_accuracies_are_those_of_the_corrupted_images(explorer, models, split):
    explorer.controls["severity"].value = 4
    result = explorer.result
    for name, model in models.items():
        found = answers(model, split, "gaussian_noise", 4)
        assert result.answers[name].tolist() == found[:4].tolist()
        for severity in range(6):
            right = answers(model, split, "gaussian_noise", severity) == split.labels[:20]
            assert result.accuracy[name][severity] == pytest.approx(right.double().mean().item())
    assert result.samples == 20


def test_shows_the_images_that_were_judged(explorer, split):
    explorer.controls["severity"].value = 5
    seen = corrupt(split.images[:20], "gaussian_noise", 5)[:4]
    np.testing.assert_array_equal(explorer.result.images[..., 0], seen[:, 0].numpy())
    assert explorer.result.labels.tolist() == [0, 1, 2, 3]


def test_severity_0_shows_them_as_they_are(explorer, split):
    explorer.controls["severity"].value = 0
    np.testing.assert_array_equal(explorer.result.images[..., 0], split.images[:4, 0].numpy())
    assert explorer.result.amount == "none"


def test_dragging_changes_the_picture_and_says_what_a_severity_means(explorer):
    pictures = set()
    for kind in ("gaussian_noise", "contrast"):
        for severity in (1, 5):
            explorer.controls["kind"].value = kind
            explorer.controls["severity"].value = severity
            corruption = CORRUPTIONS[kind]
            amount = f"{corruption.amounts[severity - 1]:g} ({corruption.unit})"
            assert explorer.result.amount == amount
            pictures.add(explorer.image)
    assert len(pictures) == 4


def test_a_kind_is_measured_once(models, split):
    calls = []
    handle = models["other"].register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        explorer = corruption_explorer(models, split, kinds=["contrast"], samples=20)
        calls.clear()
        for severity in range(6):
            explorer.controls["severity"].value = severity
    finally:
        handle.remove()
    assert calls == []


def test_draws_marks_where_networks_are_right(explorer):
    result = explorer.result
    result = replace(
        result, answers={"float": np.array([0, 1, 9, 9]), "other": np.array([9, 9, 9, 3])}
    )
    figure = Figure()
    draw_corruption(figure, result)
    left, right = figure.axes
    found = [text.get_text() for text in left.texts]
    assert found == ["✓ a", "✓ b", "✗ j", "✗ j", "✗ j", "✗ j", "✗ j", "✓ d"]
    assert [t.get_text() for t in left.get_yticklabels()] == ["float", "other"]
    assert [t.get_text() for t in left.get_xticklabels()] == ["a", "b", "c", "d"]
    assert figure.get_suptitle() == "gaussian noise, severity 2: 0.08 (standard deviation)"
    assert right.get_ylabel() == "accuracy (%), 20 images"
    line, dot = right.lines[:2]
    np.testing.assert_allclose(line.get_ydata(), 100 * result.accuracy["float"])
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert dot.get_xdata() == [2]
    assert dot.get_ydata() == [100 * result.accuracy["float"][2]]


def test_draws_colour_images_and_classes_without_names():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8)
    split = Split(images, torch.arange(8), (0.5,) * 3, (0.25,) * 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 10)).eval()
    explorer = corruption_explorer({"one": model}, split, kinds=["rotate"], shown=3)
    figure = Figure()
    draw_corruption(figure, explorer.result)
    assert figure.axes[0].images[0].get_array().shape == (12, 36, 3)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_leaves_the_networks_as_they_were(models, split):
    with unchanged(models["float"]):
        corruption_explorer(models, split, kinds=["gaussian_noise"], samples=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["fog"]}, "kinds are .'fog'."),
        ({"kinds": []}, "at least one of each"),
        ({"shown": 0}, "shown is 0; allowed: 1 to 30"),
        ({"shown": 21, "samples": 20}, "shown is 21; allowed: 1 to 20"),
    ],
)
def test_refuses(models, split, options, message):
    with pytest.raises(ValueError, match=message):
        corruption_explorer(models, split, **options)


def test_refuses_no_network_and_one_in_training(split):
    with pytest.raises(ValueError, match="0 networks"):
        corruption_explorer({}, split)
    with pytest.raises(ValueError, match="training"):
        corruption_explorer({"one": small_cnn(width=2).train()}, split)
