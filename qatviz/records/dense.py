"""What networks learned of collages, pixel by pixel or box by box."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class DensePictures:
    """Some test collages, and what a network says of them: masks, or boxes.

    Args:
        images: Grey.
        masks: Said of each pixel; empty in detection. The background is the class after the last.
        boxes: Of each image, ``[found, 4]``: left, top, right, bottom in pixels; empty in
            segmentation.
        labels: Of each image, ``[found]``: the classes of the boxes.
        true_masks: The truth.
        true_boxes: Of each image.
        true_labels: Of each image.
    """

    images: UInt8[Array, "images height width"]
    masks: UInt8[Array, "masks height width"]
    boxes: tuple[Array, ...]
    labels: tuple[Array, ...]
    true_masks: UInt8[Array, "images height width"]
    true_boxes: tuple[Array, ...]
    true_labels: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class DenseRun:
    """One network on collages: how good it became, on test collages of its own seed.

    The collages, the float start, the batches and the first views are drawn from the seed, alike
    in all arms: runs of one seed are pairs.

    Args:
        task: "segmentation" or "detection".
        arm: How it was trained: "float", "LSQ", "CR" or "CR, not aligned".
        measure: What the scores are: "mIoU" or "AP at IoU 0.5".
        seed: Of everything that was drawn.
        classes: Names, with the background last in segmentation.
        steps: Optimizer steps before each evaluation; 0: as it began.
        per_class: Score of each class at each evaluation, 0 to 1; NaN: in no test collage.
        terms: Means of the terms of the loss since the evaluation before, by name; at the first
            evaluation NaN.
        labelled: Collages with labels.
        unlabelled: More collages, which the consistency term alone saw; 0 in other arms.
        test: Test collages.
        batch: Labelled collages in a step.
        bits: Of weights and inputs, but for the first and last layer; None: float.
        strength: λ; 0: no consistency.
        decay: α of the teacher; 0 where there is none.
        parameters: Of the float network.
        seconds: Wall-clock time of the training with its evaluations, without the float start.
        pictures: Some test collages and what it says of them at last. Default: None.
    """

    task: str
    arm: str
    measure: str
    seed: int
    classes: tuple[str, ...]
    steps: Int[Array, "evaluations"]
    per_class: Float[Array, "evaluations classes"]
    terms: Mapping[str, Float[Array, "evaluations"]]
    labelled: int
    unlabelled: int
    test: int
    batch: int
    bits: int | None
    strength: float
    decay: float
    parameters: int
    seconds: float
    pictures: DensePictures | None = None

    @property
    def scores(self) -> Float[Array, "evaluations"]:
        """The mean over the classes that test collages show."""
        return np.nanmean(self.per_class, 1)

    @property
    def score(self) -> float:
        """After the last step."""
        return float(self.scores[-1])

    def as_dict(self) -> dict[str, Any]:
        """The run as plain values, for a JSON file.

        Returns:
            Field names to values; arrays with their type and shape.
        """
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DenseRun":
        """Make a run of what ``as_dict`` returned.

        Args:
            content: Field names to values.

        Returns:
            The run.

        Raises:
            ValueError: If the content is not of a run.
        """
        try:
            values = _revived(content)
            pictures = values.pop("pictures")
            pictures = None if pictures is None else DensePictures(**pictures)
            return cls(**values, pictures=pictures)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this is not a run on collages: {error!r}") from error

    @classmethod
    def read(cls, path: str | Path) -> list["DenseRun"]:
        """Read the runs of a file whose ``"runs"`` are what ``as_dict`` returned.

        Args:
            path: A JSON file, such as that of ``data/make_collages.py``.

        Returns:
            The runs, in the order of the file.
        """
        return [cls.from_dict(run) for run in json.loads(Path(path).read_text())["runs"]]


@dataclass(frozen=True, eq=False)
class DenseScores:
    """Final scores of several arms over seeds, and how they differ in pairs.

    Args:
        task: "segmentation" or "detection".
        measure: What the scores are.
        arms: Names.
        seeds: That all arms have.
        scores: 0 to 1.
        against: The arm that the others are compared with.
        quantile: 97.5 % quantile of Student's t with one degree of freedom less than seeds.
        labelled: Collages with labels.
        test: Test collages of each seed.
    """

    task: str
    measure: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Float[Array, "arms seeds"]
    against: str
    quantile: float
    labelled: int
    test: int

    @property
    def mean(self) -> Float[Array, "arms"]:
        """Over seeds."""
        return self.scores.mean(1)

    @property
    def half_width(self) -> Float[Array, "arms"]:
        """Half the 95 % t-interval of the mean: t·s/√n."""
        return self._half(self.scores)

    @property
    def difference(self) -> Float[Array, "arms"]:
        """Mean over seeds of the arm's score less that of ``against`` with the same seed."""
        return self._pairs.mean(1)

    @property
    def difference_half_width(self) -> Float[Array, "arms"]:
        """Half the 95 % t-interval of the difference; 0 for ``against`` itself."""
        return self._half(self._pairs)

    @property
    def _pairs(self) -> Float[Array, "arms seeds"]:
        return self.scores - self.scores[self.arms.index(self.against)]

    def _half(self, values: Float[Array, "arms seeds"]) -> Float[Array, "arms"]:
        count = len(self.seeds)
        if count < 2:
            return np.full(len(values), np.nan)
        return self.quantile * values.std(1, ddof=1) / np.sqrt(count)


def _plain(value: Any) -> Any:
    """Arrays become their type, shape and bytes (images) or numbers; NaN becomes None."""
    if isinstance(value, Array):
        told = {"dtype": str(value.dtype), "shape": list(value.shape)}
        if value.dtype == np.uint8:
            return told | {"bytes": b64encode(value.tobytes()).decode()}
        flat = value.ravel().tolist()
        if value.dtype.kind == "f":
            flat = [round(x, 6) if np.isfinite(x) else None for x in flat]
        return told | {"numbers": flat}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _revived(value: Any) -> Any:
    """The other way; lists become tuples."""
    if isinstance(value, Mapping) and "dtype" in value:
        if "bytes" in value:
            flat = np.frombuffer(b64decode(value["bytes"]), np.uint8)
        else:
            flat = [np.nan if x is None else x for x in value["numbers"]]
        return np.array(flat, value["dtype"]).reshape(value["shape"])
    if isinstance(value, Mapping):
        return {key: _revived(part) for key, part in value.items()}
    return tuple(map(_revived, value)) if isinstance(value, list | tuple) else value
