import math

import jaxtyping
import pytest
import torch
from torch import nn

from qatviz.quantizers import LSQ, Quantizer
from tests.quantizers.conformance import cases, has_numbers, some_bits


class Halves(Quantizer):
    """The smallest quantizer: one step for everything, learned from the largest magnitude."""

    def __init__(self, bits, **kwargs):
        super().__init__(bits, **kwargs)
        self.step = nn.Parameter(torch.tensor(math.nan))

    def codes(self, x):
        return (x / self.step).round().clamp(self.low, self.high)

    def dequantize(self, codes):
        return codes * self.step

    def init_from(self, x):
        self._begin(x)
        largest = self._rows(x.detach()).abs().amax(1)
        self.step.data = self._per_grid(largest, x) / 2 ** (self.bits - 1)


EVERY = [*cases(), Halves]
every = pytest.mark.parametrize("cls", EVERY)
with_axis = pytest.mark.parametrize("cls", [cls for cls in EVERY if cls.per_channel])
both_signs = pytest.mark.parametrize(
    "cls", [cls for cls in EVERY if cls.bits_allowed(True) and cls.bits_allowed(False)]
)
SIGNS = [(cls, signed) for cls in EVERY for signed in (True, False, None)]
with_sign = pytest.mark.parametrize(
    ("cls", "signed"), [a for a in SIGNS if a[0].bits_allowed(a[1])]
)


# --- Bits


@with_sign
@pytest.mark.parametrize(
    "bits", [0, -1, 15, 32, True, False, 4.0, 2.5, "4", None, math.nan, torch.tensor(4)], ids=repr
)
def test_bits_outside_the_range_are_refused(cls, bits, signed, monkeypatch):
    # As a user meets it: without the type checks that the test run adds.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    allowed = cls.bits_allowed(signed)
    with pytest.raises(ValueError, match=f"{cls.__name__}.*bits") as caught:
        cls(bits, signed=signed)
    assert f"from {allowed.start} to {allowed.stop - 1}" in str(caught.value)
    assert f"got {bits!r}" in str(caught.value)


@with_sign
def test_one_bit_more_than_allowed_is_refused(cls, signed):
    bits = cls.bits_allowed(signed).stop
    with pytest.raises(ValueError, match=f"to {bits - 1}, got {bits}"):
        cls(bits, signed=signed)


@pytest.mark.parametrize(("cls", "signed"), [a for a in SIGNS if not a[0].bits_allowed(a[1])])
def test_a_sign_that_does_not_exist_is_refused(cls, signed):
    kind = "signed" if signed else "unsigned"
    with pytest.raises(ValueError, match=f"{cls.__name__} has no {kind} grid"):
        cls(some_bits(cls, 4), signed=signed)
    # And where the data decide it.
    quantizer = cls(some_bits(cls, 4))
    with pytest.raises(ValueError, match=f"{cls.__name__} has no {kind} grid"):
        quantizer.init_from(torch.tensor([-1.0 if signed else 0.5, 1.0]))
    assert quantizer.signed is None
    assert not quantizer.calibrated


@with_sign
def test_all_bits_that_are_allowed_exist(cls, signed):
    assert 2 in cls.bits_allowed(signed)
    for bits in cls.bits_allowed(signed):
        assert cls(bits, signed=signed).bits == bits


def test_the_base_allows_one_to_eight_bits():
    for signed in (True, False, None):
        assert list(Quantizer.bits_allowed(signed)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"),
    [(1, True, -1, 0), (1, False, 0, 1), (4, True, -8, 7), (4, False, 0, 15), (8, True, -128, 127)],
)
def test_lowest_and_highest_code(bits, signed, low, high):
    quantizer = Halves(bits, signed=signed)
    assert (quantizer.low, quantizer.high) == (low, high)


def test_the_three_things_a_subclass_writes():
    quantizer = Quantizer(4, signed=True)
    x = torch.randn(3)
    for method in (quantizer.codes, quantizer.dequantize, quantizer.init_from, quantizer):
        with pytest.raises(NotImplementedError):
            method(x)


# --- Data for a grid


@every
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5, 5)], ids=str)
def test_an_empty_tensor_has_no_grid(cls, shape):
    quantizer = cls(some_bits(cls, 4))
    with pytest.raises(ValueError, match=f"{cls.__name__}.*empty") as caught:
        quantizer.init_from(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
    assert not quantizer.calibrated


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_counted(cls, bad):
    quantizer = cls(some_bits(cls, 4))
    x = torch.randn(10)
    x[3] = x[7] = bad
    with pytest.raises(ValueError, match=f"{cls.__name__}.* 2 values that are not finite"):
        quantizer.init_from(x)
    assert quantizer.signed is None
    assert not quantizer.calibrated


@with_axis
@pytest.mark.parametrize(("axis", "shape"), [(2, (3, 4)), (-3, (3, 4)), (0, ()), (1, (5,))])
def test_an_axis_that_the_data_lack_is_refused(cls, axis, shape):
    quantizer = cls(some_bits(cls, 4), axis=axis)
    with pytest.raises(ValueError, match=f"{cls.__name__}: axis {axis} ") as caught:
        quantizer.init_from(torch.ones(shape))
    assert str(list(shape)) in str(caught.value)


@with_axis
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_one_grid_per_index_of_the_axis(cls, axis):
    make = cases()[cls].make if cls in cases() else cls
    quantizer = make(some_bits(cls), axis=axis)
    x = torch.randn(2, 3, 5)
    quantizer.init_from(x)
    shape = [n if i == axis % 3 else 1 for i, n in enumerate(x.shape)]
    assert shape in [list(t.shape) for t in (*quantizer.parameters(), *quantizer.buffers())]
    assert quantizer.levels().shape == (x.shape[axis], quantizer.high - quantizer.low + 1)
    # Each index alone gives the grid that it has among the others.
    for i in range(x.shape[axis]):
        alone = make(some_bits(cls), signed=True, axis=None)
        alone.init_from(x.select(axis, i))
        torch.testing.assert_close(alone.levels(), quantizer.levels()[i], rtol=1e-6, atol=1e-7)


@both_signs
@pytest.mark.parametrize(
    ("data", "signed"),
    [([0.0, 1.0], False), ([-1e-30, 1.0], True), ([-2.0, -1.0], True), ([0.0, 0.0], False)],
)
def test_the_data_decide_the_sign(cls, data, signed):
    quantizer = cls(some_bits(cls, 4))
    assert quantizer.signed is None
    quantizer.init_from(torch.tensor(data))
    assert quantizer.signed is signed


@both_signs
def test_new_data_decide_the_sign_anew(cls):
    quantizer = cls(some_bits(cls, 4))
    for data, signed in (([0.5, 1.0], False), ([-1.0, 1.0], True), ([0.5, 1.0], False)):
        quantizer.init_from(torch.tensor(data))
        assert quantizer.signed is signed


@pytest.mark.parametrize(
    ("cls", "signed"), [a for a in SIGNS if a[0].bits_allowed(a[1]) and a[1] is not None]
)
def test_a_sign_that_was_given_stays(cls, signed):
    quantizer = cls(some_bits(cls, 4), signed=signed)
    quantizer.init_from(torch.tensor([-1.0, 0.5, 1.0]))
    assert quantizer.signed is signed
    quantizer.init_from(torch.tensor([0.5, 1.0]))
    assert quantizer.signed is signed


@every
def test_a_refused_grid_leaves_the_old_one(cls):
    quantizer = cls(some_bits(cls, 4))
    quantizer.init_from(torch.rand(20) - 0.5 * (not cls.bits_allowed(False)))
    before = repr(quantizer)
    for bad in (torch.zeros(0), torch.tensor([math.nan, -1.0])):
        with pytest.raises(ValueError, match=cls.__name__):
            quantizer.init_from(bad)
    assert repr(quantizer) == before


@pytest.mark.parametrize("cls", [cls for cls in EVERY if not cls.per_channel])
def test_an_axis_is_refused_where_the_paper_has_one_grid(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} has one grid.*axis must be None, got 0"):
        cls(some_bits(cls, 4), axis=0)


# --- State


@pytest.mark.parametrize(("signed", "number"), [(None, -1), (False, 0), (True, 1)])
def test_the_extra_state_is_bits_and_sign(signed, number):
    state = Halves(5, signed=signed).get_extra_state()
    assert state.dtype == torch.int64
    assert state.tolist() == [5, number]
    other = Halves(5)
    other.signed = None if signed is None else not signed
    other.set_extra_state(state)
    assert other.signed is signed


def test_a_state_of_other_bits_is_refused_by_name():
    quantizer = Halves(5)
    with pytest.raises(ValueError, match=r"Halves.* 4 bits.* has 5"):
        quantizer.set_extra_state(torch.tensor([4, 1]))
    assert (quantizer.bits, quantizer.signed) == (5, None)


@with_axis
def test_a_grid_that_is_chosen_keeps_its_shape(cls):
    one, other = cls(some_bits(cls, 4), axis=0), cls(some_bits(cls, 4), axis=0)
    one.init_from(torch.randn(3, 5))
    other.init_from(torch.randn(4, 5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(one.state_dict())


@with_axis
def test_a_grid_broken_by_training_is_not_calibrated(cls):
    quantizer = cls(some_bits(cls, 4), axis=0)
    quantizer.init_from(torch.randn(3, 5))
    assert quantizer.calibrated
    name, tensor = next(iter((*quantizer.named_parameters(), *quantizer.named_buffers())))
    tensor.data[1] = math.inf
    assert not quantizer.calibrated
    assert f"{name}=not calibrated" in repr(quantizer)


# --- Levels and words


def test_levels_lowest_code_first():
    quantizer = Halves(2)
    quantizer.init_from(torch.tensor([-3.0, 1.0]))
    assert quantizer.levels().tolist() == [-3.0, -1.5, 0.0, 1.5]
    assert not quantizer.levels().requires_grad


@pytest.mark.parametrize(
    ("cls", "axis"),
    [
        (cls, axis)
        for cls in EVERY
        if cls is Halves or has_numbers(cls)
        for axis in (None, 0, 1)[: 1 + 2 * cls.per_channel]
    ],
)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_levels_have_the_type_of_the_grid_and_at_least_float32(cls, axis, dtype, expected):
    quantizer = cls(some_bits(cls, 3), axis=axis)
    quantizer.init_from(torch.rand(3, 5) - 0.5 * (not cls.bits_allowed(False)))
    assert quantizer.to(dtype).levels().dtype == expected


def test_the_repr_word_for_word():
    quantizer = Halves(2, axis=0)
    assert repr(quantizer) == "Halves(bits=2, signed=undecided, axis=0, step=not calibrated)"
    quantizer.init_from(torch.tensor([[-0.25], [1.0]]))
    assert repr(quantizer) == "Halves(bits=2, signed=True, axis=0, step=0.125..0.5)"
    quantizer = Halves(3, signed=False)
    quantizer.init_from(torch.tensor([4 / 3]))
    assert repr(quantizer) == "Halves(bits=3, signed=False, step=0.3333)"


def test_the_table_word_for_word():
    quantizer = Halves(3, signed=False)
    assert quantizer._repr_html_() == (
        "<table><caption>Halves</caption>"
        "<tr><th>bits</th><td>3</td></tr>"
        "<tr><th>signed</th><td>False</td></tr>"
        "<tr><th>step</th><td>not calibrated</td></tr></table>"
    )


@pytest.mark.parametrize("axis", [None, 0])
def test_levels_of_a_grid_not_yet_chosen_are_refused(axis):
    with pytest.raises(ValueError, match="LSQ: not calibrated"):
        LSQ(2, axis=axis).levels()


def test_a_state_of_the_sign_that_was_not_asked_for_is_refused():
    unsigned = LSQ(3)
    unsigned.init_from(torch.rand(10))
    wanted = LSQ(3, signed=True)
    with pytest.raises(ValueError, match=r"LSQ: .* an unsigned grid.* signed=True"):
        wanted.load_state_dict(unsigned.state_dict())
    assert wanted.signed is True


def test_a_single_number_has_no_batch():
    quantizer = LSQ(3)
    quantizer.init_from(torch.rand(10))
    quantizer.batched = True
    assert quantizer(torch.tensor(0.3)).shape == ()
