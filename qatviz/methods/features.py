"""Consistency of what the last layer is given, instead of what it says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.losses import feature_distance
from qatviz.methods.base import Method
from qatviz.methods.consistency import ConsistencyRegularization
from qatviz.methods.ramps import sigmoid_up


class FeatureConsistency(ConsistencyRegularization):
    """Consistency between the features of student and teacher.

    L = the inner method's + λ(t)·R(h_S, h_T), where h is what the last linear layer is given,
    before it is quantized. That layer, and the teacher's, has no part in R.

    Args:
        method: How the labels are learned.
        divergence: R, of features. Default: 1 − cos(h_S, h_T).
        strength: λ at its largest, 0 or more. Default: 1 (ours).
        ramp: λ(t)/λ. Default: ``sigmoid_up`` (as ``ConsistencyRegularization``).
        decay: α of the average. Default: 0.999 (the same).
        warm_up: Whether its window grows with the run. Default: False (the same).

    Raises:
        ValueError: If a number is outside its range, or the inner method has no view; on
            ``prepare`` if the student has no linear layer.

    Source: Pang et al. 2024, arXiv 2402.13497, version 1, abstract ("latent feature space"); which
    features and which distance is not known: ours.
    """

    def __init__(
        self,
        method: Method,
        divergence: Callable[[Tensor, Tensor], Tensor] = feature_distance,
        strength: float = 1.0,
        ramp: Callable[[float], float] = sigmoid_up,
        decay: float = 0.999,
        warm_up: bool = False,
    ) -> None:
        super().__init__(method, divergence, strength, ramp, decay, warm_up)

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        linear = [name for name, layer in student.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ValueError("FeatureConsistency: the student has no linear layer")
        super().prepare(student, data)
        self._last = linear[-1]

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        (student,) = self._prepared
        with inputs_of(student.get_submodule(self._last)) as self._features:
            return super().loss(forward, images, labels)

    @override
    def disagreement(self, forward, images, logits) -> Float[Tensor, ""]:
        last = self.teacher.get_submodule(self._last)
        with inputs_of(last) as targets:
            with self._own_generator(images.device):
                self.targets_of(images)
            # Of the inner method's runs the first, as logits are.
            return self.divergence(self._features[0].float(), targets[0].float())


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given while the block runs.

    Args:
        layer: Any layer that is called with a tensor.

    Yields:
        A list that grows by one tensor at each call of the layer, and is empty again afterwards.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
        seen.clear()  # else they, and what they were computed from, live on until the next step
