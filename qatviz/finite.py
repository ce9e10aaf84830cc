"""Where numbers stop being finite: the first layer, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """Name the first layer in a forward pass that makes or holds a number that is not finite.

    The first in the order of the computation, and the innermost: a quantizer rather than the
    layer that it belongs to. Buffers are put back as they were.

    Args:
        model: Any module.
        run: Runs it, without arguments; called once, without gradients.

    Returns:
        The name and what is not finite: an input, a parameter, a buffer or the output; "" if
        there is no such layer.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not found and (what := _not_finite(module, inputs, output)):
                found.append(f"{name} ({what})")

        return hook

    handles = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return found[0] if found else ""


def _not_finite(module: nn.Module, inputs: tuple, output: object) -> str:
    own = {
        "its input": inputs,
        **{f"its {n}": p for n, p in module.named_parameters(recurse=False)},
        **{f"its {n}": b for n, b in module.named_buffers(recurse=False)},
        "its output": output,
    }
    return next((what for what, value in own.items() if not _finite(value)), "")


def _finite(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
