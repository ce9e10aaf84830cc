import copy
from functools import partial

import pytest
import torch
from torch import nn

from qatviz.quantizers import EWGS, LSQ, Affine, LSQPlus
from qatviz.teachers import ema_update, frozen_copy, warmed_up
from tests.methods.common import same, tiny


def moved(student, seed=1):
    """The same student with other numbers everywhere."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(student)
    for tensor in (*other.parameters(), *other.buffers()):
        if tensor.is_floating_point():
            tensor.data += torch.rand(tensor.shape, generator=generator)
        else:
            tensor += 3
    return other


def test_a_frozen_copy_is_the_model_and_learns_nothing():
    student = tiny().train()
    student(torch.randn(2, 1, 6, 6)).sum().backward()
    before = copy.deepcopy(student.state_dict())
    teacher = frozen_copy(student)
    assert same(teacher.state_dict(), before)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(m.training for m in student.modules())
    assert all(p.requires_grad for p in student.parameters())
    ours = {t.data_ptr() for t in student.state_dict().values()}
    assert not ours & {t.data_ptr() for t in teacher.state_dict().values() if t.numel()}


@pytest.mark.parametrize("weights", [LSQ, LSQPlus, EWGS, Affine])
def test_everything_is_averaged_number_by_number(weights):
    student = tiny(partial(weights, bits=3))
    teacher = frozen_copy(moved(student))
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, student, 0.75)
    own = student.state_dict()
    kinds = set()
    for key, value in teacher.state_dict().items():
        if key.endswith("_extra_state"):
            continue
        kinds.add((value.is_floating_point(), "quantizer" in key, "running" in key))
        if value.is_floating_point():
            pairs = zip(before[key].flatten().tolist(), own[key].flatten().tolist(), strict=True)
            wanted = [0.75 * t + 0.25 * s for t, s in pairs]
            assert value.flatten().tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-7), key
        else:
            assert torch.equal(value, own[key])
            assert not torch.equal(value, before[key])
    # Weights, quantizers, running statistics, and the counter of batches.
    assert len(kinds) == 4


def test_decay_zero_is_the_student_to_the_bit():
    student = tiny()
    teacher = frozen_copy(moved(student))
    for seed in range(3):
        student = moved(student, seed)
        ema_update(teacher, student, 0.0)
        assert same(teacher.state_dict(), student.state_dict())


def test_decay_one_never_moves():
    student = tiny()
    teacher = frozen_copy(moved(student))
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, student, 1.0)
    assert same(teacher.state_dict(), before)


def test_the_student_stays_as_it_is():
    student = tiny()
    teacher, before = frozen_copy(moved(student)), copy.deepcopy(student.state_dict())
    ema_update(teacher, student, 0.5)
    assert same(student.state_dict(), before)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_equal_numbers_stay_equal():
    # A zero point that is fixed stays a whole number, whatever the decay.
    student = tiny(partial(Affine, bits=3))
    teacher = frozen_copy(student)
    for _ in range(5):
        ema_update(teacher, student, 0.9)
    assert same(teacher.state_dict(), student.state_dict())


def test_several_types_in_one_model():
    student = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).half()])
    teacher = frozen_copy(moved(student))
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, student, 0.5)
    for key, value in teacher.state_dict().items():
        wanted = (before[key].double() + student.state_dict()[key].double()) / 2
        assert value.dtype == before[key].dtype
        torch.testing.assert_close(value.double(), wanted, rtol=2e-3, atol=2e-3)


def test_buffers_that_are_not_saved_are_averaged_too():
    student = nn.Identity()
    student.register_buffer("hidden", torch.tensor(3.0), persistent=False)
    teacher = frozen_copy(student)
    student.hidden.fill_(5.0)
    ema_update(teacher, student, 0.5)
    assert teacher.hidden.item() == 4


def test_a_model_without_numbers():
    ema_update(nn.Flatten(), nn.Flatten(), 0.5)


@pytest.mark.parametrize(
    ("decay", "step", "wanted"),
    [
        (0.9, 1, 1 / 2),
        (0.9, 2, 2 / 3),
        (0.9, 8, 8 / 9),
        (0.9, 9, 0.9),
        (0.9, 10, 0.9),
        (0.9, 10**6, 0.9),
        (0.3, 1, 0.3),
        (0.0, 1, 0.0),
        (1.0, 99, 0.99),
    ],
)
def test_a_decay_is_warmed_up(decay, step, wanted):
    assert warmed_up(decay, step) == pytest.approx(wanted, rel=1e-12)


def test_while_it_warms_up_the_average_is_the_mean_of_what_was_there():
    # α = 0.8: the window is full at the fourth step.
    values = [3.0, -1.0, 4.0, 1.0, 5.0, 9.0]
    student = nn.Identity()
    student.register_buffer("number", torch.tensor(values[0], dtype=torch.float64))
    teacher, found = frozen_copy(student), []
    for step, value in enumerate(values[1:], 1):
        student.number.fill_(value)
        ema_update(teacher, student, warmed_up(0.8, step))
        found.append(teacher.number.item())
    # (3 − 1)/2, (3 − 1 + 4)/3, (3 − 1 + 4 + 1)/4, and the mean of five; then 0.8 of it.
    assert found == pytest.approx([1.0, 2.0, 1.75, 2.4, 0.8 * 2.4 + 0.2 * 9], rel=1e-12)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_another_model_is_refused(decay):
    with pytest.raises(ValueError, match=r"only one has 5\.bias; .*only one has 5\.weight;"):
        ema_update(frozen_copy(tiny())[:5], tiny(), decay)
    wider = tiny()
    wider[5].weight.data = torch.zeros(4, 16)
    with pytest.raises(ValueError, match=r"5\.weight has shape \[3, 16\], .* \[4, 16\]"):
        ema_update(frozen_copy(tiny()), wider, decay)
