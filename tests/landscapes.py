"""Records of landscapes whose numbers are formulas."""

import numpy as np

from qatviz.records import Conditions, LossLine, LossPath, LossSurface, Sharpness


def conditions(**changes):
    values = {
        "space": "dequantized",
        "size": 1234,
        "norm": 3.0,
        "samples": 100,
        "activation_quantizers": True,
        "requantized": False,
        "batchnorm": "running",
    }
    return Conditions(**values | changes)


def a_line(height=1.0, reach=1.0, unit="filter norms", **changes):
    x = np.linspace(-reach, reach, 5)
    return LossLine(
        conditions=conditions(**changes),
        direction="random direction 1",
        unit=unit,
        length=2.0,
        x=x,
        loss=0.1 + height * x**2,
        accuracy=1 - x**2 / 4,
        computed=np.ones(5, bool),
        seconds=1.0,
    )


def a_plane(height=1.0, reach=1.0, unit="filter norms", points=5, **changes):
    x = np.linspace(-reach, reach, points)
    loss = 0.1 + height * (x**2 + 2 * x[:, None] ** 2)
    return LossSurface(
        conditions=conditions(**changes),
        directions=("random direction 1", "random direction 2"),
        units=(unit, unit),
        lengths=(2.0, 3.0),
        cosine=0.01,
        x=x,
        y=x.copy(),
        loss=loss,
        accuracy=1 / (1 + loss),
        computed=np.ones((points, points), bool),
        seconds=1.0,
    )


def with_holes(record, endless=0, missing=0):
    """The first points of a record have no finite loss, the last were not computed."""
    flat = record.loss.ravel()
    flat[:endless] = np.inf
    if missing:
        flat[-missing:] = record.accuracy.ravel()[-missing:] = np.nan
        record.computed.ravel()[-missing:] = False
    return record


def a_path(bump=1.0, **changes):
    t = np.array([-0.5, 0, 0.5, 1, 1.5])
    return LossPath(
        conditions=conditions(**changes),
        ends=("float", "W2"),
        t=t,
        loss=np.array([4.0, 1, 2 + bump, 3, 9]),
        accuracy=np.array([0.1, 0.9, 0.5, 0.8, 0.2]),
        computed=np.ones(5, bool),
        distance=7.0,
        seconds=1.0,
    )


def a_sharpness(rises, average=False, **changes):
    values = {
        "conditions": conditions(),
        "measure": "mean rise" if average else "largest rise (20 steps)",
        "region": "noise of σ = 0.01" if average else "ball of ρ = 0.05",
        "radius": 0.01 if average else 0.05,
        "loss": 1.0,
        "rises": np.array(rises, dtype=float),
        "average": average,
        "passes": 21,
        "complete": True,
    }
    return Sharpness(**values | changes)
