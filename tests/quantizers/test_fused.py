import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, jvp, vmap

from qatviz.quantizers import LSQ, AffineLSQ, fused


def lsq(step, bits=2, signed=False):
    quantizer = LSQ(bits, signed=signed)
    quantizer.step.data = torch.as_tensor(step)
    return quantizer


def affine_lsq(step, bits, zero_point):
    quantizer = AffineLSQ(bits, signed=True)
    quantizer.step.data = torch.as_tensor(step)
    quantizer.zero_point.data = torch.tensor(zero_point, dtype=quantizer.step.dtype)
    return quantizer


def gradients(quantizer, x, upstream, *, twice):
    """The gradients for x and the step; ``twice``: as for second derivatives."""
    x = x.detach().clone().requires_grad_()
    y = quantizer(x)
    return y, *torch.autograd.grad(y, (x, quantizer.step), upstream, create_graph=twice)


@pytest.fixture
def taken(monkeypatch):
    """Which way each backward pass went."""
    ways = []
    for name in ("_by_hand", "_by_formulas"):
        way = getattr(fused, name)
        monkeypatch.setattr(
            fused, name, lambda *a, way=way, name=name: (ways.append(name), way(*a))[1]
        )
    return ways


@st.composite
def problems(draw):
    """A step, a grid, and numbers of which many lie exactly on levels, bounds and ties."""
    signed = draw(st.booleans())
    bits = draw(st.integers(2 if signed else 1, 8))
    step = draw(st.floats(1e-3, 1e3))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)))
    seed = draw(st.integers(0, 2**31))
    layout = draw(st.permutations(range(len(shape))))
    generator = torch.Generator().manual_seed(seed)
    reach = 2**bits
    halves = torch.randint(-2 * reach, 2 * reach + 1, shape, generator=generator) / 2
    x = torch.where(
        torch.rand(shape, generator=generator) < 0.5,
        halves,
        reach * torch.randn(shape, generator=generator),
    ).double()
    x = (x * step).permute(layout)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = torch.tensor(step, dtype=torch.float64)
    if draw(st.booleans()):
        return affine_lsq(step, bits, float(draw(st.integers(0, 2**bits - 1)))), x, upstream
    return lsq(step, bits, signed), x, upstream


@settings(max_examples=200, deadline=None)
@given(problems())
def test_both_ways_agree_everywhere_on_values_and_gradients(problem):
    quantizer, x, upstream = problem
    y, to_x, to_step = gradients(quantizer, x, upstream, twice=False)
    y_again, to_x_again, to_step_again = gradients(quantizer, x, upstream, twice=True)
    assert torch.equal(y, y_again)
    # The formulas themselves, not the fused forward.
    assert torch.equal(y, quantizer.dequantize(quantizer.codes(x)))
    assert torch.equal(to_x == 0, to_x_again == 0)
    torch.testing.assert_close(to_x, to_x_again, rtol=1e-15, atol=0)
    size = max((upstream * y).abs().sum().item() / quantizer.step.item(), 1.0)
    torch.testing.assert_close(to_step, to_step_again, rtol=1e-12, atol=1e-13 * size)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_in_float32_the_gradient_of_the_step_loses_no_digits_that_matter(bits, layout, mean):
    # A mean in the upstream gradient is what cancels between two large sums, and not in one.
    x = torch.randn(64, 16, 32, 32).relu().contiguous(memory_format=layout)
    upstream = torch.randn_like(x) + mean
    quantizer = lsq(3.0 / (2**bits - 1), bits)
    _, to_x, to_step = gradients(quantizer, x, upstream, twice=False)
    # The formula in float64, for the codes that float32 gives.
    step, codes = quantizer.step.item(), quantizer.codes(x).detach().double()
    inside = (x > 0) & (x < quantizer.high * quantizer.step)
    local = torch.where(inside, codes - x.double() / step, codes)
    terms = upstream.double() * local * quantizer.gradient_scale(x)
    assert torch.equal(to_x, upstream * inside)
    assert (to_step - terms.sum()).abs() < 1e-5 * max(terms.norm(), terms.sum().abs())
    assert terms.sum().abs() > 1e-3 * terms.norm()


def test_plain_training_goes_by_hand_and_second_derivatives_by_formulas(taken):
    quantizer, x = lsq(0.3), torch.rand(5)
    gradients(quantizer, x, torch.ones(5), twice=False)
    assert taken == ["_by_hand"]
    gradients(quantizer, x, torch.ones(5), twice=True)
    assert taken == ["_by_hand", "_by_formulas"]


def test_a_second_derivative_is_that_of_the_formulas(taken):
    quantizer, x = lsq(torch.tensor(0.3, dtype=torch.float64)), torch.rand(6, dtype=torch.float64)

    def of_step(quantize):
        loss = quantize(x).pow(3).sum()
        (first,) = torch.autograd.grad(loss, quantizer.step, create_graph=True)
        return torch.autograd.grad(first, quantizer.step)[0]

    fast = of_step(quantizer)
    assert "_by_formulas" in taken
    slow = of_step(lambda x: quantizer.dequantize(quantizer.codes(x)))
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    assert fast.abs() > 1e-2


def test_torchs_fused_operator_has_no_second_derivative_and_ours_has():
    # Why curvature is not measured through torch's own. On −2 … 1 times 0.3: two are clipped.
    weight = torch.tensor([-0.9, -0.5, -0.2, 0.1, 0.26, 0.5], requires_grad=True)
    quantizer, zero = lsq(0.3, signed=True), torch.zeros(1)
    scale = torch.tensor([0.3], requires_grad=True)

    def theirs():
        return torch._fake_quantize_learnable_per_tensor_affine(weight, scale, zero, -2, 1, 1.0)

    def first(level):
        return torch.autograd.grad(level.pow(4).sum(), weight, create_graph=True)[0]

    assert torch.equal(theirs(), quantizer(weight))
    torch.testing.assert_close(first(theirs()), first(quantizer(weight)))
    with pytest.raises(RuntimeError, match="is not implemented"):
        torch.autograd.grad(first(theirs()).sum(), weight)
    # The second derivative of the loss at the levels, nothing where the weight is clipped.
    (second,) = torch.autograd.grad(first(quantizer(weight)).sum(), weight)
    inside = torch.tensor([0, 1, 1, 1, 1, 0])
    levels = torch.tensor([-0.6, -0.6, -0.3, 0.0, 0.3, 0.3])
    torch.testing.assert_close(second, 12 * levels**2 * inside)


def test_transforms_and_forward_mode_take_the_formulas(monkeypatch):
    quantizer, x = lsq(0.3), torch.rand(3, 4)
    parameters = dict(quantizer.named_parameters())
    monkeypatch.setattr(fused._LSQ, "apply", None)
    vmap(quantizer)(x)
    jvp(quantizer, (x,), (x,))
    grad(lambda p: functional_call(quantizer, p, (x,)).sum())(parameters)
    with torch.autograd.forward_ad.dual_level():
        quantizer(torch.autograd.forward_ad.make_dual(x, x))
    with pytest.raises(TypeError, match="not callable"):
        quantizer(x)


def test_swapped_parameters_are_those_of_the_forward():
    # The backward may run when the module has its own parameter back.
    quantizer, x = lsq(0.3), torch.rand(50)
    other = torch.tensor(0.1, requires_grad=True)
    y = functional_call(quantizer, {"step": other}, (x,))
    (to_other,) = torch.autograd.grad(y.pow(2).sum(), other, create_graph=True)
    twin = lsq(0.1)
    (expected,) = torch.autograd.grad(twin(x).pow(2).sum(), twin.step)
    torch.testing.assert_close(to_other, expected, rtol=1e-4, atol=1e-6)


def test_infinite_values_count_as_clipped_in_the_gradient_of_the_step(taken):
    quantizer = lsq(0.5, bits=3, signed=True)
    x = torch.tensor([torch.inf, -torch.inf, 0.6])
    _, to_x, to_step = gradients(quantizer, x, torch.ones(3), twice=False)
    assert taken == ["_by_hand"]
    assert to_x.tolist() == [0.0, 0.0, 1.0]
    g = (3 * 3) ** -0.5
    torch.testing.assert_close(to_step, torch.tensor((3 - 4 + (1 - 1.2)) * g))


def test_the_graph_can_be_used_twice():
    quantizer, x = lsq(0.3), torch.rand(10, requires_grad=True)
    y = quantizer(x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x)[0])


def test_a_frozen_step_or_a_constant_input_is_allowed():
    quantizer, x = lsq(0.3), torch.rand(10, requires_grad=True)
    quantizer.step.requires_grad_(False)
    quantizer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    quantizer = lsq(0.3)
    quantizer(x.detach()).sum().backward()
    assert quantizer.step.grad.abs() > 0


@pytest.mark.parametrize("twice", [False, True])
def test_hooks_see_each_gradient_once(twice):
    quantizer, x = lsq(0.3), torch.rand(10, requires_grad=True)
    (to_x, to_step) = torch.autograd.grad(quantizer(x).sum(), (x, quantizer.step))
    for tensor in (x, quantizer.step):
        tensor.register_hook(lambda gradient: 10 * gradient)
    hooked = torch.autograd.grad(quantizer(x).sum(), (x, quantizer.step), create_graph=twice)
    torch.testing.assert_close(hooked, (10 * to_x, 10 * to_step))


def test_second_derivatives_use_the_grid_of_the_forward():
    quantizer = affine_lsq(torch.tensor(0.3, dtype=torch.float64), 3, 4.0)
    x = torch.randn(50, dtype=torch.float64)
    other = {
        "step": torch.tensor(0.2, dtype=torch.float64, requires_grad=True),
        "zero_point": torch.zeros((), dtype=torch.float64),
    }
    first, second = (
        torch.autograd.grad(
            functional_call(quantizer, other, (x,)).pow(2).sum(), other["step"], create_graph=twice
        )[0]
        for twice in (False, True)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("make", [lsq, lambda step: affine_lsq(step, 2, 1.0)])
def test_many_upstream_gradients_at_once(make):
    quantizer = make(torch.tensor(0.3, dtype=torch.float64))
    x = torch.randn(6, dtype=torch.float64)

    def loss(x, step):
        return functional_call(quantizer, {"step": step}, (x,)).pow(3).sum()

    step = quantizer.step.detach()
    slow = torch.autograd.functional.hessian(loss, (x, step))
    fast = torch.autograd.functional.hessian(loss, (x, step), vectorize=True)
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b)
    y = quantizer(x.requires_grad_())
    units = torch.eye(6).double()
    (rows,) = torch.autograd.grad(y, x, units, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, x, unit, retain_graph=True)[0] for unit in units]
    assert torch.equal(rows, torch.stack(one_by_one))
    assert 0 < rows.sum() < 6


def test_compiled_transforms_take_the_formulas(monkeypatch):
    # Dynamo cannot trace the shape checks that the test run adds to every function.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    quantizer, x = lsq(torch.tensor(0.3, dtype=torch.float64)), torch.rand(20).double()

    def loss(step):
        return functional_call(quantizer, {"step": step}, (x,)).pow(3).sum()

    step = quantizer.step.detach()
    torch.compiler.reset()
    twice = torch.compile(grad(grad(loss)), backend="aot_eager")
    torch.testing.assert_close(twice(step), grad(grad(loss))(step))
    assert grad(grad(loss))(step).abs() > 1e-2
