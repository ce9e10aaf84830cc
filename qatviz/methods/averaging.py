"""Train one model, and evaluate its average over training."""

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from qatviz.methods.base import Method, Wrapper, check_between
from qatviz.teachers import ema_update, frozen_copy, warmed_up


class AveragedWeights(Wrapper):
    """Train by another method, and evaluate an exponential moving average of the student.

    After step t, for every parameter and floating buffer (``ema_update``)::

        average ← α_t·average + (1 − α_t)·student        α_t = min(α, 1 − 1/(t + 1))

    α_t is Mean Teacher's warm-up: while it is the smaller one, the average is the plain mean of
    the student's states so far, the first included, and a short run is not evaluated near where
    it began. Without warm-up α_t = α. α = 0: the average is the student, to the bit.

    Latent weights, steps, ranges and BatchNorm's statistics are averaged alike; the average is
    quantized as the student is, rounding averaged weights by averaged steps. The training itself
    does not change. The average covers about 1/(1 − α) steps: 1000 by default, which is 13
    epochs of 10,000 images in batches of 128; for shorter runs take a smaller α.

    Args:
        method: How the student is trained.
        decay: α, 0 to 1; 1 is the plain mean over training, or without warm-up the student as
            it began. Default: 0.999 (Mean Teacher's released code).
        warm_up: Whether α_t rises. Default: True (the same).

    Raises:
        ValueError: If ``decay`` is outside its range.

    Source: Tarvainen & Valpola 2017 (Mean Teacher), arXiv 1703.01780, for average and warm-up;
    that steps are averaged with the weights has a precedent in Gupta & Asthana,
    arXiv 2311.05109, as others report it.
    """

    def __init__(self, method: Method, decay: float = 0.999, warm_up: bool = True) -> None:
        super().__init__(method)
        check_between("AveragedWeights", "decay", decay, 0, 1)
        self.decay, self.warm_up = decay, warm_up
        self._prepared, self._steps = (), 0

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Prepare the method, and begin the average with the student.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.
        """
        self.method.prepare(student, data)
        self.average = frozen_copy(student)
        self._prepared, self._steps = (student,), 0

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        self.method.after_step(batch, progress)
        self._steps += 1
        (student,) = self._prepared
        ema_update(self.average, student, self.decay_at(self._steps))
        if progress >= 1:
            self._prepared = ()

    def decay_at(self, step: int) -> float:
        """The decay after a step.

        Args:
            step: t, from 1.

        Returns:
            α_t.
        """
        return warmed_up(self.decay, step) if self.warm_up else self.decay

    @override
    def evaluated(self, student: nn.Module) -> nn.Module:
        """The average.

        Args:
            student: The module that is trained.

        Returns:
            Its average, in evaluation mode.
        """
        return self.average

    def get_extra_state(self) -> int:
        """The steps taken, for ``state_dict``.

        Returns:
            A whole number.
        """
        return self._steps

    def set_extra_state(self, state: int) -> None:
        """Go on counting from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self._steps = int(state)
