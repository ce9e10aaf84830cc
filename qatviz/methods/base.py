"""What a training method is, the plainest one, and what methods around methods share."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from qatviz.augment import Images, unchanged

Forward = Callable[..., Any]


class Method(nn.Module):
    """How to train a student: prepare, minimise, follow a step, say who is evaluated.

    A method is a module, so its teacher, heads and masks are saved with it and its own
    parameters are trained. Whatever of it changes while training is in its ``state_dict``:
    buffers, modules made in ``prepare``, or numbers in ``get_extra_state``. A resumed run calls
    ``prepare`` first and loads that state afterwards. The student is never a part of the
    method (one that has to keep it keeps it in a tuple), and ``loss`` is given a function to
    run it with.
    """

    def prepare(self, student: nn.Module, data: Any) -> None:
        """Look at the student and the training data once, before the first step.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.
        """

    def loss(
        self,
        forward: Forward,
        images: Shaped[Tensor, "batch channels height width"],
        labels: Int[Tensor, "batch"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The named terms whose sum is minimised: the same names at every step.

        Args:
            forward: ``forward(images) -> logits``: normalises raw images and runs the student.
            images: Raw images as they lie in the ``Split``, not augmented, because some
                methods look at them twice: the method takes its own views.
            labels: Class numbers, −1 where there is no label.

        Returns:
            Scalars by name.
        """
        raise NotImplementedError

    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        """Do what follows an optimizer step, such as moving a teacher.

        Args:
            batch: The raw images and labels of the step.
            progress: Share of the steps taken, above 0, up to 1.
        """

    def evaluated(self, student: nn.Module) -> nn.Module:
        """Who answers when the student is evaluated.

        Args:
            student: The module that is trained.

        Returns:
            A module with the student's state names. Default: the student itself.
        """
        return student


class CrossEntropy(Method):
    """Plain training on the labels: L = −(1/n) ∑ log softmax(z)[label].

    The average is over the labelled images of the batch; it is zero, with zero gradient,
    where there are none. With label smoothing ε and K classes::

        L = −(1/n) ∑ ( (1 − ε)·log softmax(z)[label] + (ε/K) ∑ₖ log softmax(z)[k] )

    Args:
        view: Batch of raw images to batch of raw images. Default: ``unchanged`` (ours).
        smoothing: ε, 0 up to but not including 1. Default: 0 (ours); 0.1 is the value of
            Szegedy et al.

    Raises:
        ValueError: If ``smoothing`` is outside its range.

    Source of the smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture for
    Computer Vision", arXiv 1512.00567, section 7.
    """

    def __init__(
        self, view: Callable[[Images], Images] = unchanged, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        check_between("CrossEntropy", "smoothing", smoothing, 0, 1, open_above=True)
        self.view = view
        self.smoothing = smoothing

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        logits = forward(self.view(images)).float()
        return {"cross_entropy": labelled_cross_entropy(logits, labels, self.smoothing)}


class Wrapper(Method):
    """A method around another: does what the other does, and something more.

    Wrappers stand around each other. In every verb the inner method goes first, so the
    outermost of them has the last word after a step, and on who is evaluated.

    Args:
        method: How the student is trained.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        self.method.prepare(student, data)

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        return self.method.loss(forward, images, labels)

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        self.method.after_step(batch, progress)

    @override
    def evaluated(self, student: nn.Module) -> nn.Module:
        return self.method.evaluated(student)


def labelled_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy averaged over the images that have a label.

    Args:
        logits: One row per image.
        labels: Class numbers, −1 where there is no label.
        smoothing: ε of ``CrossEntropy``. Default: 0 (ours).

    Returns:
        A scalar in nats; zero where no image is labelled (torch's own mean is NaN there).
    """
    total = cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return total / torch.clamp((labels >= 0).sum(), min=1)


def cosine_between(first: float, last: float, start: float, progress: float) -> float:
    """A number that stays, and then follows half a cosine to another.

    Args:
        first: Its value until ``start``.
        last: Its value at the end of training.
        start: Share of the steps at which it begins to move, below 1.
        progress: Share of the steps taken, 0 to 1.

    Returns:
        first + (last − first)·(1 − cos(π·t))/2, t from 0 at ``start`` to 1 at the end.
    """
    moved = max(progress - start, 0.0) / (1 - start)
    return first + (last - first) * (1 - math.cos(math.pi * moved)) / 2


def check_between(
    owner: str, name: str, value: float, low: float, high: float, *, open_above: bool = False
) -> None:
    """Refuse an argument outside its range.

    Args:
        owner: Whose argument it is.
        name: What it is called.
        value: What it is.
        low: The smallest value allowed.
        high: The largest value allowed.
        open_above: Whether ``high`` itself is not allowed. Default: False.

    Raises:
        ValueError: If it is outside, or NaN; says what is allowed.
    """
    if not low <= value <= high or (open_above and value == high):
        below = "below" if open_above else "to"
        raise ValueError(f"{owner}: {name} must be from {low} {below} {high}, got {value!r}")
