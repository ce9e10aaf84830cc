import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qatviz.widgets import target_explorer
from qatviz.widgets.soft_target import draw_target

PREDICTION, NAMES = np.array([0.7, 0.2, 0.1]), ("coat", "shirt", "bag")


@pytest.fixture(scope="module")
def explorer():
    return target_explorer(PREDICTION, 1, NAMES)


def at(explorer, **values):
    for name, value in values.items():
        explorer.controls[name].value = value
    return explorer.result


def test_the_target_is_between_label_and_teacher(explorer):
    found = at(explorer, ramp="constant", strength=1.0, progress=0.5)
    np.testing.assert_allclose(found.target, [0.35, 0.6, 0.05])
    assert found.rate == 2
    found = at(explorer, strength=10.0)
    np.testing.assert_allclose(found.target, [7 / 11, 3 / 11, 1 / 11])
    assert found.rate == 11


def test_the_strength_follows_the_ramp(explorer):
    found = at(explorer, ramp="sigmoid_up", strength=10.0, progress=0.0)
    assert found.strength == pytest.approx(10 * math.exp(-5))
    assert found.strengths[[0, -1]] == pytest.approx([10 * math.exp(-5), 10])
    assert at(explorer, ramp="cosine_down", progress=0.5).strength == pytest.approx(5)
    assert at(explorer, ramp="step_on", progress=0.2).strength == 0
    np.testing.assert_allclose(explorer.result.target, [0, 1, 0])


def test_it_is_what_the_gradients_of_both_losses_say(explorer):
    found = at(explorer, ramp="constant", strength=1.0, progress=1.0)
    logits = torch.tensor([0.3, -1.0, 0.4], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(PREDICTION)
    student = logits.log_softmax(0)
    loss = -student[1] + found.strength * (teacher * (teacher.log() - student)).sum()
    loss.backward()
    expected = found.rate * (logits.detach().softmax(0) - torch.tensor(found.target))
    torch.testing.assert_close(logits.grad, expected)


def test_the_picture_names_what_it_shows(explorer):
    figure = Figure()
    draw_target(figure, at(explorer, ramp="constant", strength=1.0, progress=0.5))
    left, right = figure.axes
    assert left.get_xlabel() == "progress of training t"
    assert left.get_title() == "constant: λ = 1"
    assert left.lines[1].get_xydata().tolist() == [[0.5, 1.0]]
    assert [t.get_text() for t in right.get_xticklabels()] == list(NAMES)
    assert "× 2" in right.get_title()
    heights = [[bar.get_height() for bar in group] for group in right.containers]
    np.testing.assert_allclose(heights, [[0, 1, 0], PREDICTION, [0.35, 0.6, 0.05]])
    legend = [t.get_text() for t in right.get_legend().get_texts()]
    assert legend == ["label y", "teacher p_T", "target (y + λ·p_T)/(1 + λ)"]


def test_the_static_face_moves_every_control(explorer):
    assert {name: len(values) for name, values in explorer.frames.items()} == {
        "ramp": 3,
        "strength": 3,
        "progress": 4,
    }


@pytest.mark.parametrize(
    ("prediction", "label", "names", "words"),
    [
        (PREDICTION, 3, NAMES, "label 3"),
        (PREDICTION, -1, NAMES, "label -1"),
        (PREDICTION, 0, NAMES[:2], "2 classes"),
        (2 * PREDICTION, 0, NAMES, "adds up to 2"),
        (np.array([1.5, -0.5, 0.0]), 0, NAMES, "prediction"),
    ],
)
def test_what_is_refused(prediction, label, names, words):
    with pytest.raises(ValueError, match=words):
        target_explorer(prediction, label, names)
