"""Consistency with fewer questions, against loops that keep everything in a dictionary."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from qatviz.augment import crop_flip
from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.methods import (
    ConsistencyRegularization,
    CrossEntropy,
    HintonKD,
    Method,
    RememberingConsistency,
    SparingConsistency,
)
from qatviz.methods import sparing as module
from qatviz.quantize import quantize
from qatviz.studies import read_study
from qatviz.studies.parts import make_method
from tests.methods.common import (
    CE,
    FOUR,
    SCHEDULE,
    TEST,
    THREE,
    TRAIN,
    drive,
    fit,
    float_net,
    longer,
    resumed_like_whole,
    same,
    split,
    tiny,
    trained,
)

FIRST = 0.006737946999085467  # e⁻⁵: the ramp at the first step
BATCHES = [(TRAIN.images[k : k + 8], TRAIN.labels[k : k + 8]) for k in (0, 5, 9, 13, 18, 2, 11)]


def prepared(method, data=TRAIN):
    student = tiny()
    method.prepare(student, data)
    method.teacher[5].bias += torch.tensor([0.5, -0.5, 0.0])  # else they agree at first
    return student.train(), torch.optim.SGD(student.parameters(), 0.2)


def terms_of(method, student, images, labels):
    return method.loss(lambda view: student(TRAIN.normalise(view)), images, labels)


def by_the_average(method, images, data=TRAIN):
    """What the teacher would say, without its statistics moving."""
    twin = copy.deepcopy(method.teacher)
    twin._forward_pre_hooks.clear()  # of ``asked``
    with torch.no_grad():
        return twin(data.normalise(images))


def divergence(logits, targets):
    p, q = logits.softmax(1), targets.softmax(1)
    return sum((b * (b / a).log()).sum() for a, b in zip(p, q, strict=True)) / len(p)


def asked(method):
    """A list that grows by the size of each batch that the teacher is run on."""
    sizes = []
    method.teacher.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def watching(kind, seen):
    """A method that writes down the images that it asks its teacher of."""

    class Watching(kind):
        def targets_of(self, images):
            seen.append(images)
            return super().targets_of(images)

    return Watching


def content(image):
    return image.numpy().tobytes()


# Sparing.


@pytest.mark.parametrize(("every", "taken"), [(1, "1111111"), (2, "1010101"), (3, "1001001")])
def test_the_first_step_and_every_kth_after_it_by_hand(every, taken):
    method = SparingConsistency(CrossEntropy(), every, decay=0.5)
    student, optimizer = prepared(method)
    sizes, ramps = asked(method), [FIRST, *[1.0] * 6]  # a step is a seventh of training
    for number, batch in enumerate(BATCHES):
        targets, before = by_the_average(method, batch[0]), len(sizes)
        logits = copy.deepcopy(student)((batch[0] / 255 - 0.45) / 0.25)
        wanted = ramps[number] * divergence(logits, targets) * int(taken[number])
        terms = terms_of(method, copy.deepcopy(student), *batch)
        assert list(terms) == ["cross_entropy", "consistency"]
        assert sizes[before:] == [8] * int(taken[number])
        torch.testing.assert_close(terms["consistency"], wanted, atol=1e-7, rtol=1e-4)
        assert (terms["consistency"] != 0) == (taken[number] == "1")
        drive(student, method, [batch], optimizer, number + 1, len(BATCHES))


@pytest.mark.parametrize(
    ("share", "count"), [(1.0, 8), (1, 8), (0.5, 4), (0.3, 2), (0.7, 6), (0.02, 1)]
)
def test_a_share_is_the_first_images_of_a_batch(share, count):
    method = SparingConsistency(CrossEntropy(), every=1, share=share)
    student, _ = prepared(method)
    images, labels = BATCHES[0]
    sizes, targets = asked(method), by_the_average(method, images[:count])
    logits = copy.deepcopy(student)((images / 255 - 0.45) / 0.25)[:count]
    terms = terms_of(method, student, images, labels)
    assert sizes == [count]
    wanted = FIRST * divergence(logits, targets)
    assert wanted != 0
    torch.testing.assert_close(terms["consistency"], wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("warm_up", [False, True])
def test_of_every_step_and_image_it_is_consistency_to_the_bit(warm_up):
    options = {"decay": 0.7, "warm_up": warm_up}
    plain, run = trained(ConsistencyRegularization(CE(), **options))
    state, other = trained(SparingConsistency(CE(), every=1, share=1.0, **options))
    assert same(state, plain)
    for name, values in run.history.terms.items():
        assert other.history.terms[name].tolist() == values.tolist()
    for less in ({"every": 2}, {"every": 1, "share": 0.5}):
        assert not same(trained(SparingConsistency(CE(), **less, **options))[0], plain)


def test_what_is_left_out_costs_nothing_and_changes_nothing():
    method = SparingConsistency(CrossEntropy(), every=2)
    student, optimizer = prepared(method)
    drive(student, method, BATCHES[:1], optimizer, 1, 7)
    before = copy.deepcopy(method.state_dict())
    gradients = []
    for of in (method, method.method):
        twin = copy.deepcopy(student)
        torch.stack(list(terms_of(of, twin, *BATCHES[1]).values())).sum().backward()
        gradients.append(dict(enumerate(p.grad for p in twin.parameters())))
    assert same(*gradients)
    assert same(method.state_dict(), before)  # statistics of the average, and the generator


def test_the_average_moves_after_every_step():
    method = SparingConsistency(CE(), every=3, decay=0.6)
    student, optimizer = prepared(method)
    wanted = student[0].weight.detach().clone()
    for number, batch in enumerate(BATCHES, 1):
        drive(student, method, [batch], optimizer, number, len(BATCHES))
        wanted = 0.6 * wanted + 0.4 * student[0].weight.detach()
        torch.testing.assert_close(method.teacher[0].weight.detach(), wanted)


def test_steps_are_counted_and_not_their_parts():
    seen = []
    method = watching(SparingConsistency, seen)(CE(), every=3, share=0.5)
    trained(method, schedule=replace(SCHEDULE, accumulate=3))
    # Of 12 steps the first, 4th, 7th and 10th, each in three parts of two images.
    assert [len(images) for images in seen] == [1] * 12


def test_of_labelled_and_unlabelled_images_a_half_are_the_labelled():
    seen = []
    method = watching(SparingConsistency, seen)(CrossEntropy(), every=1, share=0.5)
    fit(tiny(), method, TRAIN, TEST, longer(1), unlabelled=split(40), progress=False)
    ours = {content(image) for image in TRAIN.images}
    assert [len(images) for images in seen] == [6] * 4
    assert {content(image) for images in seen for image in images} <= ours


# Remembering.


def few_times(times):
    few = TRAIN.subset(5)
    images, labels = few.images.repeat(times, 1, 1, 1), few.labels.repeat(times)
    return replace(few, images=images, labels=labels)


def in_floats():
    return Split(TRAIN.images[:24] / 255, TRAIN.labels[:24], TRAIN.mean, TRAIN.std)


def epochs_of(data, count, size):
    """Batches as ``fit`` draws them; what is left over is left out."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        order = torch.randperm(len(data), generator=generator)
        for chosen in order.split(size)[: len(data) // size]:
            yield data.images[chosen], data.labels[chosen]


@pytest.mark.parametrize(
    ("data", "size", "epochs", "runs"),
    [
        (TRAIN.subset(24), 6, 5, [4, 0, 4, 0, 4]),
        (TRAIN, 6, 16, [4, None] * 8),  # two left over, 30 in all: more than an epoch has
        (TRAIN.subset(8), 8, 4, [1, 0, 1, 0]),
        (few_times(4), 6, 6, [3, 0, 3, 0, 3, 0]),  # every image in nearly every batch
        (in_floats(), 6, 4, [4, 0, 4, 0]),
    ],
    ids=["even", "left over", "whole", "repeated", "floats"],
)
def test_targets_are_what_a_dictionary_holds(data, size, epochs, runs):
    method = RememberingConsistency(CrossEntropy(), decay=0.5)
    student, optimizer = prepared(method, data)
    said, sizes, per_epoch = {}, asked(method), []
    steps = len(data) // size
    batches = list(epochs_of(data, epochs, size))
    for step, (images, labels) in enumerate(batches):
        keys = [content(image) for image in images]
        odd, before = step // steps % 2 == 1, len(sizes)
        if odd and all(key in said for key in keys):
            wanted, ran = torch.stack([said[key] for key in keys]), 0
        else:
            wanted, ran = by_the_average(method, images, data), 1
            said |= dict(zip(keys, wanted, strict=True))  # the later of two
        logits = copy.deepcopy(student)(data.normalise(images))
        terms = method.loss(lambda view: student(data.normalise(view)), images, labels)
        assert sizes[before:] == [len(images)] * ran
        ramp = torch.tensor(-5 * (1 - min(1, step / len(batches) / 0.05)) ** 2).exp()
        wanted = ramp * divergence(logits, wanted)
        torch.testing.assert_close(terms["consistency"], wanted, atol=1e-6, rtol=1e-4)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        method.after_step((images, labels), (step + 1) / len(batches))
        per_epoch += [0] if step % steps == 0 else []
        per_epoch[-1] += ran
    for found, number in zip(per_epoch, runs, strict=True):
        assert found < steps if number is None else found == number


def test_in_fit_the_teacher_is_run_in_every_other_epoch():
    runs, seen = [], []
    method = RememberingConsistency(CE())

    def observer(step, _):
        if step == 1:
            seen.append(asked(method))
        runs.append(len(seen[0]))

    data = TRAIN.subset(24)
    _, run = trained(method, schedule=longer(4), observers=[observer], data=data)
    assert runs == [0, 1, 2, 3, *[3] * 4, 4, 5, 6, 7, *[7] * 4]  # not the run before the hook
    assert list(run.history.terms) == ["cross_entropy", "consistency"]
    assert (run.history.terms["consistency"] > 0).all()


def test_until_something_is_remembered_it_is_consistency_to_the_bit():
    plain, _ = trained(ConsistencyRegularization(CE(), decay=0.7), schedule=longer(1))
    state, _ = trained(RememberingConsistency(CE(), decay=0.7), schedule=longer(1))
    assert same(state, plain)
    plain, _ = trained(ConsistencyRegularization(CE(), decay=0.7), schedule=longer(2))
    state, _ = trained(RememberingConsistency(CE(), decay=0.7), schedule=longer(2))
    assert not same(state, plain)


def test_images_that_are_not_in_the_training_split_are_never_known():
    method = RememberingConsistency(CrossEntropy(), decay=0.5)
    student, optimizer = prepared(method)
    others, hidden = split(40).images[:6], torch.full((2,), -1)
    sizes = asked(method)
    drive(student, method, [(others, hidden.repeat(3))] * 13, optimizer, 1, 100)
    assert sizes == [6] * 13  # four batches are an epoch
    assert not method.known.any()
    assert (method.said == 0).all()
    # Beside others of the split, these are remembered and the batch is run all the same.
    mixed = (torch.cat([TRAIN.images[:4], others[:2]]), torch.cat([TRAIN.labels[:4], hidden]))
    drive(student, method, [mixed], optimizer, 14, 100)
    assert sizes == [6] * 14
    assert method.known.sum() == 4
    drive(student, method, [(TRAIN.images[:4], TRAIN.labels[:4])], optimizer, 15, 100)
    assert sizes == [6] * 14  # in the fourth epoch, all of them known
    method.known.fill_(True)
    drive(student, method, [(others, hidden.repeat(3))], optimizer, 16, 100)
    assert sizes == [6] * 15


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_images_are_known_by_their_content(kind, monkeypatch):
    images = split(40).images.to(kind)  # floats from 0 to 255, as good as any
    keys = module._keys(images)
    assert len(keys.unique()) == 40
    changed = images.clone()
    changed[:, 0, 5, 5] = 255 - changed[:, 0, 5, 5]
    assert not torch.isin(module._keys(changed), keys).any()
    assert torch.equal(module._keys(images.to(memory_format=torch.channels_last)), keys)
    assert torch.equal(module._keys(images.repeat_interleave(2, -1)[..., ::2]), keys)
    order = torch.randperm(40)
    assert torch.equal(module._keys(images[order]), keys[order])
    for chunk in (1, 7, 40):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert torch.equal(module._keys(images), keys)


def test_keys_are_sums_of_bytes_times_fixed_numbers():
    images = split(3).images
    generator = torch.Generator()  # its first state is always the same
    factors = torch.randint(-(2**62), 2**62, (36,), generator=generator).tolist()
    for image, key in zip(images, module._keys(images).tolist(), strict=True):
        total = sum(a * b for a, b in zip(image.flatten().tolist(), factors, strict=True))
        assert (total - key) % 2**64 == 0


def test_of_equal_images_in_a_batch_the_later_ones_logits_are_kept():
    method = RememberingConsistency(CrossEntropy(crop_flip))
    prepared(method)
    chosen = torch.tensor([3, 1, 3, 2, 1, 3, 0, 2])
    with method._own_generator(TRAIN.images.device):
        targets = method.targets_of(TRAIN.images[chosen])
    assert not torch.equal(targets[0], targets[5])  # of two views
    method._remembering = True
    found = method.targets_of(TRAIN.images[torch.arange(4)])
    assert torch.equal(found, targets[[6, 4, 7, 5]])


def test_the_global_generator_is_left_alone():
    student, method = tiny().train(), RememberingConsistency(CrossEntropy())
    state = torch.get_rng_state()
    method.prepare(student, TRAIN)
    for batch in BATCHES:
        terms_of(method, student, *batch)
        method.after_step(batch, 0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_run_begins_with_nothing_remembered():
    method = RememberingConsistency(CE(), decay=0.5)
    first, _ = trained(method)
    assert method.known.any()
    second, _ = trained(method)
    assert same(first, second)


def test_memory_is_a_row_of_logits_and_a_number_for_each_different_image():
    method = RememberingConsistency(CrossEntropy())
    prepared(method, few_times(4))
    assert method.said.shape == (5, 3)
    assert method._keys.shape == (5,)


# Both.


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparingConsistency(CrossEntropy(), every=3, share=0.5, decay=0.95, warm_up=True),
        lambda: RememberingConsistency(CrossEntropy(), decay=0.95, warm_up=True),
    ],
)
@pytest.mark.parametrize("cut", [3, 10])
def test_resumed_like_whole(make, cut):
    whole, resumed = resumed_like_whole(make, cut=cut)
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("kind", [SparingConsistency, RememberingConsistency])
def test_a_batch_without_any_label_is_learned_from(kind):
    method = kind(CrossEntropy(), decay=0.5)
    student, optimizer = prepared(method)
    drive(student, method, BATCHES[:2], optimizer, 1, 7)
    images, labels = BATCHES[2]
    terms = terms_of(method, student, images, torch.full_like(labels, -1))
    assert terms["cross_entropy"].item() == 0
    assert terms["consistency"].item() > 0
    terms["consistency"].backward()
    assert student[5].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [SparingConsistency, RememberingConsistency])
def test_they_stand_around_distillation_and_under_bfloat16(kind):
    method = kind(HintonKD(float_net(), crop_flip))
    schedule = replace(SCHEDULE, precision="bf16-mixed")
    state, run = trained(method, schedule=schedule)
    assert list(run.history.terms) == ["cross_entropy", "distillation", "consistency"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("kind", [SparingConsistency, RememberingConsistency])
def test_a_float_student_has_an_average_too(kind):
    state, run = trained(kind(CE()), float_net())
    assert all(value.isfinite().all() for value in state.values())
    assert (run.history.terms["consistency"] >= 0).all()


def test_students_of_other_kinds_are_refused_before_training():
    student = quantize(float_net(), THREE, FOUR)
    calibrate(student, TRAIN.batches(26))
    coloured = replace(
        TRAIN, images=TRAIN.images.repeat(1, 3, 1, 1), mean=(0.4,) * 3, std=(0.2,) * 3
    )
    with pytest.raises(ValueError, match="cannot take images of shape"):
        RememberingConsistency(CE()).prepare(student, coloured)


class NoView(Method):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every": 0}, "every must be a whole number from 1, got 0"),
        ({"every": -2}, "every must be a whole number from 1, got -2"),
        ({"share": 0.0}, "share must be above 0, got 0"),
        ({"share": -0.1}, "share must be from 0 to 1, got -0.1"),
        ({"share": 1.1}, "share must be from 0 to 1, got 1.1"),
        ({"share": float("nan")}, "share must be from 0 to 1, got nan"),
        ({"decay": 1.5}, "decay must be from 0 to 1, got 1.5"),
        ({"method": NoView()}, "NoView has no view"),
    ],
)
def test_what_sparing_refuses(given, said):
    with pytest.raises(ValueError, match=said):
        SparingConsistency(**{"method": CE()} | given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"decay": -0.1}, "decay must be from 0 to 1, got -0.1"),
        ({"method": NoView()}, "NoView has no view"),
    ],
)
def test_what_remembering_refuses(given, said):
    with pytest.raises(ValueError, match=said):
        RememberingConsistency(**{"method": CE()} | given)


def test_a_study_names_them(tmp_path):
    (tmp_path / "study.toml").write_text("""
        [base]
        bits = 2
        [grid.method]
        k = { name = "SparingConsistency", every = 4, share = 0.5, warm_up = true,\
 method = { name = "CrossEntropy", view = "crop_flip" } }
        m = { name = "RememberingConsistency", decay = 0.9, method = "CrossEntropy" }
    """)
    spared, remembered = read_study(tmp_path / "study.toml", tmp_path / "cache")
    inner = partial(CrossEntropy, view=crop_flip)
    wanted = partial(SparingConsistency, every=4, share=0.5, warm_up=True, method=inner)
    assert replace(spared, method=wanted) == spared
    method = make_method(spared.method)
    assert (type(method), method.every, method.share) == (SparingConsistency, 4, 0.5)
    assert method.warm_up
    assert method.teacher_view is crop_flip
    method = make_method(remembered.method)
    assert (type(method), method.decay) == (RememberingConsistency, 0.9)
