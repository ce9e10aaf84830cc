"""How far a change of the images goes through the layers of a network."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, linear
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from qatviz.analysis.propositions import BATCH
from qatviz.analysis.similarity import watching
from qatviz.analysis.subject import check_evaluating, device_of
from qatviz.analysis.surface import Surface
from qatviz.quantize import check_ready, quantizable_layers
from qatviz.quantizers import Quantizer
from qatviz.records import ErrorPropagation

# No shapes in the types of public functions: they are checked always, and said in one sentence.
Linear = Callable[[Tensor], Tensor]


@torch.no_grad()
def error_propagation(
    model: nn.Module,
    images: Tensor,
    delta: Tensor,
    *,
    iterations: int = 200,
    seed: int = 0,
    label: str = "",
) -> ErrorPropagation:
    """Follow a change of the images through all layers, beside what would predict it.

    At the output h of each convolution and linear layer, before BatchNorm: the change that
    arrives; what it is to first order, Jδ by a Jacobian-vector product; and a product of
    spectral norms, which no change exceeds. J passes straight through quantizers, so that what
    it misses in a quantized network are the jumps of rounding: large where the change of a
    layer's input is below a step.

    The product is of the network without quantizers of activations, with its weights as they are
    multiplied. Of a convolution it takes the norm of the whole operator at the size of its
    input, by power iteration; with the factors γ/√(σ² + ε) of the BatchNorm that reads it, as
    one operator; so of average pooling. ReLU, flattening and quantizers count as 1; maximum pooling
    as the root of how often it reads a pixel; a sum as the sum of its parts, so
    that a block with a shortcut is 1 + ‖branch‖. Where a network does something else, there is
    no product from there on. It is no bound of a network with quantized activations: a staircase
    has none. Power iteration comes from below: the product may be short by a little.

    Everything is computed in float64, see ``divergence_as_sharpness``.

    Args:
        model: In evaluation mode, calibrated. It does not change.
        images: As the model takes them: normalised.
        delta: δ of each image, not zero.
        iterations: The most steps of power iteration per layer, at least 1. It stops where a
            step changes the norm by less than 10⁻⁹ of it. Default: 200 (ours).
        seed: Of what power iteration starts from. Default: 0.
        label: Name of the network. Default: none (ours).

    Returns:
        A `records.ErrorPropagation`: numbers by layer, in the order of the forward pass, and
        image. Where a layer runs more than once, its last run counts. Draw with
        ``plots.error_propagation``.

    Raises:
        ValueError: If the model is in training mode or not calibrated, has no layer, shapes do
            not fit, a number is not finite, δ of an image is zero, or ``iterations`` is below 1.

    Source: after Pang et al. 2025, arXiv 2402.13497v2, proposition 4 by its title; the statement
    is ours.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; allowed: 1 or more")
    check_evaluating(model)
    check_ready(model)
    _check_change(images, delta)
    twin = copy.deepcopy(model).double()
    layers = quantizable_layers(twin)
    if not layers:
        raise ValueError("error_propagation: the model has no convolution and no linear layer")
    x, d = (t.detach().to(device_of(twin), torch.float64) for t in (images, delta))
    parts = [
        _followed(twin, layers, *pair) for pair in zip(x.split(BATCH), d.split(BATCH), strict=True)
    ]
    found = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    spectral, lipschitz = _norms(model, found, x[:1], iterations, seed)
    rows = np.stack(list(found.values()), axis=1)  # numbers, layers, images
    sizes = _lengths(d).cpu().numpy()
    norm, change, first, missed, steps = rows
    with np.errstate(divide="ignore", invalid="ignore"):
        return ErrorPropagation(
            label=label,
            layers=tuple(found),
            disturbance=sizes / _lengths(x).cpu().numpy(),
            change=change / norm,
            predicted=first / norm,
            mismatch=missed / change,
            steps=steps,
            spectral=spectral,
            lipschitz=lipschitz,
            bound=lipschitz[:, None] * sizes / norm,
        )


def _followed(
    model: nn.Module, layers: dict[str, nn.Module], x: Tensor, delta: Tensor
) -> dict[str, np.ndarray]:
    """By layer, in order: ‖h‖, ‖Δh‖, ‖Jδ‖, ‖Δh − Jδ‖ and the input's change in steps, by image."""

    def run(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str, given: Tensor, output: Tensor) -> None:
            kept[name] = given.clone(), output.clone()  # what comes next may work in place

        with watching(layers, keep):
            model(images)
        return kept

    before, slopes = jvp(run, (x,), (delta,))
    after = run(x + delta)
    found = {}
    for name, (given, output) in before.items():
        change, first = after[name][1] - output, slopes[name][1]
        lengths = [_lengths(t) for t in (output, change, first, change - first)]
        moved = after[name][0] - given
        step = _step(getattr(layers[name], "input_quantizer", None))
        lengths.append(_lengths(moved) / math.sqrt(moved[0].numel()) / step)
        found[name] = torch.stack(lengths).cpu().numpy()
    return found


def _step(quantizer: nn.Module | None) -> float:
    """Mean distance of neighbouring levels; NaN without a quantizer."""
    if not isinstance(quantizer, Quantizer):
        return math.nan
    levels = quantizer.levels().double()
    return ((levels.amax(-1) - levels.amin(-1)) / (levels.shape[-1] - 1)).mean().item()


def _lengths(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1)


def _norms(
    model: nn.Module, names: dict[str, Any], x: Tensor, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer the norm of its own and the product up to its output."""
    smooth = Surface(model, "dequantized", activation_quantizers=False).model.double()
    generator = torch.Generator().manual_seed(seed)
    mode = _Products(x, lambda map, like: _spectral_norm(map, like, iterations, generator))
    found = {}

    def keep(name: str, given: Tensor, output: Tensor) -> None:
        own = mode.maps.get(id(output), (math.nan,))[0]
        found[name] = own, mode.products.get(id(output), math.nan)

    with watching({name: smooth.get_submodule(name) for name in names}, keep), mode:
        smooth(x)
    own, products = np.array([found[name] for name in names]).T
    return own, products


class _Products(TorchFunctionMode):
    """Watches a forward pass, and multiplies the norms of what it does, tensor by tensor.

    Attributes:
        products: By id of a tensor that depends on the input, how much longer than a change of
            the input its change can be; NaN where that is not known.
        maps: By id of the output of a linear map: its norm, the product of its input, the map
            without shift, and a tensor like its input.
    """

    def __init__(self, x: Tensor, norm: Callable[[Linear, Tensor], float]) -> None:
        super().__init__()
        self.norm, self.seen = norm, [x]  # seen: so that no id is given twice
        self.products: dict[int, float] = {id(x): 1.0}
        self.maps: dict[int, tuple[float, float, Linear, Tensor]] = {}
        self.rules: dict[str, Callable[..., float]] = {
            "conv2d": self._convolution,
            "linear": self._linear,
            "batch_norm": self._batchnorm,
            "max_pool2d": self._maximum,
            "avg_pool2d": self._average,
            "adaptive_avg_pool2d": self._adaptive,
            "pad": self._padding,
            **dict.fromkeys(_SUMS, self._sum),
            **dict.fromkeys(_SAME, self._same),
        }

    @override
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if not isinstance(output, Tensor) or not any(id(t) in self.products for t in given):
            return output
        self.seen.append(output)
        rule = self.rules.get(getattr(func, "__name__", ""), self._unknown)
        # In place: the output is the input, whose product the rule still reads.
        self.products[id(output)] = rule(output, *args, **kwargs)
        return output

    def _of(self, tensor: Any) -> float:
        """A constant does not change."""
        return self.products.get(id(tensor), 0.0)

    def _map(self, output: Tensor, given: Tensor, map: Linear) -> float:
        norm = self.norm(map, given)
        self.maps[id(output)] = norm, self._of(given), map, given
        return norm * self._of(given)

    def _convolution(
        self, output: Tensor, input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **kw: Any
    ) -> float:
        return self._map(output, input, lambda v: conv2d(v, weight, None, *rest, **kw))

    def _linear(self, output: Tensor, input: Tensor, weight: Tensor, bias: Any = None) -> float:
        return self._map(output, input, lambda v: linear(v, weight))

    def _batchnorm(
        self,
        output: Tensor,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> float:
        if training or running_var is None:
            return math.nan
        factors = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
        if id(input) not in self.maps:
            return factors.abs().max().item() * self._of(input)
        _, before, map, given = self.maps[id(input)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        return self.norm(lambda v: factors.view(shape) * map(v), given) * before

    def _maximum(
        self,
        output: Tensor,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        **kw: Any,
    ) -> float:
        if dilation not in (1, (1, 1)):
            return math.nan
        sizes, strides = _pair(kernel_size), _pair(stride or kernel_size)
        readers = math.prod(math.ceil(k / s) for k, s in zip(sizes, strides, strict=True))
        return math.sqrt(readers) * self._of(input)

    def _average(self, output: Tensor, input: Tensor, *rest: Any, **kw: Any) -> float:
        return self._map(output, input, lambda v: avg_pool2d(v, *rest, **kw))

    def _adaptive(self, output: Tensor, input: Tensor, *rest: Any, **kw: Any) -> float:
        return self._map(output, input, lambda v: adaptive_avg_pool2d(v, *rest, **kw))

    def _padding(
        self, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", *_: Any, **kw: Any
    ) -> float:
        return self._of(input) if mode == "constant" else math.nan

    def _sum(self, output: Tensor, one: Any, other: Any, **kw: Any) -> float:
        return math.nan if kw else self._of(one) + self._of(other)

    def _same(self, output: Tensor, input: Tensor, *_: Any, **kw: Any) -> float:
        return self._of(input)

    def _unknown(self, output: Tensor, *_: Any, **kw: Any) -> float:
        return math.nan


_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__isub__")
# What brings no two points further apart.
_SAME = (
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "tanh", "sigmoid", "dropout"),
    *("mean", "flatten", "reshape", "view", "contiguous", "clone", "__getitem__", "to", "double"),
)


def _pair(number: Any) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else tuple(number)


@torch.enable_grad()
def _spectral_norm(map: Linear, like: Tensor, iterations: int, generator: torch.Generator) -> float:
    """The largest ‖map(v)‖/‖v‖, by power iteration on mapᵀ∘map."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    v, norm = drawn.to(like), 0.0
    for _ in range(iterations):
        v = (v / v.norm()).detach().requires_grad_()
        y = map(v)
        before, norm = norm, y.norm().item()
        (v,) = torch.autograd.grad(y, v, y.detach())
        if not v.any() or abs(norm - before) <= 1e-9 * norm:
            break
    return norm


def _check_change(images: Tensor, delta: Tensor) -> None:
    if images.shape != delta.shape or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, delta {tuple(delta.shape)}; allowed: the "
            f"same, of 1 image or more"
        )
    for name, tensor in (("images", images), ("delta", delta)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    if not _lengths(delta).all():
        raise ValueError("delta of an image is zero: nothing would arrive anywhere")
