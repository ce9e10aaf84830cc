"""How long and how fast to train."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Optimizer = Literal["sgd", "adam"]
Anneal = Literal["cosine", "step", "constant"]
Keep = Literal["last", "best"]

INFINITY = float("inf")
RANGES = {
    "epochs": (1, INFINITY),
    "batch": (1, INFINITY),
    "warmup": (0, 1),
    "momentum": (0, 1),
    "decay": (0, INFINITY),
    "quantizer_decay": (0, INFINITY),
    "factor": (0, 1),
    "accumulate": (1, INFINITY),
    "reestimate": (0, INFINITY),
    "seed": (0, 2**63 - 1),
}
WHOLE = ("epochs", "batch", "accumulate", "reestimate", "seed")
WORDS = {
    "precision": get_args(Precision),
    "optimizer": get_args(Optimizer),
    "quantizer_optimizer": (*get_args(Optimizer), None),
    "anneal": get_args(Anneal),
    "keep": get_args(Keep),
}


@dataclass(frozen=True)
class Schedule:
    """Epochs, batch size and rates of a training run. Plain: SGD under a cosine with warm-up.

    Args:
        epochs: Passes over the training images, ≥ 1. Default: 12 (ours: embedded data set).
        batch: Images per step, on all devices together, ≥ 1. Default: 128 (He et al. 2016,
            arXiv 1512.03385, section 4.2).
        rate: Highest learning rate of the weights, > 0. Default: 0.1 (He et al. 2016, section
            4.2). For fine-tuning a quantized network LSQ has 0.01 (arXiv 1902.08153, section
            3); the notebooks fine-tune for a few epochs at 0.1 (ours).
        warmup: Share of the steps over which the rate rises from zero, 0 to 1. Default: 0.1
            (ours).
        momentum: Momentum of SGD, 0 to 1, Nesterov's. Default: 0.9 (He et al. 2016).
        decay: Weight decay (L2) of the weights. Default: 5e-4 (ours).
        precision: Arithmetic of Lightning Fabric. Default: "32-true".
        seed: Seed of batch order and views. Default: 0.
        optimizer: "sgd", or "adam" with its authors' β and ε (Kingma, Ba 2015, arXiv
            1412.6980, algorithm 1). Default: "sgd" (LSQ, section 3).
        quantizer_optimizer: The same for the parameters of quantizers. Default: None: as for
            the weights. Nagel et al. 2022 and EWGS step quantizers by Adam.
        quantizer_rate: Highest learning rate of the parameters of quantizers, > 0. Default:
            None: ``rate`` (LSQ, section 2.2: its gradient scale makes one rate do). EWGS and
            PACT, whose gradients are not scaled, need a smaller one.
        quantizer_decay: Weight decay of the parameters of quantizers. Default: 0 (ours; Nagel
            et al. 2022, released code).
        anneal: How rates fall after the warm-up: along half a "cosine" to zero, in "step"s, or
            not at all ("constant"). Default: "cosine" (LSQ, section 3).
        milestones: Where "step" goes down, in shares of all steps, ascending. Default:
            (0.5, 0.75) (He et al. 2016, section 4.2: 32k and 48k of 64k iterations).
        factor: What "step" multiplies by, 0 to 1. Default: 0.1 (He et al. 2016, section 4.2).
        clip: Largest norm of the gradient of what one optimizer steps, > 0; longer ones are
            scaled down to it. Default: None: any.
        accumulate: Parts that a batch is cut into; their gradients are averaged, so that a
            large batch fits a small memory. BatchNorm sees the parts. Default: 1.
        reestimate: Batches of training images from which the running statistics of BatchNorm
            are estimated anew before every evaluation; training itself does not change.
            Default: 0: none. Nagel et al. 2022 have 50 (released code).
        keep: Which weights a run ends with and tests: those of the "last" epoch, or of the
            "best" on the validation images, the first of equals. Default: "last".

    Raises:
        ValueError: If a number is outside its range, or a word is none of those allowed.
    """

    epochs: int = 12
    batch: int = 128
    rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    precision: Precision = "32-true"
    seed: int = 0
    optimizer: Optimizer = "sgd"
    quantizer_optimizer: Optimizer | None = None
    quantizer_rate: float | None = None
    quantizer_decay: float = 0.0
    anneal: Anneal = "cosine"
    milestones: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1
    clip: float | None = None
    accumulate: int = 1
    reestimate: int = 0
    keep: Keep = "last"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a file has a list
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            whole = name not in WHOLE or isinstance(value, int)
            if not (whole and low <= value <= high):
                kind = "a whole number " if not whole else ""
                raise ValueError(
                    f"Schedule: {name} must be {kind}from {low} to {high}, got {value!r}"
                )
        for name in ("rate", "quantizer_rate", "clip"):
            value = getattr(self, name)
            optional = name != "rate" and value is None
            if not optional and not 0 < value < INFINITY:
                raise ValueError(f"Schedule: {name} must be a positive number, got {value!r}")
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(
                    f"Schedule: {name} must be one of {words}, got {getattr(self, name)!r}"
                )
        if list(self.milestones) != sorted({m for m in self.milestones if 0 < m < 1}):
            raise ValueError(
                "Schedule: milestones must be ascending shares between 0 and 1, got "
                f"{self.milestones!r}"
            )

    def rate_at(self, progress: float, highest: float | None = None) -> float:
        """A learning rate at a moment of the run.

        Args:
            progress: Share of the steps already taken, 0 to 1.
            highest: The highest rate. Default: None: that of the weights, ``rate``.

        Returns:
            A linear rise to the highest over ``warmup``; then as ``anneal`` says.
        """
        highest = self.rate if highest is None else highest
        if progress < self.warmup:
            return highest * progress / self.warmup
        if self.anneal == "constant":
            return highest
        if self.anneal == "step":
            return highest * self.factor ** sum(progress >= m for m in self.milestones)
        done = (progress - self.warmup) / max(1 - self.warmup, 1e-12)
        return highest * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def as_dict(self) -> dict[str, int | float | str | list[float] | None]:
        """The schedule as plain values, for a file.

        Returns:
            Field names to values.
        """
        return asdict(self) | {"milestones": list(self.milestones)}
