"""What backward passes claim, and where that leads."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class OneWeight:
    """How gradient descent moved the one weight of a model, in units of its step.

    Args:
        weight: The latent weight before each update, and after the last.
        level: What the forward pass made of it, for the same moments.
        target: The number that the level should equal, at each update.
        gradient: ∂L/∂w as the backward pass returned it, at each update.
        thresholds: Where the forward pass goes from one level to the next.
        surrogate: What the backward pass differentiated.
    """

    weight: Float[Array, "moments"]
    level: Float[Array, "moments"]
    target: Float[Array, "updates"]
    gradient: Float[Array, "updates"]
    thresholds: Float[Array, "thresholds"]
    surrogate: str

    def share(self, level: float, *, after: int = 0) -> float:
        """The share of the updates that saw the weight at one level.

        Args:
            level: The level.
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            0 to 1.
        """
        return float(np.mean(self.level[after:-1] == level))

    def mean_level(self, *, after: int = 0) -> float:
        """The level, averaged over the updates.

        Args:
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            A number that need not be a level.
        """
        return float(np.mean(self.level[after:-1]))

    def changes(self, *, after: int = 0) -> float:
        """Changes of level per update.

        Args:
            after: Updates to leave out at the beginning. Default: 0 (ours).

        Returns:
            0 (at rest) to 1 (another level at every update).
        """
        return float(np.mean(np.diff(self.level[after:]) != 0))


@dataclass(frozen=True, eq=False)
class StaircaseLoss:
    """The loss of one rounded weight, blurred by noise, and the gradients claimed for it.

    Args:
        weight: Latent weights, ascending, in units of the step.
        loss: The true loss (ŵ − t)²: a staircase.
        smoothed: The mean of the loss when noise is added to the weight.
        smoothed_gradient: Its exact derivative.
        gradients: What backward passes return, by surrogate.
        target: The number t.
        noise: Width of the uniform noise, in steps.
    """

    weight: Float[Array, "points"]
    loss: Float[Array, "points"]
    smoothed: Float[Array, "points"]
    smoothed_gradient: Float[Array, "points"]
    gradients: dict[str, Float[Array, "points"]]
    target: float
    noise: float


@dataclass(frozen=True, eq=False)
class GradientAgreement:
    """The gradients of a quantized network beside those of the float network it came from.

    Args:
        layers: Names of the convolutions and linear layers, in forward order.
        cosine: Cosine between the two weight gradients, −1 to 1; NaN where one is zero.
        zeros: Share of a layer's weights whose gradient in the quantized network is exactly
            zero.
        parameters: All parameters of the quantized network but those of its quantizers.
        reached: How many of them have a gradient that is not zero.
        label: Name of the quantized network, for a legend.
    """

    layers: tuple[str, ...]
    cosine: Float[Array, "layers"]
    zeros: Float[Array, "layers"]
    parameters: int
    reached: int
    label: str


@dataclass(frozen=True, eq=False)
class Descent:
    """The loss of a network along its gradient, and along the same numbers shuffled.

    Args:
        length: Distances moved, as shares of the norm of all weights.
        along: Loss in nats after moving against the gradient.
        shuffled: Loss in nats after moving along each shuffled gradient.
        label: Name of the network, for a title.
    """

    length: Float[Array, "lengths"]
    along: Float[Array, "lengths"]
    shuffled: Float[Array, "draws lengths"]
    label: str
