"""Models that another model learns from: frozen copies, and averages over training."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that does not learn.

    Args:
        model: Any module. It is never modified.

    Returns:
        A deep copy in evaluation mode, none of whose parameters asks for a gradient.
    """
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(
    teacher: nn.Module,
    student: nn.Module,
    decay: float,
    names: Collection[str] | None = None,
) -> None:
    """Move a teacher towards its student, in place: an exponential moving average.

    With decay α, for every parameter and every floating buffer, found by name::

        teacher ← α·teacher + (1 − α)·student

    Quantizers are averaged with the rest: their steps, ranges and zero points, parameters or
    buffers; so are the running statistics of BatchNorm. Buffers of whole numbers are copied.
    α = 0: the teacher is the student, to the bit; α = 1: nothing moves.

    Args:
        teacher: A ``frozen_copy`` of the student, earlier.
        student: The model that is trained. It is never modified.
        decay: α, 0 to 1.
        names: Parameters and buffers to move; others stay. Default: None: all.

    Raises:
        ValueError: If the names or the shapes of the two differ.

    Source: Tarvainen & Valpola 2017 (Mean Teacher), arXiv 1703.01780, section 2, for the
    parameters; the paper's released code does not average buffers (ours).
    """
    found = _pairs(teacher, student)
    if decay == 1:
        return
    pairs = [pair for name, pair in found.items() if names is None or name in names]
    moving = [pair for pair in pairs if pair[0].is_floating_point()]
    if moving:
        torch._foreach_lerp_([t for t, _ in moving], [s for _, s in moving], 1 - decay)
    for t, s in pairs:
        if not t.is_floating_point():
            t.copy_(s)


def warmed_up(decay: float, step: int) -> float:
    """The decay of an average that begins with a short window: min(α, 1 − 1/(t + 1)).

    While the second is the smaller, the average is the plain mean of the student's states so far,
    the first included.

    Args:
        decay: α, 0 to 1.
        step: t, from 1.

    Returns:
        α_t.

    Source: Tarvainen & Valpola 2017 (Mean Teacher), arXiv 1703.01780, released code.
    """
    return min(decay, 1 - 1 / (step + 1))


def _pairs(teacher: nn.Module, student: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters and buffers of the two, by their name."""
    ours, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (teacher, student))
    problems = [f"only one has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    problems += [
        f"{name} has shape {list(tensor.shape)}, the student's is {list(theirs[name].shape)}"
        for name, tensor in ours.items()
        if name in theirs and tensor.shape != theirs[name].shape
    ]
    if problems:
        raise ValueError(f"the teacher is no copy of the student: {'; '.join(problems)}")
    return {name: (tensor, theirs[name]) for name, tensor in ours.items()}
