"""How long and how fast to train."""

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Schedule:
    """Epochs, batch size and rates of a training run: SGD under a cosine with warm-up.

    Args:
        epochs: Passes over the training images, ≥ 1. Default: 12 (ours: embedded data set).
        batch: Images per step, ≥ 1. Default: 128 (He et al. 2016, arXiv 1512.03385,
            section 4.2).
        rate: Highest learning rate of weights and quantizer parameters, > 0. Default: 0.1
            (He et al. 2016, section 4.2). For fine-tuning a quantized network LSQ has 0.01
            (arXiv 1902.08153, section 3); the notebooks fine-tune for a few epochs at 0.1 (ours).
        warmup: Share of the steps over which the rate rises from zero, 0 to 1. Default: 0.1
            (ours); after it the rate falls to zero along a cosine (LSQ, section 3).
        momentum: Momentum of SGD, 0 to 1, Nesterov's. Default: 0.9 (He et al. 2016).
        decay: Weight decay; quantizer parameters have none. Default: 5e-4 (ours).
        precision: Arithmetic of Lightning Fabric. Default: "32-true".
        seed: Seed of batch order and views. Default: 0.

    Raises:
        ValueError: If a number is outside its range.
    """

    epochs: int = 12
    batch: int = 128
    rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    precision: Precision = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, float("inf")),
            ("batch", 1, float("inf")),
            ("warmup", 0, 1),
            ("momentum", 0, 1),
            ("decay", 0, float("inf")),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            whole = name not in ("epochs", "batch", "seed") or isinstance(value, int)
            if not (whole and low <= value <= high):
                kind = "a whole number " if not whole else ""
                raise ValueError(
                    f"Schedule: {name} must be {kind}from {low} to {high}, got {value!r}"
                )
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"Schedule: rate must be a positive number, got {self.rate!r}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"Schedule: precision must be one of {get_args(Precision)}, got {self.precision!r}"
            )

    def rate_at(self, progress: float) -> float:
        """The learning rate at a moment of the run.

        Args:
            progress: Share of the steps already taken, 0 to 1.

        Returns:
            A linear rise to ``rate`` over ``warmup``, then half a cosine down to zero.
        """
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        done = (progress - self.warmup) / max(1 - self.warmup, 1e-12)
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def as_dict(self) -> dict[str, int | float | str]:
        """The schedule as plain values, for a file.

        Returns:
            Field names to values.
        """
        return asdict(self)
