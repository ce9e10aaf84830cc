"""What a quantizer learns on one layer, and nothing else."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qatviz.analysis.zoo import (
    ZOO,
    as_array,
    best_scalar,
    existing,
    zoo_quantizer,
)
from qatviz.quantizers import (
    PACT,
    AdaRound,
    Quantizer,
    rounding_penalty,
)
from qatviz.records import LearnedGrid

IMAGES_AT_ONCE = 16
DECAY = 1e-3


def learn_grids(
    layer: nn.Conv2d | nn.Linear,
    inputs: Float[Tensor, "batch *rest"],
    *,
    bits: int,
    part: str = "weight",
    names: Iterable[str] | None = None,
    **options: Any,
) -> list[LearnedGrid]:
    """Let every quantizer learn on the same layer; see ``learn_grid``.

    Args:
        layer: A float convolution or linear layer.
        inputs: What arrives there.
        bits: Bits of the grids.
        part: "weight" or "input": what is quantized. Default: "weight".
        names: Which, of ``zoo_names()``. Default: None: all.
        **options: Of ``learn_grid``.

    Returns:
        A record per quantizer that has such a grid. ``records.LearnedGrid``. Draw with
        ``plots.learned_grids``.
    """
    x = layer.weight if part == "weight" else inputs
    signed = bool((x < 0).any())
    return [
        learn_grid(
            zoo_quantizer(name, bits, signed=signed),
            layer,
            inputs,
            part=part,
            name=name,
            rescale=ZOO[name].own_units,
            **options,
        )
        for name in existing(names, bits, signed)
    ]


def learn_grid(
    quantizer: Quantizer,
    layer: nn.Conv2d | nn.Linear,
    inputs: Float[Tensor, "batch *rest"],
    *,
    part: str = "weight",
    steps: int = 400,
    rate: float = 0.05,
    penalty: float = 0.1,
    decay: float | None = None,
    rescale: bool = False,
    name: str | None = None,
    seed: int = 0,
) -> LearnedGrid:
    """Train a quantizer's own parameters, and nothing else, for the output of one layer.

    The loss is ‖ŷ − y‖²/‖y‖², y the output of the float layer without its bias; the quantizer
    learns it through its own backward pass. Adam, one batch, a rate for each parameter that is
    relative to its size, falling to zero as a cosine. NIPQ trains through its noise and
    AdaRound softly, with its penalty; both are judged in evaluation.

    Args:
        quantizer: Any quantizer; calibrated on the tensor if it is not yet. A copy is trained.
        layer: A float convolution or linear layer. It does not change.
        inputs: What arrives there.
        part: "weight" or "input": what is quantized. Default: "weight".
        steps: Steps of Adam. Default: 400 (ours).
        rate: Rate at the start, a share of the mean magnitude of each parameter (or, where that
            is zero, of the root mean square of the tensor). Default: 0.05 (ours).
        penalty: Weight of AdaRound's penalty per weight. Default: 0.1 (ours).
        decay: λ of the L2 penalty λ·α² on PACT's clip. Default: None: 0.001 for PACT (ours; the
            paper has such a penalty, and without it a clip beyond the largest value has no
            gradient at all, and never learns).
        rescale: True: ŷ is multiplied by the best scalar, for levels with units of their own.
            Default: False.
        name: For titles. Default: the class.
        seed: Of the noise. Default: 0.

    Returns:
        Errors, levels and parameters, before and after. ``records.LearnedGrid``. Draw with
        ``plots.learned_grids``.

    Raises:
        ValueError: If ``part`` is neither "weight" nor "input", there is no step, or the
            layer's output is zero.
    """
    if part not in ("weight", "input"):
        raise ValueError(f"learn_grid: part must be 'weight' or 'input', got {part!r}")
    if steps < 1:
        raise ValueError(f"learn_grid: steps must be 1 or more, got {steps}")
    x = (layer.weight if part == "weight" else inputs).detach().float()
    quantizer = copy.deepcopy(quantizer)
    quantizer.batched = part == "input"
    if not quantizer.calibrated:
        quantizer.init_from(x)
    task = _Task(x, *_outputs(layer, inputs.detach().float(), part), rescale)
    before, codes = _state(quantizer, task), _codes(quantizer, x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = _train(quantizer, task, steps, rate, penalty, DECAY if decay is None else decay)
    after, moved = _state(quantizer, task), _codes(quantizer, x) != codes
    return LearnedGrid(
        name=name or type(quantizer).__name__,
        part=part,
        bits=quantizer.bits,
        loss=loss,
        before=before[0],
        after=after[0],
        levels_before=before[2],
        levels_after=after[2],
        parameters_before=before[3],
        parameters_after=after[3],
        scale=(before[1], after[1]),
        moved=moved.double().mean().item(),
    )


class _Task:
    """What a quantizer has to do for a layer: keep its output."""

    def __init__(self, x: Tensor, output: Callable, wanted: Tensor, rescale: bool) -> None:
        self.x, self.output, self.wanted, self.rescale = x, output, wanted, rescale
        self.power = wanted.square().sum()
        if not self.power > 0:
            raise ValueError("learn_grid: the output of the float layer is zero everywhere")

    def error(self, quantizer: Quantizer) -> tuple[Tensor, float]:
        """The relative error of the output, and what it was multiplied by."""
        found, scale = self.output(quantizer(self.x)), 1.0
        if self.rescale:
            scale = best_scalar(self.wanted, found.detach())
        # The best scalar's own derivative is zero, so it may stand as a constant.
        return (scale * found - self.wanted).square().sum() / self.power, scale


def _outputs(layer: nn.Module, inputs: Tensor, part: str) -> tuple[Callable, Tensor]:
    """From the quantized tensor to the layer's output, and the output of the float layer."""
    twin = copy.deepcopy(layer).float().requires_grad_(False)
    twin.bias = None
    if part == "input":
        return twin, twin(inputs)
    weight, groups = twin.weight, getattr(layer, "groups", 1)
    size = weight[0].numel()
    eye = torch.eye(size).reshape(size, *weight.shape[1:]).to(weight)
    twin.weight = nn.Parameter(eye.repeat(groups, *[1] * (weight.ndim - 1)), requires_grad=False)
    gram = torch.zeros(groups, size, size, dtype=torch.float64, device=weight.device)
    for images in inputs.split(IMAGES_AT_ONCE):
        patches = twin(images).movedim(1 if weight.ndim > 2 else -1, 0)
        patches = patches.reshape(groups, size, -1).double()
        gram += patches @ patches.mT
    # W·R, with R·Rᵀ the Gram matrix of the patches, has the squared errors of the real output.
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp(min=0).sqrt()[:, None]).to(weight)

    def output(weight: Tensor) -> Tensor:
        return weight.reshape(groups, -1, size) @ root

    return output, output(weight)


def _train(
    quantizer: Quantizer, task: _Task, steps: int, rate: float, penalty: float, decay: float
) -> np.ndarray:
    learned = [p for p in quantizer.parameters() if p.requires_grad]
    if not learned:
        return np.empty(0)
    sizes = [_size(p, task.x) for p in learned]
    groups = [{"params": [p], "lr": rate * s} for p, s in zip(learned, sizes, strict=True)]
    adam = torch.optim.Adam(groups)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    quantizer.train()
    losses = np.empty(steps)
    for step in range(steps):
        loss, _ = task.error(quantizer)
        losses[step] = loss.item()
        if isinstance(quantizer, AdaRound):
            share = penalty / task.x.numel()
            loss = loss + rounding_penalty([quantizer], step, steps, weight=share)
        if isinstance(quantizer, PACT):
            loss = loss + decay * quantizer.clip.square()
        adam.zero_grad()
        loss.backward()
        adam.step()
        cosine.step()
    quantizer.eval()
    return losses


def _size(parameter: Tensor, x: Tensor) -> float:
    """How large a parameter is; where it is zero, how large the tensor is."""
    size, spread = parameter.detach().abs().mean().item(), x.square().mean().sqrt().item()
    return size if size > 1e-3 * spread else spread


@torch.no_grad()
def _state(
    quantizer: Quantizer, task: _Task
) -> tuple[float, float, np.ndarray, dict[str, np.ndarray]]:
    """Error in evaluation, factor on the levels, levels, parameters."""
    quantizer.eval()
    error, scale = task.error(quantizer)
    parameters = {n: as_array(p) for n, p in quantizer.named_parameters() if p.requires_grad}
    return error.item(), scale, scale * as_array(quantizer.levels()), parameters


@torch.no_grad()
def _codes(quantizer: Quantizer, x: Tensor) -> Tensor:
    return quantizer.eval().codes(x)
