"""Parts of an experiment: factories that have a name, so that they can be hashed and sent.

A part is a class, a function, or a ``partial`` of one. It is written down as
``{"part": "module:name", "with": {argument: value}}``, arguments by name whichever way they were
given. Values are plain (None, text, numbers, lists, dictionaries with text as keys) or parts.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from qatviz.methods import Method

Part = Callable[..., Any]
Plain = Any


def describe(value: Any) -> Plain:
    """A part or a plain value as what JSON can hold.

    Args:
        value: A part, or a plain value that may hold parts.

    Returns:
        The description; two values that mean the same have equal ones.

    Raises:
        ValueError: If something cannot be named, or is neither plain nor a part.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {_text(key): describe(item) for key, item in value.items()}
    if not is_part(value):
        raise ValueError(
            f"{_brief(value)} is a {type(value).__name__}: only plain values, functions, classes "
            f"and partial(...) of them can be hashed; give a factory that makes it"
        )
    given = arguments(value).arguments
    return {"part": name_of(target_of(value)), "with": {k: describe(v) for k, v in given.items()}}


def is_part(value: object) -> bool:
    """Whether a value is something to call: a class, a function or a ``partial``.

    Args:
        value: Anything.

    Returns:
        False for modules and other instances, even where they can be called.
    """
    target = target_of(value)
    return inspect.isclass(target) or inspect.isroutine(target)


def target_of(part: Any) -> Any:
    """What a part calls in the end.

    Args:
        part: Anything.

    Returns:
        The function of a ``partial``; anything else as it is.
    """
    return part.func if isinstance(part, partial) else part


def arguments(part: Part) -> inspect.BoundArguments:
    """The arguments that a part already has, by name.

    Args:
        part: A class, a function or a ``partial``.

    Returns:
        The bound arguments.

    Raises:
        ValueError: If it takes no such argument.
    """
    given = (part.args, part.keywords) if isinstance(part, partial) else ((), {})
    target = target_of(part)
    try:
        return inspect.signature(target).bind_partial(*given[0], **given[1])
    except TypeError as error:
        raise ValueError(f"{getattr(target, '__name__', target)}: {error}") from error


def open_arguments(part: Part) -> dict[str, inspect.Parameter]:
    """The arguments that a part does not have yet.

    Args:
        part: A class, a function or a ``partial``.

    Returns:
        Parameters by name.
    """
    given = arguments(part).arguments
    return {
        name: parameter
        for name, parameter in inspect.signature(target_of(part)).parameters.items()
        if name not in given
    }


def name_of(target: Any) -> str:
    """The name under which another process finds a function or class.

    Args:
        target: A function or class.

    Returns:
        ``"module:qualified name"``.

    Raises:
        ValueError: If nothing is found under that name: lambdas, functions inside functions,
            and what a notebook or script itself defines.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    reason = None
    if "<" in name:
        reason = "it is a lambda or was defined inside a function"
    elif module is None or module == "__main__":
        reason = "it was defined in a notebook or script" if module else "it has no module"
    else:
        try:
            if find(f"{module}:{name}") is not target:
                reason = f"{module}.{name} is something else"
        except ValueError as error:
            reason = str(error)
    if reason:
        raise ValueError(f"{_brief(target)} cannot be named ({reason}): put it in a module")
    return f"{module}:{name}"


def find(name: str) -> Any:
    """What stands under a name.

    Args:
        name: ``"module:qualified name"``.

    Returns:
        The function or class.

    Raises:
        ValueError: If the module or the name in it does not exist.
    """
    module, _, attributes = name.partition(":")
    try:
        found = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} was not found: {error}") from error
    return found


def make(part: Part, *given: Any, **offered: Any) -> Any:
    """Call a part, with those of the offered arguments that it takes and does not have.

    Args:
        part: A class, a function or a ``partial``.
        given: First arguments, which it must take.
        offered: Arguments by name, which it may take.

    Returns:
        What the part makes.
    """
    open_ = open_arguments(part)
    return part(*given, **{name: value for name, value in offered.items() if name in open_})


def make_method(part: Part, **offered: Any) -> Method:
    """Make a training method, and the methods that it wraps.

    An argument that is itself a subclass of ``Method``, or a ``partial`` of one, is made first
    (also inside a list or tuple); any other argument is handed over as it is. So
    ``partial(Outer, partial(CrossEntropy, view=flip), strength=0.1)`` makes
    ``Outer(CrossEntropy(view=flip), strength=0.1)``.

    Args:
        part: A class or function that makes a method, or a ``partial``.
        offered: Arguments by name, for each of these methods that takes them and lacks them.

    Returns:
        The method.
    """

    def made(value: Any) -> Any:
        if is_method(value):
            return make_method(value, **offered)
        if isinstance(value, list | tuple):
            return type(value)(made(item) for item in value)
        return value

    bound = arguments(part)
    takes = open_arguments(part)
    bound.arguments.update({name: made(value) for name, value in bound.arguments.items()})
    extra = {name: value for name, value in offered.items() if name in takes}
    return target_of(part)(*bound.args, **bound.kwargs, **extra)


def is_method(value: Any) -> bool:
    """Whether a value is a subclass of ``Method`` or a ``partial`` of one.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    target = target_of(value)
    return inspect.isclass(target) and issubclass(target, Method)


def methods_within(part: Part) -> list[Part]:
    """A method part and, recursively, the method parts among its arguments.

    Args:
        part: What ``make_method`` takes.

    Returns:
        The parts, the outermost first.
    """
    found = [part]
    for value in arguments(part).arguments.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            found += methods_within(item) if is_method(item) else []
    return found


def short(value: Any) -> str:
    """A part or plain value in a few characters, for labels.

    Args:
        value: Anything that ``describe`` takes.

    Returns:
        ``"Dampening(CrossEntropy, strength=0.1)"``; views and defaults that say little stay.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(short(item) for item in value)
    if not is_part(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    given = arguments(value).arguments
    inside = [short(v) if is_method(v) else f"{k}={short(v)}" for k, v in given.items()]
    name = getattr(target_of(value), "__name__", str(target_of(value)))
    return f"{name}({', '.join(inside)})" if inside else name


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a dictionary's key is {key!r}; allowed: text")
    return key


def _brief(value: object) -> str:
    if isinstance(value, nn.Module) or not hasattr(value, "__qualname__"):
        text = repr(value).splitlines()[0]
        return text if len(text) <= 60 else text[:57] + "..."
    return value.__qualname__
