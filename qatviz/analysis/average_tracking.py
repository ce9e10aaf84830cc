"""Whether the moving average of a student's weights oscillates: the teacher of consistency."""

from torch import nn
from typing_extensions import override

from qatviz.records import Oscillation
from qatviz.teachers import ema_update, frozen_copy
from qatviz.tracking import OscillationTracker


class AverageTracker(nn.Module):
    """An ``OscillationTracker`` of the moving average of a student's weights and grids.

    The codes are those of the averaged latent weights, rounded on the averaged grids: the weights
    of a ``ConsistencyRegularization`` teacher of the same α, whether the student is trained with
    one or not. (The mean *of codes* is another thing: ``OscillationTracker.mean``.)

    An observer, as ``OscillationTracker``.

    Args:
        student: A quantized model as it is before the first step.
        decay: α, 0 to 1. Default: 0.999 (as ``ConsistencyRegularization``).
        momentum: As ``OscillationTracker``.
        bits: The same.

    Raises:
        ValueError: If ``decay`` is outside its range, or ``OscillationTracker`` refuses.

    Source: the tracker as there; of an average: ours.
    """

    def __init__(
        self, student: nn.Module, decay: float = 0.999, momentum: float = 0.01, bits: int = 4
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"AverageTracker: decay must be 0 to 1, got {decay!r}")
        self.decay = decay
        self.average = frozen_copy(student)
        self.tracker = OscillationTracker(self.average, momentum, bits)

    @override
    def forward(self, step: int, model: nn.Module) -> None:
        """Move the average, and look at it.

        Args:
            step: The number of the step; not used.
            model: The student.
        """
        ema_update(self.average, model, self.decay)
        self.tracker(step, self.average)

    def record(self) -> Oscillation:
        """What was seen so far.

        Returns:
            As ``OscillationTracker.record``.
        """
        return self.tracker.record()

    def __repr__(self) -> str:
        """One line.

        Returns:
            Such as ``AverageTracker(2 layers, 84 weights, 12 steps, decay=0.99)``.
        """
        return f"AverageTracker({self.tracker.extra_repr()}, decay={self.decay})"
