"""Where quantization makes errors, and which layers' errors matter."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True, eq=False)
class LayerSQNR:
    """Signal-to-quantization-noise ratios of every quantized layer, in decibels.

    Infinite where nothing is quantized; NaN where there is nothing: no weight, or zeros only.
    The reference is the same network with all quantizers off.

    Args:
        label: Name of the network.
        samples: Images.
        layers: Names, in the order of the modules.
        granular: Squared error of the weights between the outermost levels, over the sum of
            squares of the latent weights.
        clipping: The same of the weights beyond them.
        inputs: SQNR of each input as the reference has it, rounded by this layer.
        inputs_error: Standard error of that over images, in dB.
        local: SQNR of each output, from the reference's input, with only this layer's quantizers
            on.
        local_error: Standard error of that over images, in dB.
        accumulated: SQNR of each output in the quantized network.
        accumulated_error: Standard error of that over images, in dB.
    """

    label: str
    samples: int
    layers: tuple[str, ...]
    granular: Float[Array, "layers"]
    clipping: Float[Array, "layers"]
    inputs: Float[Array, "layers"]
    inputs_error: Float[Array, "layers"]
    local: Float[Array, "layers"]
    local_error: Float[Array, "layers"]
    accumulated: Float[Array, "layers"]
    accumulated_error: Float[Array, "layers"]

    @property
    def weights(self) -> Float[Array, "layers"]:
        """SQNR of each weight against its latent weight: exact, there is nothing sampled."""
        with np.errstate(divide="ignore"):
            return -10 * np.log10(self.granular + self.clipping)


@dataclass(frozen=True, eq=False)
class LayerEffects:
    """How one number of a network changes when layers are quantized, one by one and together.

    Means over the same images with and without: paired differences. NaN where interrupted.

    Args:
        single: What each layer changes, by layer and bits.
        single_error: Its standard error over images.
        total_error: Standard error over images of the sum of the single effects.
        joint: What all layers together change.
        joint_error: Its standard error over images.
    """

    single: Float[Array, "layers bits"]
    single_error: Float[Array, "layers bits"]
    total_error: Float[Array, "bits"]
    joint: Float[Array, "bits"]
    joint_error: Float[Array, "bits"]

    @property
    def total(self) -> Float[Array, "bits"]:
        """The sum of the single effects: the joint one, if layers did not interact."""
        return self.single.sum(0)


@dataclass(frozen=True, eq=False)
class BitSensitivity:
    """What quantizing each layer of a float network costs, at several bit-widths.

    Args:
        label: Name of the network.
        samples: Images that were classified.
        calibration: Images that the grids of inputs were chosen from; 0 where there are none.
        quantizer: Class of the quantizers.
        part: What was quantized: "weights", "inputs" or "both".
        leave_out: False: an effect is that of quantizing one layer alone. True: it is what all
            layers change less what all others change.
        layers: Names, in the order of the modules.
        bits: Bit-widths.
        loss: Change of the mean cross-entropy, in nats.
        accuracy: Change of the accuracy, −1 to 1.
        divergence: Change of the mean KL(float ‖ quantized) of the predictions, in nats: zero for
            the float network, so that it is never negative, but for differences of two
            (``leave_out``).
        float_loss: Mean cross-entropy of the float network, in nats.
        float_loss_error: Its standard error over images.
        float_accuracy: Accuracy of the float network, 0 to 1.
        complete: False if it was interrupted.
    """

    label: str
    samples: int
    calibration: int
    quantizer: str
    part: str
    leave_out: bool
    layers: tuple[str, ...]
    bits: Int[Array, "bits"]
    loss: LayerEffects
    accuracy: LayerEffects
    divergence: LayerEffects
    float_loss: float
    float_loss_error: float
    float_accuracy: float
    complete: bool

    @property
    def float_accuracy_error(self) -> float:
        """√(p(1 − p)/n) of ``float_accuracy``: what other images would have changed."""
        p = self.float_accuracy
        return float(np.sqrt(p * (1 - p) / self.samples))


@dataclass(frozen=True, eq=False)
class RankAgreement:
    """Whether two orders of the same layers agree.

    Args:
        correlation: Spearman's rank correlation, −1 (opposite) to 1 (the same).
        p_value: Chance that unrelated orders agree or disagree as much.
        layers: How many layers were ranked.
    """

    correlation: float
    p_value: float
    layers: int
