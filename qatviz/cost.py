"""What a quantized model costs: bits, bytes and bit-operations, differentiable in learned bits."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from qatviz.calibration import check_images
from qatviz.layers import QuantActivation
from qatviz.quantize import quantizers
from qatviz.quantizers import Quantizer

FLOAT_BITS = 32
BITS_PER_MIB = 2**23

LAYERS = (nn.Conv2d, nn.Linear)

Scalar = Float[Tensor, ""]
# Tensors by storage, kept alive so that no other takes their place; None: the image. With the
# count of changes in place: what is changed after it was rounded is rounded no more.
Sources = dict[int, tuple[Tensor, Quantizer | None, int]]


@dataclass(frozen=True)
class Read:
    """One pass of a layer over its input, for one image.

    Attributes:
        macs: Multiplications with an addition.
        elements: Numbers that the layer reads.
        quantizer: What rounded them, or None.
        image: Whether they are the image itself.
    """

    macs: int
    elements: int
    quantizer: Quantizer | None
    image: bool


@dataclass(frozen=True)
class LayerCost:
    """What one convolution or linear layer does for one image.

    Attributes:
        name: Name in the model.
        weights: Numbers in the weight.
        quantizer: What rounds the weight, or None.
        reads: One entry for each time that the forward pass reaches the layer.
    """

    name: str
    weights: int
    quantizer: Quantizer | None
    reads: tuple[Read, ...]

    @property
    def macs(self) -> int:
        """Multiplications with an addition, for one image."""
        return sum(read.macs for read in self.reads)

    @property
    def inputs(self) -> int:
        """Numbers that the layer reads, for one image."""
        return sum(read.elements for read in self.reads)


@dataclass(frozen=True, repr=False)
class Cost:
    """The cost of every convolution and linear layer, at the bits that the model has now.

    Bits are asked of the model's own quantizers at each call (``bit_width``, rounded), so a
    cost is measured once and follows the bits while they are learned; every total carries
    their gradient. A float tensor counts 32 bits, the image ``image_bits``.

    Attributes:
        layers: In the order of the model.
        image_bits: Bits of the image where no quantizer rounds it.
    """

    layers: tuple[LayerCost, ...]
    image_bits: int = 8

    def macs(self) -> int:
        """Multiply-accumulate operations for one image.

        Returns:
            ∑ k_h·k_w·(C_in/groups)·C_out·H_out·W_out; a linear layer is a convolution of 1×1.
        """
        return sum(layer.macs for layer in self.layers)

    def weight_bits(self) -> Scalar:
        """Bits that the weights take; biases, BatchNorm and the grids themselves not counted.

        Returns:
            ∑ weights·b_w.
        """
        return _total(n * self._bits(quantizer) for n, quantizer in self._weights())

    def bytes(self) -> Scalar:
        """Bytes that the weights take, counted as in ``weight_bits``.

        Returns:
            Bits / 8.
        """
        return self.weight_bits() / 8

    def input_bits(self) -> Scalar:
        """Bits that the layers read for one image; the image itself included.

        Returns:
            ∑ elements·b_a.
        """
        return _total(r.elements * self._read_bits(r) for layer in self.layers for r in layer.reads)

    def bops(self) -> Scalar:
        """Bit-operations for one image.

        Returns:
            ∑ MACs·b_w·b_a.

        Source: Shin et al. 2023, arXiv 2206.00820 (NIPQ).
        """
        return _total(self._layer_bops(layer) for layer in self.layers)

    def average_bits(self, of: str) -> Scalar:
        """Mean bits per number, over the quantized tensors only, as NIPQ counts.

        Args:
            of: "weights" or "inputs".

        Returns:
            ∑ n·b / ∑ n.

        Raises:
            ValueError: If ``of`` is something else, or nothing of it is quantized.
        """
        bits, count = self.quantized(of)
        if not count:
            raise ValueError(f"average_bits: the model has no quantized {of}")
        return bits / count

    def quantized(self, of: str) -> tuple[Scalar, int]:
        """Bits and numbers of the quantized tensors only.

        Args:
            of: "weights" or "inputs".

        Returns:
            ∑ n·b and ∑ n.

        Raises:
            ValueError: If ``of`` is something else.
        """
        tensors = {"weights": self._weights(), "inputs": self._inputs()}
        if of not in tensors:
            raise ValueError(f"of must be 'weights' or 'inputs', got {of!r}")
        pairs = [(n, quantizer) for n, quantizer in tensors[of] if quantizer is not None]
        return _total(n * self._bits(quantizer) for n, quantizer in pairs), sum(n for n, _ in pairs)

    @torch.no_grad()
    def table(self) -> pd.DataFrame:
        """The cost of each layer.

        Returns:
            A row per layer: MACs, weights and inputs for one image, bits of both (of the inputs
            the mean, where a layer is reached several times), bytes of the weight, GBOPs.
        """
        rows = []
        for layer in self.layers:
            weight = float(self._bits(layer.quantizer))
            inputs = float(sum(r.elements * self._read_bits(r) for r in layer.reads)) / layer.inputs
            sizes = (layer.name, layer.macs, layer.weights, layer.inputs)
            gbops = float(self._layer_bops(layer)) / 1e9
            rows.append((*sizes, weight, inputs, layer.weights * weight / 8, gbops))
        names = ["layer", "MACs", "weights", "inputs", "weight bits", "input bits"]
        return pd.DataFrame(rows, columns=[*names, "bytes", "GBOPs"]).set_index("layer")

    @torch.no_grad()
    def __repr__(self) -> str:
        return (
            f"Cost({len(self.layers)} layers, {self.macs():,} MACs, "
            f"{self.bytes().item():,.0f} bytes of weights, {self.bops().item() / 1e9:.4g} GBOPs)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table()._repr_html_()}"

    def _weights(self) -> list[tuple[int, Quantizer | None]]:
        return [(layer.weights, layer.quantizer) for layer in self.layers]

    def _inputs(self) -> list[tuple[int, Quantizer | None]]:
        return [(read.elements, read.quantizer) for layer in self.layers for read in layer.reads]

    def _layer_bops(self, layer: LayerCost) -> float | Tensor:
        weight = self._bits(layer.quantizer)
        return sum(read.macs * weight * self._read_bits(read) for read in layer.reads)

    def _read_bits(self, read: Read) -> float | Tensor:
        return self._bits(read.quantizer, self.image_bits if read.image else FLOAT_BITS)

    def _bits(self, quantizer: Quantizer | None, otherwise: float = FLOAT_BITS) -> float | Tensor:
        bits = otherwise if quantizer is None else quantizer.bit_width()
        if not (isinstance(bits, Tensor) and bits.requires_grad):
            return float(bits)
        # Totals are integers beyond what float32 holds. Apple's GPUs have no float64.
        return bits if bits.device.type == "mps" else bits.double()


def cost(
    model: nn.Module,
    images: Shaped[Tensor, "batch *shape"] | Sequence[int],
    *,
    image_bits: int = 8,
) -> Cost:
    """Measure what a model does for one image, by one forward pass of a copy of it.

    Every ``nn.Conv2d`` and ``nn.Linear`` counts, float or quantized; nothing else does. A
    layer that is reached several times multiplies and reads each time, and its weight is
    stored once. An input is rounded by the layer's own quantizer, or by the
    ``QuantActivation`` whose output (or a view of it) the layer reads.

    Elements of an input are those of the tensor that the layer reads, and its bits are those
    of its quantizer. The released code of NIPQ counts 32 bits instead in its bit-operations,
    and weights among the activations in its average; we reproduce neither.

    Args:
        model: A float or a quantized model, calibrated or not. It is not modified.
        images: Normalised images, of which the first is tried, or their shape
            without the batch, ``(channels, height, width)``.
        image_bits: Bits of the image where no quantizer rounds it. Default: 8, what images
            have (ours; the released code of NIPQ counts 32).

    Returns:
        The cost, which follows the bits of the model's quantizers.

    Raises:
        ValueError: If the model has no layer that counts, cannot take the images, or has a
            layer that the forward pass does not reach.
    """
    if not isinstance(images, Tensor):
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        images = torch.zeros(1, *images, dtype=like.dtype)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        raise ValueError("cost: the model has no convolution and no linear layer")
    reads = _reads(model, images[:1])
    if missed := [name for name in layers if not reads[name]]:
        raise ValueError(f"cost: the forward pass did not reach {', '.join(missed)}")
    costs = [
        LayerCost(name, m.weight.numel(), _own(m, "weight_quantizer"), tuple(reads[name]))
        for name, m in layers.items()
    ]
    return Cost(tuple(costs), image_bits)


def target_penalty(total: Scalar, target: float) -> Scalar:
    """Smooth-L1 distance to a target, from both sides.

    Args:
        total: What is counted.
        target: What it should be.

    Returns:
        |d| − 0.5 where the distance d is 1 or more, else d²/2: far away the slope is constant.

    Source: the released code of NIPQ, arXiv 2206.00820.
    """
    return smooth_l1_loss(total, torch.full_like(total, target))


def bit_penalty(cost: Cost, target: float, *, weights: float = 1.0, inputs: float = 1.0) -> Scalar:
    """How far the average bits are from a target, in MiB.

    The penalty, with S = ``target_penalty``, N_w the quantized weights of a layer and N_a the
    quantized numbers that it reads for one image::

        L = λ_w·S(∑ b·N_w, T·∑ N_w)/2²³ + λ_a·S(∑ b·N_a, T·∑ N_a)/2²³

    The bits of a tensor of N numbers are pulled with λ·N/2²³: large tensors do the work, and
    the pull grows with the network, so that a small network needs a larger λ.

    Args:
        cost: Of the student.
        target: T, bits per number.
        weights: λ_w. Default: 1 (paper's code).
        inputs: λ_a. Default: 1 (paper's code).

    Returns:
        A scalar for the loss, zero where the averages of the rounded bits are on target.

    Raises:
        ValueError: If nothing is quantized.

    Source: the released code of NIPQ, arXiv 2206.00820.
    """
    terms = []
    for of, scale in (("weights", weights), ("inputs", inputs)):
        bits, count = cost.quantized(of)
        if count:
            terms.append(scale * target_penalty(bits, target * count) / BITS_PER_MIB)
    if not terms:
        raise ValueError("bit_penalty: the model has no quantized weights and no quantized inputs")
    return sum(terms).float()


def bops_penalty(cost: Cost, target: float, *, scale: float = 3.0) -> Scalar:
    """How far the bit-operations for one image are from a target: L = λ·S(BOPs/10⁹, T).

    The bits of the inputs are pulled too. In the released code only those of the weights are,
    because it counts every input as 32 bits.

    Args:
        cost: Of the student.
        target: T, in 10⁹ bit-operations (GBOPs).
        scale: λ. Default: 3 (paper's code).

    Returns:
        A scalar for the loss; S is ``target_penalty``.

    Source: the released code of NIPQ, arXiv 2206.00820.
    """
    return (scale * target_penalty(cost.bops() / 1e9, target)).float()


def _total(terms: Iterable[float | Tensor]) -> Tensor:
    total = sum(terms)
    return total if isinstance(total, Tensor) else torch.tensor(total, dtype=torch.float64)


def _own(module: nn.Module, name: str) -> Quantizer | None:
    quantizer = getattr(module, name, None)
    return quantizer if isinstance(quantizer, Quantizer) else None


def _reads(model: nn.Module, image: Tensor) -> dict[str, list[Read]]:
    """Every pass of every layer, by the layer's name, from a copy that rounds nothing."""
    twin = copy.deepcopy(model)
    for quantizer in quantizers(twin).values():
        quantizer.forward = _unchanged
    reads: dict[str, list[Read]] = {}
    sources: Sources = {}
    twin.register_forward_pre_hook(_note_image(sources), with_kwargs=True)
    for name, module in twin.named_modules():
        original = model.get_submodule(name)
        if isinstance(module, QuantActivation):
            module.register_forward_hook(_note_rounding(_own(original, "quantizer"), sources))
        elif isinstance(module, LAYERS):
            reads[name] = []
            own = _own(original, "input_quantizer")
            module.register_forward_hook(_note_pass(own, sources, reads[name]), with_kwargs=True)
    check_images(twin, image)
    return reads


def _unchanged(x: Tensor) -> Tensor:
    return x


def _storage(x: Tensor) -> int:
    """What a tensor and its views have in common."""
    return x.untyped_storage().data_ptr()


def _note_image(sources: Sources) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                sources[_storage(x)] = (x, None, x._version)

    return hook


def _note_rounding(quantizer: Quantizer | None, sources: Sources) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if quantizer is None:
            return output
        # A storage of its own: what else reads the tensor reads it unrounded.
        rounded = output.clone()
        sources[_storage(rounded)] = (rounded, quantizer, rounded._version)
        return rounded

    return hook


def _note_pass(own: Quantizer | None, sources: Sources, passes: list[Read]) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        known = sources.get(_storage(x))
        if known is not None and x._version != known[2]:
            known = None
        source = None if known is None else known[1]
        macs = layer.weight.numel() * output.numel() // layer.weight.shape[0]
        image = known is not None and source is None
        passes.append(Read(macs, x.numel(), source if own is None else own, image))

    return hook
