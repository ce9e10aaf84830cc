import copy
import io
import pickle
import re

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from qatviz.quantize import check_ready
from tests.quantizers.conformance import (
    SHAPE,
    by_grid,
    cases,
    configs,
    fresh,
    has_numbers,
    init_larger,
    quantizer_classes,
    ready,
    rows,
    sample,
    some_bits,
    state_of,
    with_landmarks,
)


def classes(having):
    """The classes of which ``having(class, case)`` is true."""
    return [cls for cls, case in cases().items() if having(cls, case)]


def every(having=lambda cls, case: True, **limits):
    """One test per class and grid; ``limits`` narrows the grids where a test is slow."""
    grids = [(cls, config) for cls in classes(having) for config in configs(cls, **limits)]
    names = [f"{cls.__name__}-{config}" for cls, config in grids]
    return pytest.mark.parametrize(("cls", "config"), grids, ids=names)


ANY_SHAPE = classes(lambda cls, case: not case.one_shape)


def tensors_of(quantizer):
    return dict((*quantizer.named_parameters(), *quantizer.named_buffers()))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_quantizer_has_a_case():
    assert {cls.__name__ for cls in quantizer_classes()} == {cls.__name__ for cls in cases()}


def test_the_grids_of_a_class_are_what_it_allows():
    for cls in cases():
        tried = {(config.bits, config.signed) for config in configs(cls)}
        assert tried == {
            (b, s) for b in (1, 2, 4, 8) for s in (True, False) if b in cls.bits_allowed(s)
        }
        assert tried


# --- Values


@every()
def test_outputs_are_levels_and_at_most_two_to_the_bits(cls, config):
    quantizer, x = ready(cls, config)
    levels = quantizer.levels()
    count = cases()[cls].levels(config.bits, config.signed)
    assert levels.shape == (*([] if config.axis is None else [SHAPE[config.axis]]), count)
    assert (levels.diff(dim=-1) > 0).all()
    y, levels = quantizer(x), levels * cases()[cls].scale(x, config)
    for values, allowed in zip(rows(y, config), by_grid(levels, config), strict=True):
        assert torch.isin(values, allowed).all()
        assert len(values.unique()) <= 2**config.bits
    assert len(y.unique()) >= 2


@every()
def test_codes_are_integers_between_low_and_high(cls, config):
    quantizer, x = ready(cls, config)
    if cases()[cls].one_shape:
        x[:, :, ::2] *= 100
    else:
        x = torch.cat([x, 100 * x], dim=3)
    codes = quantizer.codes(x)
    assert torch.equal(codes, codes.round())
    assert quantizer.low <= codes.min() <= quantizer.low + cases()[cls].unreached
    assert codes.max() == quantizer.high
    assert quantizer.high - quantizer.low + 1 == cases()[cls].levels(config.bits, config.signed)
    assert torch.equal(quantizer.dequantize(codes) * cases()[cls].scale(x, config), quantizer(x))


@every(having=lambda cls, case: case.idempotent)
def test_quantizing_twice_is_quantizing_once(cls, config):
    quantizer, x = ready(cls, config)
    once = quantizer(x)
    assert torch.equal(quantizer(once), once)


@every(having=lambda cls, case: not case.one_shape)
def test_monotone_and_every_level_is_reached(cls, config):
    quantizer, _ = ready(cls, config)
    levels = quantizer.levels()
    reach = (1.1 if cases()[cls].idempotent else 5) * levels.abs().max()
    ramp = torch.linspace(-reach, reach, 20_001).expand(SHAPE[0], SHAPE[1], 1, -1)
    if config.axis is None:
        ramp = ramp[:1, :1]
    y, levels = quantizer(ramp), levels * cases()[cls].scale(ramp, config)
    assert (y.diff(dim=-1) >= 0).all()
    for values, allowed in zip(rows(y, config), by_grid(levels, config), strict=True):
        assert torch.isin(values, allowed).all()
        assert torch.isin(allowed[cases()[cls].unreached :], values).all()


@every(bits=(2,))
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_shape_type_and_memory_format_are_kept(cls, config, dtype, layout):
    quantizer, x = ready(cls, config)
    x = x.to(dtype).contiguous(memory_format=layout)
    before = x.clone()
    y = quantizer(x)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    assert torch.equal(x, before)


@every(bits=(2,))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_float64_grid_gives_back_the_type_of_its_input(cls, config, dtype):
    quantizer, x = ready(cls, config)
    assert quantizer.double()(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("cls", ANY_SHAPE)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (0, 5), (2, 0), (1, 1), (2, 3, 4, 5, 6)], ids=str)
def test_any_shape_passes_a_grid_for_the_whole_tensor(cls, batched, shape):
    quantizer = cases()[cls].make(some_bits(cls, 3))
    quantizer.init_from(torch.randn(100) if cls.bits_allowed(True) else torch.rand(100))
    quantizer.batched = batched
    x = torch.randn(shape, requires_grad=True)
    y = quantizer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())


@pytest.mark.parametrize("cls", ANY_SHAPE)
def test_a_single_number_passes(cls):
    quantizer = cases()[cls].make(some_bits(cls, 3))
    quantizer.init_from(torch.randn(100) if cls.bits_allowed(True) else torch.rand(100))
    y = quantizer.train(not cases()[cls].evaluates)(torch.tensor(0.4))
    assert y.shape == ()
    assert y in quantizer.levels()


@every(bits=(4, 8))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_get_the_codes_of_float32(cls, config, dtype):
    quantizer, _ = ready(cls, config)
    x = (2 * sample(config, seed=2)).to(dtype)
    assert torch.equal(quantizer(x), quantizer(x.float()).to(dtype))


@every(having=lambda cls, case: case.idempotent, bits=(8,))
def test_float64_is_computed_in_float64(cls, config):
    # A relative nudge of 1e-12 across a tie moves a float64 number to the next level,
    # and is invisible to float32.
    quantizer, _ = ready(cls, config, torch.float64)
    low, high = quantizer.levels()[..., 100], quantizer.levels()[..., 101]
    shape = [1] * 4
    if config.axis is not None:
        shape[config.axis] = -1
    tie = ((low + high) / 2).reshape(shape).expand(SHAPE)
    nudge = 1e-12 * (high - low).reshape(shape)
    assert tie.dtype == torch.float64
    assert torch.equal(quantizer(tie - nudge), low.reshape(shape).expand(SHAPE))
    assert torch.equal(quantizer(tie + nudge), high.reshape(shape).expand(SHAPE))


# --- Gradients


@every()
def test_value_and_gradient_equal_the_literal_oracle(cls, config):
    quantizer, x = ready(cls, config, torch.float64)
    x = with_landmarks(quantizer, x, config).requires_grad_()
    upstream = torch.randn_like(x)
    y = quantizer(x)
    (upstream * y).sum().backward()
    value, grad_x, grads = cases()[cls].oracle(
        state_of(quantizer), x.detach().numpy(), upstream.numpy(), config
    )
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, rtol=1e-12, atol=1e-13)
    own = dict(quantizer.named_parameters())
    assert own.keys() == grads.keys()
    for name, parameter in own.items():
        np.testing.assert_allclose(parameter.grad.numpy(), grads[name], rtol=1e-10, atol=1e-12)


def small(cls, config):
    """A grid and twelve numbers, of which some are clipped, for a Hessian of everything."""
    quantizer, x = ready(cls, config, torch.float64)
    x = x[:, :, :1, :1].clone()
    # Some inside the grid of every channel, whatever its sign.
    x[::2] = 0.3 * x[::2].abs()
    x[3, 0] = 10
    if cases()[cls].one_shape:
        quantizer.init_from(sample(config)[:, :, :1, :1].double())
    return quantizer, x


def smooth(y):
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
    return (weights * (y + 0.1 * y.sum()).cos()).sum()


@every(bits=(1, 2, 4))
def test_the_hessian_is_symmetric_unless_declared(cls, config):
    quantizer, x = small(cls, config)
    names, parameters = zip(("", x), *quantizer.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def loss(vector):
        parts = [
            part.reshape(p.shape) for part, p in zip(vector.split(sizes), parameters, strict=True)
        ]
        own = dict(zip(names[1:], parts[1:], strict=True))
        return smooth(functional_call(quantizer, own, (parts[0],)))

    vector = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(loss, vector, strict=False)
    assert hessian.isfinite().all()
    assert hessian.abs().max() > 1e-3
    for block in hessian.split(sizes)[not cases()[cls].trains_input :]:
        assert block.abs().max() > 0
    asymmetry = (hessian - hessian.T).abs().max() / hessian.abs().max()
    assert (asymmetry < 1e-12) == cls.symmetric_hessian


@every(having=lambda cls, case: cls.symmetric_hessian and case.trains_input, bits=(2,))
def test_gradients_of_gradients_reach_the_upstream_gradient(cls, config):
    # d/du of the gradient (∂x̂/∂x)ᵀu is ∂x̂/∂x again: the forward-mode product.
    quantizer, x = small(cls, config)
    x.requires_grad_()
    upstream = torch.randn_like(x, requires_grad=True)
    (first,) = torch.autograd.grad(quantizer(x), x, upstream, create_graph=True)
    direction = torch.randn_like(x)
    (second,) = torch.autograd.grad(first, upstream, direction)
    _, tangent = jvp(quantizer, (x.detach(),), (direction,))
    torch.testing.assert_close(second, tangent, rtol=1e-12, atol=1e-14)


# --- Copies


@every(bits=(2, 8))
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"]
)
def test_a_copy_made_after_a_forward_is_equal_and_independent(cls, config, copied):
    quantizer, x = ready(cls, config)
    y = quantizer(x.requires_grad_())
    y.sum().backward()
    twin = copied(quantizer)
    assert same_state(twin, quantizer)
    assert torch.equal(twin(x), y)
    assert (twin.bits, twin.signed, twin.axis, twin.batched) == (
        *(config.bits, config.signed, config.axis),
        config.batched,
    )
    with torch.no_grad():
        for tensor in tensors_of(twin).values():
            tensor.mul_(3).add_(1)
    assert torch.equal(quantizer(x), y)


@every(having=lambda cls, case: has_numbers(cls), bits=(2, 4))
def test_a_moving_average_by_name_is_a_quantizer(cls, config):
    first, x = ready(cls, config)
    second, teacher = fresh(cls, config), copy.deepcopy(first)
    init_larger(second, config, 2)
    mine, theirs = tensors_of(teacher), tensors_of(second)
    assert mine.keys() == theirs.keys()
    with torch.no_grad():
        for name in mine:
            mine[name].lerp_(theirs[name], 0.25)
    for name, tensor in tensors_of(first).items():
        expected = 0.75 * tensor.detach().numpy() + 0.25 * theirs[name].detach().numpy()
        np.testing.assert_allclose(mine[name].detach().numpy(), expected, rtol=1e-6)
    assert any(not torch.equal(t, tensors_of(first)[n]) for n, t in mine.items())
    y, levels = teacher(x), teacher.levels()
    for values, allowed in zip(rows(y, config), by_grid(levels, config), strict=True):
        assert torch.isin(values, allowed).all()
    assert not torch.equal(y, first(x))


# --- Saving and loading


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every(bits=(2, 8))
@pytest.mark.parametrize(
    "stored",
    [dict, through_torch, lambda state: safetensors_load(safetensors_save(state))],
    ids=["memory", "torch", "safetensors"],
)
def test_a_state_loads_strictly_into_a_quantizer_that_saw_no_data(cls, config, stored):
    quantizer, x = ready(cls, config)
    other = fresh(cls, config)
    identities = [id(p) for p in other.parameters()]
    assert not other.calibrated
    other.load_state_dict(stored(quantizer.state_dict()), strict=True)
    assert other.calibrated
    assert other.signed is config.signed
    assert same_state(other, quantizer)
    assert torch.equal(other(x), quantizer(x))
    assert [id(p) for p in other.parameters()] == identities


@every(bits=(2,))
def test_a_state_inside_a_model_loads_strictly(cls, config):
    quantizer, x = ready(cls, config)
    model = torch.nn.Sequential(torch.nn.Identity(), quantizer)
    other = torch.nn.Sequential(torch.nn.Identity(), fresh(cls, config))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))


@every(bits=(2,))
def test_an_uncalibrated_state_loads_too(cls, config):
    quantizer, other = fresh(cls, config), fresh(cls, config)
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert other.signed is None
    assert not other.calibrated


@every(bits=(2,))
def test_a_missing_or_unknown_entry_is_an_error(cls, config):
    state = ready(cls, config)[0].state_dict()
    assert len(state) >= 1 + has_numbers(cls)
    for missing in state:
        partial_state = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
            fresh(cls, config).load_state_dict(partial_state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fresh(cls, config).load_state_dict({**state, "typo": torch.zeros(())})


@every(bits=(4,))
def test_a_state_of_other_bits_is_a_value_error(cls, config):
    state = ready(cls, config)[0].state_dict()
    other = cases()[cls].make(3, axis=config.axis)
    with pytest.raises(ValueError, match=r"4 bits.*has 3"):
        other.load_state_dict(state)


# --- torch.func and torch.compile


def scaled_parameters(quantizer, factor):
    return {name: (factor * p).detach() for name, p in quantizer.named_parameters()}


@every(bits=(2,))
def test_functional_call_and_grad(cls, config):
    quantizer, x = ready(cls, config, torch.float64)
    own = scaled_parameters(quantizer, 1.3)
    changed = copy.deepcopy(quantizer)
    changed.load_state_dict({**quantizer.state_dict(), **own})
    assert torch.equal(functional_call(quantizer, own, (x,)), changed(x))

    def loss(own, x):
        return functional_call(quantizer, own, (x,)).pow(3).sum()

    own_grad, x_grad = grad(loss, argnums=(0, 1))(own, x)
    x.requires_grad_()
    changed(x).pow(3).sum().backward()
    torch.testing.assert_close(x_grad, x.grad, rtol=1e-12, atol=0)
    for name, parameter in changed.named_parameters():
        torch.testing.assert_close(own_grad[name], parameter.grad, rtol=1e-12, atol=1e-14)


@every(bits=(2,))
def test_vmap_over_inputs_and_over_their_gradients(cls, config):
    quantizer, x = ready(cls, config, torch.float64)
    stack = torch.stack([x, -x, 0.3 * x])
    assert torch.equal(vmap(quantizer)(stack), torch.stack([quantizer(x) for x in stack]))

    def loss(own, x):
        return functional_call(quantizer, own, (x,)).pow(3).sum()

    own = scaled_parameters(quantizer, 1.0)
    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(own, stack)
    for i, one in enumerate(stack):
        own_grad, x_grad = grad(loss, argnums=(0, 1))(own, one)
        torch.testing.assert_close(mapped[1][i], x_grad, rtol=1e-12, atol=0)
        for name in own:
            torch.testing.assert_close(mapped[0][name][i], own_grad[name], rtol=1e-10, atol=1e-12)


@every(having=lambda cls, case: has_numbers(cls), bits=(2,))
def test_vmap_over_stacked_quantizers(cls, config):
    several = [fresh(cls, config) for _ in range(3)]
    for factor, quantizer in zip((0.5, 1.0, 2.0), several, strict=True):
        init_larger(quantizer, config, factor)
    parameters, buffers = stack_module_state(several)
    x = 1.5 * sample(config, seed=1)

    def one(parameters, buffers, x):
        return functional_call(several[0], (parameters, buffers), (x,))

    mapped = vmap(one, in_dims=(0, 0, None))(parameters, buffers, x)
    assert torch.equal(mapped, torch.stack([quantizer(x) for quantizer in several]))
    assert not torch.equal(mapped[0], mapped[2])


@every(having=lambda cls, case: cls.symmetric_hessian, bits=(2,))
def test_jvp_is_the_transpose_of_vjp(cls, config):
    quantizer, x = ready(cls, config, torch.float64)
    own = scaled_parameters(quantizer, 1.0)
    d_x, upstream = torch.randn_like(x), torch.randn_like(x)
    d_own = {name: torch.randn_like(p) for name, p in own.items()}

    def call(own, x):
        return functional_call(quantizer, own, (x,))

    value, tangent = jvp(call, (own, x), (d_own, d_x))
    assert torch.equal(value, quantizer(x))
    own_grad, x_grad = grad(lambda *a: (upstream * call(*a)).sum(), argnums=(0, 1))(own, x)
    forward = (upstream * tangent).sum()
    backward = (x_grad * d_x).sum() + sum((own_grad[n] * d_own[n]).sum() for n in own)
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-12)
    assert forward.abs() > 1e-3


@every(bits=(2,))
def test_compiles_whole_with_the_same_values_and_gradients(cls, config, monkeypatch):
    # Dynamo cannot trace the shape checks that the test run adds to every function.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    quantizer, x = ready(cls, config)
    twin, a, b = copy.deepcopy(quantizer), x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    expected, got = quantizer(a), compiled(b)
    expected.pow(3).sum().backward()
    got.pow(3).sum().backward()
    assert torch.equal(got, expected)
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=0)
    for p, q in zip(quantizer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)


# --- What it says of itself


@every(bits=(2,))
def test_calibrated_only_after_data(cls, config):
    quantizer = fresh(cls, config)
    before = {name: id(p) for name, p in quantizer.named_parameters()}
    assert quantizer.calibrated is False
    with pytest.raises(ValueError, match=f"{cls.__name__}: not calibrated"):
        quantizer(sample(config))
    x = sample(config)
    x_before = x.clone()
    quantizer.init_from(x.requires_grad_())
    assert quantizer.calibrated is True
    assert torch.equal(x, x_before)
    assert {name: id(p) for name, p in quantizer.named_parameters()} == before
    assert all(p.requires_grad and p.is_leaf for p in quantizer.parameters())
    assert not any(b.requires_grad for b in quantizer.buffers())
    assert quantizer.signed is config.signed


@every()
def test_the_repr_is_stable(cls, config):
    before = repr(fresh(cls, config))
    assert before.startswith(f"{cls.__name__}(bits={config.bits}, signed=undecided")
    assert ("not calibrated" in before) == has_numbers(cls)
    quantizer, x = ready(cls, config)
    text = repr(quantizer)
    assert text == repr(ready(cls, config)[0])
    quantizer(x)
    assert text == repr(quantizer)
    assert f"signed={config.signed}" in text
    assert ("axis=" in text) == (config.axis is not None)
    for name in tensors_of(quantizer):
        assert f"{name}=" in text
    for shown in (before, text):
        assert "0x" not in shown
        assert " at " not in shown
        assert "\n" not in shown
        assert not re.search(r"=-0(?:,|\)|\.\.)", shown), "minus zero"


@every(bits=(2,))
def test_the_table_says_what_the_repr_says(cls, config):
    for quantizer in (fresh(cls, config), ready(cls, config)[0]):
        html = quantizer._repr_html_()
        pairs = re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", html)
        assert ", ".join(f"{name}={value}" for name, value in pairs) == quantizer.extra_repr()
        assert html.startswith("<table>")
        assert html.endswith("</table>")
        assert f"<caption>{cls.__name__}</caption>" in html


# --- At the edges (documented in Quantizer)


@every(bits=(2, 8))
def test_an_infinite_value_is_clipped_like_a_large_one(cls, config):
    quantizer, x = ready(cls, config)
    large, infinite = x.clone(), x.clone()
    for tensor, value in ((large, 1e30), (infinite, torch.inf)):
        tensor[:, :, 0], tensor[:, :, 1] = value, -value
    assert quantizer(infinite).isfinite().all()
    assert torch.equal(quantizer(infinite), quantizer(large))


@every(bits=(2, 8))
def test_an_infinite_value_has_no_gradient_and_spoils_no_other(cls, config):
    quantizer, x = ready(cls, config)
    x[:, :, 0], x[:, :, 1] = torch.inf, -torch.inf
    x.requires_grad_()
    quantizer(x).pow(2).sum().backward()
    assert (x.grad[:, :, :2] == 0).all()
    assert x.grad.isfinite().all()


@every(bits=(2, 8))
def test_not_a_number_stays_not_a_number(cls, config):
    quantizer, x = ready(cls, config)
    x[0, 0, 0, 0] = torch.nan
    assert quantizer(x)[0, 0, 0, 0].isnan()


@every(bits=(2, 8))
def test_a_denormal_number_is_rounded_like_the_number_next_to_zero(cls, config):
    quantizer, x = ready(cls, config)
    tiny, small = x.clone(), x.clone()
    for tensor, value in ((tiny, 1e-40), (small, 1e-30)):
        tensor[:, :, 0], tensor[:, :, 1] = value, -value
    assert torch.equal(quantizer(tiny), quantizer(small))


@every(bits=(2, 8))
@pytest.mark.parametrize("value", [0.0, 1e-40, 0.5, -0.5])
def test_data_without_a_range_give_a_grid(cls, config, value):
    value = value if config.signed else abs(value)
    quantizer = fresh(cls, config)
    quantizer.signed, quantizer._decides_sign = config.signed, False
    x = torch.full(SHAPE, value)
    quantizer.init_from(x)
    assert quantizer.calibrated
    assert quantizer(x).isfinite().all()
    if cases()[cls].idempotent:
        assert quantizer(torch.zeros(SHAPE)).abs().max() <= 0.51 * max(abs(value), 1e-6)


@every(bits=(2, 8))
@pytest.mark.parametrize("value", [0.0, -1e-3, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_parameter_at_zero_or_below_still_rounds_and_learns(cls, config, value, dtype):
    quantizer, x = ready(cls, config)
    quantizer.to(dtype)
    x[0, 0, :2] = 0
    for name, parameter in quantizer.named_parameters():
        twin = copy.deepcopy(quantizer)
        moved = dict(twin.named_parameters())[name]
        moved.data = torch.full_like(parameter, value)
        y = twin(x)
        y.pow(2).sum().backward()
        assert y.isfinite().all(), name
        assert moved.grad is None or moved.grad.isfinite().all(), name


@every(bits=(2,))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_of_its_own_that_is_not_finite_is_found_by_name(cls, config, value):
    model = torch.nn.ModuleDict({"first": ready(cls, config)[0], "second": ready(cls, config)[0]})
    check_ready(model)
    for tensor in tensors_of(model["second"]).values():
        before = tensor.detach().clone()
        tensor.data.view(-1)[0] = value
        with pytest.raises(ValueError, match=r"not finite.*: second;"):
            check_ready(model)
        tensor.data.copy_(before)
    check_ready(model)
