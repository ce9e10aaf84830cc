"""Element-wise gradient scaling whose strength follows the curvature of the loss."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import override

from qatviz.hutchinson import hessian_trace
from qatviz.layers import QuantConv2d, QuantLinear
from qatviz.methods.base import Method, Wrapper
from qatviz.quantize import quantizers
from qatviz.quantizers import EWGS

SMALLEST_SPREAD = 1e-12


class HessianScaling(Wrapper):
    """Train by another method, and set the δ of every ``EWGS`` quantizer from curvature.

    After every 10 epochs, for each quantizer, with x_q its normalised output in [0, 1], L the
    loss of the wrapped method (the sum of its terms), g = ∂L/∂x_q and H = ∂²L/∂x_q²::

        δ = max(0, average over 3 batches of  (tr(H)/N) / (3·std(g) + ε))

    N is the number of elements of x_q; ε = 10⁻¹² (ours: the released code has none, and a user
    met NaN; its author suggests one). δ has no upper limit, as in the paper. Since the loss is
    that of the method, a method without labels sets δ without labels.

    L is the training loss: batch statistics in BatchNorm. g and H are taken straight through,
    with every δ at 0, so that H is a symmetric matrix (ours: the released code differentiates
    through the δ of last time), and on the student itself in float32, whatever the precision
    or compilation of the training. The student is left as it was but for its δ.

    The three modes of EWGS: straight-through is ``EWGS(delta=0.0)``, which is all that the
    released code of SQAKD does; a fixed δ is ``EWGS(delta=0.001)``; this is the third.
    ``prepare`` also does the paper's ``match_outputs``, for which the other two need a call.

    Args:
        method: How the student is trained.
        every: Epochs between updates: 10, 20, …, none before the first epoch and none after the
            last. Default: 10 (EWGS's released code).
        batches: Random training batches to average over. Default: 3 (the same).
        samples: The most random vectors for each trace. Default: 50 (the same).

    Raises:
        ValueError: If ``every``, ``batches`` or ``samples`` is less than 1.

    Source: Lee, Kim, Ham 2021, arXiv 2104.00903 (EWGS); interval, batches and samples from its
    released code.
    """

    def __init__(
        self, method: Method, every: int = 10, batches: int = 3, samples: int = 50
    ) -> None:
        super().__init__(method)
        for name, value in (("every", every), ("batches", batches), ("samples", samples)):
            if value < 1:
                raise ValueError(f"HessianScaling: {name} must be at least 1, got {value!r}")
        self.every, self.batches, self.samples = every, batches, samples
        # In a tuple, so that the student does not become a part of the method.
        self._prepared, self._steps = (), 0

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Match the outputs of the student's layers, prepare the method, count from zero.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.

        Raises:
            ValueError: If the student has no ``EWGS`` quantizer.
        """
        if not ewgs_quantizers(student):
            raise ValueError("HessianScaling: the student has no EWGS quantizer")
        images, _ = next(data.batches(256))
        match_outputs(student, images)
        self.method.prepare(student, data)
        self._prepared, self._steps = (student, data), 0

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        """Do what the method does, and at the end of every tenth epoch set δ.

        An epoch is as many steps as full batches fit into the data, which is how ``fit`` draws.

        Args:
            batch: The raw images and labels of the step: of several processes, the part of one.
            progress: Share of the steps taken, above 0, up to 1.
        """
        self.method.after_step(batch, progress)
        self._steps += 1
        student, data = self._prepared
        images, _ = batch
        period = self.every * (len(data) // (len(images) * _processes()))
        if self._steps % period == 0 and progress < 1:
            for quantizer, delta in self.deltas(student, data, images).items():
                quantizer.delta.fill_(delta)
        if progress >= 1:
            self._prepared = ()

    def get_extra_state(self) -> int:
        """The steps taken, for ``state_dict``.

        Returns:
            A whole number.
        """
        return self._steps

    def set_extra_state(self, state: int) -> None:
        """Go on counting from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self._steps = int(state)

    def deltas(self, student: nn.Module, data: Any, like: Tensor) -> dict[EWGS, float]:
        """δ of every quantizer at the student's present state, which does not change.

        Args:
            student: A module with ``EWGS`` quantizers, in the mode in which it is trained.
            data: The training ``Split``; batches are drawn with torch's global generator.
            like: Images as many as a batch has, on the device of the student.

        Returns:
            δ ≥ 0 by quantizer; 0 where a quantizer took no part in the loss. Of several
            processes, the average, the same in all.
        """
        total = defaultdict(float)
        for _ in range(self.batches):
            chosen = torch.randperm(len(data))[: len(like)]
            batch = (t[chosen.to(t.device)].to(like.device) for t in (data.images, data.labels))
            for quantizer, delta in self._of_batch(student, data.normalise, *batch).items():
                total[quantizer] += delta / self.batches
        found = list(ewgs_quantizers(student).values())
        averages = _over_processes([total[q] for q in found], like.device)
        return {q: max(0.0, average) for q, average in zip(found, averages, strict=True)}

    def _of_batch(
        self,
        student: nn.Module,
        normalise: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> dict[EWGS, float]:
        with _restored(student, self.method), _probed(student) as probes, torch.enable_grad():
            for quantizer in ewgs_quantizers(student).values():
                quantizer.delta.zero_()
            terms = self.method.loss(lambda x: student(normalise(x)), images, labels)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            owners = [quantizer for quantizer, found in probes.items() for _ in found]
            tensors = [probe for found in probes.values() for probe in found]
            gradients = torch.autograd.grad(
                loss, tensors, retain_graph=True, materialize_grads=True
            )
            traces = hessian_trace(loss, tensors, samples=self.samples)
        trace, gradient = defaultdict(float), defaultdict(list)
        for owner, t, g in zip(owners, traces, gradients, strict=True):
            trace[owner] += t.item()
            gradient[owner].append(g.flatten())
        return {q: _delta(trace[q], torch.cat(parts)) for q, parts in gradient.items()}


def ewgs_quantizers(model: nn.Module) -> dict[str, EWGS]:
    """The ``EWGS`` quantizers of a model, by name, in the order of the modules.

    Args:
        model: Any module.

    Returns:
        Quantizers by name.
    """
    return {name: q for name, q in quantizers(model).items() if isinstance(q, EWGS)}


@torch.no_grad()
def match_outputs(student: nn.Module, images: Float[Tensor, "batch ..."]) -> None:
    """Scale each layer so that its quantized output is as large as its float one, in place.

    The paper's start, on one batch, layer by layer, each layer seeing what the quantized and
    already scaled layers before it make::

        |s_out| = mean|w ∗ x| / mean|w_q ∗ x_q|

    Here the scale of the weight (of the input where the weight is no ``EWGS``) is multiplied by
    that ratio, so that its product with the scale of the other is the paper's s_out. The bias
    is outside of both means, because ours is outside of the scale; in the paper it is inside.
    A layer of which an output is zero stays as it is. BatchNorm uses the statistics of the
    batch, and its running ones do not change (in the released code they move once).

    Args:
        student: A calibrated model.
        images: Normalised training images.

    Source: EWGS's released code, arXiv 2104.00903.
    """
    twin = deepcopy(student).train()
    for layer in twin.modules():
        if isinstance(layer, (QuantConv2d, QuantLinear)):
            layer.register_forward_hook(_match_output)
    device = next((p.device for p in student.parameters()), images.device)
    twin(images.to(device))
    for name, quantizer in ewgs_quantizers(twin).items():
        student.get_submodule(name).scale.data.copy_(quantizer.scale)


def _match_output(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook: scale the layer, and give back its output as it is now."""
    (x,) = inputs
    own = (layer.weight_quantizer, layer.input_quantizer)
    quantizer = next((q for q in own if isinstance(q, EWGS)), None)
    if quantizer is not None:
        full = _multiply(layer, x, layer.weight).abs().mean()
        low = _multiply(layer, layer.input_quantizer(x), layer.quantized_weight()).abs().mean()
        if full > 0 and low > 0:
            quantizer.match_output(full / low)
            return layer.forward(x)
    return output


def _multiply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, QuantLinear):
        return linear(x, weight)
    return layer._conv_forward(x, weight, None)


def _processes() -> int:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def _over_processes(numbers: list[float], device: torch.device) -> list[float]:
    """The averages of numbers that each process has its own of."""
    if _processes() == 1:
        return numbers
    total = torch.tensor(numbers, device=device)
    torch.distributed.all_reduce(total)
    return (total / _processes()).tolist()


def _delta(trace: float, gradient: Tensor) -> float:
    spread = gradient.std(correction=min(1, gradient.numel() - 1)).item()
    return trace / gradient.numel() / (3 * spread + SMALLEST_SPREAD)


@contextmanager
def _probed(model: nn.Module) -> Iterator[dict[EWGS, list[Tensor]]]:
    """Add a zero to the normalised output of every quantizer, to differentiate by."""
    probes = defaultdict(list)

    def hook(quantizer: EWGS, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        found = probes[quantizer]
        # One for a weight, however often it is read; one for each batch that an input sees.
        if quantizer.batched or not found:
            found.append(torch.zeros_like(output, requires_grad=True))
        return output + (quantizer.slope.detach() * found[-1]).to(output.dtype)

    handles = [q.register_forward_hook(hook) for q in ewgs_quantizers(model).values()]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restored(*modules: nn.Module) -> Iterator[None]:
    """Put all buffers back as they were."""
    buffers = {b: b.clone() for module in modules for b in module.buffers()}
    try:
        yield
    finally:
        for buffer, before in buffers.items():
            buffer.copy_(before)
