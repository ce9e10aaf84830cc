"""Cross-entropy of mixtures, against sums over images."""

import math
from functools import partial

import pytest
import torch

from qatviz.augment import crop_flip, cutmix, flip, mixup, unchanged
from qatviz.methods import ConsistencyRegularization, MixedCrossEntropy, TwoViews
from qatviz.methods.base import labelled_cross_entropy
from qatviz.studies import read_study
from qatviz.studies.parts import make_method
from tests.methods.common import (
    CE,
    TRAIN,
    drive,
    float_net,
    resumed_like_whole,
    same,
    trained,
)

IMAGES, LABELS = TRAIN.images[:7], TRAIN.labels[:7]  # of which the first and the sixth have none
PARTNER = torch.tensor([3, 0, 5, 3, 2, 0, 1])
SHARE = torch.tensor([0.25, 0.9, 0.5, 0.7, 1.0, 0.4, 0.0])


def fixed(images):
    """A mixture that is always the same."""
    count = len(images)
    share, partner = SHARE.repeat(4)[:count], PARTNER[:count] % count
    weight = share.view(-1, 1, 1, 1)
    return weight * images + (1 - weight) * images[partner], partner, share


def literal(logits, labels, partner, share):
    """The formula, one image at a time, in Python's numbers."""
    total, weight = 0.0, 0.0
    for number, row in enumerate(logits.tolist()):
        for label, part in (
            (labels[number].item(), share[number].item()),
            (labels[partner[number]].item(), 1 - share[number].item()),
        ):
            if label >= 0:
                normaliser = math.log(sum(math.exp(z) for z in row))
                total += part * (normaliser - row[label])
                weight += part
    return total / weight if weight else 0.0


def terms_of(method, student, images=IMAGES, labels=LABELS):
    return method.loss(lambda view: student(TRAIN.normalise(view)), images, labels)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        torch.tensor([0, 1, 2, 0, 1, 2, 0]),
        torch.tensor([-1, -1, -1, 2, -1, -1, -1]),  # one image, and three partners
        torch.tensor([-1, -1, -1, -1, -1, 1, -1]),
    ],
)
def test_the_term_by_hand(labels):
    method, student = MixedCrossEntropy(fixed), float_net().eval()
    method.prepare(student, TRAIN)
    terms = terms_of(method, student, labels=labels)
    assert list(terms) == ["cross_entropy"]
    mixed = torch.stack(
        [
            SHARE[n] * IMAGES[n].float() + (1 - SHARE[n]) * IMAGES[PARTNER[n]].float()
            for n in range(7)
        ]
    )
    logits = student((mixed - 0.45) / 0.25)  # floats are taken as they are
    wanted = literal(logits, labels, PARTNER, SHARE)
    assert terms["cross_entropy"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("mix", [cutmix, mixup, partial(mixup, spread=0.2)])
@pytest.mark.parametrize("view", [unchanged, crop_flip])
def test_the_library_mixtures_of_the_view(mix, view):
    method, student, seen = MixedCrossEntropy(mix, view), float_net().eval(), []

    def forward(images):
        seen.append(images)
        return student(TRAIN.normalise(images))

    torch.manual_seed(5)
    terms = method.loss(forward, IMAGES, LABELS)
    torch.manual_seed(5)
    mixed, partner, share = mix(view(IMAGES))
    assert len(seen) == 1
    assert torch.equal(seen[0], mixed)
    logits = student(TRAIN.normalise(mixed))
    wanted = literal(logits, LABELS, partner, share)
    assert terms["cross_entropy"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.0, 0.3])
def test_where_images_or_labels_are_not_mixed_it_is_cross_entropy(share):
    def alone(images):
        return images, torch.arange(len(images)), torch.full((len(images),), share)

    def other(images):
        partner = torch.arange(len(images)).roll(1)
        return images, partner, torch.full((len(images),), share)

    student = float_net().eval()
    logits = student(TRAIN.normalise(IMAGES))
    found = terms_of(MixedCrossEntropy(alone), student)["cross_entropy"]
    torch.testing.assert_close(found, labelled_cross_entropy(logits, LABELS))
    found = terms_of(MixedCrossEntropy(other), student)["cross_entropy"]
    if share in (0.0, 1.0):
        labels = LABELS if share == 1 else LABELS.roll(1)
        torch.testing.assert_close(found, labelled_cross_entropy(logits, labels))
    one_class = torch.full_like(LABELS, 2)
    found = terms_of(MixedCrossEntropy(other), student, labels=one_class)["cross_entropy"]
    torch.testing.assert_close(found, labelled_cross_entropy(logits, one_class))


def test_the_gradient_is_prediction_minus_both_labels():
    logits = torch.randn(7, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    MixedCrossEntropy(fixed).loss(lambda _: logits, IMAGES, labels)["cross_entropy"].backward()
    ones = torch.eye(3)
    soft = SHARE[:, None] * ones[labels] + (1 - SHARE[:, None]) * ones[labels[PARTNER]]
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - soft) / 7)


def test_without_any_label_it_is_zero_with_zero_gradient():
    student = float_net().eval()
    terms = terms_of(MixedCrossEntropy(cutmix), student, labels=torch.full((7,), -1))
    assert terms["cross_entropy"].item() == 0
    terms["cross_entropy"].backward()
    assert all((p.grad == 0).all() for p in student.parameters())
    # Also where the only labels count nothing.
    labels = torch.full((7,), -1)
    labels[6] = 1
    assert terms_of(MixedCrossEntropy(fixed), student, labels=labels)["cross_entropy"].item() == 0


def test_it_learns_in_fit_and_draws_what_the_seed_says():
    first, run = trained(MixedCrossEntropy(cutmix, crop_flip))
    assert list(run.history.terms) == ["cross_entropy"]
    assert same(first, trained(MixedCrossEntropy(cutmix, crop_flip))[0])
    assert not same(first, trained(CE())[0])
    assert not same(first, trained(MixedCrossEntropy(mixup, crop_flip))[0])
    assert all(v.isfinite().all() for v in first.values() if v.is_floating_point())


def test_a_net_learns_from_mixtures():
    student = float_net()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    labelled = TRAIN.labels >= 0
    batch = (TRAIN.images[labelled], TRAIN.labels[labelled])
    before = labelled_cross_entropy(student(TRAIN.normalise(batch[0])), batch[1])
    drive(student, MixedCrossEntropy(partial(mixup, spread=0.2)), [batch] * 60, optimizer, 1, 60)
    after = labelled_cross_entropy(student(TRAIN.normalise(batch[0])), batch[1])
    assert after < 0.8 * before


def test_resumed_like_whole():
    whole, resumed = resumed_like_whole(lambda: MixedCrossEntropy(fixed))
    for one, two in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), two.state_dict())


def test_around_it():
    _, run = trained(TwoViews(MixedCrossEntropy(cutmix)))
    assert list(run.history.terms) == ["cross_entropy"]
    consistency = partial(ConsistencyRegularization, MixedCrossEntropy(cutmix, crop_flip))
    # Its logits are of mixtures, and a teacher's predictions would be of the images.
    with pytest.raises(ValueError, match=r"logits are of mixtures.*student_view= or mix="):
        consistency()
    with pytest.raises(ValueError, match="logits are of mixtures"):
        ConsistencyRegularization(TwoViews(MixedCrossEntropy(cutmix)), teacher_view=flip)
    for more in ({"mix": cutmix}, {"student_view": flip}):
        _, run = trained(consistency(**more))
        assert list(run.history.terms) == ["cross_entropy", "consistency"]
        assert (run.history.terms["consistency"] > 0).all()


def test_a_study_names_the_mixture(tmp_path):
    (tmp_path / "study.toml").write_text("""
        [base]
        bits = 2
        [grid.method]
        boxes = { name = "MixedCrossEntropy", mix = "cutmix", view = "flip" }
        means = { name = "MixedCrossEntropy", mix = { name = "mixup", spread = 0.2 } }
    """)
    boxes, means = read_study(tmp_path / "study.toml", tmp_path / "cache")
    assert boxes.method.keywords == {"mix": cutmix, "view": flip}
    method = make_method(boxes.method)
    assert (method.mix, method.view) == (cutmix, flip)
    method = make_method(means.method)
    assert (method.mix.func, method.mix.keywords) == (mixup, {"spread": 0.2})
    assert method.view is unchanged
    assert boxes.hash != means.hash
