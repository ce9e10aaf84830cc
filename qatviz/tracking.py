"""Watch weights change their integer codes while they are trained."""

from copy import deepcopy

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantize import quantized_layers
from qatviz.quantizers import Quantizer
from qatviz.quantizers.base import widened


class OscillationTracker(nn.Module):
    """How often each quantized weight goes back to the code that it came from.

    With q_t the integer code of a weight after step t and Δ_t = q_t − q_(t−1), step t is an
    oscillation, o_t = 1, where::

        Δ_t ≠ 0   and   sign(Δ_t) = −sign(Δ_τ),   τ the last step before t with Δ_τ ≠ 0

    and o_t = 0 elsewhere. So the first change of a weight is none, and neither is a drift in one
    direction through any number of codes; a change by several codes is one change. Followed by
    exponential moving averages with momentum m::

        f_t = m·o_t + (1 − m)·f_(t−1),  f_0 = 0            oscillations per step, 0 to 1
        q̄_t = m·q_t + (1 − m)·q̄_(t−1),  q̄_0 = q_0

    A weight that is pulled to a point at distance d from its nearest level, on a grid of step s,
    oscillates 2d/s times a step. A single oscillation leaves f at m.

    An observer: ``fit(..., observers=[OscillationTracker(student)])`` calls it once after each
    optimizer step. (In the released code every forward counts, those of evaluation too, which
    makes f decay while no weight moves.) A code can also change because the step of the grid
    was trained; that counts as well. The tracker keeps nothing of the student, and its numbers
    are its ``state_dict``. They lie one layer after the other in vectors: ``split`` takes them
    apart.

    Args:
        student: A quantized model as it is before the first step: q_0.
        momentum: m, above 0, up to 1. Default: 0.01 (Nagel et al., released code; its command
            line has 0.001, which remembers a thousand steps).
        bits: The most bits of a weight quantizer that is tracked. Default: 4 (released code).

    Attributes:
        names: The layers that are tracked, in the order of the vectors.
        steps: How many steps were seen.
        codes: q.
        direction: The sign of the last change; 0 where there was none yet.
        frequency: f.
        mean: q̄.
        changes: How often the code changed, in all.
        events: How often it oscillated, in all.

    Raises:
        ValueError: If ``momentum`` is outside its range, or the student has no weight quantizer
            of so few bits.

    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv
    2203.11086, and its released code.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.01, bits: int = 4) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(
                f"OscillationTracker: momentum must be above 0, up to 1, got {momentum!r}"
            )
        self.momentum = momentum
        layers = weight_quantized_layers(student)
        self.names = tuple(n for n, x in layers.items() if x.weight_quantizer.bits <= bits)
        if not self.names:
            found = sorted({x.weight_quantizer.bits for x in layers.values()})
            raise ValueError(
                f"the student has no weight quantizer of at most {bits} bits to track; "
                f"there are: {', '.join(map(str, found)) or 'none'}"
            )
        self.shapes = [layers[name].weight.shape for name in self.names]
        self.steps = 0
        codes = self._read(student)
        self.register_buffer("codes", codes)
        self.register_buffer("direction", torch.zeros_like(codes, dtype=torch.int8))
        self.register_buffer("frequency", torch.zeros_like(codes))
        self.register_buffer("mean", codes.clone())
        self.register_buffer("changes", torch.zeros_like(codes, dtype=torch.int32))
        self.register_buffer("events", torch.zeros_like(codes, dtype=torch.int32))

    @override
    @torch.no_grad()
    def forward(self, step: int, model: nn.Module) -> None:
        """Look at the student once more, after an optimizer step.

        Args:
            step: The number of the step; not used.
            model: The student.
        """
        codes = self._read(model)
        if codes.device != self.codes.device:
            self.to(codes.device)  # the student moved there after the tracker was made
        change = (codes - self.codes).sign_().to(torch.int8)
        moved = change != 0
        event = change * self.direction < 0
        self.frequency.lerp_(event.to(torch.float32), self.momentum)
        self.mean.lerp_(codes, self.momentum)
        self.changes += moved
        self.events += event
        self.direction = torch.where(moved, change, self.direction)
        self.codes = codes
        self.steps += 1

    def split(self, values: Shaped[Tensor, "weights"]) -> dict[str, Tensor]:
        """One of the vectors, by layer.

        Args:
            values: Such as ``tracker.frequency``.

        Returns:
            By the name of the layer, views in the shape of its weight.
        """
        parts = values.split([shape.numel() for shape in self.shapes])
        return {
            name: part.view(shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def oscillating(self, above: float = 0.005) -> float:
        """The share of the tracked weights that oscillate.

        Args:
            above: The frequency above which one does. Default: 0.005 (commonly attributed to
                Nagel et al.; not verified). With m = 0.01 a single event counts for 69 steps.

        Returns:
            0 to 1.
        """
        return (self.frequency > above).float().mean().item()

    def get_extra_state(self) -> int:
        """The steps seen, for ``state_dict``.

        Returns:
            A whole number.
        """
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on counting from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self.steps = int(state)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets.

        Returns:
            Layers, weights, steps and momentum.
        """
        sizes = f"{len(self.names)} layers, {self.codes.numel()} weights"
        return f"{sizes}, {self.steps} steps, momentum={self.momentum}"

    @torch.no_grad()
    def _read(self, model: nn.Module) -> Float[Tensor, "weights"]:
        layers = (model.get_submodule(name) for name in self.names)
        return torch.cat([_codes(layer).flatten().to(torch.float32) for layer in layers])


def weight_quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model whose weight passes through a quantizer.

    Args:
        model: Any module.

    Returns:
        ``QuantConv2d`` and ``QuantLinear`` modules by name, in the order of the modules.
    """
    return {
        name: layer
        for name, layer in quantized_layers(model).items()
        if isinstance(getattr(layer, "weight_quantizer", None), Quantizer)
    }


@torch.no_grad()
def rounds_to_nearest(layer: nn.Module) -> bool:
    """Whether a layer's weight becomes, while training, the level nearest to it.

    True of LSQ, LSQ+ and affine grids. Not of quantizers whose levels lie elsewhere than the
    weights (DoReFa; EWGS of more than one bit, whose scale is trained beside its bounds), that
    add noise, or that learn the rounding; nor of grids that are not uniform.

    Args:
        layer: One of ``weight_quantized_layers``; it does not change.

    Returns:
        Whether numbers around every level, up to 0.49 of the way to the next, get its code, with
        and without the outermost levels among them, and training takes the weight to the level
        of its code.
    """
    quantizer = deepcopy(layer.weight_quantizer).cpu().train()
    weight = widened(layer.weight.detach().cpu())
    level = quantizer.dequantize(quantizer.codes(weight))
    with torch.random.fork_rng(devices=[]):
        trained = quantizer(weight)
    codes = torch.arange(quantizer.low, quantizer.high + 1, dtype=weight.dtype)
    inner = codes[1:-1]
    return (
        torch.allclose(trained, level, rtol=1e-5, atol=1e-8)
        and _keeps_codes(quantizer, weight, codes)
        and (not len(inner) or _keeps_codes(quantizer, weight, inner))
    )


def _keeps_codes(quantizer: Quantizer, weight: Tensor, codes: Tensor) -> bool:
    """Whether numbers near the levels of the codes get these codes back."""
    shape = [1] * weight.ndim
    # Levels run along one axis; along another, every channel that has its own grid.
    own = None if quantizer.axis is None else quantizer.axis % weight.ndim
    shape[1 if own == 0 else 0] = -1
    grid = [-1] * weight.ndim
    if own is not None:
        grid[own] = weight.shape[own]
    wanted = codes.repeat_interleave(3).reshape(shape).expand(grid)
    aside = torch.tensor([-0.49, 0.0, 0.49]).repeat(len(codes)).reshape(shape)
    ends = torch.tensor([quantizer.low, quantizer.high], dtype=weight.dtype)
    low, high = (quantizer.dequantize(end.expand_as(wanted)) for end in ends)
    step = (high - low) / max(quantizer.high - quantizer.low, 1)
    found = quantizer.codes(quantizer.dequantize(wanted) + aside * step)
    return torch.equal(found, wanted)


def _codes(layer: nn.Module) -> Tensor:
    return layer.weight_quantizer.codes(widened(layer.weight))
