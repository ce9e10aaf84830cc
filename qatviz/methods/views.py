"""Look at every image more than once, with its label each time."""

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from qatviz.methods.base import Wrapper


class TwoViews(Wrapper):
    """Every loss term is the mean over two runs of the method, each with views of its own.

    The control for consistency between two views: the student runs twice and sees both, but
    each view is told its label, and nothing asks the two predictions to agree.

    Args:
        method: How the student is trained; its view is drawn twice.

    Source: Hoffer et al. 2020, "Augment Your Batch", arXiv 1901.09335, with two instances.
    """

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        first, second = (self.method.loss(forward, images, labels) for _ in range(2))
        return {name: torch.stack([first[name], second[name]]).mean() for name in first}
