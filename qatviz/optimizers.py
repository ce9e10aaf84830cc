"""Which optimizer steps what, and how fast: weights, and the parameters of quantizers."""

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from qatviz.quantize import quantizers
from qatviz.schedule import Schedule


def make_optimizers(student: nn.Module, method: nn.Module, schedule: Schedule) -> list[Optimizer]:
    """The optimizers of a run: one, or two where quantizers are stepped by another.

    Two groups: everything that trains in the student and in the method (BatchNorm and biases
    included), and the parameters of quantizers. A parameter that both modules hold is stepped
    once.

    Args:
        student: The module that is trained.
        method: How; its own parameters are trained like weights.
        schedule: Kinds, rates and decays.

    Returns:
        torch's optimizers. Each group says the highest rate it reaches under ``"highest"``.

    Raises:
        ValueError: If no parameter asks for a gradient.
    """
    own = {id(p) for q in quantizers(student).values() for p in q.parameters()}
    # By id: a method may hold a part of the student, which must not be stepped twice.
    both = {id(p): p for m in (student, method) for p in m.parameters() if p.requires_grad}
    if not both:
        raise ValueError("nothing to train: no parameter of student or method asks for a gradient")
    weights = {
        "params": [p for i, p in both.items() if i not in own],
        "weight_decay": schedule.decay,
        "highest": schedule.rate,
    }
    grids = {
        "params": [p for i, p in both.items() if i in own],
        "weight_decay": schedule.quantizer_decay,
        "highest": schedule.quantizer_rate or schedule.rate,
    }
    kinds = (schedule.optimizer, schedule.quantizer_optimizer or schedule.optimizer)
    by_kind: dict[str, list[dict]] = {}
    for kind, group in zip(kinds, (weights, grids), strict=True):
        if group["params"]:
            by_kind.setdefault(kind, []).append(group)
    return [_make(kind, groups, schedule) for kind, groups in by_kind.items()]


def set_rates(optimizers: list[Optimizer], schedule: Schedule, progress: float) -> float:
    """Give every group the learning rate of this moment.

    Args:
        optimizers: What ``make_optimizers`` returned.
        schedule: The curve.
        progress: Share of the steps already taken, 0 to 1.

    Returns:
        The rate of the weights.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(progress, group["highest"])
    return schedule.rate_at(progress)


def _make(kind: str, groups: list[dict], schedule: Schedule) -> Optimizer:
    if kind == "adam":
        return Adam(groups, schedule.rate)
    momentum = schedule.momentum
    return SGD(groups, schedule.rate, momentum=momentum, nesterov=momentum > 0)
