"""Fix weights that oscillate, one after the other, at the code they are at on average."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from qatviz.methods.base import Method, Wrapper, check_between, cosine_between
from qatviz.methods.dampening import check_nearest
from qatviz.tracking import OscillationTracker


class IterativeFreezing(Wrapper):
    """Train by another method, and freeze every weight that oscillates too often.

    With f the frequency of oscillation and q̄ the mean code of a weight (``OscillationTracker``),
    after every optimizer step from the share t₀ of the steps on::

        where f > f_th(t):   frozen for good at code round(q̄)
        where frozen:        w ← the level of that code
        f_th(t) = f₁ + (f₀ − f₁)·(1 + cos(π·(t − t₀)/(1 − t₀)))/2

    from f₀ at t₀ to f₁ at the end: first the worst ones. A frozen weight keeps its code, not its
    value: its level moves with the step of the grid, which is trained on.

    Ours, where the released code differs: it replaces codes in the forward pass, so that frozen
    weights have no gradient and ∂ŵ/∂s is the code; here the weight is overwritten after the
    step, what the optimizer and its momentum made of it is lost, it counts in a clipped norm of
    gradients, and the step learns from it what the quantizer says of a number on a level. There
    q̄ begins at t₀ and leaves out the last code; here it begins with training and has it.

    Quantizers whose levels are not the nearest to the weights (``rounds_to_nearest``: EWGS,
    DoReFa, NIPQ with noise, AdaRound) are refused if they would be tracked.

    Args:
        method: How the student is trained.
        threshold: f₁, above 0. Default: 0.01 (released code: MobileNetV2 at 4 bits; 0.011 at 3).
            The code advises at least 2 to 3 times the momentum; where f₀ is 1 or more, too, nothing
            ever freezes.
        begin: f₀, above 0. Default: 0.1 (released code: MobileNetV2).
        momentum: m of the tracker. Default: 0.01 (released code's class, for short runs; its
            command line has 0.001).
        start: t₀, 0 up to but not including 1. Default: 0.25 (released code).
        bits: The most bits of a weight quantizer that is tracked. Default: 4 (the same).

    Attributes:
        tracker: The ``OscillationTracker``, from ``prepare`` on.

    Raises:
        ValueError: If a number is outside its range.

    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv
    2203.11086, section 4, and its released code.
    """

    def __init__(
        self,
        method: Method,
        threshold: float = 0.01,
        begin: float = 0.1,
        momentum: float = 0.01,
        start: float = 0.25,
        bits: int = 4,
    ) -> None:
        super().__init__(method)
        for name, value in (("threshold", threshold), ("begin", begin), ("momentum", momentum)):
            if not value > 0:
                raise ValueError(f"IterativeFreezing: {name} must be above 0, got {value!r}")
        check_between("IterativeFreezing", "momentum", momentum, 0, 1)
        check_between("IterativeFreezing", "start", start, 0, 1, open_above=True)
        self.threshold, self.begin, self.start = threshold, begin, start
        self.momentum, self.bits = momentum, bits
        self._prepared = ()

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Prepare the method, and begin to track, with nothing frozen.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.

        Raises:
            ValueError: If no weight quantizer has so few bits, or one of them does not round to
                the nearest level; names it.
        """
        self.method.prepare(student, data)
        self.tracker = OscillationTracker(student, self.momentum, self.bits)
        layers = {name: student.get_submodule(name) for name in self.tracker.names}
        check_nearest("IterativeFreezing", layers)
        self.register_buffer("frozen", torch.zeros_like(self.tracker.codes, dtype=torch.bool))
        self.register_buffer("frozen_codes", torch.zeros_like(self.tracker.codes))
        self._prepared = (student,)

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        """Do what the method does, track, freeze, and put frozen weights on their levels.

        Args:
            batch: The raw images and labels of the step.
            progress: Share of the steps taken, above 0, up to 1.
        """
        self.method.after_step(batch, progress)
        (student,) = self._prepared
        self.tracker(0, student)
        if progress >= self.start:
            fresh = (self.tracker.frequency > self.threshold_at(progress)) & ~self.frozen
            self.frozen_codes = torch.where(fresh, self.tracker.mean.round(), self.frozen_codes)
            self.frozen |= fresh
            self._hold(student)
        if progress >= 1:
            self._prepared = ()

    @torch.no_grad()
    def _hold(self, student: nn.Module) -> None:
        """Overwrite what is frozen."""
        codes = self.tracker.split(self.frozen_codes)
        for name, frozen in self.tracker.split(self.frozen).items():
            layer = student.get_submodule(name)
            level = layer.weight_quantizer.dequantize(codes[name])
            layer.weight.copy_(torch.where(frozen, level.to(layer.weight.dtype), layer.weight))

    def threshold_at(self, progress: float) -> float:
        """The frequency above which a weight is frozen, at a moment of the run.

        Args:
            progress: t, 0 to 1.

        Returns:
            f_th(t); infinite before t₀.
        """
        if progress < self.start or math.inf in (self.begin, self.threshold):
            return math.inf
        return cosine_between(self.begin, self.threshold, self.start, progress)

    @property
    def share_frozen(self) -> float:
        """The share of the tracked weights that are frozen, 0 to 1."""
        return self.frozen.float().mean().item()
