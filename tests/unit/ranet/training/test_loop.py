"""The training loop on real digits, one process."""

import logging
import math
import random
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from ranet import RANet
from ranet.config import EmaConfig, LossConfig, OptimConfig, TrainConfig
from ranet.evaluation.accuracy import exit_hits
from ranet.training import progress
from ranet.training.loop import fit
from ranet.training.optim import NonFiniteLoss
from ranet.training.validation import evaluate
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

CPU = torch.device("cpu")
QUICK = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=0.05, warmup_epochs=0.5))


def train(
    config=QUICK,
    model=None,
    resume=None,
    recorder=None,
    digits=320,
    prepare=normalize,
    device=CPU,
    measure=None,
):
    """Fit a fresh network, or the given one, to the first digits; 80 others are for validation."""
    if model is None:
        model = TwoExits(config.seed)
    batches = Digits(0, digits, config.batch_size, shuffled=True, seed=config.seed, device=device)
    val = Digits(1000, 1080, 32, device=device)
    recorder = recorder or Recorder()
    try:
        return fit(
            config, model, batches, val, recorder,
            normalize=prepare, device=device, resume=resume, measure=measure,
        )  # fmt: skip
    finally:
        assert batches.num_open == 0
        assert val.num_open == 0


class Poison:
    """A normalize that gives NaN at one call, and remembers the weights at that time."""

    def __init__(self, model: nn.Module, call: int) -> None:
        self.model, self.calls_left = model, call

    def __call__(self, images):
        self.calls_left -= 1
        if self.calls_left == 0:
            self.weights = [p.detach().clone() for p in self.model.parameters()]
            return normalize(images) * math.nan
        return normalize(images)


def test_a_network_learns_to_read_digits():
    recorder = Recorder()
    config = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=0.05, schedule="cosine"))
    train(config, recorder=recorder, digits=1000)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert last["train/loss"] < first["train/loss"] / 2
    assert last["val/exit1/top1"] > 85
    assert last["val/exit2/top1"] > 90
    assert last["val/exit2/top5"] > 97


def test_every_epoch_is_reported_with_every_metric():
    recorder = Recorder()
    last = train(recorder=recorder)
    names = {"epoch", "train/loss", "train/images_per_second", "train/data_wait", "train/lr"}
    names |= {"val/loss"} | {f"val/exit{k}/top{n}" for k in (1, 2) for n in (1, 5)}
    assert all(metrics.keys() == names for metrics in recorder.metrics)
    assert [metrics["epoch"] for metrics in recorder.metrics] == [1, 2, 3, 4]
    assert [snapshot["epoch"] for snapshot in recorder.snapshots] == [1, 2, 3, 4]
    assert [len(snapshot["history"]) for snapshot in recorder.snapshots] == [1, 2, 3, 4]
    assert last is recorder.snapshots[-1]
    assert last["history"] == recorder.metrics
    assert recorder.num_images == recorder.num_steps * QUICK.batch_size == 40 * QUICK.batch_size
    assert all(0 < metrics["train/data_wait"] < 1 for metrics in recorder.metrics)
    # A tenth after 2 and after 3 of 4 epochs; the warm-up is over after half of the first.
    assert [m["train/lr"] for m in recorder.metrics] == pytest.approx([0.05, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make_model", [TwoExits, small_ranet])
def test_a_resumed_run_ends_where_an_unbroken_one_does(make_model, precision):
    config = TrainConfig(
        epochs=4, batch_size=32, precision=precision, optim=OptimConfig(lr=0.05, nesterov=True)
    )
    recorder = Recorder()
    unbroken_model, resumed_model = make_model(0), make_model(1)
    unbroken = train(config, unbroken_model, recorder=recorder)
    resumed = train(config, resumed_model, resume=saved_and_loaded(recorder.snapshots[1]))
    assert_same(resumed, unbroken)
    assert_same(dict(resumed_model.state_dict()), unbroken["model"])


class Dropping(TwoExits):
    """Has random numbers of its own."""

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
def test_training_killed_at_any_step_ends_where_an_unbroken_one_does(make_model, settings, seed):
    # The unbroken one makes no checkpoints at all: to make one must change nothing.
    whole = replace(QUICK, **settings)
    unbroken = train(whole, make_model())
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
    assert_same(train(config, make_model(7), resume=resume), unbroken)


@pytest.mark.parametrize("notice_after", [1, 10, 23])
def test_after_a_notice_no_step_is_done_twice(notice_after):
    first, second = Recorder(notice_after, with_notice=True), Recorder()
    with pytest.raises(Killed):
        train(recorder=first)
    resumed = train(model=TwoExits(3), resume=first.snapshots[-1], recorder=second)
    assert_same(resumed, train())
    assert second.num_steps == 40 - notice_after


@pytest.mark.parametrize(
    ("checkpoint_steps", "places"),
    [
        (0, [(1, 0), (2, 0), (3, 0), (4, 0)]),
        (5, [(0, 5), (1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (3, 5), (4, 0)]),
        (15, [(2, 0), (3, 0), (4, 0)]),
        (20, [(2, 0), (4, 0)]),
        (1000, [(4, 0)]),
    ],
)
def test_checkpoints_come_at_every_so_many_steps_and_after_epochs(checkpoint_steps, places):
    recorder = Recorder()
    last = train(replace(QUICK, checkpoint_every_steps=checkpoint_steps), recorder=recorder)
    assert [(snapshot["epoch"], snapshot["step"]) for snapshot in recorder.snapshots] == places
    assert [metrics["epoch"] for metrics in recorder.metrics] == [1, 2, 3, 4]
    assert last["history"] == recorder.metrics  # those of all epochs, whatever has checkpoints


@pytest.mark.parametrize("micro_batch", [1, 7, 16, 32, 100])
def test_micro_batches_have_the_gradient_of_the_whole_batch(micro_batch):
    sizes = []

    def prepare(images):
        sizes.append(len(images))
        return normalize(images)

    config = TrainConfig(
        epochs=1, batch_size=32, loss=LossConfig(label_smoothing=0.1), optim=QUICK.optim
    )
    whole = train(config, TwoExits(normed=False))
    parts = train(
        replace(config, micro_batch_size=micro_batch), TwoExits(normed=False), prepare=prepare
    )
    assert max(sizes[:-3]) == min(micro_batch, 32)  # the last three are validation
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight, atol=1e-6, rtol=1e-5)
    expected = pytest.approx(whole["history"][0]["train/loss"], rel=1e-5)
    assert parts["history"][0]["train/loss"] == expected


def test_a_micro_batch_that_is_not_a_number_stops_before_its_step():
    model = TwoExits()
    poison = Poison(model, call=2 * 10 + 3 + 5)
    config = replace(QUICK, micro_batch_size=16)
    with pytest.raises(NonFiniteLoss, match="epoch 2 of 4, step 3 of 10"):
        train(config, model, prepare=poison)
    for parameter, then in zip(model.parameters(), poison.weights, strict=True):
        assert torch.equal(parameter, then)


def test_a_bad_step_after_a_resumption_has_its_number_in_the_epoch():
    recorder = Recorder(4, with_notice=True)
    with pytest.raises(Killed):
        train(recorder=recorder)
    model = TwoExits()
    with pytest.raises(NonFiniteLoss, match="epoch 1 of 4, step 7 of 10"):
        train(model=model, prepare=Poison(model, call=3), resume=recorder.snapshots[-1])


def test_a_validation_loss_that_is_not_a_number_is_an_error():
    model = TwoExits()
    with pytest.raises(NonFiniteLoss, match=r"validation loss is nan after epoch 1 of 4.*lr is"):
        train(model=model, prepare=Poison(model, call=12))


def test_another_seed_trains_another_network():
    first, second = train(TrainConfig(epochs=1)), train(TrainConfig(epochs=1, seed=1))
    assert not torch.equal(first["model"]["first.weight"], second["model"]["first.weight"])


def test_a_finished_snapshot_is_given_back_with_its_weights():
    finished = train()
    model, recorder = TwoExits(7), Recorder()
    assert train(model=model, resume=finished, recorder=recorder) is finished
    assert recorder.metrics == []
    assert_same(dict(model.state_dict()), finished["model"])


def test_snapshots_stay_as_they_were_reported():
    recorder = Recorder()
    train(recorder=recorder)
    for snapshot, then in zip(recorder.snapshots, recorder.weights_then, strict=True):
        assert_same(snapshot["model"], then)
    first, last = recorder.snapshots[0], recorder.snapshots[-1]
    assert not torch.equal(first["model"]["first.weight"], last["model"]["first.weight"])


def test_the_average_of_the_weights_is_what_is_scored_and_kept():
    # No batch norm, whose statistics would differ as well.
    recorder, plain = Recorder(), Recorder()
    config = replace(QUICK, ema=EmaConfig(decay=0.999))
    train(config, TwoExits(normed=False), recorder=recorder)
    train(QUICK, TwoExits(normed=False), recorder=plain)
    last, best = recorder.snapshots[-1], recorder.snapshots[-1]["best"]
    assert_same(last["model"], plain.snapshots[-1]["model"])  # the training itself is the same
    assert_same(best["model"], recorder.snapshots[best["epoch"] - 1]["average"])
    model = TwoExits(normed=False)
    model.load_state_dict(last["average"])
    scores = evaluate(QUICK, model, Digits(1000, 1080, 32), normalize=normalize, device=CPU)
    assert scores.items() <= recorder.metrics[-1].items()
    assert scores["val/loss"] != plain.metrics[-1]["val/loss"]
    assert plain.snapshots[-1]["average"] is None


def test_a_snapshot_without_an_average_is_refused_where_one_is_kept():
    snapshot = train(replace(QUICK, epochs=1))
    with pytest.raises(ValueError, match=r"ema_decay is 0.9, but .* no average"):
        train(replace(QUICK, ema=EmaConfig(decay=0.9)), resume=snapshot)


def test_a_compiled_step_learns_as_a_plain_one_does(monkeypatch):
    # Traced and run without generated code, which takes minutes to build.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = TrainConfig(epochs=2, batch_size=32, micro_batch_size=16, optim=QUICK.optim)
    plain, compiled = train(config), train(replace(config, compile=True))
    assert plain["model"].keys() == compiled["model"].keys()
    for name, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, atol=1e-5, rtol=1e-5)
    for now, then in zip(compiled["history"], plain["history"], strict=True):
        assert now["val/loss"] == pytest.approx(then["val/loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiled_step_of_a_ranet_is_one_graph_and_does_what_a_plain_one_does(monkeypatch):
    in_one = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", in_one)
    config = TrainConfig(epochs=1, batch_size=32, optim=QUICK.optim)
    network = RANet(replace(small_ranet().config, num_blocks=1, extra_blocks=1))
    plain, compiled = (
        train(replace(config, compile=compiled), deepcopy(network), digits=32)
        for compiled in (False, True)
    )
    for name, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("select_by", ["last_exit", "mean_exit"])
def test_the_best_epoch_is_the_last_with_the_highest_accuracy(select_by):
    # So high a rate that accuracy goes up and down.
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


def test_of_equally_good_epochs_the_longest_trained_is_best():
    # Too low a rate to change any answer, and no batch norm whose statistics could.
    config = TrainConfig(epochs=3, batch_size=32, optim=OptimConfig(lr=1e-30))
    snapshot = train(config, TwoExits(normed=False))
    assert len({metrics["val/exit2/top1"] for metrics in snapshot["history"]}) == 1
    assert snapshot["best"]["epoch"] == 3


GPU = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_loss_that_is_not_a_number_stops_before_its_step(device):
    model = TwoExits().to(device)
    # Ten steps and three validation batches an epoch: the seventeenth call is step 4 of epoch 2.
    poison = Poison(model, call=17)
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match=r"epoch 2 of 4, step 4 of 10.*optim\.lr is 0\.05"):
        train(model=model, prepare=poison, recorder=recorder, device=device)
    assert all(
        torch.equal(p, then) for p, then in zip(model.parameters(), poison.weights, strict=True)
    )
    assert len(recorder.metrics) == 1


def test_training_that_diverges_is_stopped():
    config = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=1e30))
    with pytest.raises(NonFiniteLoss, match=r"epoch 1 of 4, step [23] of 10"):
        train(config, TwoExits(normed=False))


@pytest.mark.parametrize(
    ("change", "missing", "config", "message"),
    [
        ({}, ["optimizer", "best"], QUICK, "lacks best, optimizer"),
        ({}, [], TrainConfig(seed=3), "train.seed is 3, but .* with seed 0"),
        ({}, [], TrainConfig(epochs=1), "train.epochs is 1, but .* has 2 epochs"),
        ({"model": {}}, [], QUICK, "another network: .*first.weight"),
        ({"optimizer": {}}, [], QUICK, "only one of them has .*first.weight"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(change, missing, config, message):
    snapshot = train(TrainConfig(epochs=2, batch_size=32)) | change
    snapshot = {name: value for name, value in snapshot.items() if name not in missing}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train(config, resume=snapshot)


def test_weights_of_other_shapes_are_refused():
    snapshot = train(TrainConfig(epochs=1, batch_size=32))
    snapshot["model"]["first.weight"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"(?s)another network: .*first.weight.*4, 3, 3, 3"):
        train(resume=snapshot)


def test_loss_weights_that_do_not_fit_the_exits_stop_the_first_step():
    with pytest.raises(ValueError, match=r"3 entries .* for 2 exits"):
        train(TrainConfig(loss=LossConfig(exit_weights=(1, 2, 3))))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"batch_size is 32, but there are only 20 training"):
        train(digits=20)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_lie_in_memory_as_asked(channels_last):
    layouts = set()

    class Watching(TwoExits):
        def forward(self, images):
            for tensor in (images, self.second.weight):
                layouts.add(tensor.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    train(TrainConfig(epochs=1, channels_last=channels_last), Watching())
    assert layouts == {channels_last}


def test_bfloat16_is_for_the_forward_pass_alone():
    dtypes = set()

    class Watching(TwoExits):
        def forward(self, images):
            logits = super().forward(images)
            dtypes.add(logits.dtype)
            return logits

    model = Watching()
    snapshot = train(TrainConfig(epochs=1, precision="bfloat16"), model)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {s["momentum_buffer"].dtype for s in snapshot["optimizer"].values()} == {torch.float32}


def test_label_smoothing_and_loss_weights_reach_the_training_loss():
    plain = train(TrainConfig(epochs=1, optim=OptimConfig(lr=1e-30)))["history"][0]
    weighted = TrainConfig(
        epochs=1, loss=LossConfig(exit_weights=(3, 3)), optim=OptimConfig(lr=1e-30)
    )
    tripled = train(weighted)["history"][0]
    assert tripled["train/loss"] == pytest.approx(3 * plain["train/loss"], rel=1e-5)
    assert tripled["val/loss"] == pytest.approx(3 * plain["val/loss"], rel=1e-5)
    smoothed = TrainConfig(
        epochs=1, loss=LossConfig(label_smoothing=0.3), optim=OptimConfig(lr=1e-30)
    )
    smooth = train(smoothed)["history"][0]
    assert smooth["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-3)
    assert smooth["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)


def test_a_shift_of_the_loss_weights_changes_the_steps_but_not_the_validation_loss():
    def first_epoch(shift):
        config = TrainConfig(
            epochs=2, loss=LossConfig(curriculum=shift), optim=OptimConfig(lr=1e-30)
        )
        return train(config)["history"][0]

    early, even, late = (first_epoch(shift) for shift in (1.0, 0.0, -1.0))
    assert early["val/loss"] == late["val/loss"] == even["val/loss"]
    mean = (early["train/loss"] + late["train/loss"]) / 2
    assert mean == pytest.approx(even["train/loss"], rel=1e-5)
    assert early["train/loss"] != pytest.approx(late["train/loss"], rel=1e-4)


def test_further_metrics_of_an_epoch_are_reported_with_the_others():
    history = train(measure=lambda model: {"parts": float(len(list(model.children())))})["history"]
    assert [metrics["parts"] for metrics in history] == [6.0] * QUICK.epochs


def test_evaluation_counts_every_image_once_whatever_the_batch_size():
    model = TwoExits()
    all_at_once = Digits(0, 97, 97)
    with torch.inference_mode():
        logits = model.eval()(normalize(all_at_once.images))
    losses = [nn.functional.cross_entropy(each, all_at_once.labels).item() for each in logits]
    right = [(each.argmax(1) == all_at_once.labels).double().mean() for each in logits]
    model.train()
    metrics = evaluate(QUICK, model, Digits(0, 97, 10), normalize=normalize, device=CPU)
    assert not model.training
    assert metrics["val/loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert metrics["val/exit1/top1"] == pytest.approx(100 * right[0].item())
    assert metrics["val/exit2/top1"] == pytest.approx(100 * right[1].item())


def test_hits_are_the_first_choice_and_the_first_five():
    logits = torch.tensor([[[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3])
    first, five = exit_hits(logits, torch.tensor([0, 4, 5]))
    assert first.tolist() == [[True, False, False]]
    assert five.tolist() == [[True, True, False]]
    _, all_of_three = exit_hits(logits[..., :3], torch.tensor([0, 1, 2]))
    assert all_of_three.all()


def test_the_log_follows_training(caplog, monkeypatch):
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
