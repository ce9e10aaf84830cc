"""How long a quantizer takes, beside its peers: one tensor at a time, and a whole training step.

Run by ``make bench``, alone on the machine. Every comparison takes turns in one process; before
the clock starts, peers must give the same numbers as ours at the same bits.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from house import (
    BATCH,
    THREADS,
    PeakMemory,
    Row,
    compare,
    in_a_process,
    in_processes,
    interleaved,
    table,
    write,
)
from peers import TorchAO, TorchFused, brevitas_inputs, brevitas_twin, fake_quantizer_twin, qnn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qatviz import quantizers as zoo
from qatviz.calibration import calibrate
from qatviz.models import resnet20
from qatviz.quantize import quantize, quantized_layers
from qatviz.quantizers import LSQ

ROUNDS = 27
PROCESSES = 3
WARM_UP = 6  # steps until the allocator has found its size
PACKAGES = ("torch", "brevitas", "torchao")
Measure = Callable[[torch.memory_format], dict[str, np.ndarray]]
ACTIVATION = (BATCH, 16, 32, 32)
WEIGHT = (64, 64, 3, 3)


def main() -> None:
    """Measure everything and write ``data/runs/bench_quantizers.json``."""
    rows = [
        *steps("qat step", eager_seconds, torch.channels_last),
        *steps("qat step, if only bytes counted", floor_seconds, torch.channels_last),
        *steps("qat step, compiled", compiled_seconds, torch.channels_last),
        *steps("qat step, contiguous", eager_seconds, torch.contiguous_format),
        *in_a_process(single_tensors),
    ]
    print(table(rows))
    print("written to", write("quantizers", rows, PACKAGES))


# --- A whole training step


def steps(what: str, measure: Measure, layout: torch.memory_format) -> list[Row]:
    """One step of ResNet-20, W2A2 LSQ, against its float step and the peers', taking turns."""
    seconds = in_processes(PROCESSES, measure, layout)
    ours = seconds.pop("ours")
    return [compare(what, ours, peer, theirs) for peer, theirs in seconds.items()]


def eager_seconds(layout: torch.memory_format) -> dict[str, np.ndarray]:
    """Ours, float and the peers, as they are."""
    torch.set_num_threads(THREADS)
    networks = same_networks(layout)
    return interleaved(
        {name: stepper(*n) for name, n in networks.items()}, ROUNDS // PROCESSES, warm_up=WARM_UP
    )


def compiled_seconds(layout: torch.memory_format) -> dict[str, np.ndarray]:
    """Ours and float, both under ``torch.compile``."""
    torch.set_num_threads(THREADS)
    networks = same_networks(layout)
    ours, plain = (
        stepper(torch.compile(model), images)
        for model, images in (networks["ours"], networks["float"])
    )
    return interleaved(
        {"ours": ours, "float compiled": plain}, ROUNDS // PROCESSES, warm_up=WARM_UP
    )


def same_networks(layout: torch.memory_format) -> dict[str, tuple[nn.Module, Tensor]]:
    """Ours, float and the peers' networks; those that quantize give the same logits."""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=layout)
    model = resnet20()
    lsq = partial(LSQ, bits=2)
    # The first convolution has its weight quantized; images are 8-bit numbers already.
    student = quantize(model, lsq, {"*": lsq, "conv1": nn.Identity})
    calibrate(student, [images])
    networks = {
        "ours": student,
        "float": model,
        "brevitas": brevitas_twin(copy.deepcopy(student)),
        "torchao": fake_quantizer_twin(copy.deepcopy(student), TorchAO),
        "torch fused": fake_quantizer_twin(copy.deepcopy(student), TorchFused),
    }
    for network in networks.values():
        network.to(memory_format=layout).train()
    for name in ("brevitas", "torchao", "torch fused"):
        check_same_layers(networks["ours"], networks[name], images, name)
    return {name: (network, images) for name, network in networks.items()}


def check_same_layers(ours: nn.Module, theirs: nn.Module, images: Tensor, name: str) -> None:
    """Refuse a peer whose layers do not compute what ours compute on the same inputs.

    Peers multiply by 1/s where we divide by s, so a code may differ on a tie: on at most one
    number in ten thousand.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, i, o, key=key: seen.__setitem__(key, (i[0], o)))
        for key, layer in quantized_layers(ours).items()
    ]
    with torch.no_grad():
        ours(images)
        for hook in hooks:
            hook.remove()
        for key, (inputs, expected) in seen.items():
            got = theirs.get_submodule(key)(inputs)
            tolerance = 1e-4 * expected.abs().max()
            wrong = ((got - expected).abs() > tolerance).float().mean().item()
            if wrong > 1e-3:
                raise SystemExit(f"{name} differs from ours in {key}: {wrong:.2%} of outputs")


def stepper(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, backward and an optimizer step on one batch."""
    labels = torch.arange(len(images)) % 10
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


# --- How far down it could go


def floor_seconds(layout: torch.memory_format) -> dict[str, np.ndarray]:
    """The float step and the least that quantization must move through memory beside it.

    Forward: read x, write x̂. Backward: read g, x and x̂, write ∂L/∂x (x̂ for the gradient of the
    step). That is 6 × 4 bytes per number that is quantized. Ours moves 18: 8 forward (divide,
    and clip, round, multiply in place) and 10 backward (two masks, a difference, a product).
    """
    torch.set_num_threads(THREADS)
    networks = same_networks(layout)
    shapes = input_shapes(*networks["ours"])
    pairs = [(torch.randn(shape), torch.randn(shape)) for shape in shapes]

    def move() -> None:
        for x, g in pairs:
            y = x.clone()
            torch.addcmul(g, x, y)

    plain = stepper(*networks["float"])
    seconds = interleaved({"float": plain, "move": move}, ROUNDS // PROCESSES, warm_up=WARM_UP)
    return {"ours": seconds["float"] + seconds["move"], "float": seconds["float"]}


def input_shapes(model: nn.Module, images: Tensor) -> list[torch.Size]:
    """The shapes of the tensors that are quantized on their way into a layer."""
    shapes: list[torch.Size] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        for layer in quantized_layers(model).values()
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return shapes


# --- One tensor


def single_tensors() -> list[Row]:
    """Time and peak memory per element of every quantizer, beside torch's fused one."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return [*one_tensor("activation", ACTIVATION, 4), *one_tensor("weight", WEIGHT, 4)]


def one_tensor(what: str, shape: tuple[int, ...], bits: int) -> list[Row]:
    """All quantizers of the house on one tensor, forward alone and with the backward."""
    x = torch.randn(shape)
    x = x.relu() if what == "activation" else 0.1 * x
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(x)
    ours = house_quantizers(x, bits)
    peers = tensor_peers(ours["LSQ"], bits)
    for name, peer in peers.items():
        differ = ((peer(x) - ours["LSQ"](x)).abs() > 1e-4 * ours["LSQ"].step).float().mean()
        if differ > 1e-4:
            raise SystemExit(f"{name} differs from LSQ on {differ:.2%} of {what} at {bits} bits")
    everyone = {**ours, **peers}
    rows = []
    for direction, work in (("forward", forward), ("forward and backward", both)):
        calls = {name: partial(work, q, x, upstream) for name, q in everyone.items()}
        seconds = interleaved(calls, ROUNDS)
        peaks = {name: peak_bytes(call) / x.numel() for name, call in calls.items()}
        for name in ours:
            label = f"{name} {bits} bit {what}, {direction}"
            theirs = peers if name == "LSQ" else ("torch fused",)
            for peer in theirs:
                rows.append(compare(label, seconds[name], peer, seconds[peer], per=x.numel()))
            rows.append(memory_row(label, name, "torch fused", peaks))
    return rows


def house_quantizers(x: Tensor, bits: int) -> dict[str, nn.Module]:
    """Every public quantizer that has a grid of this sign and these bits, calibrated on x."""
    signed, made = bool((x < 0).any()), {}
    for name in zoo.__all__:
        cls = getattr(zoo, name)
        is_quantizer = isinstance(cls, type) and issubclass(cls, zoo.Quantizer)
        if is_quantizer and cls is not zoo.Quantizer and bits in cls.bits_allowed(signed):
            made[name] = cls(bits, signed=signed)
            made[name].init_from(x.detach())
    return made


def tensor_peers(like: LSQ, bits: int) -> dict[str, nn.Module]:
    """The peers' fake-quantizers on LSQ's grid."""
    peers = {"torch fused": TorchFused(like), "torchao": TorchAO(like)}
    if not like.signed:
        peers["brevitas"] = qnn.QuantIdentity(act_quant=brevitas_inputs(like))
    return peers


def forward(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    """One forward pass, as in inference."""
    with torch.no_grad():
        return quantizer(x)


def both(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """One forward and one backward pass, to the input and to every parameter that has one."""
    learned = [p for p in quantizer.parameters() if p.requires_grad]
    y = quantizer(x)
    return torch.autograd.grad(y, (x, *learned), upstream, allow_unused=True)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that live at once in tensors made by a call."""
    with PeakMemory() as memory:
        call()
    return memory.peak


def memory_row(what: str, ours: str, peer: str, peaks: dict[str, float]) -> Row:
    """Peak memory per element; it is counted, so it has no spread."""
    return Row(
        what=f"{what}, peak memory",
        peer=peer,
        ours=round(peaks[ours], 2),
        theirs=round(peaks[peer], 2),
        ratio=round(peaks[ours] / peaks[peer], 4),
        spread=0.0,
        n=1,
        unit="bytes per element",
    )


if __name__ == "__main__":
    main()
