"""Training state: snapshots, resuming, and the best epoch."""

import random
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranet.config import EmaConfig, LossConfig, OptimConfig, TrainConfig
from ranet.training.loop import fit
from ranet.training.state import TrainState
from tests.support.digit_training import QUICK, train
from tests.support.tiny import (
    Digits,
    Killed,
    Recorder,
    TwoExits,
    assert_same,
    normalize,
    saved_and_loaded,
    small_ranet,
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make_model", [TwoExits, small_ranet])
def test_resumed_run_reaches_the_weights_of_an_uninterrupted_run(make_model, precision):
    config = TrainConfig(
        epochs=4, batch_size=32, precision=precision, optim=OptimConfig(lr=0.05, nesterov=True)
    )
    recorder = Recorder()
    uninterrupted_model, resumed_model = make_model(0), make_model(1)
    uninterrupted = train(config, uninterrupted_model, recorder=recorder)
    resumed = train(config, resumed_model, resume=saved_and_loaded(recorder.snapshots[1]))
    assert_same(resumed, uninterrupted)
    assert_same(dict(resumed_model.state_dict()), uninterrupted["model"])


class Dropping(TwoExits):
    """Use random numbers in the forward pass."""

    def forward(self, images):
        return nn.functional.dropout(super().forward(images), 0.3, self.training)


@pytest.mark.parametrize(
    ("make_model", "settings"),
    [
        (TwoExits, {}),
        (Dropping, {}),
        (
            small_ranet,
            {
                "ema": EmaConfig(decay=0.9),
                "micro_batch_size": 16,
                "loss": LossConfig(curriculum=1.0),
            },
        ),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_run_killed_at_any_step_reaches_the_state_of_an_uninterrupted_run(
    make_model, settings, seed
):
    # The uninterrupted run saves no checkpoints: saving a checkpoint must not change the state.
    whole = replace(QUICK, **settings)
    uninterrupted = train(whole, make_model())
    chance = random.Random(f"{seed} {make_model.__name__} {settings}")
    config = replace(whole, checkpoint_every_steps=chance.choice((2, 3, 7, 8)))
    resume, steps_done = None, 0
    while steps_done < 30:
        steps_done += (killed_after := chance.randint(1, 10))
        recorder = Recorder(killed_after)
        torch.manual_seed(steps_done)
        with pytest.raises(Killed):
            train(config, make_model(0 if resume is None else 1), resume=resume, recorder=recorder)
        if recorder.snapshots:
            resume = saved_and_loaded(recorder.snapshots[-1])
        steps_done = 0 if resume is None else 10 * resume["epoch"] + resume["step"]
    assert_same(train(config, make_model(7), resume=resume), uninterrupted)


@pytest.mark.parametrize("notice_after", [1, 10, 23])
def test_run_preempted_with_notice_repeats_no_step(notice_after):
    first, second = Recorder(notice_after, with_notice=True), Recorder()
    with pytest.raises(Killed):
        train(recorder=first)
    resumed = train(model=TwoExits(3), resume=first.snapshots[-1], recorder=second)
    assert_same(resumed, train())
    assert second.num_steps == 40 - notice_after


def test_loaded_snapshot_is_freed_after_the_training_has_restored_it():
    recorder = Recorder()
    train(recorder=recorder)
    resume = [saved_and_loaded(recorder.snapshots[1])]
    loaded = weakref.ref(resume[0]["model"]["first.weight"])
    alive = []

    def measure(_):
        alive.append(loaded() is not None)
        return {}

    training = TrainState(QUICK, TwoExits(3), normalize)
    batches = Digits(0, 320, QUICK.batch_size, shuffled=True)
    val = Digits(1000, 1080, 32)
    fit(training, batches, val, Recorder(), resume=resume.pop(), measure=measure)
    assert alive == [False, False]


def test_finished_snapshot_is_returned_and_its_weights_are_loaded():
    finished = train()
    model, recorder = TwoExits(7), Recorder()
    assert train(model=model, resume=finished, recorder=recorder) is finished
    assert recorder.metrics == []
    assert_same(dict(model.state_dict()), finished["model"])


def test_reported_snapshots_do_not_change_during_later_epochs():
    recorder = Recorder()
    train(recorder=recorder)
    for snapshot, then in zip(recorder.snapshots, recorder.weights_then, strict=True):
        assert_same(snapshot["model"], then)
    first, last = recorder.snapshots[0], recorder.snapshots[-1]
    assert not torch.equal(first["model"]["first.weight"], last["model"]["first.weight"])


def test_snapshot_without_ema_is_rejected_if_ema_is_configured():
    snapshot = train(replace(QUICK, epochs=1))
    with pytest.raises(ValueError, match=r"ema.decay is 0.9, but .* no EMA"):
        train(replace(QUICK, ema=EmaConfig(decay=0.9)), resume=snapshot)


@pytest.mark.parametrize("select_by", ["last_exit", "mean_exit"])
def test_best_epoch_is_the_last_with_the_highest_accuracy(select_by):
    # The learning rate is so high that the accuracy oscillates.
    optim = OptimConfig(lr=0.8, milestones=())
    config = TrainConfig(epochs=6, batch_size=32, select_by=select_by, optim=optim)
    recorder = Recorder()
    best = train(config, recorder=recorder)["best"]
    values = [metrics["val/exit2/top1"] for metrics in recorder.metrics]
    if select_by == "mean_exit":
        values = [
            (v + m["val/exit1/top1"]) / 2 for v, m in zip(values, recorder.metrics, strict=True)
        ]
    assert best["value"] == max(values)
    assert best["epoch"] == len(values) - values[::-1].index(max(values))
    assert best["epoch"] < config.epochs
    assert_same(best["model"], recorder.snapshots[best["epoch"] - 1]["model"])


def test_best_epoch_among_equal_accuracies_is_the_last():
    # Neither the tiny learning rate nor batch norm statistics can change a prediction.
    config = TrainConfig(epochs=3, batch_size=32, optim=OptimConfig(lr=1e-30))
    snapshot = train(config, TwoExits(normed=False))
    assert len({metrics["val/exit2/top1"] for metrics in snapshot["history"]}) == 1
    assert snapshot["best"]["epoch"] == 3


@pytest.mark.parametrize(
    ("change", "missing", "config", "message"),
    [
        ({}, ["optimizer", "best"], QUICK, "best, optimizer missing in the snapshot"),
        ({}, [], TrainConfig(seed=3), "train.seed is 3, but .* with seed 0"),
        ({}, [], TrainConfig(epochs=1), "train.epochs is 1, but .* has 2 epochs"),
        ({"model": {}}, [], QUICK, "another network: .*first.weight"),
        ({"optimizer": {}}, [], QUICK, "only one of them has .*first.weight"),
    ],
)
def test_snapshot_of_another_training_is_rejected(change, missing, config, message):
    snapshot = train(TrainConfig(epochs=2, batch_size=32)) | change
    snapshot = {name: value for name, value in snapshot.items() if name not in missing}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train(config, resume=snapshot)


def test_snapshot_with_other_weight_shapes_is_rejected():
    snapshot = train(TrainConfig(epochs=1, batch_size=32))
    snapshot["model"]["first.weight"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"(?s)another network: .*first.weight.*4, 3, 3, 3"):
        train(resume=snapshot)
