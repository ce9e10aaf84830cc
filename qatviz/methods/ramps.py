"""How strong a term of the loss is, over training: functions of the progress t, from 0 to 1."""

import math

from qatviz.methods.base import check_between


def constant(progress: float) -> float:
    """1, always.

    Args:
        progress: t.

    Returns:
        1.
    """
    return 1.0


def linear_up(progress: float, length: float = 0.05) -> float:
    """min(1, t/r).

    Args:
        progress: t.
        length: r, above 0, up to 1. Default: 0.05 (ours).

    Returns:
        0 to 1.

    Raises:
        ValueError: If ``length`` is outside its range.
    """
    return min(1.0, progress / _checked("linear_up", length))


def sigmoid_up(progress: float, length: float = 0.05) -> float:
    """exp(−5·(1 − min(1, t/r))²): e⁻⁵ = 0.0067 at first.

    Args:
        progress: t.
        length: r, above 0, up to 1. Default: 0.05 (ours; Mean Teacher's runs: 5 epochs, of 180
            or 300).

    Returns:
        0.0067 to 1.

    Raises:
        ValueError: If ``length`` is outside its range.

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780, released code.
    """
    return math.exp(-5 * (1 - linear_up(progress, _checked("sigmoid_up", length))) ** 2)


def cosine_down(progress: float) -> float:
    """½·(1 + cos πt).

    Args:
        progress: t.

    Returns:
        1 to 0.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def up_down(progress: float, length: float = 0.05, last: float = 0.2) -> float:
    """``sigmoid_up``, and ``cosine_down`` over the last part of training.

    Args:
        progress: t.
        length: r of ``sigmoid_up``. Default: 0.05 (ours).
        last: Share of training that goes down, above 0, up to 1. Default: 0.2 (ours).

    Returns:
        0 to 1.

    Raises:
        ValueError: If a share is outside its range.
    """
    down = max(0.0, progress - (1 - _checked("up_down", last))) / last
    return sigmoid_up(progress, length) * cosine_down(min(down, 1.0))


def step_on(progress: float, start: float = 0.25) -> float:
    """0, and 1 from t₀ on.

    Args:
        progress: t.
        start: t₀, 0 to 1. Default: 0.25 (ours).

    Returns:
        0 or 1.

    Raises:
        ValueError: If ``start`` is outside its range.
    """
    check_between("step_on", "start", start, 0, 1)
    return float(progress >= start)


def _checked(owner: str, share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"{owner}: a share of training is above 0, up to 1, got {share!r}")
    return share
