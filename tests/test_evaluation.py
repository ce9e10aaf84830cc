import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from qatviz.calibration import calibrate
from qatviz.datasets import Split
from qatviz.evaluation import (
    accuracy,
    check_fit,
    evaluate,
    predict,
    reestimate_batchnorm,
    running_norms,
)
from qatviz.models import small_cnn
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ

IMAGES = torch.randint(0, 256, (504, 1, 4, 4), dtype=torch.uint8)
LABELS = torch.randint(0, 3, (504,))
DATA = Split(IMAGES, LABELS, mean=(0.4,), std=(0.25,))


def student():
    model = quantize(small_cnn(width=2, classes=3), partial(LSQ, bits=4), partial(LSQ, bits=4))
    calibrate(model, [next(DATA.batches(64))[0]])
    return model


def literal_logits(model, images):
    """One image at a time, on a copy."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return torch.cat([model((image[None] / 255 - 0.4) / 0.25) for image in images])


def test_logits_are_those_of_one_image_at_a_time():
    model = student().train()
    logits, labels = predict(model, DATA)
    # More than one batch; the batches of a convolution may differ in the last digits.
    torch.testing.assert_close(logits, literal_logits(model, IMAGES), rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, LABELS)
    assert not logits.requires_grad


def test_accuracy_is_the_share_of_right_answers_among_the_labelled():
    model, labels = student(), LABELS[:60].clone()
    labels[::3] = -1
    right = labelled = 0
    for answer, label in zip(literal_logits(model, IMAGES[:60]).tolist(), labels, strict=True):
        if label != -1:
            labelled += 1
            right += answer.index(max(answer)) == label
    assert 0 < right < labelled == 40
    data = Split(IMAGES[:60], labels, mean=(0.4,), std=(0.25,))
    assert evaluate(model, data) == pytest.approx(right / labelled)


def test_accuracy_of_three_literal_rows():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, -1])) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(logits, torch.full((4,), -1)))


def test_any_metric_can_be_passed():
    seen = {}

    def metric(logits, labels):
        seen.update(logits=logits, labels=labels)
        return 7.5

    assert evaluate(student(), DATA, metric) == 7.5
    assert seen["logits"].shape == (504, 3)
    assert torch.equal(seen["labels"], LABELS)


def test_modes_and_state_are_restored_exactly():
    model = student().train()
    model.bn2.eval()
    model.conv3.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    evaluate(model, DATA)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_modes_are_restored_after_an_error():
    class Fails(nn.Linear):
        def forward(self, x):
            if len(x) > 2:
                raise RuntimeError("stop")
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Fails(16, 3)).train()
    with pytest.raises(RuntimeError, match="stop"):
        evaluate(model, DATA)
    assert all(m.training for m in model.modules())


def test_dropout_is_off():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.9))
    assert torch.equal(predict(model, DATA)[0], predict(model, DATA)[0])


@pytest.mark.parametrize("check", [evaluate, check_fit])
def test_refuses_a_model_that_is_not_calibrated(check):
    model = quantize(small_cnn(width=2), partial(LSQ, bits=4), {"fc": partial(LSQ, bits=4)})
    with pytest.raises(ValueError, match=r"not calibrated .*: fc\.input_quantizer;"):
        check(model, DATA)


@pytest.mark.parametrize("check", [evaluate, check_fit])
def test_refuses_images_of_another_shape(check):
    data = Split(IMAGES.expand(-1, 3, -1, -1), LABELS)
    with pytest.raises(ValueError, match=r"\[3, 4, 4\].*'conv1' takes 1 channels"):
        check(student(), data)


def test_refuses_labels_beyond_the_logits():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = Split(torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match=r"returns \[3\] numbers per image, .* up to 3: 4 logits"):
        evaluate(model, data)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Dropout(0.5),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
    )


def test_reestimated_statistics_are_the_mean_over_the_batches():
    """Batch by batch, layer by layer, by hand."""
    model = normed().eval()
    twin = copy.deepcopy(model)
    reestimate_batchnorm(model, DATA, batches=3, size=10, seed=5)
    order = torch.randperm(504, generator=torch.Generator().manual_seed(5))
    means, variances = [[], []], [[], []]
    for k in range(3):
        x = (IMAGES[order[10 * k : 10 * k + 10]] / 255 - 0.4) / 0.25
        for i, (conv, norm) in enumerate([(twin[0], twin[1]), (twin[3], twin[4])]):
            x = conv(x)
            channels = x.transpose(0, 1).flatten(1)
            means[i].append(channels.mean(1))
            variances[i].append(channels.var(1))  # without bias, as torch keeps it
            x = (x - channels.mean(1).view(-1, 1, 1)) / torch.sqrt(
                channels.var(1, correction=0).view(-1, 1, 1) + norm.eps
            ) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    for i, norm in enumerate((model[1], model[4])):
        torch.testing.assert_close(norm.running_mean, sum(means[i]) / 3, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, sum(variances[i]) / 3, rtol=1e-4, atol=1e-5)


def test_reestimation_moves_statistics_and_nothing_else():
    model = normed().train()
    model[2].eval()
    before = copy.deepcopy(model)
    generator = torch.get_rng_state()
    reestimate_batchnorm(model, DATA, batches=2)
    assert torch.equal(torch.get_rng_state(), generator)
    moved = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[key])
    }
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"{i}.{name}" for i in (1, 4) for name in names}
    for module, old in zip(model.modules(), before.modules(), strict=True):
        assert module.training == old.training
    assert (model[1].momentum, model[4].momentum) == (0.1, 0.1)


def test_reestimation_of_few_images_takes_what_there_is():
    model = normed()
    reestimate_batchnorm(model, DATA.subset(7), batches=50)
    assert model[1].num_batches_tracked == 1
    model = normed()
    reestimate_batchnorm(model, DATA.subset(23), batches=50, size=10)
    assert model[1].num_batches_tracked == 2  # the smaller last batch is left out
    float_model = nn.Conv2d(1, 2, 3)
    reestimate_batchnorm(float_model, DATA)  # no BatchNorm: nothing to do


def test_reestimation_over_no_batch_is_refused():
    with pytest.raises(ValueError, match="batches is 0; allowed: 1 or more"):
        reestimate_batchnorm(normed(), DATA, batches=0)


def test_an_interrupted_reestimation_leaves_the_momentum():
    """One pixel per channel: BatchNorm refuses it in training."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1, momentum=0.3))
    images = torch.zeros(4, 1, 6, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="more than 1 value"):
        reestimate_batchnorm(model, Split(images, torch.zeros(4, dtype=torch.long)), 2, 1)
    assert model[1].momentum == 0.3


def test_a_network_of_another_type_is_evaluated_and_reestimated():
    model = normed().eval()
    twin = copy.deepcopy(model).double()
    for each in (model, twin):
        reestimate_batchnorm(each, DATA, batches=3, size=10)
    for one, other in zip(running_norms(model).values(), running_norms(twin).values(), strict=True):
        torch.testing.assert_close(one.running_mean.double(), other.running_mean)
    one = student()
    double = copy.deepcopy(one).double()
    assert (predict(one, DATA)[0].argmax(1) == predict(double, DATA)[0].argmax(1)).sum() > 500


def test_running_norms_are_those_that_keep_statistics():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False))
    assert running_norms(model) == {"0": model[0]}
