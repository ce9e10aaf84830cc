"""What every quantizer must know how to do: the cases, and the literal oracle of each class.

A new quantizer is found by itself through ``qatviz.quantizers.__all__``. Give it a row in
``CASES``: how to build it, and its forward and backward written out for one number at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from qatviz import quantizers
from qatviz.quantizers import LSQ, Affine, Quantizer, min_max_range

SHAPE = (4, 3, 5, 2)


@dataclass(frozen=True)
class Config:
    """Which grid: bits, sign, grid per tensor or per channel, first axis counts images or not."""

    bits: int
    signed: bool
    axis: int | None
    batched: bool

    def __str__(self):
        sign = "signed" if self.signed else "unsigned"
        grid = "tensor" if self.axis is None else f"axis{self.axis}"
        return f"{self.bits}-{sign}-{grid}{'-batched' * self.batched}"


@dataclass(frozen=True)
class Case:
    """How to build a class, and what it should compute.

    ``oracle(quantizer_state, x, upstream, config)`` takes and returns float64 NumPy arrays:
    the value, the gradient of ∑ upstream·value for x, and that for each parameter by name.
    """

    make: Callable[..., Quantizer]
    oracle: Callable[..., tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]


def grid_of(index, config):
    """The number of the grid that an element belongs to."""
    return 0 if config.axis is None else index[config.axis]


def lsq_oracle(state, x, upstream, config):
    """Equations 1 to 5 of Esser et al., one element after another."""
    steps = state["step"].reshape(-1)
    q_n = 2 ** (config.bits - 1) if config.signed else 0
    q_p = 2 ** (config.bits - 1) - 1 if config.signed else 2**config.bits - 1
    value, grad_x, grad_step = np.zeros_like(x), np.zeros_like(x), np.zeros_like(steps)
    sharing = [0] * len(steps)
    for index in np.ndindex(*x.shape):
        if not config.batched or index[0] == 0:
            sharing[grid_of(index, config)] += 1
    for index in np.ndindex(*x.shape):
        grid = grid_of(index, config)
        ratio = float(x[index] / steps[grid])
        if ratio <= -q_n:
            code, d_x, d_step = -q_n, 0.0, -q_n
        elif ratio >= q_p:
            code, d_x, d_step = q_p, 0.0, q_p
        else:
            code = round(ratio)
            d_x, d_step = 1.0, code - ratio
        g = 1 / math.sqrt(sharing[grid] * q_p)
        value[index] = code * steps[grid]
        grad_x[index] = upstream[index] * d_x
        grad_step[grid] += upstream[index] * d_step * g
    return value, grad_x, {"step": grad_step.reshape(state["step"].shape)}


def affine_oracle(state, x, upstream, config):
    """q = clip(round(x/s) + z, 0, n − 1), x̂ = (q − z)·s, one element after another."""
    steps, zero_points = state["step"].reshape(-1), state["zero_point"].reshape(-1)
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    last = 2**config.bits - 1
    for index in np.ndindex(*x.shape):
        s, z = steps[grid_of(index, config)], zero_points[grid_of(index, config)]
        ratio = float(x[index] / s)
        value[index] = (min(max(round(ratio) + z, 0), last) - z) * s
        grad_x[index] = upstream[index] * (1.0 if 0 < ratio + z < last else 0.0)
    return value, grad_x, {}


CASES = {
    LSQ: Case(LSQ, lsq_oracle),
    # The searched range costs seconds at 8 bits; ``test_affine.py`` tests it.
    Affine: Case(partial(Affine, find_range=min_max_range), affine_oracle),
}


def quantizer_classes():
    """Every public quantizer, whoever wrote it."""
    public = (getattr(quantizers, name) for name in quantizers.__all__)
    return [
        thing
        for thing in public
        if isinstance(thing, type) and issubclass(thing, Quantizer) and thing is not Quantizer
    ]


def configs(cls, bits=(1, 2, 4, 8), signs=(True, False)):
    """Every grid of a class: grids per image do not exist, so axis 0 is never batched."""
    placements = ((None, False), (0, False), (None, True), (1, True))
    return [
        Config(b, signed, axis, batched)
        for b in bits
        for signed in signs
        if b in cls.bits_allowed(signed)
        for axis, batched in placements
    ]


def fresh(cls, config):
    """A quantizer of this class that has seen no data and must take the sign from them."""
    quantizer = CASES[cls].make(config.bits, axis=config.axis)
    quantizer.batched = config.batched
    return quantizer


def sample(config, seed=0):
    """Data with a spread per channel, negative only where the grid is signed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator)
    x = x * torch.tensor([0.3, 1.0, 2.0, 0.7]).reshape(-1, 1, 1, 1)
    return x if config.signed else x.abs()


def ready(cls, config, dtype=torch.float32):
    """A quantizer with a grid, and data of which some are clipped on both sides."""
    quantizer = fresh(cls, config)
    quantizer.init_from(sample(config))
    x = 1.7 * sample(Config(config.bits, True, config.axis, config.batched), seed=1)
    return quantizer.to(dtype), x.to(dtype)


def rows(x, config):
    """One row per grid, as an independent loop."""
    if config.axis is None:
        return [x.flatten()]
    return [x.select(config.axis, i).flatten() for i in range(x.shape[config.axis])]


def by_grid(tensor, config):
    """``levels()`` or the like as a list, one entry per grid."""
    return [tensor] if config.axis is None else list(tensor)


def with_landmarks(quantizer, x, config):
    """Put zero, all bounds, a tie and far values of each grid into x, exactly (in float64)."""
    x = x.clone()
    for i, levels in enumerate(by_grid(quantizer.levels(), config)):
        tie = (levels[0] + levels[1]) / 2
        first, last = levels[0], levels[-1]
        points = torch.stack([first, last, tie, 0 * first, first - 100, last + 100]).to(x.dtype)
        place = x if config.axis is None else x.select(config.axis, i)
        flat = place.reshape(-1).clone()
        flat[: len(points)] = points
        flat[-2:] = points[:2]
        place.copy_(flat.reshape(place.shape))
    return x


def state_of(quantizer):
    """Parameters and buffers by name, as float64 arrays."""
    tensors = (*quantizer.named_parameters(), *quantizer.named_buffers())
    return {name: tensor.detach().double().numpy() for name, tensor in tensors}
