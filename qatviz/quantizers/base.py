"""What every quantizer is: a map onto integer codes, and a map from codes back to numbers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qatviz.quantizers.straight_through import straight_through

BITS = range(1, 9)
SMALLEST_STEP = 1e-8


class Quantizer(nn.Module):
    """Base of all quantizers: ``forward = dequantize ∘ codes``.

    A quantizer turns real numbers into *codes* (integers, kept in floating tensors so that
    gradients can pass) and codes into *levels* (the numbers the network computes with).
    Its grid comes from data, explicitly: ``init_from(x)``. Until then its step is NaN, and a
    NaN in a parameter or buffer is what "not calibrated" means: there is no flag, and a
    loaded checkpoint is calibrated because its numbers are. The quantizer's own arithmetic
    is float32 or better: float16 and bfloat16 inputs are promoted, and come back as they came.

    Subclasses write ``codes``, ``dequantize`` and ``init_from``, and name in ``bits_allowed``
    what their mathematics allows. ``per_channel`` is False where the paper has one grid per
    tensor only. ``symmetric_hessian`` is False where the backward pass is no derivative of any
    function, so that second derivatives are not symmetric. Where training computes something
    else than ``dequantize(codes(x))``, such as noise, or the same thing faster, ``_quantize``
    says it.

    What is at the edges: an infinite value is clipped like any large one, and has no gradient;
    where the gradient of a parameter needs the value itself it becomes NaN, and the checks of
    ``fit`` name the quantizer. NaN stays NaN. Denormal numbers are numbers. A step below
    ``SMALLEST_STEP`` (1e-8), which an optimizer may bring about, counts as ``SMALLEST_STEP`` and
    goes on learning (EWGS's bounds and NIPQ's range hardly do: see there). An empty tensor
    passes, and gives parameters a gradient of zero.

    Args:
        bits: Bits per code, 1 to 8 (or fewer choices, by subclass).
        signed: True for codes on both sides of zero, False for codes from zero up, None to
            decide from the data at ``init_from``: signed if anything is negative.
            Default: None (ours).
        axis: The axis that has a grid of its own for each index (0: one per output channel
            of a weight), or None for one grid for the whole tensor. Default: None, as in
            LSQ, PACT, EWGS and NIPQ.

    Attributes:
        batched: True where the first axis counts images. Layers set it on the quantizers of
            their inputs.

    Raises:
        ValueError: If ``bits`` is not an integer that the quantizer allows.
    """

    symmetric_hessian = True
    per_channel = True

    def __init__(self, bits: int, *, signed: bool | None = None, axis: int | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self._decides_sign = signed is None
        self.axis = axis
        self.batched = False
        self._check_bits()
        if axis is not None and not self.per_channel:
            raise ValueError(
                f"{type(self).__name__} has one grid for the whole tensor, as in its paper: "
                f"axis must be None, got {axis!r}"
            )

    @classmethod
    def bits_allowed(cls, signed: bool | None) -> range:
        """The bit-widths that exist for this signedness (None: for at least one of the two).

        Args:
            signed: Signedness of the grid, None while undecided.

        Returns:
            A range of bits. Default: 1 to 8 (ours: what the five papers use).
        """
        return BITS

    def _check_bits(self) -> None:
        allowed = self.bits_allowed(self.signed)
        is_integer = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        kind = {True: "signed ", False: "unsigned ", None: ""}[self.signed]
        if not allowed:
            why = "signed=False was given, or nothing in the data is negative"
            if self.signed:
                why = "signed=True was given, or the data have negative values (signed=False clips)"
            raise ValueError(f"{type(self).__name__} has no {kind}grid, but {why}")
        if not is_integer or self.bits not in allowed:
            raise ValueError(
                f"{type(self).__name__}: bits of a {kind}grid must be an integer from "
                f"{allowed.start} to {allowed.stop - 1}, got {self.bits!r}"
            )

    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The integer codes of ``x``, as floating numbers that carry the gradient.

        Args:
            x: Any real tensor.

        Returns:
            Integers in ``[self.low, self.high]``, the shape of ``x``.
        """
        raise NotImplementedError

    def dequantize(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The levels that the codes stand for.

        Args:
            codes: What ``codes`` returns.

        Returns:
            Levels in the units of the quantized tensor, the shape of ``codes``.
        """
        raise NotImplementedError

    def init_from(self, x: Float[Tensor, "*shape"]) -> None:
        """Choose the grid from data, in place.

        Args:
            x: A sample of what will be quantized, float32 or better, finite, not empty.
        """
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round ``x`` to the grid.

        Args:
            x: Any real tensor, of any floating type.

        Returns:
            The nearest levels (as the quantizer defines them), the shape and type of ``x``.
            NaN if the sign was given but the grid not yet chosen: ``evaluate``, ``fit`` and
            the analyses refuse such a model on entry.

        Raises:
            ValueError: If the quantizer is not calibrated and its sign is still to be decided.
        """
        if self.signed is None:
            raise ValueError(
                f"{type(self).__name__}: not calibrated, so there is no grid to round to; "
                f"call calibrate(model, batches), or init_from(x)"
            )
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # A float64 grid with an axis would otherwise widen a float32 input.
        return self._quantize(wide).to(x.dtype)

    def _quantize(self, x: Tensor) -> Tensor:
        """What ``forward`` computes, in float32 or better."""
        return self.dequantize(self.codes(x))

    @property
    def low(self) -> int:
        """The lowest code: −2^(b−1) signed, 0 unsigned."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest code: 2^(b−1) − 1 signed, 2^b − 1 unsigned."""
        return self.low + 2**self.bits - 1

    @property
    def calibrated(self) -> bool:
        """Whether the sign is decided and all parameters and buffers are finite."""
        tensors = (*self.parameters(), *self.buffers())
        return self.signed is not None and all(bool(t.isfinite().all()) for t in tensors)

    def bit_width(self) -> Float[Tensor, ""]:
        """The bits per code as a number that may carry a gradient, for ``cost``.

        Returns:
            A scalar; where bits are learned, differentiable in what they are learned through.
        """
        return torch.tensor(float(self.bits))

    @torch.no_grad()
    def levels(self) -> Float[Tensor, "*grid levels"]:
        """All levels of the grid, lowest code first.

        Returns:
            Shape ``[levels]``, or ``[channels, levels]`` where each channel has its own grid;
            there are 2^bits levels, or fewer where the paper has fewer.

        Raises:
            ValueError: If the quantizer is not calibrated.
        """
        if not self.calibrated:
            raise ValueError(f"{type(self).__name__}: not calibrated; call init_from(x) first")
        tensors = (*self.parameters(), *self.buffers())
        like = tensors[0] if tensors else torch.empty(0)
        dtype = torch.promote_types(like.dtype, torch.float32)
        codes = torch.arange(self.low, self.high + 1, device=like.device, dtype=dtype)
        if self.axis is None:
            return self.dequantize(codes)
        # Of the tensors with an axis, the smallest: others have one entry per number.
        grids = min((t.shape for t in tensors), key=lambda shape: (-len(shape), shape.numel()))
        return torch.stack([self.dequantize(c.expand(grids)).flatten() for c in codes], dim=-1)

    def _begin(self, x: Tensor) -> None:
        """Guard ``init_from``: finite data, and a signedness that the bits allow."""
        name = type(self).__name__
        if x.numel() == 0:
            raise ValueError(f"{name}: cannot choose a grid from an empty tensor {list(x.shape)}")
        if self.axis is not None and not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{name}: axis {self.axis} of a tensor of shape {list(x.shape)}")
        if not x.isfinite().all():
            bad = int((~x.isfinite()).sum())
            raise ValueError(
                f"{name}: cannot choose a grid from data with {bad} values that are not finite"
            )
        decided = bool((x < 0).any()) if self._decides_sign else self.signed
        before, self.signed = self.signed, decided
        try:
            self._check_bits()
        except ValueError:
            self.signed = before
            raise

    def _rows(self, x: Tensor) -> Tensor:
        """``x`` as one row per grid."""
        if self.axis is None:
            return x.reshape(1, -1)
        return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)

    def _per_grid(self, values: Tensor, x: Tensor) -> Tensor:
        """One value per grid, shaped so that it broadcasts against ``x``."""
        if self.axis is None:
            return values.reshape(())
        shape = [1] * x.ndim
        shape[self.axis] = x.shape[self.axis]
        return values.reshape(shape)

    def _sharing(self, x: Tensor) -> int:
        """How many numbers share a grid, the images of a batch counted once: LSQ's N."""
        shared = x.numel()
        if self.axis is not None:
            shared //= x.shape[self.axis]
        if self.batched and x.ndim:
            shared //= max(x.shape[0], 1)
        return shared

    def get_extra_state(self) -> Tensor:
        """Bits and signedness for ``state_dict``: ``[bits, signed]``, −1 while undecided.

        Returns:
            An int64 tensor of two numbers.
        """
        signed = -1 if self.signed is None else int(self.signed)
        return torch.tensor([self.bits, signed])

    def set_extra_state(self, state: Tensor) -> None:
        """Take the signedness from a ``state_dict``; bits must be the same.

        Args:
            state: What ``get_extra_state`` returned.

        Raises:
            ValueError: If the state is that of another bit-width, or of the other sign than the
                one that was given at construction.
        """
        bits, signed = (int(v) for v in state[:2])
        if bits != self.bits:
            raise ValueError(
                f"{type(self).__name__}: the state holds a grid of {bits} bits, "
                f"this quantizer has {self.bits}"
            )
        if not self._decides_sign and signed == (not self.signed):
            raise ValueError(
                f"{type(self).__name__}: the state holds {'a signed' if signed else 'an unsigned'} "
                f"grid, this quantizer was made with signed={self.signed}"
            )
        if self._decides_sign:
            self.signed = None if signed < 0 else bool(signed)

    def _positive(self, step: Tensor) -> Tensor:
        """The step, or ``SMALLEST_STEP`` where the optimizer went below; it learns in both."""
        step = widened(step)
        return straight_through(step.clamp(min=SMALLEST_STEP), step)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Let a grid that is not yet chosen take the shape that the state has."""
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if tensor is not None and saved is not None and not tensor.isfinite().all():
                tensor.data = tensor.data.new_full(saved.shape, float("nan"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets.

        Returns:
            For example ``bits=2, signed=True, step=0.125``.
        """
        signed = "undecided" if self.signed is None else self.signed
        parts = [f"bits={self.bits}", f"signed={signed}"]
        if self.axis is not None:
            parts.append(f"axis={self.axis}")
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            parts.append(f"{name}={_brief(tensor)}")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        rows = (part.split("=", 1) for part in self.extra_repr().split(", "))
        cells = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows)
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"


def widened(number: Tensor) -> Tensor:
    """A parameter in the type that quantizers compute in.

    Args:
        number: Any floating tensor.

    Returns:
        float32 or better: in float16 the smallest step would be zero.
    """
    return number.to(torch.promote_types(number.dtype, torch.float32))


def usable(scale: Tensor) -> Tensor:
    """A scale that can be divided by, from data that may have none.

    Args:
        scale: Steps, ranges or magnitudes found in data, zero or more.

    Returns:
        1 where the scale is zero (all-zero data are exact on any grid), elsewhere the scale, at
        least ``SMALLEST_STEP``.
    """
    return torch.where(scale == 0, torch.ones_like(scale), scale).clamp(min=SMALLEST_STEP)


def _brief(tensor: Tensor) -> str:
    """One number, or the range of several, in four digits."""
    low, high = tensor.min().item(), tensor.max().item()
    if not tensor.isfinite().all():
        return "not calibrated"
    return f"{low:.4g}" if tensor.numel() == 1 else f"{low:.4g}..{high:.4g}"
