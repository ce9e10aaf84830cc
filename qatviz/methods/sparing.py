"""Consistency at a lower price: a teacher that is asked less often."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from qatviz.augment import Images
from qatviz.calibration import check_images
from qatviz.methods.base import Method, check_between
from qatviz.methods.consistency import ConsistencyRegularization

CHUNK = 1000  # images whose keys are computed together: what they are widened to is not kept


class SparingConsistency(ConsistencyRegularization):
    """Consistency at every k-th step, or on a part of each batch.

    Where it is left out the term is 0; where it is taken it counts as much as in
    ``ConsistencyRegularization``, so with k = 2 it is asked for half as much in all. The average
    moves after every step. Units of work of a step (forward 1, backward 2): 3 + share/k.

    Args:
        method: How the labels are learned.
        every: k, a whole number from 1: the term is taken at the first step and at every k-th
            after it. Default: 2 (ours).
        share: Share of each batch, its first images, above 0, up to 1. Batches are in random
            order; where unlabelled images follow, the labelled ones are first. Default: 1.
        decay: α of the average. Default: 0.999 (as ``ConsistencyRegularization``).
        warm_up: Whether its window grows with the run. Default: False (the same).

    Raises:
        ValueError: If a number is outside its range.

    Source: ours, as an answer to what the method costs.
    """

    def __init__(
        self,
        method: Method,
        every: int = 2,
        share: float = 1.0,
        decay: float = 0.999,
        warm_up: bool = False,
    ) -> None:
        super().__init__(method, decay=decay, warm_up=warm_up)
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(
                f"SparingConsistency: every must be a whole number from 1, got {every!r}"
            )
        check_between("SparingConsistency", "share", share, 0, 1)
        if share == 0:
            raise ValueError("SparingConsistency: share must be above 0, got 0")
        self.every, self.share = every, share

    @override
    def disagreement(self, forward, images, logits) -> Float[Tensor, ""]:
        if self._steps % self.every:
            return logits.new_zeros((), dtype=torch.float32)
        asked = max(1, round(self.share * len(images)))
        return super().disagreement(forward, images[:asked], logits[:asked])


class RememberingConsistency(ConsistencyRegularization):
    """Consistency with what the teacher said an epoch ago, in every second epoch.

    In the first epoch, the third and so on the teacher is run, and its logits of each training
    image are kept; in the others they are taken from there, as they were: of another view and of
    an older average. A batch with an image that is not known yet (what is left over at the end
    of an epoch waits for a later one) is run. Unlabelled images that are not among the training
    images are never known. Images are recognised by their content; of two that are equal in a
    batch the later one's logits are kept.

    An epoch is as many whole batches as the training images make, unlabelled images counted with
    the rest. Made for one process: of several, each knows only what it was asked itself.

    Units of work of a step: 3.5 on average where plain training takes 3. Memory: one row of
    logits and one number per training image.

    Args:
        method: How the labels are learned.
        decay: α of the average. Default: 0.999 (as ``ConsistencyRegularization``).
        warm_up: Whether its window grows with the run. Default: False (the same).

    Raises:
        ValueError: If ``decay`` is outside its range.

    Source: ours; an average of predictions per image instead of one of weights is in Laine & Aila
    2017 (temporal ensembling), arXiv 1610.02242.
    """

    def __init__(self, method: Method, decay: float = 0.999, warm_up: bool = False) -> None:
        super().__init__(method, decay=decay, warm_up=warm_up)

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Make the teacher, and room for what it says of every training image.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.
        """
        super().prepare(student, data)
        classes = check_images(student, next(iter(data.batches(2)))[0]).shape[1]
        self._keys = _keys(data.images).unique()
        self._images, self._seen, self._remembering = len(data), 0, False
        count, device = len(self._keys), self._keys.device
        self.register_buffer("said", torch.zeros(count, classes, device=device))
        self.register_buffer("known", torch.zeros(count, dtype=torch.bool, device=device))

    @override
    @torch.no_grad()
    def targets_of(self, images: Images) -> Float[Tensor, "batch classes"]:
        self._keys = self._keys.to(images.device)
        keys = _keys(images)
        places = torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)
        ours = self._keys[places] == keys
        if self._remembering and bool((ours & self.known[places]).all()):
            return self.said[places]
        targets = super().targets_of(images)
        # Equal images write equal rows, because of two different ones either might remain.
        number = torch.arange(len(keys), device=keys.device)
        last = torch.where(keys[:, None] == keys, number, -1).amax(1)
        self.said[places[ours]], self.known[places[ours]] = targets[last[ours]], True
        return targets

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        super().after_step(batch, progress)
        count = len(batch[0])
        self._seen += count
        if self._seen + count > self._images:  # what is left over waits for a later epoch
            self._seen, self._remembering = 0, not self._remembering

    @override
    def get_extra_state(self) -> dict[str, float]:
        """Where in an epoch training is, too.

        Returns:
            Numbers by name.
        """
        own = {"seen": self._seen, "remembering": self._remembering}
        return super().get_extra_state() | own

    @override
    def set_extra_state(self, state: dict[str, float]) -> None:
        """Go on from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        super().set_extra_state(state)
        self._seen, self._remembering = int(state["seen"]), bool(state["remembering"])


def _keys(images: Images) -> Int64[Tensor, "batch"]:
    """A number for the content of each image: two share one by a chance below 2⁻⁵⁶."""
    rows = images.contiguous().flatten(1).view(torch.uint8)
    factors = torch.randint(-(2**62), 2**62, rows.shape[1:], generator=torch.Generator())
    factors = factors.to(images.device)
    return torch.cat([(part.long() * factors).sum(1) for part in rows.split(CHUNK)])
