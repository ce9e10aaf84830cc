"""A network on fixed images, ready to be evaluated wherever its weights are moved."""

import copy
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qatviz.analysis.hessian import joins_images
from qatviz.analysis.subject import Data, Loss, device_of, one_number, subject
from qatviz.analysis.surface import Surface
from qatviz.evaluation import reestimate_batchnorm, running_norms
from qatviz.quantizers import Quantizer
from qatviz.records.landscape import Conditions

KEPT = 256 << 20  # bytes of normalised images that are kept from pass to pass (ours)


class Moved:
    """A private copy of a surface, and the images that its loss is the mean over.

    Images are normalised once and stay in the layout that convolutions read fastest, if all of
    them fit into 256 MiB; otherwise each pass normalises them anew, and one batch is held beside
    the images as they were given. Weights are written in place, so that a point costs its
    forward passes and little else.

    Args:
        model: In evaluation mode, or a ``Surface`` of it, looked at where it stands. Neither
            changes.
        data: Images: a ``Split``, ``(images, labels)`` or a loader, seen without augmentation.
        loss: ``(logits, labels) -> mean``. Default: cross-entropy in nats, without weight decay.
        samples: Images, the first. Default: None: all that were given.
        batch: Images at once; all, where they are not alone in the network: with BatchNorm of
            the images themselves, or quantizers whose grid is that of the batch. Default: None:
            100 on a CPU, where larger batches took half as long again, 500 elsewhere (ours).
        reestimate: Batches from which BatchNorm's statistics are estimated anew at every
            point. Default: 0: they are those of training (the convention).
        training: Images for that.

    Attributes:
        surface: The copy; its ``point`` is where the surface given stands.
        split: The images.
        passes: Passes over all images so far; one with gradients counts as one.

    Raises:
        ValueError: If the model, the data or a number is not as said.
    """

    def __init__(
        self,
        model: nn.Module | Surface,
        data: Data,
        *,
        loss: Loss = cross_entropy,
        samples: int | None = None,
        batch: int | None = None,
        reestimate: int = 0,
        training: Data = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise ValueError(f"batch is {batch}; allowed: 1 or more, or None")
        self.surface = copy.deepcopy(model) if isinstance(model, Surface) else Surface(model)
        self.surface.point = self.surface.here()
        # BatchNorm of the images themselves is a training mode that was asked for.
        looked_at = copy.deepcopy(self.surface.model).eval()
        self.split = subject(looked_at, data, samples)
        self.loss, self.passes = loss, 0
        self.model = self.surface.model.to(memory_format=torch.channels_last)
        self.device = device_of(self.model)
        self.reestimate, self.training = reestimate, None
        if reestimate:
            self._check_reestimation(training)
            self.training = subject(looked_at, training)
        if joins_images(self.model):
            batch = len(self.split)
        elif batch is None:
            batch = 100 if self.device.type == "cpu" else 500
        self._batch, self._kept = batch, None
        numbers = self.split.images.numel() * next(self.model.parameters()).element_size()
        if numbers <= KEPT:
            self._kept = list(self._prepared())

    @property
    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Images as the network takes them, and labels."""
        return self._prepared() if self._kept is None else self._kept

    def _prepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        like = next(self.model.parameters())
        for images, labels in self.split.batches(self._batch):
            images = images.to(like).contiguous(memory_format=torch.channels_last)
            yield images, labels.to(like.device)

    def _check_reestimation(self, training: Data) -> None:
        if self.reestimate < 0:
            raise ValueError(f"reestimate is {self.reestimate} batches; allowed: 0 or more")
        if training is None:
            raise ValueError(
                "reestimate needs training images to estimate BatchNorm's statistics from: "
                "pass training="
            )
        if not running_norms(self.model) or self.surface.batchnorm == "batch":
            raise ValueError("reestimate: there is no BatchNorm that uses running statistics")

    def __call__(self, vector: Float[Tensor, "size"]) -> tuple[float, float]:
        """Move the weights and evaluate.

        Args:
            vector: Where, a point of the surface.

        Returns:
            The mean loss, and the share of images classified as their label.
        """
        self.surface.assign(vector)
        return self.here()

    @torch.no_grad()
    def here(self) -> tuple[float, float]:
        """Evaluate where the weights are.

        Returns:
            The mean loss, and the share of images classified as their label.
        """
        if self.training is not None:
            reestimate_batchnorm(self.model, self.training, self.reestimate)
        total = hits = 0
        for images, labels in self.batches:
            logits = self.model(images)
            total = total + len(labels) * one_number(self.loss(logits, labels)).double()
            largest = logits.max(1)
            right = (largest.indices == labels) & (largest.values == largest.values)  # no NaN
            hits = hits + right.sum()
        self.passes += 1
        loss, accuracy = (torch.stack([total, hits.double()]) / len(self.split)).tolist()
        return loss, accuracy

    @torch.enable_grad()
    def gradient(self, vector: Float[Tensor, "size"]) -> tuple[float, Float[Tensor, "size"]]:
        """Move the weights and differentiate; every batch counts by its share of the images.

        Args:
            vector: Where, a point of the surface.

        Returns:
            The mean loss, and its gradient: straight through quantizers that are on.
        """
        self.surface.assign(vector)
        total, gradient = 0, torch.zeros_like(self.surface.point)
        for images, labels in self.batches:
            share = len(labels) / len(self.split)
            loss = one_number(self.loss(self.model(images), labels))
            total = total + share * loss.detach().double()
            if loss.requires_grad:
                parts = torch.autograd.grad(loss, self.surface.parameters, materialize_grads=True)
                gradient.add_(self.surface.flatten(parts), alpha=share)
        self.passes += 1
        return total.item(), gradient

    def conditions(self) -> Conditions:
        """What moves, and how it is measured.

        Returns:
            The record.
        """
        surface = self.surface
        return Conditions(
            space=surface.space,
            size=surface.size,
            norm=surface.point.double().norm().item(),
            samples=len(self.split),
            activation_quantizers=surface.activation_quantizers,
            requantized=any(
                isinstance(getattr(m, "weight_quantizer", None), Quantizer)
                for m in self.model.modules()
            ),
            batchnorm="re-estimated" if self.reestimate else surface.batchnorm,
            reestimate=self.reestimate,
        )
