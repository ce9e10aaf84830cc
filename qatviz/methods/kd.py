"""Knowledge distillation: learn from labels and from what a teacher says."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.augment import Images, unchanged
from qatviz.calibration import check_images
from qatviz.losses import distillation
from qatviz.methods.base import Method, check_between, labelled_cross_entropy
from qatviz.quantize import check_ready
from qatviz.teachers import frozen_copy


class HintonKD(Method):
    """Labels and a teacher's soft predictions together.

    With s and t the logits of student and teacher on the same view, T the temperature::

        L = (1 − α)·CE(s, label) + α·T²·KL(softmax(t/T) ‖ softmax(s/T))

    CE is averaged over the labelled images, KL over all of them. The paper speaks of a weighted
    average of two objectives and of T², and gives no symbol for the weight; that the weights sum
    to 1 is how the formula is usually written, and how we read "average". α = 0 is
    ``CrossEntropy``, to the bit, and the teacher is not run; α = 1 reads no label.

    The teacher is a frozen copy in evaluation mode (running statistics in BatchNorm), in
    float32 whatever the precision of the training, saved with the method.

    Args:
        teacher: A classifier with the student's classes: the float model that the student was
            made from, or any other; quantized ones too. It is never modified.
        view: Batch of raw images to batch of raw images, drawn once for both.
            Default: ``unchanged`` (ours).
        temperature: T > 0. Default: 4 (SQAKD, arXiv 2403.11106; RepDistiller's released code).
            The paper tries 1 to 20.
        weight: α, 0 to 1. Default: 0.9 (RepDistiller's released script: 0.1 and 0.9; the paper:
            best with a considerably lower weight on the labels).

    Raises:
        ValueError: If a number is outside its range, or the teacher has a quantizer that is not
            calibrated.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531, section 2.
    """

    def __init__(
        self,
        teacher: nn.Module,
        view: Callable[[Images], Images] = unchanged,
        temperature: float = 4.0,
        weight: float = 0.9,
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"HintonKD: temperature must be positive and finite, got {temperature!r}"
            )
        check_between("HintonKD", "weight", weight, 0, 1)
        check_ready(teacher)
        self.teacher = frozen_copy(teacher)
        self.view, self.temperature, self.weight = view, temperature, weight

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Check that the teacher fits the data and has the student's classes.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.

        Raises:
            ValueError: If it does not.
        """
        self.teacher.eval()
        # Of one image: what normalises keeps its images alive.
        self._normalise = data.subset(1).normalise
        check_teacher("HintonKD", self.teacher, student, data)

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        view = self.view(images)
        logits = forward(view).float()
        if self.weight == 0:
            return {"cross_entropy": labelled_cross_entropy(logits, labels)}
        with torch.no_grad():
            targets = self.teacher(self._normalise(view))
        soft = {"distillation": self.weight * distillation(logits, targets, self.temperature)}
        if self.weight == 1:
            return soft
        return {"cross_entropy": (1 - self.weight) * labelled_cross_entropy(logits, labels)} | soft


def check_teacher(owner: str, teacher: nn.Module, student: nn.Module, data: Any) -> None:
    """Refuse a teacher that cannot teach a student.

    Args:
        owner: Whose teacher it is.
        teacher: The teacher.
        student: The student.
        data: The training ``Split``.

    Raises:
        ValueError: If one of them cannot take the images, or they have different classes.
    """
    images, _ = next(data.batches(2))
    ours, theirs = (check_images(m, images).shape[1:] for m in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"{owner}: the teacher returns {list(theirs)} numbers per image, "
            f"the student {list(ours)}"
        )
