"""What a training method is, and the plainest one."""

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
    """How to train a student: what to prepare, what to minimise, what to do after a step.

    A method is a module, so its teacher, heads and masks are saved with it and its own
    parameters are trained. It never touches the student inside ``loss``: it is given a
    function.
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
        """The named terms whose sum is minimised.

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


class CrossEntropy(Method):
    """Plain training on the labels: L = −(1/n) ∑ log softmax(z)[label].

    The average is over the labelled images of the batch; it is zero, with zero gradient,
    where there are none.

    Args:
        view: Batch of raw images to batch of raw images. Default: ``unchanged`` (ours).
    """

    def __init__(self, view: Callable[[Images], Images] = unchanged) -> None:
        super().__init__()
        self.view = view

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        logits = forward(self.view(images)).float()
        return {"cross_entropy": labelled_cross_entropy(logits, labels)}


def labelled_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Cross-entropy averaged over the images that have a label.

    Args:
        logits: One row per image.
        labels: Class numbers, −1 where there is no label.

    Returns:
        A scalar in nats; zero where no image is labelled (torch's own mean is NaN there).
    """
    total = cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / torch.clamp((labels >= 0).sum(), min=1)
