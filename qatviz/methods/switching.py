"""Train by one method, and from some moment on by another."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.methods.base import Method, check_between


class Switching(Method):
    """One method until a share of the steps is taken, then another.

    Both are prepared at the beginning and both follow every step, so that an average of weights
    is up to date when its method takes over. The terms of the one that is active are summed to
    one, because the names of terms must stay.

    Args:
        first: How training begins.
        second: How it ends; it says who is evaluated.
        at: Share of the steps after which ``second`` takes over, 0 to 1. Default: 0.5 (ours).

    Raises:
        ValueError: If ``at`` is outside its range.

    Source: ours.
    """

    def __init__(self, first: Method, second: Method, at: float = 0.5) -> None:
        super().__init__()
        check_between("Switching", "at", at, 0, 1)
        self.first, self.second, self.at = first, second, at
        self._progress = 0.0

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Prepare both.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.
        """
        self.first.prepare(student, data)
        self.second.prepare(student, data)
        self._progress = 0.0

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        active = self.first if self._progress < self.at else self.second
        terms = active.loss(forward, images, labels)
        return {"loss": torch.stack(list(terms.values())).sum()}

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        self.first.after_step(batch, progress)
        self.second.after_step(batch, progress)
        self._progress = progress

    @override
    def evaluated(self, student: nn.Module) -> nn.Module:
        """Whom the second method says.

        Args:
            student: The module that is trained.

        Returns:
            A module with the student's state names.
        """
        return self.second.evaluated(student)

    def get_extra_state(self) -> float:
        """The share of the steps taken, for ``state_dict``.

        Returns:
            0 to 1.
        """
        return self._progress

    def set_extra_state(self, state: float) -> None:
        """Go on from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self._progress = float(state)
