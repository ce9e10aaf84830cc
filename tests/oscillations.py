"""Records of oscillation with numbers that are easy to follow."""

import numpy as np

from qatviz.records import BinDistances, Oscillation


def oscillation(**changes):
    """Two layers, of 10 and 30 weights; the second depthwise."""
    counts = np.zeros((2, 4), dtype=int)
    counts[0] = 7, 1, 1, 1
    counts[1] = 21, 3, 3, 3
    values = {
        "layers": ("first", "second"),
        "weights": np.array([10, 30]),
        "depthwise": np.array([False, True]),
        "oscillating": np.array([0.5, 0.1]),
        "frequency": np.array([0.02, 0.01]),
        "events": np.array([4.0, 1.0]),
        "changes": np.array([6.0, 2.0]),
        "by_weight": np.array([5.0, 1.5]),
        "by_step": np.array([1.5, 0.75]),
        "windows": np.array([1, 10, 20]),
        "survival": np.array([[1.0, 0.8, 0.4], [0.9, 0.8, 0.6]]),
        "moments": np.array([10, 20]),
        "changed": np.array([0.03, 0.02]),
        "oscillated": np.array([0.02, 0.01]),
        "above": np.array([0.3, 0.2]),
        "frequency_edges": np.array([0.0, 0.001, 0.01, 0.1, 1.0]),
        "frequency_counts": counts,
        "distances": BinDistances(
            ("first", "second"), np.ones((2, 100), dtype=int), np.zeros(2, int), ()
        ),
        "threshold": 0.005,
        "momentum": 0.01,
        "steps": 20,
    }
    return Oscillation(**(values | changes))
