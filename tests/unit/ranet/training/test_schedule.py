"""Learning rates and due checkpoints against hand-computed values."""

import math
from dataclasses import replace

import pytest

from ranet.config import OptimConfig, TrainConfig
from ranet.training.schedule import learning_rate
from tests.support.digit_training import QUICK, train
from tests.support.tiny import Recorder


def rates(config, steps_per_epoch):
    steps = range(config.epochs * steps_per_epoch)
    return [learning_rate(config, step, steps_per_epoch) for step in steps]


def test_multistep_rate_drops_at_the_first_epoch_at_or_after_each_milestone():
    config = TrainConfig(epochs=10, optim=OptimConfig(lr=1.0, milestones=(0.5, 0.75), gamma=0.1))
    by_step = rates(config, steps_per_epoch=4)
    assert by_step[:20] == [1.0] * 20
    assert by_step[20:32] == pytest.approx([0.1] * 12)
    assert by_step[32:] == pytest.approx([0.01] * 8)


def test_milestone_is_not_delayed_by_a_rounding_error():
    assert 0.55 * 100 > 55
    config = TrainConfig(epochs=100, optim=OptimConfig(lr=1.0, milestones=(0.55,), gamma=0.5))
    by_epoch = rates(config, steps_per_epoch=1)
    assert by_epoch[54] == 1.0
    assert by_epoch[55] == 0.5


def test_cosine_rate_decreases_from_the_full_rate_to_zero_step_by_step():
    config = TrainConfig(epochs=2, optim=OptimConfig(lr=0.8, schedule="cosine"))
    by_step = rates(config, steps_per_epoch=3)
    expected = [0.8, 0.8 * (1 + math.sqrt(3) / 2) / 2, 0.6, 0.4, 0.2]
    assert by_step[:5] == pytest.approx(expected)
    assert 0 < by_step[5] < 0.06
    assert learning_rate(config, 6, steps_per_epoch=3) == pytest.approx(0, abs=1e-12)


def test_warmup_rate_increases_linearly_to_the_full_rate():
    optim = OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=1.0)
    by_step = rates(TrainConfig(epochs=3, optim=optim), steps_per_epoch=4)
    assert by_step[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert by_step[8] == pytest.approx(0.5)
    optim = OptimConfig(lr=1.0, warmup_epochs=0.5, milestones=(0.5,))
    by_step = rates(TrainConfig(epochs=2, optim=optim), steps_per_epoch=5)
    assert by_step == pytest.approx([0.4, 0.8, 1.0, 1.0, 1.0] + [0.1] * 5)


@pytest.mark.parametrize(
    ("checkpoint_steps", "positions"),
    [
        (0, [(1, 0), (2, 0), (3, 0), (4, 0)]),
        (5, [(0, 5), (1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (3, 5), (4, 0)]),
        (15, [(2, 0), (3, 0), (4, 0)]),
        (20, [(2, 0), (4, 0)]),
        (1000, [(4, 0)]),
    ],
)
def test_checkpoints_follow_the_configured_steps_and_epochs(checkpoint_steps, positions):
    recorder = Recorder()
    last = train(replace(QUICK, checkpoint_every_steps=checkpoint_steps), recorder=recorder)
    assert [(snapshot["epoch"], snapshot["step"]) for snapshot in recorder.snapshots] == positions
    assert [metrics["epoch"] for metrics in recorder.metrics] == [1, 2, 3, 4]
    assert last["history"] == recorder.metrics  # all epochs, with or without a checkpoint
