"""Small networks, and their Hessians the slow way: one row after the other, in float64."""

import copy
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ, PACT, DoReFa

WEIGHTS = ("0.weight", "4.weight", "8.weight")
# No maximum pooling: on a grid many numbers are equal, and rounding decides which one is largest.
GRIDS = {
    "lsq": (partial(LSQ, 3), partial(LSQ, 3)),
    "channels": (partial(LSQ, 2, axis=0), partial(LSQ, 3)),
    "pact": (partial(DoReFa, 3), partial(PACT, 3, signed=False, clip=2.0)),
    "dorefa": (partial(DoReFa, 2), partial(DoReFa, 3, signed=False)),
    "weights": (partial(LSQ, 3), None),
}


def network(activation=nn.ReLU, seed=1):
    """Two convolutions, BatchNorm with statistics of its own, a linear layer: 215 weights."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), activation()),
        *(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)),
        *(activation(), nn.Flatten(), nn.Linear(16, 5)),
    )
    for module in net:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                positive = isinstance(module, nn.BatchNorm2d) and name in ("weight", "running_var")
                tensor.data = 0.5 + drawn.abs() if positive else 0.3 * drawn
    return net.eval()


def split(count=30):
    generator = torch.Generator().manual_seed(2)
    return Split(torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 5)


def quantized(kind, activation=nn.ReLU):
    student = quantize(network(activation), *GRIDS[kind]).eval()
    if GRIDS[kind][1] is not None:
        calibrate(student, [split().images])
    return student


def dense(model, names, images, labels, loss=cross_entropy):
    """∂²L/∂w∂w of named parameters, each row a backward pass through the gradient."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    parameters = [model.get_parameter(name).requires_grad_() for name in names]
    value = loss(model(images.double()), labels)
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    rows = []
    for number in torch.cat([g.flatten() for g in gradient]):
        row = torch.autograd.grad(number, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([r.flatten() for r in row]))
    return torch.stack(rows).numpy()


def hessian_of(surface, data, loss=cross_entropy):
    """The dense Hessian of what a surface moves."""
    return dense(surface.model, surface.names, data.normalise(data.images), data.labels, loss)


def sorted_eigenvalues(matrix, which):
    values = np.linalg.eigvalsh(matrix)
    key = {"magnitude": -np.abs(values), "largest": -values, "smallest": values}[which]
    return values[np.argsort(key)]
