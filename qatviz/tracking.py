"""Watch weights change their integer codes while they are trained."""

from collections.abc import Iterable
from copy import deepcopy
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantize import quantized_layers
from qatviz.quantizers import EWGS, AdaRound, DoReFa, Quantizer, ReleasedDoReFa
from qatviz.quantizers.base import SMALLEST_STEP, widened
from qatviz.records.oscillation import BinDistances, Oscillation, Trajectories

OSCILLATES = 0.005  # commonly attributed to Nagel et al. 2022; not verified
BINS = 100
POINTS = 500  # of a series, at most
ROWS = 1024  # of a series at first; doubled when it is full


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

    A code changes because the weight moved, or because training changed the grid. With q' the
    code of the new weight on the grid as it was after the step before::

        by weight where q' ≠ q_(t−1)         by step where q_t ≠ q'

    Every change has one cause at least. One with both counts in both, and where they cancel they
    count in both while nothing changed, so that the two sums may be more than ``changes``. The
    grid is whatever the quantizer learns: step, offset, bounds, bits. What it takes from the
    weight anew each time (the maximum in DoReFa) belongs to the weight.

    An observer: ``fit(..., observers=[OscillationTracker(student)])`` calls it once after each
    optimizer step. (In the released code every forward counts, those of evaluation too, which
    makes f decay while no weight moves.) The tracker keeps nothing of the student but copies of
    its last weights and grids, and its numbers are its ``state_dict``. They lie one layer after
    the other in vectors: ``split`` takes them apart. ``record`` sums up.

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
        by_weight: How often the weight's own move changed the code.
        by_step: How often the change of the grid did.
        last_change: The step of the last change; 0 where there was none.
        latent: The weights after the last step.
        counts: For each step, how many weights changed code, how many oscillated, and for how
            many f is above 0.005 then. Rows from ``steps`` on are room.
        grids: The weight quantizers after the last step, without parameters.

    Raises:
        ValueError: If ``momentum`` is outside its range, or the student has no weight quantizer
            of so few bits.

    Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv
    2203.11086, and its released code; the two causes are ours.
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
        tracked = [layers[name] for name in self.names]
        self.shapes = [layer.weight.shape for layer in tracked]
        self.depthwise = [getattr(x, "groups", 1) > 1 == x.weight.shape[1] for x in tracked]
        self.steps = 0
        self.grids = nn.ModuleList(_copied(layer.weight_quantizer) for layer in tracked)
        weights = self._weights(student)
        codes = _codes(self.grids, weights)
        self.register_buffer("codes", codes)
        self.register_buffer("direction", torch.zeros_like(codes, dtype=torch.int8))
        self.register_buffer("frequency", torch.zeros_like(codes))
        self.register_buffer("mean", codes.clone())
        self.register_buffer("latent", _joined(weights))
        for name in ("changes", "events", "by_weight", "by_step", "last_change"):
            self.register_buffer(name, torch.zeros_like(codes, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(ROWS, 3, dtype=torch.int32, device=codes.device))

    @override
    @torch.no_grad()
    def forward(self, step: int, model: nn.Module) -> None:
        """Look at the student once more, after an optimizer step.

        Args:
            step: The number of the step; not used.
            model: The student.
        """
        weights = self._weights(model)
        if weights[0].device != self.codes.device:
            self.to(weights[0].device)  # the student moved there after the tracker was made
        on_old_grids = _codes(self.grids, weights)
        quantizers = [model.get_submodule(name).weight_quantizer for name in self.names]
        _take_over(self.grids, quantizers)
        codes = _codes(quantizers, weights)
        change = (codes - self.codes).sign_().to(torch.int8)
        moved = change != 0
        event = change * self.direction < 0
        self.by_weight += on_old_grids != self.codes
        self.by_step += codes != on_old_grids
        self.frequency.lerp_(event.to(torch.float32), self.momentum)
        self.mean.lerp_(codes, self.momentum)
        self.changes += moved
        self.events += event
        # The same as torch.where(moved, ...), which is much slower on a CPU.
        self.direction = self.direction * (change == 0) + change
        self.codes, self.latent = codes, _joined(weights)
        self.counts = _roomy(self.counts, self.steps)
        for column, which in enumerate((moved, event, self.frequency > OSCILLATES)):
            self.counts[self.steps, column] = which.count_nonzero()
        self.steps += 1
        self.last_change.clamp_(min=moved.to(torch.int32).mul_(self.steps))

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

    def oscillating(self, above: float = OSCILLATES) -> float:
        """The share of the tracked weights that oscillate.

        Args:
            above: The frequency above which one does. Default: 0.005 (commonly attributed to
                Nagel et al.; not verified). With m = 0.01 a single event counts for 69 steps.

        Returns:
            0 to 1.
        """
        return (self.frequency > above).float().mean().item()

    @torch.no_grad()
    def record(self) -> Oscillation:
        """What was seen so far, small enough to be kept.

        Series of more than 500 steps become means over stretches of equal length.

        Returns:
            A record.
        """
        # Steps 1, 10, ... and all of them.
        windows = [10**e for e in range(9) if 10**e < self.steps] + [self.steps]
        still = torch.stack([self.last_change <= self.steps - n for n in windows])
        moments, (changed, oscillated, above) = self._series()
        edges = np.concatenate([[0.0], np.logspace(-6, 0, 31)])
        parts = self.split(self.frequency.cpu()).values()
        spread = [np.histogram(f.double().clamp(0, 1).numpy(), edges)[0] for f in parts]
        return Oscillation(
            layers=self.names,
            weights=np.array([shape.numel() for shape in self.shapes]),
            depthwise=np.array(self.depthwise),
            oscillating=self._means(self.frequency > OSCILLATES),
            frequency=self._means(self.frequency),
            events=self._means(self.events),
            changes=self._means(self.changes),
            by_weight=self._means(self.by_weight),
            by_step=self._means(self.by_step),
            windows=np.array(windows),
            survival=np.stack([self._means(row) for row in still], axis=1),
            moments=moments,
            changed=changed,
            oscillated=oscillated,
            above=above,
            frequency_edges=edges,
            frequency_counts=np.stack(spread).astype(np.int32),
            distances=distances(self.names, self.grids, list(self.split(self.latent).values())),
            threshold=OSCILLATES,
            momentum=self.momentum,
            steps=self.steps,
        )

    def _means(self, values: Tensor) -> Float[np.ndarray, "layers"]:
        return np.array([part.double().mean().item() for part in self.split(values).values()])

    def _series(self) -> tuple[Int[np.ndarray, "moments"], Float[np.ndarray, "3 moments"]]:
        """The last step of each stretch, and the shares of weights averaged over it."""
        shares = self.counts[: self.steps].cpu().double() / len(self.codes)
        stretch = max(-(-self.steps // POINTS), 1)
        parts = shares.split(stretch)
        ends = np.minimum(np.arange(1, len(parts) + 1) * stretch, self.steps)
        if not self.steps:
            return np.zeros(0, dtype=np.int64), np.zeros((3, 0), dtype=np.float32)
        return ends, torch.stack([part.mean(0) for part in parts], dim=1).float().numpy()

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

    @override
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        _take_room(self, ("counts",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets.

        Returns:
            Layers, weights, steps and momentum.
        """
        sizes = f"{len(self.names)} layers, {self.codes.numel()} weights"
        return f"{sizes}, {self.steps} steps, momentum={self.momentum}"

    def __repr__(self) -> str:
        """One line, without the copies of the quantizers.

        Returns:
            Such as ``OscillationTracker(2 layers, 84 weights, 12 steps, momentum=0.01)``.
        """
        return f"{type(self).__name__}({self.extra_repr()})"

    def _weights(self, model: nn.Module) -> list[Tensor]:
        return [widened(model.get_submodule(name).weight.detach()) for name in self.names]


class WeightTrajectories(nn.Module):
    """Follow a few weights of one layer: where each is on the grid, and its code.

    An observer, as ``OscillationTracker`` is: ``fit(..., observers=[...])`` calls it once after
    each optimizer step, and its numbers are its ``state_dict``. The first row is the student
    that it was made of, before the first step.

    Args:
        student: A quantized model as it is before the first step.
        layer: Name of the layer.
        count: How many weights; all of them if there are no more. Default: 12 (ours: 8 to 16 can
            be told apart in a figure).
        every: Steps from one look to the next. Default: 1 (ours).
        seed: Of the choice of the weights. Default: 0 (ours).
        last: How many of the latest looks ``record`` returns; None: all. Default: 1000 (ours).
        indices: The weights to follow, as places in the flattened weight tensor; ``count`` and
            ``seed`` then do nothing. Default: None: weights drawn at random.

    Attributes:
        indices: The weights, in the flattened weight tensor, ascending.
        steps: How many steps were seen.
        looks: How many rows are filled.
        positions: w/s (see ``grid_positions``), a row per look; rows from ``looks`` on are room.
        codes: The integer codes, likewise.

    Raises:
        ValueError: If a number is below 1, the layer has no weight quantizer, its weights have no
            position on the grid, or ``indices`` are none, repeated or beyond the weight.

    Source: Nagel et al. 2022, arXiv 2203.11086.
    """

    def __init__(
        self,
        student: nn.Module,
        layer: str,
        count: int = 12,
        every: int = 1,
        seed: int = 0,
        *,
        last: int | None = 1000,
        indices: Iterable[SupportsIndex] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("count", count), ("every", every), ("last", last)):
            if value is not None and value < 1:
                raise ValueError(f"WeightTrajectories: {name} must be at least 1, got {value!r}")
        layers = weight_quantized_layers(student)
        if layer not in layers:
            raise ValueError(
                f"no weight of a layer {layer!r} is quantized; there are: {', '.join(layers)}"
            )
        self.layer, self.every, self.seed, self.last = layer, every, seed, last
        quantizer, weight = layers[layer].weight_quantizer, layers[layer].weight
        self.low, self.high = quantizer.low, quantizer.high
        grid_positions(quantizer, weight)  # refuses what has none
        if indices is None:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(weight.numel(), generator=generator)[:count].tolist()
        else:
            chosen = _places(indices, weight.numel())
        self.register_buffer("indices", torch.tensor(sorted(chosen), device=weight.device))
        room = torch.zeros(ROWS, len(self.indices), device=weight.device)
        self.register_buffer("positions", room)
        self.register_buffer("codes", room.to(torch.int16))
        self.steps = self.looks = 0
        self._look(student)

    @override
    def forward(self, step: int, model: nn.Module) -> None:
        """Look at the student, if it is time, after an optimizer step.

        Args:
            step: The number of the step; not used.
            model: The student.
        """
        self.steps += 1
        if self.steps % self.every == 0:
            self._look(model)

    @torch.no_grad()
    def _look(self, model: nn.Module) -> None:
        layer = model.get_submodule(self.layer)
        if layer.weight.device != self.indices.device:
            self.to(layer.weight.device)
        self.positions = _roomy(self.positions, self.looks)
        self.codes = _roomy(self.codes, self.looks)
        weight = widened(layer.weight.detach())
        position = _position(layer.weight_quantizer, weight).flatten()
        code = layer.weight_quantizer.codes(weight).flatten()
        self.positions[self.looks] = position[self.indices]
        self.codes[self.looks] = code[self.indices]
        self.looks += 1

    def record(self) -> Trajectories:
        """The latest looks.

        Returns:
            A record.
        """
        first = 0 if self.last is None else max(self.looks - self.last, 0)
        return Trajectories(
            layer=self.layer,
            indices=self.indices.cpu().numpy(),
            steps=np.arange(first, self.looks) * self.every,
            positions=self.positions[first : self.looks].cpu().numpy(),
            codes=self.codes[first : self.looks].cpu().numpy(),
            low=self.low,
            high=self.high,
            seed=self.seed,
        )

    def get_extra_state(self) -> int:
        """The steps seen, for ``state_dict``.

        Returns:
            A whole number.
        """
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self.steps = int(state)
        self.looks = self.steps // self.every + 1

    @override
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        _take_room(self, ("positions", "codes"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets.

        Returns:
            Layer, weights and steps.
        """
        return f"{self.layer!r}, {len(self.indices)} weights, {self.steps} steps"


def _places(indices: Iterable[SupportsIndex], size: int) -> list[int]:
    places = [index(i) for i in indices]
    if not places or len(set(places)) < len(places) or not 0 <= min(places) <= max(places) < size:
        raise ValueError(
            f"WeightTrajectories: indices are {places}; allowed: one or more, each once, from 0 "
            f"to {size - 1}"
        )
    return places


def grid_positions(
    quantizer: Quantizer, weight: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The number that is rounded to a code, for every weight: w/s, in codes, not clipped.

    On a uniform grid it is (w − ŵ₀)/(ŵ₁ − ŵ₀), with ŵ₀ and ŵ₁ the levels of the codes 0 and 1;
    for NIPQ that is a diagnostic while it trains with noise. EWGS rounds n·(w − l)/(u − l),
    wherever its levels are; DoReFa rounds n·(tanh w/(2·max|tanh w|) + ½), and as released
    tanh w/(max|tanh w|·s), which are never clipped.

    Args:
        quantizer: A calibrated weight quantizer; it does not change.
        weight: The weight.

    Returns:
        Positions in float32 or better. The nearest whole number between the lowest and the
        highest code is the code.

    Raises:
        ValueError: If there is no such number: DoReFa with one bit takes the sign, AdaRound
            learns the rounding, and a grid of one's own may not be uniform.
    """
    weight, name = widened(weight.detach()), type(quantizer).__name__
    if isinstance(quantizer, AdaRound):
        raise ValueError(f"{name} learns whether to round up or down, wherever a weight is")
    if isinstance(quantizer, DoReFa) and quantizer.bits == 1:
        raise ValueError(f"{name} with one bit takes the sign of a weight: there is no step")
    with torch.no_grad():
        position = _position(quantizer, weight)
        away = position.clamp(quantizer.low, quantizer.high) - quantizer.codes(weight)
    if not bool((away.abs() <= 0.501).all()):
        raise ValueError(f"{name} does not give each weight the nearest code of a uniform grid")
    return position


def _position(quantizer: Quantizer, weight: Tensor) -> Tensor:
    if isinstance(quantizer, EWGS):
        width = (quantizer.upper - quantizer.lower).clamp(min=SMALLEST_STEP)
        return quantizer.high * (weight - quantizer.lower) / width
    if isinstance(quantizer, DoReFa | ReleasedDoReFa):
        unit = weight.tanh()
        unit = unit / unit.abs().amax().clamp(min=SMALLEST_STEP)
        if isinstance(quantizer, DoReFa):
            return quantizer.high * (unit / 2 + 0.5)
        return unit / quantizer.step
    zero = quantizer.dequantize(torch.zeros_like(weight))
    return (weight - zero) / (quantizer.dequantize(torch.ones_like(weight)) - zero)


def distances(
    names: Iterable[str],
    quantizers: Iterable[Quantizer],
    weights: Iterable[Tensor],
    label: str = "",
) -> BinDistances:
    """Count where weights lie between the thresholds of their codes, in 100 bins.

    Args:
        names: Names of layers.
        quantizers: The weight quantizer of each.
        weights: The weight of each.
        label: Name of the network. Default: "".

    Returns:
        A record; layers without positions are named in it.
    """
    counts, clipped, without = {}, [], []
    for name, quantizer, weight in zip(names, quantizers, weights, strict=True):
        try:
            position = grid_positions(quantizer, weight)
        except ValueError:
            without.append(name)
            continue
        inside = (position >= quantizer.low) & (position <= quantizer.high)
        kept = position[inside].double()
        bins = ((kept - kept.round() + 0.5) * BINS).floor().long().clamp(0, BINS - 1)
        counts[name] = torch.bincount(bins, minlength=BINS).cpu().numpy()
        clipped.append(int((~inside).sum()))
    table = np.array(list(counts.values()), dtype=np.int32).reshape(len(counts), BINS)
    return BinDistances(
        tuple(counts), table, np.array(clipped, dtype=np.int32), tuple(without), label
    )


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


def _codes(quantizers: Iterable[Quantizer], weights: list[Tensor]) -> Float[Tensor, "weights"]:
    return _joined(q.codes(w).detach() for q, w in zip(quantizers, weights, strict=True))


def _joined(tensors: Iterable[Tensor]) -> Float[Tensor, "weights"]:
    return torch.cat([tensor.flatten().to(torch.float32) for tensor in tensors])


def _copied(quantizer: Quantizer) -> Quantizer:
    """A copy whose numbers are all buffers, so that no optimizer finds them."""
    copy = deepcopy(quantizer)
    for name, tensor in list(copy.named_parameters(recurse=False)):
        delattr(copy, name)
        copy.register_buffer(name, tensor.detach())
    return copy


def _take_over(copies: Iterable[nn.Module], quantizers: list[Quantizer]) -> None:
    """Bring copies up to date."""
    for copy, quantizer in zip(copies, quantizers, strict=True):
        held = dict(copy.named_buffers())
        for name, tensor in (*quantizer.named_parameters(), *quantizer.named_buffers()):
            held[name].copy_(tensor)


def _roomy(table: Tensor, row: int) -> Tensor:
    """The table, with as much room again if there is no such row."""
    return table if row < len(table) else torch.cat([table, torch.zeros_like(table)])


def _take_room(module: nn.Module, names: Iterable[str], state: dict[str, Any], prefix: str) -> None:
    """Give tables the length that they have in a state."""
    for name in names:
        if prefix + name in state:
            table = getattr(module, name)
            setattr(module, name, table.new_zeros(state[prefix + name].shape))
