"""An affine grid whose step is trained and whose zero point is not."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from qatviz.quantizers.affine import Affine, Bounds, Rows, min_max_range
from qatviz.quantizers.straight_through import straight_through


class AffineLSQ(Affine):
    """``Affine`` with a learned step: what Consistency Regularization and PD-Quant train.

    Forward, with step s, zero point z and n = 2^b − 1::

        q = clip(round(x/s) + z, 0, n)      x̂ = (q − z) · s

    Backward::

        ∂x̂/∂x = 1  where 0 < x/s + z < n, else 0
        ∂x̂/∂s = (q − z) − (x/s) · 1[0 < x/s + z < n]
        and ∂L/∂s is multiplied by g = 1/√(N · n)

    z is chosen once with the first step and has no gradient. N counts all numbers that share a
    step, the images of a batch too: so does MQBench, whose factor this is; LSQ counts the
    features of one image. A step below 1e-8 counts as 1e-8 and goes on learning.

    PD-Quant's activations are the same with ``find_range=lp_range`` and no factor: override
    ``gradient_scale`` with 1.

    Args:
        bits: Bits per code, 1 to 8.
        signed: See ``Affine``. Default: None: z = 0 if nothing is negative.
        axis: See ``Quantizer``. Default: None (ours).
        find_range: See ``Affine``. Default: ``min_max_range``, s = (max − min)/n (CR's rig).

    Raises:
        ValueError: If the bits are not allowed.

    Source: Pang & Cai 2025 (FPQ), arXiv 2503.11159, section 3.1, equations 3 to 5: the rig of
    the authors of CR (arXiv 2402.13497), which we take to be that of CR too. Gradient: Esser et
    al. 2020, arXiv 1902.08153. Factor: MQBench (released code). PD-Quant: arXiv 2212.07048
    (released code).
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        axis: int | None = None,
        find_range: Callable[[Rows, int], Bounds] = min_max_range,
    ) -> None:
        super().__init__(bits, signed=signed, axis=axis, find_range=find_range)
        self.step = nn.Parameter(self.step)

    def gradient_scale(self, x: Float[Tensor, "*shape"]) -> float:
        """The factor g on the gradient of the step.

        Args:
            x: The tensor being quantized; only its shape counts.

        Returns:
            1/√(N · n), N the elements that share a step, with the batch axis.
        """
        shared = x.numel() if self.axis is None else x.numel() // x.shape[self.axis]
        return 1 / math.sqrt(max(shared, 1) * self.high)

    @override
    def _step_for(self, x: Tensor) -> Tensor:
        step = self._positive(self.step)
        return straight_through(step, step * self.gradient_scale(x))
