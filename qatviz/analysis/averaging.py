"""Does a moving average of oscillating weights oscillate, too?"""

import math
from collections.abc import Iterable

import numpy as np

from qatviz.analysis.oscillation import check_pull
from qatviz.records import AveragingToy

CODES = ("student", "average of weights", "average of codes")
START = 0.5 + 1e-4 * (math.sqrt(5) - 1)  # beside the threshold, off the lattice of round numbers


def averaging_toy(
    targets: Iterable[float] = (0.05, 0.15, 0.25, 0.4, 0.5),
    *,
    rate: float = 0.01,
    decay: float = 0.999,
    weights: int = 32,
    updates: int = 40000,
    settle: int = 10000,
    windows: int = 50,
    seed: int = 0,
) -> AveragingToy:
    """Pull weights between two levels with noisy inputs, and round their moving averages.

    Each weight alone: w ← w − η·x²·(q(w) − w*), the gradient of ½(x·q(w) − x·w*)² straight
    through the rounding, for an x drawn evenly from 0 to 1 at every update. As without noise
    (``oscillation_toy``) a weight cannot rest. Two averages follow it, as a teacher would:
    ē ← α·ē + (1 − α)·e, of the latent weight and of its code; both are rounded.

    **The weight.** With d its distance from the nearest level, it jumps towards the threshold by
    D = η·x²·d from one side and by U = η·x²·(s − d) from the other. How far it is beyond the
    threshold has the density P(U > y) on the side that U jumps to, P(D > y) on the other, so it
    changes its code with a probability of::

        2·E[min(D, U′)]/(E[D] + E[U]) = 2d/s·(1 − ½·√(d/(s − d)))

    D and U′ of independent inputs. Constant x: 2d/s again. The learning rate has no part in it.

    **The average of weights** rests beside the threshold, at 0.3·η·(2w* − ŵ↓ − ŵ↑) from it, and
    spreads by much less: only in the exact middle does it rest on the threshold itself.

    **The average of codes** rests at w*, with a variance of ½·(1 − α)·0.8·p(1 − p) where p is
    the share of time at the upper level, (w* − ŵ↓)/s: 0.8 = Var(x²)/E[x²]², since the pull has
    to cancel in the long run. Around ½ it moves by (1 − α)/2 in an update, so, if it is normal,
    it changes its code with (1 − α)/2 times its density at ½.

    The averages begin where the weights do, beside the threshold, and forget that as α^t. The
    changes of code on that way are not counted: a share e⁻¹⁰ is left after ``settle`` updates at
    the defaults. ``window_flips`` shows them.

    Args:
        targets: (w* − ŵ↓)/s, each strictly between 0 and 1. Default: 0.05, 0.15, 0.25, 0.4, 0.5
            (ours; on a grid of step 0.2, d = 0.01, 0.03, 0.05, 0.08, 0.1).
        rate: η, the learning rate, above 0, up to 1. Default: 0.01 (ours).
        decay: α, 0 up to but not including 1. Default: 0.999 (Mean Teacher's released code).
        weights: Independent weights for each target, at least 2. Default: 32 (ours).
        updates: Updates that are counted. Default: 40000 (ours).
        settle: Updates before. Default: 10000 (ours): ten times 1/(1 − α).
        windows: Parts that the whole run is cut into evenly. Default: 50 (ours).
        seed: Of the inputs. Default: 0 (ours).

    Returns:
        A `records.AveragingToy`: rates, measured and predicted. Draw with ``plots.averaging_toy``.

    Raises:
        ValueError: If an argument is outside what is said here.

    Source: Nagel et al. 2022, arXiv 2203.11086 (the toy regression; even x as we read it);
    averages: Tarvainen & Valpola 2017 (Mean Teacher), arXiv 1703.01780. The predictions are ours.
    """
    goal = np.array(list(targets), dtype=float)
    check_pull("averaging_toy", goal, rate)
    _check(decay, weights)
    if min(updates, settle + 1, windows) < 1 or (settle + updates) % windows:
        raise ValueError(
            "averaging_toy: settle + updates must be a multiple of windows, all whole; got "
            f"{settle} + {updates} and {windows}"
        )
    shape, rest = (len(goal), weights), 1 - decay
    generator = np.random.default_rng(seed)
    place = np.full((len(CODES), *shape), START)
    place[2] = 1
    code, window = np.round(place), (settle + updates) // windows
    counts = np.zeros(place.shape, dtype=int)
    parts = np.zeros((windows, *place.shape[:2]))
    for index in range(settle + updates):
        place[0] -= rate * generator.random(shape) ** 2 * (code[0] - goal[:, None])
        place[1] += rest * (place[0] - place[1])
        place[2] += rest * (np.round(place[0]) - place[2])
        new = np.round(place)
        changed = new != code
        code = new
        parts[index // window] += changed.mean(-1)
        if index >= settle:
            counts += changed
    return AveragingToy(
        codes=CODES,
        targets=goal,
        flips=counts / updates,
        counted=updates,
        settled=settle,
        window=window,
        window_flips=parts / window,
        rate=rate,
        decay=decay,
        seed=seed,
    )


def _check(decay: float, weights: int) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"averaging_toy: decay must be from 0 below 1, got {decay!r}")
    if weights < 2:
        raise ValueError(f"averaging_toy: weights must be at least 2, got {weights}")
