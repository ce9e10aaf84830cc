import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from qatviz.hutchinson import hessian_trace


def symmetric(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=dtype)
    return (a + a.T) / 2


def quadratic(h, x):
    """½xᵀHx, whose Hessian is H."""
    return (x @ h @ x) / 2


def variance(h):
    """Of one sample vᵀHv with random signs: 2(‖H‖_F² − ∑ H_ii²)."""
    return 2 * (h.square().sum() - h.diag().square().sum()).item()


def leaf(n):
    return torch.randn(n, dtype=torch.float64, requires_grad=True)


def estimates(loss, tensors, samples, count):
    generator = torch.Generator().manual_seed(1)
    kwargs = {"samples": samples, "tolerance": 0.0, "generator": generator}
    return torch.stack([torch.stack(hessian_trace(loss, tensors, **kwargs)) for _ in range(count)])


@pytest.mark.parametrize("samples", [1, 4, 12])
def test_unbiased_with_the_known_variance(samples):
    h, x = symmetric(12), leaf(12)
    found = estimates(quadratic(h, x), [x], samples, 600)[:, 0]
    expected = variance(h) / samples
    assert abs(found.mean() - h.trace()) < 4 * math.sqrt(expected / 600)
    # The sample variance of 600 has a relative standard error of about 1/√300 = 6 %.
    assert found.var().item() == pytest.approx(expected, rel=0.3)


def test_blocks_share_products_and_keep_their_traces():
    # The variance of a block: its own, and ‖H_kj‖_F² for every other tensor.
    h, x, y = symmetric(10, 3), leaf(4), leaf(6)
    found = estimates(quadratic(h, torch.cat([x, y])), [x, y], 10, 600)
    cross = h[:4, 4:].square().sum().item()
    for k, block in enumerate((h[:4, :4], h[4:, 4:])):
        expected = (variance(block) + cross) / 10
        assert abs(found[:, k].mean() - block.trace()) < 4 * math.sqrt(expected / 600)
        assert found[:, k].var().item() == pytest.approx(expected, rel=0.3)


def test_a_diagonal_hessian_is_exact():
    x = leaf(7)
    scales = torch.linspace(-3, 2, 7, dtype=torch.float64)
    (trace,) = hessian_trace((scales * x.square()).sum() / 2, [x], samples=1)
    assert trace.item() == pytest.approx(scales.sum().item(), rel=1e-12)


def test_a_small_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    images, labels = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    loss = nn.functional.cross_entropy(net(images), labels)
    parameters = dict(net.named_parameters())
    shapes = {name: p.shape for name, p in parameters.items()}

    def flat(vector):
        parts = vector.split([s.numel() for s in shapes.values()])
        own = {n: v.reshape(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, own, (images,)), labels)

    vector = torch.cat([p.detach().flatten() for p in parameters.values()])
    h = torch.autograd.functional.hessian(flat, vector)
    samples, start = 2000, 0
    generator = torch.Generator().manual_seed(4)
    found = hessian_trace(
        loss, list(parameters.values()), samples=samples, tolerance=0.0, generator=generator
    )
    for trace, p in zip(found, parameters.values(), strict=True):
        end = start + p.numel()
        block, rows = h[start:end, start:end], h[start:end]
        spread = variance(block) + rows.square().sum().item() - block.square().sum().item()
        assert abs(trace - block.trace()) < 4 * math.sqrt(spread / samples)
        assert abs(block.trace()) > 4 * math.sqrt(spread / samples)
        start = end
    assert all(p.grad is None for p in net.parameters())


def test_a_tensor_inside_the_graph():
    # L = ∑(x²)²: by y = x², H = 2I.
    x = leaf(5)
    y = x.square()
    (trace,) = hessian_trace(y.square().sum(), [y])
    assert trace.item() == pytest.approx(10, rel=1e-12)


class Counting(torch.autograd.Function):
    """Identity that counts how often its second backward pass runs."""

    times = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        Counting.times += 1
        return g.clone()


def products(loss_of, n, **kwargs):
    """How many products with vectors it takes, counted in the backward pass."""
    x = leaf(n)
    loss = loss_of(Counting.apply(x))
    Counting.times = 0
    hessian_trace(loss, [x], **kwargs)
    return Counting.times - 1  # the gradient itself


@pytest.mark.parametrize("sign", [1, -1])
def test_stops_when_the_mean_stands_still_whatever_its_sign(sign):
    # Equal samples: the second moves the mean by nothing.
    assert products(lambda x: sign * x.square().sum(), 4) == 2
    assert products(lambda x: sign * x.square().sum(), 4, tolerance=0.0) == 50
    # H = ±(I + offdiagonal): the mean moves by far more than a thousandth for some samples.
    h = sign * (torch.eye(30, dtype=torch.float64) + 0.3 * symmetric(30, 5))
    generator = torch.Generator().manual_seed(0)
    assert products(lambda x: quadratic(h, x), 30, generator=generator) > 4
    assert products(lambda x: quadratic(h, x), 30, tolerance=0.0, samples=7) == 7


def test_a_negative_trace_is_as_good_as_a_positive_one():
    # The same vectors, the opposite Hessian: as many samples, the opposite estimate.
    h, x = 5 * torch.eye(20, dtype=torch.float64) + symmetric(20), leaf(20)
    plus, minus = (
        hessian_trace(quadratic(s * h, x), [x], generator=torch.Generator().manual_seed(2))[0]
        for s in (1, -1)
    )
    assert plus.item() == pytest.approx(-minus.item(), rel=1e-12)
    assert plus > 0


def test_sampling_goes_on_until_every_tensor_stands_still():
    h, x, y = symmetric(30, 7), leaf(5), leaf(30)
    generator = torch.Generator().manual_seed(3)
    both = hessian_trace(x.square().sum() + quadratic(h, y), [x, y], generator=generator)
    alone = hessian_trace(quadratic(h, y), [y], samples=2)
    assert both[0].item() == pytest.approx(10, rel=1e-12)
    assert (both[1] - h.trace()).abs() < 4 * math.sqrt(variance(h) / 10)
    assert alone[0] != both[1]


def test_no_curvature_and_no_part():
    x, y, z = leaf(3), leaf(3), leaf(3)
    assert [t.item() for t in hessian_trace(x.sum(), [x, y])] == [0, 0]
    traces = hessian_trace(x.sum() + y.square().sum(), [x, y, z])
    assert [t.item() for t in traces] == [0, pytest.approx(6), 0]


def test_the_generator_decides():
    h, x = symmetric(9), leaf(9)
    one, two, other = (
        hessian_trace(quadratic(h, x), [x], samples=3, generator=torch.Generator().manual_seed(s))
        for s in (5, 5, 6)
    )
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])
    before = torch.get_rng_state()
    hessian_trace(quadratic(h, x), [x], generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    hessian_trace(quadratic(h, x), [x])
    assert not torch.equal(torch.get_rng_state(), before)


def test_what_it_leaves_behind():
    h, x = symmetric(9), leaf(9)
    loss = quadratic(h, x)
    (trace,) = hessian_trace(loss, [x])
    assert not trace.requires_grad
    assert x.grad is None
    loss.backward()  # the graph is still there
    assert x.grad is not None


@pytest.mark.parametrize(("samples", "tolerance"), [(0, 0.1), (-3, 0.1), (5, -0.1), (5, math.nan)])
def test_bad_arguments(samples, tolerance):
    x = leaf(2)
    with pytest.raises(ValueError, match=f"got {samples} and {tolerance}"):
        hessian_trace(x.square().sum(), [x], samples=samples, tolerance=tolerance)
