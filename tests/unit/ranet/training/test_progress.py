"""Progress log lines."""

import logging

from ranet.config import TrainConfig
from ranet.training import progress
from tests.support.digit_training import train


def test_progress_is_logged_by_epoch_and_by_step(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="ranet")
    train(TrainConfig(epochs=2, batch_size=32))
    by_epoch = [record.getMessage() for record in caplog.records]
    assert len(by_epoch) == 2
    assert by_epoch[0].startswith("epoch 1/2, step 10/10: ")
    assert "validation top-1 first exit" in by_epoch[0]
    assert by_epoch[1].endswith("0:00:00 left")
    caplog.clear()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(TrainConfig(epochs=1, batch_size=32))
    by_step = [record.getMessage() for record in caplog.records]
    assert len(by_step) == 11
    assert by_step[2].startswith("epoch 1/1, step 3/10: ")
    assert "images/s, training loss" in by_step[2]
