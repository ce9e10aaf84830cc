import torch

from qatviz.augment import crop_flip
from qatviz.methods import ConsistencyRegularization, CrossEntropy, TwoViews
from qatviz.methods.base import labelled_cross_entropy
from tests.methods.common import CE, TRAIN, float_net, resumed_like_whole, same, tiny, trained


def test_the_mean_over_two_views_of_their_own():
    method, student = TwoViews(CrossEntropy(crop_flip)), float_net().eval()
    method.prepare(student, TRAIN)
    seen = []

    def forward(view):
        seen.append(view)
        return student(TRAIN.normalise(view))

    terms = method.loss(forward, TRAIN.images, TRAIN.labels)
    assert len(seen) == 2
    assert not torch.equal(*seen)
    losses = [labelled_cross_entropy(student(TRAIN.normalise(v)), TRAIN.labels) for v in seen]
    torch.testing.assert_close(terms, {"cross_entropy": (losses[0] + losses[1]) / 2})


def test_without_randomness_it_is_the_method_itself():
    # Half of a sum of two equal numbers is exact; BatchNorm's statistics move twice.
    state, run = trained(TwoViews(CrossEntropy()), tiny())
    plain, alone = trained(CrossEntropy(), tiny())
    assert run.history.terms.keys() == alone.history.terms.keys()
    weights = {k: v for k, v in state.items() if "running" not in k and "num" not in k}
    assert same(weights, {k: plain[k] for k in weights})


def test_it_stands_around_other_methods_and_goes_on():
    _, run = trained(TwoViews(ConsistencyRegularization(CE(), decay=0.5)))
    assert list(run.history.terms) == ["cross_entropy", "consistency"]
    whole, resumed = resumed_like_whole(lambda: TwoViews(CrossEntropy()))
    for one, other in zip(whole, resumed, strict=True):
        assert same(one.state_dict(), other.state_dict())
