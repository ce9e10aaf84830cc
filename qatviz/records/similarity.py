"""How alike two networks are inside."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class Similarity:
    """Linear CKA between all layers of two networks, and distances between those that match.

    Layers match where both networks have one of the name, with as many features.

    Args:
        labels: Names of the two networks.
        samples: Images.
        batch: Images in each batch: HSIC is an average over batches.
        pooled: Whether features are averages over the pixels; else every pixel is a feature.
        rows: Layers of the first network, in the order in which they run.
        columns: Layers of the second.
        cka: Linear CKA, −1 to 1: 1 the same up to rotation and scale, about 0 unrelated (the
            estimate is unbiased, so it may fall below); 0 where a layer's outputs are constant.
        cka_error: Standard error over batches; NaN of a single batch.
        matched: Layers that match.
        cosine: Mean over images of the cosine of the two outputs, −1 to 1.
        cosine_error: Standard error over images; NaN of a single image.
        distance: ‖b − a‖/‖a‖ over all images; infinite where a is zero and b is not.
        distance_error: Standard error over images; NaN of a single image.
        complete: False if it was interrupted.
    """

    labels: tuple[str, str]
    samples: int
    batch: int
    pooled: bool
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cka: Float[Array, "rows columns"]
    cka_error: Float[Array, "rows columns"]
    matched: tuple[str, ...]
    cosine: Float[Array, "matched"]
    cosine_error: Float[Array, "matched"]
    distance: Float[Array, "matched"]
    distance_error: Float[Array, "matched"]
    complete: bool

    @property
    def batches(self) -> int:
        """Batches that HSIC is averaged over."""
        return self.samples // self.batch

    @property
    def matched_cka(self) -> Float[Array, "matched"]:
        """CKA of each layer that matches."""
        return self.cka[self._places]

    @property
    def matched_cka_error(self) -> Float[Array, "matched"]:
        """Its standard error over batches."""
        return self.cka_error[self._places]

    @property
    def _places(self) -> tuple[Array, Array]:
        pairs = [(self.rows.index(n), self.columns.index(n)) for n in self.matched]
        rows, columns = np.array(pairs, int).reshape(-1, 2).T
        return rows, columns
