"""Give the quantizers of a model's activations their grids, from real batches."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qatviz.quantize import quantizers
from qatviz.quantizers import Quantizer

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


def calibrate(model: nn.Module, batches: Batches) -> None:
    """Choose the grid of every activation quantizer, in forward order, in place.

    One pass over all batches together, in evaluation mode, without gradients: each quantizer
    is initialised when its tensor first arrives, from inputs that the layers before it have
    already quantized. Weight grids are left as they are (``quantize`` chose them). Nothing
    changes unless everything succeeds.

    Args:
        model: A quantized model.
        batches: Normalised images ``[batch, channels, height, width]``, or pairs of images
            and labels. They are joined, so their sum must fit in memory: 64 to 256 images
            are usual.

    Raises:
        ValueError: If there is no image, images differ in shape, are not finite or do not fit
            the model, the model has no activation quantizer, or one was not reached by the
            forward pass.
    """
    batches = [b if isinstance(b, Tensor) else b[0] for b in batches]
    if not sum(len(b) for b in batches):
        raise ValueError("calibrate: batches is empty, at least one image is needed")
    shapes = sorted({tuple(b.shape[1:]) for b in batches})
    if len(shapes) > 1:
        raise ValueError(f"calibrate: images must all have one shape, got {shapes}")
    images = torch.cat(batches)
    _check_finite(images)
    if not activation_quantizers(model):
        raise ValueError("calibrate: the model has no activation quantizer; see summary(model)")
    # On a copy, so that the model changes only if everything succeeds.
    twin = copy.deepcopy(model).eval()
    waiting = activation_quantizers(twin)
    for name in list(waiting):
        waiting[name].register_forward_pre_hook(_init_once(name, waiting))
    found = dict(waiting)
    try:
        _try(twin, images)
    except _Refused as refused:
        raise ValueError(str(refused)) from refused
    if waiting:
        raise ValueError(f"calibrate: the forward pass did not reach {', '.join(waiting)}")
    for name, quantizer in activation_quantizers(model).items():
        quantizer.load_state_dict(found[name].state_dict())


def activation_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of a model's inputs and of its ``QuantActivation`` modules, by name.

    Args:
        model: Any module.

    Returns:
        Quantizers by name, in the order of the modules.
    """
    return {name: q for name, q in quantizers(model).items() if q.batched}


def as_taken(model: nn.Module, images: Tensor) -> Tensor:
    """Images on the device and in the type of a model.

    Args:
        model: Any module.
        images: Normalised images.

    Returns:
        On the device and in the type of the model's first floating parameter; as they are if it
        has none.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(like)


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """Refuse images that a model cannot take, by trying two of them.

    Args:
        model: Any module; its state does not change.
        images: Normalised images ``[batch, channels, height, width]``.

    Returns:
        What the model made of the two.

    Raises:
        ValueError: If the images are not finite, or the model fails on their shape.
    """
    _check_finite(images)
    return _try(copy.deepcopy(model).eval(), images[:2])


def _check_finite(images: Tensor) -> None:
    if not images.isfinite().all():
        first = int((~images.flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(f"images hold values that are not finite, first in image {first}")


class _Refused(Exception):
    """A quantizer that refused its tensor: no fault of the images' shape."""


@torch.no_grad()
def _try(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model; what it says of images that it cannot take becomes a clear error."""
    try:
        return model(as_taken(model, images))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the model cannot take images of shape {list(images.shape[1:])} "
            f"(channels, height, width); {_first_layer(model)}: {error}"
        ) from error


def _first_layer(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return f"its first convolution {name!r} takes {module.in_channels} channels"
        if isinstance(module, nn.Linear):
            return f"its first layer {name!r} takes {module.in_features} features"
    return "it has no convolution and no linear layer"


def _init_once(name: str, waiting: dict[str, Quantizer]) -> Callable[..., None]:
    """A pre-hook: choose the grid from the first tensor that arrives, then stand aside."""

    def hook(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        if waiting.pop(name, None) is not None:
            try:
                quantizer.init_from(args[0].float())
            except ValueError as error:
                raise _Refused(f"calibrate: {name}: {error}") from error

    return hook
