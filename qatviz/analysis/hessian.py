"""Products of a loss's Hessian with vectors, over any number of images in bounded memory."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from qatviz.analysis.subject import Loss, device_of, one_number
from qatviz.analysis.surface import Surface
from qatviz.analysis.twice import hasten
from qatviz.datasets import Split
from qatviz.quantizers import Quantizer

GIB = 1 << 30
# Relative, in float64, where rounding leaves about 1e-15, or 1e-8 where a loss works in float32
# (ours). EWGS with its usual δ may be as low as 1e-7.
SYMMETRIC, SUSPECT = 1e-6, 1e-8
ONCE = ("torch::autograd::Error", "torch::autograd::NotImplemented")


class Hessian:
    """v ↦ H·v for the Hessian of a mean loss, at the point where a surface stands.

    By differentiating the gradient along v, batch by batch, each batch weighted by its share of
    the images. The graph of a batch's gradient is kept for the next product as long as all
    that are kept fit into ``memory``; other batches compute theirs anew each time. So memory
    depends on ``batch`` and ``memory``, not on the number of images. Where an image is not alone
    in the network (BatchNorm of the images; signed activations under DoReFa, whose grid is that
    of the batch), all images are one batch.

    Before anything else the Hessian is checked to be symmetric, in float64 on a few images:
    uᵀ(Hv) = vᵀ(Hu). Where a backward pass is no derivative of any function (EWGS) it is not, and
    then it is the Hessian of no function.

    Args:
        surface: What moves, and where it stands.
        data: The images, as ``subject`` returns them.
        loss: ``(logits, labels) -> mean``. Default: cross-entropy in nats, without weight decay
            (which adds its factor to every eigenvalue).
        batch: Images at once. Default: 128 (ours). Where what a network makes of an image
            depends on the others, whatever is given: all.
        memory: Bytes that kept graphs may take. Default: 1 GiB (ours).

    Attributes:
        size: P, the length of the vectors.
        batch: Images at once.
        itemsize: Bytes of one number.
        loss: The mean loss here.
        products: How many were computed.
        asymmetry: |uᵀHv − vᵀHu| over what its terms are expected to be, in float64.
        kept: Batches whose graph is kept.
        graph_bytes: Bytes of the graph of one batch.

    Raises:
        ValueError: If ``batch`` or ``memory`` is out of range; the loss is not finite, or no
            single number, or differentiates only once; or the Hessian is not symmetric, or not
            finite.
    """

    def __init__(
        self,
        surface: Surface,
        data: Split,
        loss: Loss = cross_entropy,
        *,
        batch: int = 128,
        memory: int = GIB,
    ) -> None:
        if batch < 1 or memory < 0:
            raise ValueError(f"batch must be ≥ 1 and memory ≥ 0, got {batch} and {memory}")
        self._loss, self._data = loss, data
        self.batch = len(data) if joins_images(surface.model) else batch
        self.asymmetry = _asymmetry(surface, data, loss)
        _check_symmetric(surface, self.asymmetry)
        self._model = copy.deepcopy(surface.model)
        hasten(self._model)
        self._format = _lay_out(self._model, next(data.batches(2))[0])
        self._parameters = [self._model.get_parameter(name) for name in surface.names]
        self._surface = surface
        self.size, self.itemsize = surface.size, surface.point.element_size()
        self.products = 0
        self._graphs: dict[int, list[Tensor]] = {}
        self.loss, self.graph_bytes = self._first_pass(memory)
        if math.isnan(self.asymmetry):
            raise ValueError("the loss is finite, but its second derivatives are not")

    def __call__(self, vector: Float[Tensor, "size"]) -> Float[Tensor, "size"]:
        """H·v.

        Args:
            vector: v.

        Returns:
            A new vector.
        """
        along = [p.to(q) for p, q in zip(self._parts(vector), self._parameters, strict=True)]
        total = torch.zeros_like(vector)
        for index, share, images, labels in self._batches():
            kept = index in self._graphs
            gradient = self._graphs[index] if kept else self._gradient(images, labels)[1]
            for part, product in zip(
                self._parts(total), _product(gradient, self._parameters, along, kept), strict=True
            ):
                part.add_(product, alpha=share)
            del gradient
        self.products += 1
        if not total.sum().isfinite():
            raise ValueError(f"product {self.products} with the Hessian is not finite")
        return total

    @property
    def kept(self) -> int:
        """Batches whose graph is kept."""
        return len(self._graphs)

    def gradient(self) -> Float[Tensor, "size"]:
        """The gradient of the mean loss here.

        Returns:
            A new vector.
        """
        total = torch.zeros_like(self._surface.point)
        for index, share, images, labels in self._batches():
            gradient = self._graphs.get(index) or self._gradient(images, labels)[1]
            total.add_(self._surface.flatten(g.detach() for g in gradient), alpha=share)
            del gradient
        return total

    def _first_pass(self, memory: int) -> tuple[float, int]:
        """The loss, and the bytes of one graph; keeps as many graphs as there is room for."""
        total, seen = 0.0, _Seen()
        for index, share, images, labels in self._batches():
            gradient = None  # two graphs at once would be one too many
            if index == 0:
                with torch.autograd.graph.saved_tensors_hooks(seen, lambda saved: saved):
                    loss, gradient = self._gradient(images, labels)
                seen.storages.clear()
            elif (index + 1) * seen.bytes <= memory:
                loss, gradient = self._gradient(images, labels)
            else:
                with torch.no_grad():
                    loss = self._loss(self._model(images), labels)
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()} on batch {index} of the images")
            total += share * loss.item()
            if gradient is not None and (index + 1) * seen.bytes <= memory:
                self._graphs[index] = gradient
        return total, seen.bytes

    def _batches(self) -> Iterator[tuple[int, float, Tensor, Tensor]]:
        """Number, share of all images, images, labels."""
        like = next(self._model.parameters())
        for index, (images, labels) in enumerate(self._data.batches(self.batch)):
            images = images.to(like).contiguous(memory_format=self._format)
            yield index, len(labels) / len(self._data), images, labels.to(like.device)

    def _gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            loss = self._loss(self._model(images), labels)
            return loss.detach(), gradient_of(loss, self._parameters)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return list(self._surface.split(vector).values())


def gradient_of(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The gradient of a loss, with a graph of its own.

    Args:
        loss: A scalar.
        parameters: By what.

    Returns:
        A tensor per parameter; zeros where one does not take part.

    Raises:
        ValueError: If the loss is no single number.
    """
    loss = one_number(loss)
    return list(
        torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        if loss.requires_grad
        else [torch.zeros_like(p) for p in parameters]
    )


def _product(
    gradient: list[Tensor], parameters: list[Tensor], along: list[Tensor], keep: bool
) -> list[Tensor]:
    curved = [i for i, g in enumerate(gradient) if g.requires_grad]
    if not curved:
        return [torch.zeros_like(p) for p in parameters]
    return list(
        torch.autograd.grad(
            [gradient[i] for i in curved],
            parameters,
            [along[i] for i in curved],
            retain_graph=keep,
            materialize_grads=True,
        )
    )


class _Seen:
    """Counts the bytes of the tensors that a graph holds, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.storages = {}  # kept alive, or an address might come twice

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.storages[storage.data_ptr()] = storage
            self.bytes += storage.nbytes()
        # Not the tensor itself: a graph that holds its own outputs is never freed.
        return tensor.detach()


def _asymmetry(surface: Surface, data: Split, loss: Any, images: int = 16) -> float:
    """|uᵀHv − vᵀHu| beside the size of uᵀHv for random vectors, in float64 on a few images."""
    model = copy.deepcopy(surface.model).double()
    parameters = [model.get_parameter(name) for name in surface.names]
    x, labels = next(data.batches(images, limit=min(images, len(data))))
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)
    u, v = (
        [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(device) for p in named_]
        for named_ in (parameters, parameters)
    )
    with torch.enable_grad():
        value = loss(model(x.to(device).double()), labels.to(device))
        gradient = gradient_of(value, parameters)
    _check_twice(gradient)
    hu, hv = (_product(gradient, parameters, along, True) for along in (u, v))
    uhv, vhu = (
        sum((a * b).sum() for a, b in zip(left, right, strict=True)).item()
        for left, right in ((u, hv), (v, hu))
    )
    lengths = [sum((h * h).sum() for h in hs).item() ** 0.5 for hs in (hu, hv)]
    if not sum(lengths):
        return 0.0
    return abs(uhv - vhu) / (sum(lengths) / 2)


def _check_twice(gradient: list[Tensor]) -> None:
    """Refuse a gradient whose own derivative would miss a part, without a word or with one."""
    waiting, seen = [g.grad_fn for g in gradient if g.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node.name() in ONCE:
            raise ValueError(
                "the model or the loss holds a function that differentiates only once (a fused "
                "or hand-written backward pass), so that there is no Hessian of it"
            )
        later = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(later)
        waiting += later


def _check_symmetric(surface: Surface, asymmetry: float) -> None:
    guilty = {
        type(m).__name__
        for m in surface.model.modules()
        if isinstance(m, Quantizer) and not m.symmetric_hessian
    }
    if not asymmetry > (SUSPECT if guilty else SYMMETRIC):
        return
    why = f" because of {', '.join(sorted(guilty))}" if guilty else ""
    raise ValueError(
        f"the Hessian is not symmetric (uᵀHv and vᵀHu differ by {asymmetry:.1e} of their usual "
        f"size){why}: it is the Hessian of no function. Take the space 'dequantized' with "
        f"Surface(model, activation_quantizers=False), or quantizers whose backward pass is a "
        f"derivative; learned steps with a gradient written by hand cannot be included"
    )


def joins_images(model: nn.Module) -> bool:
    """Whether what a model makes of an image depends on the others of its batch.

    Args:
        model: Calibrated.

    Returns:
        True where BatchNorm takes its statistics from the images at hand, or a quantizer of
        activations its grid.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    grids = [m for m in model.modules() if isinstance(m, Quantizer) and m.batched]
    return any(m.training or m.running_mean is None for m in norms) or any(map(_own_grid, grids))


@torch.no_grad()
def _own_grid(quantizer: Quantizer) -> bool:
    """Whether a larger image beside another changes what becomes of that."""
    if quantizer.axis is not None:
        return False
    levels = quantizer.levels()
    x = torch.linspace(-0.1, 0.1, 9).to(levels).view(1, -1)
    return not torch.equal(quantizer(x), quantizer(torch.cat([x, 100 * x]))[:1])


def _lay_out(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Lay images out channels last, in place, which is faster, where the model takes that."""
    try:
        model.to(memory_format=torch.channels_last)
        with torch.no_grad():
            images = images.to(next(model.parameters()))
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # it views images as if channels came first, or convolves volumes
        model.to(memory_format=torch.contiguous_format)
        return torch.contiguous_format
    return torch.channels_last
