"""A network as a function of its weights, in a space that has a name."""

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qatviz.analysis.subject import check_evaluating
from qatviz.layers import QuantActivation
from qatviz.quantize import check_ready, quantized_layers
from qatviz.quantizers import Quantizer

SPACES = ("dequantized", "latent", "float")
BATCHNORM = ("running", "batch")
INCLUDE = ("batchnorm", "biases", "steps")


class Surface:
    """A private copy of a network, and the vector of those of its numbers that may move.

    The vector holds the weights (parameters of two or more axes) one layer after another. What
    a weight is, in a quantized network, is a choice, and numbers from different spaces cannot
    be compared:

    * ``"dequantized"``: ŵ, the weights as the network multiplies them. They move freely and are
      not rounded again; activation quantizers stay on. Comparable with a float network.
    * ``"latent"``: the weights that training moves; their quantizers round them at every point.
      Values are those of the real quantized function, a staircase. Derivatives are those of its
      straight-through surrogate: M·∇²ℓ(ŵ)·M, with M zero where a weight is clipped.
    * ``"float"``: the latent weights with every quantizer switched off. Another network, which
      training never evaluated.

    Rounding has derivative zero, so no Hessian of a quantized network is that of the function
    that it computes. With activation quantizers on, derivatives pass straight through them too.

    Every analysis that moves weights takes a model (which is ``Surface(model)``) or a surface.

    Args:
        model: In evaluation mode, float or quantized and calibrated. It is copied.
        space: One of the three. Default: "dequantized" (ours: comparable with float networks).
            A float network has one space only, and ``space`` is then "float".
        layers: Patterns of the layers whose weights move. Default: all.
        include: What else moves: "batchnorm" (its factors and shifts), "biases", "steps"
            (parameters of the quantizers that are on). Default: nothing (ours: BatchNorm and
            learned steps rescale weights, and their curvature is another one).
        activation_quantizers: Whether they are on. Default: True.
        batchnorm: "running": statistics of training, as in evaluation; "batch": those of the
            images themselves, which then all are one batch. Default: "running", the convention.

    Attributes:
        model: The copy, in which exactly the numbers of the vector ask for gradients.
        space: The space.
        names: Names of the parameters, in the order of the vector.
        shapes: Their shapes.
        size: Length of the vector.
        point: The vector as the model has it. Analyses look where the copy stands (``here``),
            which is the same until ``assign``.
        activation_quantizers: Whether there are any, and on.
        batchnorm: As given.

    Raises:
        ValueError: If a word is not one of those above, the model is in training mode or not
            calibrated, nothing is left to move, or the space is "latent" and no gradient passes
            through the quantizer of a weight that moves (AdaRound): there is no surrogate.
    """

    def __init__(
        self,
        model: nn.Module,
        space: str = "dequantized",
        *,
        layers: Iterable[str] = ("*",),
        include: Iterable[str] = (),
        activation_quantizers: bool = True,
        batchnorm: str = "running",
    ) -> None:
        include = _words(include, "include")
        for argument, words, allowed in (
            ("space", [space], SPACES),
            ("batchnorm", [batchnorm], BATCHNORM),
            ("include", include, INCLUDE),
        ):
            if unknown := [word for word in words if word not in allowed]:
                raise ValueError(f"{argument}: got {unknown[0]!r}, allowed: {', '.join(allowed)}")
        check_evaluating(model)
        check_ready(model)
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.zero_grad()
        self.space = space if quantized_layers(model) else "float"
        self.batchnorm = batchnorm
        _settle(self.model, self.space, activation_quantizers)
        self.activation_quantizers = any(
            isinstance(m, Quantizer) and m.batched for m in self.model.modules()
        )
        if batchnorm == "batch":
            for norm in self.model.modules():
                norm.training = isinstance(norm, _BatchNorm)
        moving = _moving(self.model, _words(layers, "layers"), include)
        self.names, self.parameters = tuple(moving), tuple(moving.values())
        for parameter in self.parameters:
            parameter.requires_grad_()
        _check_passes(self.model)
        self.shapes = tuple(tuple(p.shape) for p in self.parameters)
        self.size = sum(p.numel() for p in self.parameters)
        self.point = self.here()

    def flatten(self, tensors: Iterable[Tensor]) -> Float[Tensor, "size"]:
        """One vector from tensors in the order and shapes of the parameters.

        Args:
            tensors: As many as there are names.

        Returns:
            A new vector.
        """
        return torch.cat([t.reshape(-1) for t in tensors])

    def split(self, vector: Float[Tensor, "size"]) -> dict[str, Tensor]:
        """The parts of a vector, by the names of the parameters.

        Args:
            vector: As long as the vector of the surface.

        Returns:
            Views in the shapes of the parameters.
        """
        sizes = [p.numel() for p in self.parameters]
        parts = zip(self.names, vector.split(sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    @torch.no_grad()
    def assign(self, vector: Float[Tensor, "size"]) -> None:
        """Move the copy to a point.

        Args:
            vector: Where.
        """
        torch._foreach_copy_(list(self.parameters), list(self.split(vector).values()))

    def here(self) -> Float[Tensor, "size"]:
        """Where the copy stands.

        Returns:
            A new vector: ``point``, or what was assigned last.
        """
        return self.flatten(p.detach() for p in self.parameters)

    def filter_norms(self, vector: Float[Tensor, "size"] | None = None) -> Float[Tensor, "size"]:
        """For every number the L2 norm of the filter that it belongs to.

        A filter is what makes one output: a slice along the first axis of a weight. A parameter
        of one axis counts as one.

        Args:
            vector: Where. Default: None: where the copy stands.

        Returns:
            A vector, constant over each filter.
        """
        norms = [
            (p.flatten(1) if p.ndim > 1 else p.view(1, -1))
            .norm(dim=1)
            .view([-1, *[1] * (p.ndim - 1)] if p.ndim else [])
            .expand(p.shape)
            for p in self.split(self.here() if vector is None else vector).values()
        ]
        return self.flatten(norms)

    def __repr__(self) -> str:
        states = {True: "on", False: "off"}[self.activation_quantizers]
        return (
            f"Surface({self.space} weights, {self.size:,} numbers of {len(self.names)} "
            f"parameters, activation quantizers {states}, {self.batchnorm} BatchNorm)"
        )


def as_surface(model: nn.Module | Surface) -> Surface:
    """The surface of a model, or the surface itself.

    Args:
        model: Either.

    Returns:
        ``Surface(model)`` for a model.
    """
    return model if isinstance(model, Surface) else Surface(model)


@torch.no_grad()
def _settle(model: nn.Module, space: str, activation_quantizers: bool) -> None:
    """Switch off, in place, the quantizers that a space does not have."""
    for layer in quantized_layers(model).values():
        alone = isinstance(layer, QuantActivation)
        if space == "float" or not activation_quantizers:
            setattr(layer, "quantizer" if alone else "input_quantizer", nn.Identity().eval())
        if not alone and space != "latent":
            if space == "dequantized":
                layer.weight.data = layer.quantized_weight().clone()
            layer.weight_quantizer = nn.Identity().eval()


@torch.enable_grad()
def _check_passes(model: nn.Module) -> None:
    """Refuse weights that move, but whose quantizer has no derivative anywhere."""
    for name, layer in quantized_layers(model).items():
        quantizer = getattr(layer, "weight_quantizer", None)
        if not isinstance(quantizer, Quantizer) or not layer.weight.requires_grad:
            continue
        found = layer.quantized_weight().sum()
        if found.requires_grad:
            (slope,) = torch.autograd.grad(found, layer.weight, materialize_grads=True)
            if slope.any():
                continue
        raise ValueError(
            f"no gradient passes through the {type(quantizer).__name__} of the weight of layer "
            f"{name!r}, so that latent weights have no curvature; take the space 'dequantized', "
            f"or layers without this one"
        )


def _moving(
    model: nn.Module, layers: tuple[str, ...], include: tuple[str, ...]
) -> dict[str, nn.Parameter]:
    """The parameters that move, by name, in the order of the modules."""
    found, weighted, taken = {}, [], set()
    for prefix, module in model.named_modules():
        kind = _kind(module)
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if kind == "biases" and parameter.ndim > 1:
                weighted.append(prefix)
                wanted = any(fnmatchcase(prefix, pattern) for pattern in layers)
            else:
                wanted = kind in include
            if wanted and id(parameter) not in taken:  # one weight may belong to two layers
                taken.add(id(parameter))
                found[name] = parameter
    unknown = [p for p in layers if not any(fnmatchcase(name, p) for name in weighted)]
    if unknown or not found:
        raise ValueError(
            f"layers: no layer with a weight matches {', '.join(unknown) or 'an empty list'}; "
            f"there are: {', '.join(weighted) or 'none'}"
        )
    return {name: p for name, p in found.items() if p.is_floating_point()}


def _kind(module: nn.Module) -> str:
    if isinstance(module, Quantizer):
        return "steps"
    return "batchnorm" if isinstance(module, _BatchNorm) else "biases"


def _words(words: Iterable[str], argument: str) -> tuple[str, ...]:
    if isinstance(words, str):
        raise ValueError(f"{argument} must be a sequence of words, got the string {words!r}")
    return tuple(words)
