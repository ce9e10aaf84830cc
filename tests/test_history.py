import math

import pytest
import torch

from qatviz.history import HistoryWriter

LABELS = torch.tensor([0, 1, -1, 1])
LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # right, right, -, wrong


def step(writer, loss, labels=LABELS):
    writer.watching(lambda images: LOGITS, labels)(torch.zeros(4))
    writer.add({"ce": torch.tensor(loss), "extra": torch.tensor(1.0)})
    writer.end_step(0.5 * loss, seconds=loss)


def test_an_epoch_is_the_mean_of_its_steps():
    writer = HistoryWriter()
    for loss in (1.0, 3.0):
        step(writer, loss)
    writer.end_epoch(0.25)
    step(writer, 5.0, torch.full((4,), -1))
    writer.end_epoch(None)
    record = writer.record()
    assert record.terms["ce"].tolist() == [2, 5]
    assert record.terms["extra"].tolist() == [1, 1]
    assert record.rate.tolist() == [1.5, 2.5]
    assert record.accuracy[0] == pytest.approx(2 / 3)
    assert math.isnan(record.accuracy[1])
    assert record.validation.tolist() == [0.25]
    assert writer.compile_seconds() == 1.0 - 3.0


def test_parts_are_averaged():
    writer = HistoryWriter()
    for value in (1.0, 2.0, 6.0):
        writer.add({"ce": torch.tensor(value)}, parts=3)
    writer.end_step(0.1, 1.0)
    writer.end_epoch(None)
    assert writer.record().terms["ce"].tolist() == [pytest.approx(3.0)]


def test_only_the_first_call_of_a_step_is_counted():
    writer = HistoryWriter()
    forward = writer.watching(lambda images, taps=(): LOGITS, LABELS)
    assert forward(torch.zeros(4), taps=("a",)) is LOGITS
    forward(torch.zeros(4))
    writer.add({"ce": torch.tensor(1.0)})
    writer.end_step(0.1, 1.0)
    assert writer.running() == "ce 1.000, accuracy 66.7%"
    writer.end_epoch(0.5)
    assert writer.latest() == "ce 1.000, accuracy 66.7%, validation 50.0%"


@pytest.mark.parametrize("answer", [LOGITS[:2], (LOGITS, LOGITS), None])
def test_what_is_no_logits_of_the_batch_is_not_counted(answer):
    writer = HistoryWriter()
    writer.watching(lambda images: answer, LABELS)(torch.zeros(4))
    writer.add({"ce": torch.tensor(1.0)})
    writer.end_step(0.1, 1.0)
    assert writer.running() == "ce 1.000"


def test_a_state_goes_on():
    whole, first, second = HistoryWriter(), HistoryWriter(), HistoryWriter()
    for writer in (whole, first):
        step(writer, 1.0)
        writer.end_epoch(0.5)
    second.load_state_dict(first.state_dict())
    for writer in (whole, second):
        step(writer, 2.0)
        writer.end_epoch(0.75)
    assert second.state_dict() == whole.state_dict()
