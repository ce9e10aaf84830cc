"""Learn from mixtures of two images, with both labels."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from qatviz.augment import Images, Mix, unchanged
from qatviz.methods.base import Method


class MixedCrossEntropy(Method):
    """Cross-entropy on mixtures of images: each label counts as much as its image's share.

    With s the share of the first image in a mixture, y its label and y′ its partner's::

        L = (1/W) ∑ ( s·CE(z, y) + (1 − s)·CE(z, y′) )

    over the images, z the logits of the mixture. A label that is missing is left out, and W is
    the sum of the shares that are left; 0 where no image has a label.

    Args:
        mix: Mixes pairs of a batch: ``cutmix`` or ``mixup``.
        view: What is done to the images before. Default: ``unchanged`` (ours).

    Source: Zhang et al. 2018 (mixup), arXiv 1710.09412; Yun et al. 2019 (CutMix),
    arXiv 1905.04899.
    """

    def __init__(self, mix: Mix, view: Callable[[Images], Images] = unchanged) -> None:
        super().__init__()
        self.mix, self.view = mix, view

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        mixed, partner, share = self.mix(self.view(images))
        logits = forward(mixed).float()
        shares = torch.cat([share, 1 - share])
        both = torch.cat([labels, labels[partner]])
        each = cross_entropy(logits.repeat(2, 1), both, ignore_index=-1, reduction="none")
        weight = (shares * (both >= 0)).sum()
        return {"cross_entropy": (shares * each).sum() / weight.clamp_min(1e-12)}
