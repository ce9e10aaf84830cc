"""What a run's ``History`` holds, collected while it happens."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from qatviz.records.training import History


class HistoryWriter:
    """Means over each epoch, written down at its end. Its state is plain lists, for a file."""

    def __init__(self) -> None:
        self.terms: dict[str, list[float]] = defaultdict(list)
        self.rate: list[float] = []
        self.validation: list[float] = []
        self.accuracy: list[float] = []
        self.first_steps: list[float] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._sums, self._steps, self._last_rate = defaultdict(float), 0, math.nan
        self._right, self._labelled = 0, 0

    def watching(self, forward: Callable[[Tensor], Any], labels: Tensor) -> Callable:
        """A forward whose first call is counted: how many labelled images it has right.

        Args:
            forward: Images to logits.
            labels: Class numbers of the images of the step; −1 where there is none.

        Returns:
            The same function, watched.
        """
        waiting = [True]

        def watched(images: Tensor, *args: Any, **more: Any) -> Any:
            logits = forward(images, *args, **more)
            if waiting and isinstance(logits, Tensor) and len(logits) == len(labels):
                waiting.clear()
                right = (logits.detach().argmax(1) == labels) & (labels >= 0)
                self._right = self._right + right.sum()
                self._labelled = self._labelled + (labels >= 0).sum()
            return logits

        return watched

    def add(self, terms: dict[str, Tensor], parts: int = 1) -> None:
        """Add the loss terms of a part of a step.

        Args:
            terms: Scalars by name.
            parts: How many parts the step has. Default: 1.
        """
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value.detach() / parts

    def end_step(self, rate: float, seconds: float) -> None:
        """Count a step.

        Args:
            rate: Its learning rate.
            seconds: What it took.
        """
        self._steps += 1
        self._last_rate = rate
        if len(self.first_steps) < 2:
            self.first_steps.append(seconds)

    def end_epoch(self, validation: float | None) -> None:
        """Write the epoch down, and begin the next.

        Args:
            validation: Validation accuracy; None if there are no such images.
        """
        for name, mean in self._means().items():
            self.terms[name].append(mean)
        self.rate.append(self._last_rate)
        self.accuracy.append(self._share_right())
        if validation is not None:
            self.validation.append(validation)
        self._begin_epoch()

    def _means(self) -> dict[str, float]:
        return {name: float(total) / self._steps for name, total in self._sums.items()}

    def _share_right(self) -> float:
        return float(self._right) / float(self._labelled) if self._labelled else math.nan

    def running(self) -> str:
        """The epoch so far, for a bar.

        Returns:
            Loss terms, training accuracy, last validation accuracy.
        """
        return _words(self._means(), self._share_right(), self.validation)

    def latest(self) -> str:
        """The last whole epoch, for a bar.

        Returns:
            Loss terms, training accuracy, validation accuracy.
        """
        last = {name: values[-1] for name, values in self.terms.items()}
        return _words(last, self.accuracy[-1], self.validation)

    def compile_seconds(self) -> float:
        """What the first step took more than the second.

        Returns:
            Seconds.
        """
        first, *second = self.first_steps
        return first - sum(second)

    def state_dict(self) -> dict[str, Any]:
        """All whole epochs.

        Returns:
            Plain lists.
        """
        names = ("rate", "validation", "accuracy", "first_steps")
        return {"terms": dict(self.terms)} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epochs of a state.

        Args:
            state: What ``state_dict`` returned.
        """
        vars(self).update(state)
        self.terms = defaultdict(list, state["terms"])

    def record(self) -> History:
        """What was written down.

        Returns:
            The record.
        """
        terms = {name: np.array(values) for name, values in self.terms.items()}
        curves = (np.array(c, dtype=float) for c in (self.rate, self.validation, self.accuracy))
        return History(terms, *curves)


def _words(means: dict[str, float], accuracy: float, validation: list[float]) -> str:
    words = [f"{name} {mean:.3f}" for name, mean in means.items()]
    words += [] if math.isnan(accuracy) else [f"accuracy {accuracy:.1%}"]
    return ", ".join([*words, *(f"validation {v:.1%}" for v in validation[-1:])])
