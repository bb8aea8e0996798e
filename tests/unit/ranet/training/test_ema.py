"""Exponential moving average of the weights."""

from dataclasses import replace

import pytest
from torch import nn

from ranet.config import EmaConfig
from ranet.evaluation.forward import ForwardPass
from ranet.training.ema import ExponentialMovingAverage
from ranet.training.validation import evaluate
from tests.support.digit_training import QUICK, train
from tests.support.tiny import Digits, Recorder, TwoExits, assert_same, normalize


def test_ema_decay_increases_with_the_step_up_to_the_configured_decay():
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    model = nn.Sequential(linear, norm)
    nn.init.ones_(linear.weight)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    ema = ExponentialMovingAverage(model, decay=0.2)
    expected = 1.0
    for step, keep in enumerate([0.1, 2 / 11, 0.2, 0.2]):  # (step + 1) / (step + 10), at most 0.2
        nn.init.constant_(linear.weight, step + 2.0)
        norm.running_mean.fill_(step + 2.0)
        norm.num_batches_tracked += 1
        ema.update(step)
        expected = keep * expected + (1 - keep) * (step + 2)
    state = ema.model.state_dict()
    assert state["0.weight"].item() == pytest.approx(expected)
    assert state["1.running_mean"].item() == pytest.approx(expected - keep_of_zero())
    assert state["1.num_batches_tracked"] == 4
    assert linear.weight.item() == 5
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def keep_of_zero() -> float:
    """Return the remaining share of the first running mean, which is 0."""
    return 0.1 * 2 / 11 * 0.2 * 0.2


def test_ema_weights_are_evaluated_and_kept_as_best():
    # No batch norm, whose statistics would differ as well.
    recorder, plain = Recorder(), Recorder()
    config = replace(QUICK, ema=EmaConfig(decay=0.999))
    train(config, TwoExits(normed=False), recorder=recorder)
    train(QUICK, TwoExits(normed=False), recorder=plain)
    last, best = recorder.snapshots[-1], recorder.snapshots[-1]["best"]
    assert_same(last["model"], plain.snapshots[-1]["model"])  # the training itself is the same
    assert_same(best["model"], recorder.snapshots[best["epoch"] - 1]["ema"])
    model = TwoExits(normed=False)
    model.load_state_dict(last["ema"])
    scores = evaluate(ForwardPass(model, normalize), Digits(1000, 1080, 32))
    assert scores.items() <= recorder.metrics[-1].items()
    assert scores["val/loss"] != plain.metrics[-1]["val/loss"]
    assert plain.snapshots[-1]["ema"] is None
