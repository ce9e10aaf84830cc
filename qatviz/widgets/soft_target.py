"""What does consistency regularization ask for? Drag λ, its ramp, and the moment of training."""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray as Array

from qatviz.methods.ramps import constant, cosine_down, linear_up, sigmoid_up, step_on, up_down
from qatviz.plots import COLOURS
from qatviz.widgets.explorer import Explorer

RAMPS = {r.__name__: r for r in (sigmoid_up, linear_up, constant, cosine_down, step_on, up_down)}
POINTS = 201  # of a ramp


@dataclass(frozen=True, eq=False)
class SoftTarget:
    """The target of one image at one moment of training.

    Args:
        ramp: Name of the ramp.
        times: Progress t, 0 to 1.
        strengths: λ(t).
        progress: The moment.
        strength: λ at that moment.
        label: The label, 1 at one class.
        teacher: p_T, the teacher's prediction.
        classes: Names of the classes.
    """

    ramp: str
    times: Float[Array, "times"]
    strengths: Float[Array, "times"]
    progress: float
    strength: float
    label: Float[Array, "classes"]
    teacher: Float[Array, "classes"]
    classes: Sequence[str]

    @property
    def target(self) -> Float[Array, "classes"]:
        """(y + λ·p_T)/(1 + λ)."""
        return (self.label + self.strength * self.teacher) / (1 + self.strength)

    @property
    def rate(self) -> float:
        """1 + λ: what it multiplies the gradient to the logits by, and so in effect the rate."""
        return 1 + self.strength


def target_explorer(
    prediction: Float[Array, "classes"], label: int, classes: Sequence[str]
) -> Explorer:
    """Drag the strength of consistency; see the target that label and teacher make together.

    With KL, on labelled images of which student and teacher see views that one cannot tell apart,
    cross-entropy and consistency have the gradient of one cross-entropy, at 1 + λ times the rate,
    with the target (y + λ·p_T)/(1 + λ).

    Args:
        prediction: p_T, the teacher's probabilities for one image; they add up to 1.
        label: The image's class.
        classes: Names of the classes, in order.

    Returns:
        An explorer; ``result`` is a ``SoftTarget``.

    Raises:
        ValueError: If the prediction is no distribution over the classes, or there is no such
            label.
    """
    teacher = np.asarray(prediction, float)
    if len(classes) != len(teacher) or not 0 <= label < len(teacher):
        raise ValueError(
            f"target_explorer: {len(teacher)} probabilities, {len(classes)} classes, label {label}"
        )
    if (teacher < 0).any() or not np.isclose(teacher.sum(), 1, atol=1e-4):
        raise ValueError(f"target_explorer: prediction adds up to {teacher.sum():.4g}, not to 1")
    times, one = np.linspace(0, 1, POINTS), np.eye(len(teacher))[label]

    def compute(ramp: str, strength: float, progress: float) -> SoftTarget:
        curve = strength * np.array([RAMPS[ramp](t) for t in times.tolist()])
        now = strength * RAMPS[ramp](progress)
        return SoftTarget(ramp, times, curve, progress, now, one, teacher, tuple(classes))

    strength = ipywidgets.FloatLogSlider(
        1, base=10, min=-1, max=1, step=0.25, description="λ", readout_format=".2f"
    )
    return Explorer(
        compute,
        draw_target,
        size=(9, 3),
        ramp=ipywidgets.Dropdown(options=list(RAMPS), value="sigmoid_up", description="ramp"),
        strength=strength,
        progress=ipywidgets.FloatSlider(1, min=0, max=1, step=0.025, description="progress t"),
        frames={
            "ramp": ["sigmoid_up", "cosine_down", "step_on"],
            "strength": [0.1, 1.0, 10.0],
            "progress": [0.0, 0.2, 0.5, 1.0],
        },
    )


def draw_target(figure: Figure, result: SoftTarget) -> None:
    """Draw λ over training on the left, and label, teacher and target on the right.

    Args:
        figure: An empty figure.
        result: What the explorer computed.
    """
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.plot(result.times, result.strengths, color="0.4")
    left.plot(result.progress, result.strength, "o", ms=8, color=COLOURS["teacher"])
    left.set(xlabel="progress of training t", ylabel="λ(t)", ylim=(0, None))
    left.set_title(f"{result.ramp}: λ = {result.strength:.2g}", fontsize="medium")
    places = np.arange(len(result.classes))
    bars = {
        "label y": (result.label, COLOURS["float"]),
        "teacher p_T": (result.teacher, COLOURS["teacher"]),
        "target (y + λ·p_T)/(1 + λ)": (result.target, COLOURS["quantized"]),
    }
    for shift, (name, (shares, colour)) in zip((-0.27, 0, 0.27), bars.items(), strict=True):
        right.bar(places + shift, shares, 0.27, color=colour, label=name)
    right.set_xticks(places, result.classes, rotation=40, ha="right", rotation_mode="anchor")
    right.set(ylabel="probability", ylim=(0, 1))
    right.set_title(f"gradient to this target × {result.rate:.2g}", fontsize="medium")
    right.legend(fontsize="small")
