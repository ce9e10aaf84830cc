"""What every quantizer must know how to do: what a case is, and what the suite does with it.

A new quantizer is found by itself through ``qatviz.quantizers.__all__``. Its case stands in its
own test, as ``CASES = {Class: Case(...)}`` in ``test_NAME.py``: how to build it, and its forward
and backward written out for one number at a time.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qatviz import quantizers
from qatviz.quantizers import Quantizer

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
    levels: Callable[[int, bool], int] = lambda bits, signed: 2**bits
    # Whether levels live where the numbers live, so that a level quantizes to itself.
    idempotent: bool = True
    # Whether other data give another grid, or the constructor alone says where it starts.
    from_data: bool = True
    # The factor between levels and outputs, where each forward takes it from its tensor.
    scale: Callable[[torch.Tensor, Config], torch.Tensor | float] = lambda x, config: 1.0
    # How many of the lowest codes nothing is rounded to, but for the last digit.
    unreached: int = 0
    # Whether a parameter has one entry per number, so that only one shape passes.
    one_shape: bool = False
    # Whether training computes something else than evaluation: the suite then evaluates.
    evaluates: bool = False
    # Whether a gradient reaches the numbers that are quantized.
    trains_input: bool = True


def grid_of(index, config):
    """The number of the grid that an element belongs to."""
    return 0 if config.axis is None else index[config.axis]


@functools.cache
def cases():
    """The case of every class, from the ``CASES`` of each ``test_NAME.py`` beside this file."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.quantizers.{path.stem}")
        found |= getattr(module, "CASES", {})
    return found


def quantizer_classes():
    """Every public quantizer, whoever wrote it."""
    public = (getattr(quantizers, name) for name in quantizers.__all__)
    return [
        thing
        for thing in public
        if isinstance(thing, type) and issubclass(thing, Quantizer) and thing is not Quantizer
    ]


def some_bits(cls, wanted=4, signed=None):
    """The wanted bits where the class has them, else the most it has."""
    allowed = cls.bits_allowed(signed)
    return wanted if wanted in allowed or not allowed else allowed[-1]


def configs(cls, bits=(1, 2, 4, 8), signs=(True, False)):
    """Every grid of a class: grids per image do not exist, so axis 0 is never batched."""
    placements = ((None, False), (0, False), (None, True), (1, True))
    return [
        Config(b, signed, axis, batched)
        for b in bits
        for signed in signs
        if b in cls.bits_allowed(signed)
        for axis, batched in placements
        if axis is None or cls.per_channel
    ]


def fresh(cls, config):
    """A quantizer of this class that has seen no data and must take the sign from them."""
    quantizer = cases()[cls].make(config.bits, axis=config.axis)
    quantizer.batched = config.batched
    return quantizer.eval() if cases()[cls].evaluates else quantizer


def has_numbers(cls):
    """Whether the grid has numbers of its own, parameters or buffers, that can be not chosen."""
    quantizer = cases()[cls].make(some_bits(cls))
    return any(True for _ in (*quantizer.parameters(), *quantizer.buffers()))


def init_larger(quantizer, config, factor):
    """Give a quantizer the grid of data ``factor`` times as large as ``sample``."""
    quantizer.init_from(factor * sample(config))
    if not cases()[type(quantizer)].from_data:
        for tensor in (*quantizer.parameters(), *quantizer.buffers()):
            tensor.data *= factor
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
