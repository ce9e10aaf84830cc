"""Surgery: a float model in, a quantized copy out, with the same parameter names."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import pandas as pd
from torch import Tensor, nn

from qatviz.layers import QUANTIZED, QuantActivation, QuantConv2d, QuantLinear
from qatviz.quantizers import Quantizer

Factory = Callable[[], nn.Module]
Choice = Factory | Mapping[str, Factory] | None


def quantize(
    model: nn.Module,
    weights: Choice,
    inputs: Choice,
    only: Iterable[str] = ("*",),
    keep: Iterable[str] = (),
) -> nn.Module:
    """Copy a float model and quantize the convolutions and linear layers of the copy.

    Parameter names stay as they are; ``<layer>.weight_quantizer.*`` and
    ``<layer>.input_quantizer.*`` are added. Weight grids are chosen at once, from the weights;
    input grids by ``calibrate``. Patterns are shell patterns over layer names (``layer1.*``).
    First and last layer at 8 bits take two calls::

        quantize(quantize(model, w2, a2, keep=ends), w8, a8, only=ends)

    Layers that are shared, functional or of another class stay float: ``summary`` lists them.

    Args:
        model: Any module. It is never modified.
        weights: A factory such as ``partial(LSQ, bits=2)``; or ``{pattern: factory}``, where
            a later pattern overrides an earlier one and layers matched by none keep float
            weights; or None: float weights.
        inputs: The same for the inputs of the layers.
        only: Patterns of the layers to quantize. Default: all (ours).
        keep: Patterns of the layers to leave as they are. Default: none (ours).

    Returns:
        A quantized deep copy, each layer on its device and in its mode.

    Raises:
        ValueError: If a pattern matches no layer that can be quantized, a layer is already
            quantized, or a factory's bits do not fit the weights.
    """
    only, keep = _patterns(only, "only"), _patterns(keep, "keep")
    _check_factories(weights=weights, inputs=inputs)
    layers = quantizable_layers(model)
    _check_patterns(layers, only, keep, *(c for c in (weights, inputs) if isinstance(c, Mapping)))
    student = copy.deepcopy(model)
    for name in layers:
        if not _matches(name, only) or _matches(name, keep):
            continue
        layer = student.get_submodule(name)
        if type(layer) not in QUANTIZED:
            raise ValueError(
                f"layer {name!r} is already quantized ({layer.weight_quantizer!r}): pass the "
                f"float model, or leave the layer out with only= or keep="
            )
        weight_quantizer, input_quantizer = (
            _make(choice, name).to(layer.weight.device).train(layer.training)
            for choice in (weights, inputs)
        )
        if isinstance(weight_quantizer, Quantizer):
            weight_quantizer.init_from(layer.weight.detach().float())
        QUANTIZED[type(layer)].from_float(layer, weight_quantizer, input_quantizer)
    return student


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be, or are, quantized, by name, in the order of the modules.

    Exactly ``nn.Conv2d`` and ``nn.Linear``, not their subclasses (which may compute something
    else), and only where neither module nor weight is shared.

    Args:
        model: Any module.

    Returns:
        Layers by name.
    """
    return {
        name: layer
        for name, layer, why in _survey(model)
        if why is None and not isinstance(layer, QuantActivation)
    }


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantized layers of a model, by name, in the order of the modules.

    Args:
        model: Any module.

    Returns:
        ``QuantConv2d``, ``QuantLinear`` and ``QuantActivation`` modules by name.
    """
    kinds = (QuantConv2d, QuantLinear, QuantActivation)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of a model, by name, in the order of the modules.

    Args:
        model: Any module.

    Returns:
        Quantizers by name.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantizer)}


def load_float(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a float checkpoint into a quantized model, in place.

    Exactly the quantizers' entries may be missing. Weight grids are chosen anew from the
    loaded weights; input grids are kept as they are.

    Args:
        model: A quantized model.
        state: A ``state_dict`` of the float model.

    Raises:
        ValueError: If another entry is missing, an entry is unexpected or not finite, or a
            shape differs. The model is then unchanged.
    """
    wanted = float_state(model)
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {list(state[key].shape)}, the model's is {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    problems += [f"{key} is not finite" for key in wanted if not _finite(state.get(key))]
    grids, refused = ({}, []) if problems else _new_grids(model, state)
    if problems := problems + refused:
        raise ValueError("not a float checkpoint of this model: " + "; ".join(problems))
    model.load_state_dict(dict(state), strict=False)
    for name, grid in grids.items():
        model.get_submodule(name).weight_quantizer.load_state_dict(grid.state_dict())


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The float checkpoint inside a quantized model: ``load_float``, the other way.

    Args:
        model: A quantized model.

    Returns:
        Its ``state_dict`` without the quantizers' entries: loads into the float model with
        ``strict=True``.
    """
    # A quantizer shared by two names has entries under both.
    named = model.named_modules(remove_duplicate=False)
    prefixes = tuple(f"{name}." for name, module in named if isinstance(module, Quantizer))
    return {k: v for k, v in model.state_dict().items() if not k.startswith(prefixes)}


def summary(model: nn.Module) -> pd.DataFrame:
    """What was quantized, how, and what was not, and why.

    Args:
        model: Any module.

    Returns:
        A table with a row per layer that has a weight: name, class, shape of the weight,
        quantizer of the weight, quantizer of the input, and for a float layer the reason.
    """
    rows = []
    for name, layer, why in _survey(model):
        weight = getattr(layer, "weight_quantizer", None)
        if isinstance(layer, QuantActivation):
            shape, inputs = "", layer.quantizer
        else:
            shape, inputs = _weight_shape(layer), getattr(layer, "input_quantizer", None)
        reason = why or ("" if weight is not None or inputs is not None else "not quantized")
        rows.append((name, type(layer).__name__, shape, _short(weight), _short(inputs), reason))
    columns = ["layer", "class", "weight shape", "weights", "inputs", "left float"]
    return pd.DataFrame(rows, columns=columns).set_index("layer")


def check_ready(model: nn.Module) -> None:
    """Refuse a model whose quantizers have no grid yet, or lost it.

    Args:
        model: Any module.

    Raises:
        ValueError: If a quantizer has a parameter or buffer that is not finite; names all.
    """
    if bad := not_ready(model):
        raise ValueError(
            f"quantizers that are not calibrated (a parameter is not finite): {', '.join(bad)}; "
            f"call calibrate(model, batches) first"
        )


def not_ready(model: nn.Module) -> list[str]:
    """The quantizers that have no grid yet, or lost it.

    Args:
        model: Any module.

    Returns:
        Names of the quantizers with a parameter or buffer that is not finite.
    """
    return [name for name, quantizer in quantizers(model).items() if not quantizer.calibrated]


def _survey(model: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """Every module that has a weight of its own: name, module, reason it stays float."""
    named = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
        or isinstance(module, QuantActivation)
    ]
    named = [(n, m) for n, m in named if not isinstance(m, Quantizer)]
    reached = Counter(id(module) for _, module in named)
    holders = Counter(
        id(p) for m in {id(m): m for _, m in named}.values() for p in m.parameters(recurse=False)
    )
    kinds = (*QUANTIZED, *QUANTIZED.values(), QuantActivation)
    rows = []
    for name, module in named:
        why = None
        if type(module) not in kinds:
            why = f"{type(module).__name__} is not supported"
        elif reached[id(module)] > 1 and not isinstance(module, QuantActivation):
            why = "the module is shared"
        elif any(holders[id(p)] > 1 for p in module.parameters(recurse=False)):
            why = "the weight is shared"
        rows.append((name, module, why))
    return rows


def _patterns(patterns: Iterable[str], argument: str) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise ValueError(f"{argument} must be a sequence of patterns, got the string {patterns!r}")
    return tuple(patterns)


def _new_grids(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Quantizer], list[str]]:
    """Weight quantizers, as copies, for the weights of a checkpoint; and what they refused."""
    grids, refused = {}, []
    for name, layer in quantized_layers(model).items():
        if isinstance(getattr(layer, "weight_quantizer", None), Quantizer):
            grids[name] = copy.deepcopy(layer.weight_quantizer)
            try:
                grids[name].init_from(state[f"{name}.weight"].detach().float())
            except ValueError as error:
                refused.append(f"{name}.weight: {error}")
    return grids, refused


def _check_factories(**choices: Choice) -> None:
    for argument, choice in choices.items():
        for factory in choice.values() if isinstance(choice, Mapping) else (choice,):
            if not (factory is None or _makes_something(factory)):
                raise ValueError(
                    f"{argument} must be a factory that makes a quantizer for each layer, such "
                    f"as partial(LSQ, bits=2), got {factory!r}"
                )


def _makes_something(factory: object) -> bool:
    """Whether it can be called without arguments; a module, which can be called, is none."""
    if isinstance(factory, nn.Module) or not callable(factory):
        return False
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return False
    return True


def _finite(value: Tensor | None) -> bool:
    return value is None or bool(value.isfinite().all())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(layers: Iterable[str], *groups: Iterable[str]) -> None:
    names = list(layers)
    for pattern in (p for group in groups for p in group):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"pattern {pattern!r} matches no layer that can be quantized; there are: "
                f"{', '.join(names) or 'none'}"
            )


def _make(choice: Choice, name: str) -> nn.Module:
    if isinstance(choice, Mapping):
        choice = next((f for p, f in reversed(choice.items()) if fnmatchcase(name, p)), None)
    return nn.Identity() if choice is None else choice()


def _weight_shape(layer: nn.Module) -> str:
    weights = [p for p in layer.parameters(recurse=False) if p.ndim > 1]
    return "×".join(str(n) for n in max(weights, key=lambda p: p.numel()).shape)


def _short(quantizer: nn.Module | None) -> str:
    if not isinstance(quantizer, Quantizer):
        return "float"
    kind = {True: "signed", False: "unsigned", None: ""}[quantizer.signed]
    per = "" if quantizer.axis is None else "per channel"
    state = "" if quantizer.calibrated else "not calibrated"
    words = [type(quantizer).__name__, f"{quantizer.bits} bit", kind, per, state]
    return " ".join(word for word in words if word)
