"""One target from two teachers: the student's own average, and a float network."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.augment import Images
from qatviz.methods.base import Method, check_between
from qatviz.methods.consistency import ConsistencyRegularization
from qatviz.methods.kd import check_teacher
from qatviz.quantize import check_ready
from qatviz.teachers import frozen_copy


class TwoTeachers(ConsistencyRegularization):
    """Consistency with a mixture of what the average and a float teacher predict.

    The target of an image is p_T = (1 − w)·p_average + w·p_float, both of the same view A″. With
    w = 0 it is ``ConsistencyRegularization``, to the bit, with w = 1 distillation between two
    views; the teacher that does not count is not run. Units of work of a step: 5 where plain
    training takes 3. Distillation and consistency as two terms are
    ``ConsistencyRegularization(HintonKD(teacher))``.

    Args:
        method: How the labels are learned.
        teacher: A classifier with the student's classes. It is never modified.
        weight: w, 0 to 1. Default: 0.5 (ours).
        strength: λ. Default: 1 (as ``ConsistencyRegularization``).
        decay: α of the average. Default: 0.999 (the same).
        warm_up: Whether its window grows with the run. Default: False (the same).

    Raises:
        ValueError: If a number is outside its range, or the teacher has a quantizer that is not
            calibrated.

    Source: ours; both papers name consistency beside distillation and leave their union open.
    """

    def __init__(
        self,
        method: Method,
        teacher: nn.Module,
        weight: float = 0.5,
        strength: float = 1.0,
        decay: float = 0.999,
        warm_up: bool = False,
    ) -> None:
        super().__init__(method, strength=strength, decay=decay, warm_up=warm_up)
        check_between("TwoTeachers", "weight", weight, 0, 1)
        check_ready(teacher)
        self.float_teacher, self.weight = frozen_copy(teacher), weight

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Make the average, a copy of the student, and check that the teacher fits.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.

        Raises:
            ValueError: If the teacher does not take the images, or has other classes.
        """
        super().prepare(student, data)
        self.float_teacher.eval()
        check_teacher("TwoTeachers", self.float_teacher, student, data)

    @override
    @torch.no_grad()
    def targets_of(self, images: Images) -> Float[Tensor, "batch classes"]:
        if self.weight == 0:
            return super().targets_of(images)
        view = self._normalise(self.teacher_view(images))
        teacher = self.float_teacher(view).float()
        if self.weight == 1:
            return teacher
        average = self.teacher(view).float()
        mixture = (1 - self.weight) * average.softmax(1) + self.weight * teacher.softmax(1)
        return mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()
