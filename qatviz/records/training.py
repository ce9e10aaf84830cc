"""How a training run went."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class History:
    """How a training run went, epoch by epoch.

    Args:
        terms: Mean over the epoch of each loss term (nats for cross-entropy), by name.
        rate: Learning rate at the end of each epoch.
        validation: Validation accuracy after each epoch, 0 to 1; empty if there was no
            validation split.
        accuracy: Accuracy on the labelled training images over each epoch, 0 to 1, in
            training mode and as the first view of each step showed them; NaN where none was
            labelled; empty in runs that did not count it.
    """

    terms: dict[str, Float[Array, "epochs"]] = field(default_factory=dict)
    rate: Float[Array, "epochs"] = field(default_factory=lambda: np.empty(0))
    validation: Float[Array, "validations"] = field(default_factory=lambda: np.empty(0))
    accuracy: Float[Array, "counted"] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.rate)
