"""Training with several gloo workers."""

import math
import os
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from ranet.config import EmaConfig, OptimConfig, TrainConfig
from ranet.evaluation.exit_outputs import collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.training.loop import fit
from ranet.training.optim import NonFiniteLoss
from ranet.training.state import TrainState
from ranet.training.validation import evaluate
from tests.support.tiny import (
    Digits,
    Killed,
    Recorder,
    TwoExits,
    assert_same,
    normalize,
    small_ranet,
)

pytestmark = pytest.mark.distributed

QUICK = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=0.05))
ODD = TrainConfig(epochs=1, batch_size=33, optim=OptimConfig(lr=0.05))
ONE_EPOCH = TrainConfig(epochs=1, batch_size=32, optim=OptimConfig(lr=0.05))


def run_workers(work, num_workers, folder: Path, seconds=300):
    """Run `work(rank, num_workers)` in new processes; return the result of each."""
    context = spawn(start_worker, (work, num_workers, folder), nprocs=num_workers, join=False)
    assert context is not None
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the workers were not done after {seconds} s"
    finally:
        for process in context.processes:
            process.kill()  # pyright: ignore[reportAttributeAccessIssue] - typed as None
    return [torch.load(folder / f"{k}.pt", weights_only=True) for k in range(num_workers)]


def start_worker(rank, work, num_workers, folder: Path):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_workers,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank, num_workers), folder / f"{rank}.pt")
    distributed.destroy_process_group()
    # If a gloo thread still waits for the GIL, the shutdown of the interpreter aborts the process:
    # about once in ten starts of three workers on two busy cores.
    os._exit(0)


def train(
    config, rank, num_workers, model, *, resume=None, prepare=normalize, kill_after=0, notice=False
):
    """Train a network until its end or its kill; return all snapshots."""
    recorder = Recorder(kill_after, with_notice=notice)
    with suppress(Killed):
        fit(
            TrainState(config, model, prepare),
            Digits(0, 330, config.batch_size, shuffled=True, rank=rank, num_workers=num_workers),
            Digits(1000, 1081, 32, rank=rank, num_workers=num_workers),
            recorder,
            resume=resume,
        )
    return recorder.snapshots


def train_and_resume(rank, num_workers, make_model):
    # Each worker starts with different weights; the weights of rank 0 must replace the others.
    uninterrupted = train(QUICK, rank, num_workers, make_model(seed=rank))
    resumed = train(QUICK, rank, num_workers, make_model(seed=5), resume=uninterrupted[1])
    return {"uninterrupted": uninterrupted[-1], "resumed": resumed[-1]}


def train_and_be_killed(rank, num_workers, config):
    """Train with two interruptions, one of them with notice."""
    killed = train(
        replace(config, checkpoint_every_steps=3),
        rank,
        num_workers,
        small_ranet(rank),
        kill_after=18,
    )
    noticed = train(
        config, rank, num_workers, small_ranet(6), resume=killed[-1], kill_after=9, notice=True
    )
    resumed = train(config, rank, num_workers, small_ranet(7), resume=noticed[-1])
    return {
        "uninterrupted": train(config, rank, num_workers, small_ranet(rank))[-1],
        "resumed": resumed[-1],
        "positions": [(each["epoch"], each["step"]) for each in (killed[-1], noticed[-1])],
    }


def diverge_on_one_worker(rank, num_workers):
    """Train with NaN on one rank and step; return error and weights."""
    model = TwoExits()
    calls, weights = 0, {}

    def prepare(images):
        nonlocal calls, weights
        calls += 1
        # Ten steps and three validation batches an epoch.
        if calls == 15:
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            return normalize(images) * (math.nan if rank == 1 else 1)
        return normalize(images)

    with pytest.raises(NonFiniteLoss) as caught:
        train(QUICK, rank, num_workers, model, prepare=prepare)
    now = {name: p.detach() for name, p in model.named_parameters()}
    return {"error": str(caught.value), "before": weights, "after": now}


def evaluate_shares(rank, num_workers, num_images):
    """Evaluate in batches of 7 images per worker."""
    batches = Digits(1000, 1000 + num_images, 14, rank=rank, num_workers=num_workers)
    model = TwoExits()
    forward = ForwardPass(model, normalize)
    metrics = evaluate(forward, batches)
    scores = collect_exit_outputs(forward, batches).single
    return {"num_batches": len(batches), "metrics": metrics, "scores": scores.state()}


def everything(rank, num_workers):
    """Run the work of all tests in one start of the processes."""
    return {
        "tiny": train_and_resume(rank, num_workers, TwoExits),
        "ranet": train_and_resume(rank, num_workers, small_ranet),
        "normless": train(ONE_EPOCH, rank, num_workers, TwoExits(normed=False))[-1],
        "odd": {
            micro_batch: train(
                replace(ODD, micro_batch_size=micro_batch),
                rank,
                num_workers,
                TwoExits(normed=False),
            )[-1]
            for micro_batch in (0, 5)
        },
        "killed": train_and_be_killed(rank, num_workers, QUICK),
        "killed odd": train_and_be_killed(
            rank, num_workers, replace(QUICK, batch_size=33, ema=EmaConfig(decay=0.9))
        ),
        "bfloat16 gradients": train(
            replace(ONE_EPOCH, gradient_precision="bfloat16"),
            rank,
            num_workers,
            TwoExits(normed=False),
        )[-1],
        "diverged": diverge_on_one_worker(rank, num_workers),
        "evaluated": {n: evaluate_shares(rank, num_workers, n) for n in (57, 1)},
    }


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    return run_workers(everything, 2, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("network", ["tiny", "ranet"])
def test_workers_finish_with_equal_weights_statistics_and_metrics(two_workers, network):
    first, second = (worker[network]["uninterrupted"] for worker in two_workers)
    assert_same(first, second)
    assert first["history"] == second["history"]
    assert first["history"][-1]["val/exit2/top1"] > first["history"][0]["val/exit2/top1"]


@pytest.mark.parametrize("network", ["tiny", "ranet"])
def test_resumed_workers_reach_the_state_of_uninterrupted_workers(two_workers, network):
    for worker in two_workers:
        assert_same(worker[network]["resumed"], worker[network]["uninterrupted"])


def test_two_workers_take_the_same_steps_as_one_worker(two_workers):
    alone = train(ONE_EPOCH, 0, 1, TwoExits(normed=False))[-1]
    together = two_workers[0]["normless"]
    for name, weight in alone["model"].items():
        torch.testing.assert_close(together["model"][name], weight, atol=1e-5, rtol=1e-5)
    for name in ("train/loss", "val/loss", "val/exit1/top1", "val/exit2/top5"):
        assert together["history"][0][name] == pytest.approx(alone["history"][0][name], rel=1e-5)


def test_gradients_in_bfloat16_train_nearly_the_same_weights(two_workers):
    first, second = (worker["bfloat16 gradients"] for worker in two_workers)
    assert_same(first, second)
    exact = two_workers[0]["normless"]
    for name, weight in exact["model"].items():
        torch.testing.assert_close(first["model"][name], weight, atol=5e-3, rtol=5e-2)
    assert not torch.equal(first["model"]["first.weight"], exact["model"]["first.weight"])
    loss = first["history"][0]["train/loss"]
    assert loss == pytest.approx(exact["history"][0]["train/loss"], rel=1e-2)


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_workers_with_unequal_shares_take_the_same_steps_as_one_worker(two_workers, micro_batch):
    alone = train(ODD, 0, 1, TwoExits(normed=False))[-1]
    together = two_workers[0]["odd"][micro_batch]
    for name, weight in alone["model"].items():
        torch.testing.assert_close(together["model"][name], weight, atol=1e-5, rtol=1e-5)
    expected = pytest.approx(alone["history"][0]["train/loss"], rel=1e-5)
    assert together["history"][0]["train/loss"] == expected


@pytest.mark.parametrize("case", ["killed", "killed odd"])
def test_workers_killed_within_an_epoch_reach_the_state_of_uninterrupted_workers(two_workers, case):
    for worker in two_workers:
        assert worker[case]["positions"] == [(1, 6), (2, 5)]
        assert_same(worker[case]["resumed"], worker[case]["uninterrupted"])


def test_training_resumes_within_an_epoch_with_any_number_of_workers(tmp_path):
    config = replace(QUICK, epochs=3)
    uninterrupted = train(config, 0, 1, TwoExits(normed=False))
    resume, positions = None, []
    for turn, (num_workers, kill_after) in enumerate([(2, 4), (1, 8), (3, 9), (1, 0)]):
        folder = tmp_path / str(turn)
        folder.mkdir()
        work = partial(resume_training, config=config, resume=resume, kill_after=kill_after)
        ends = run_workers(work, num_workers, folder) if num_workers > 1 else [work(0, 1)]
        resume = ends[0]
        positions.append((resume["epoch"], resume["step"]))
    assert resume is not None
    assert positions == [(0, 4), (1, 2), (2, 1), (3, 0)]
    for name, weight in uninterrupted[-1]["model"].items():
        torch.testing.assert_close(resume["model"][name], weight, atol=1e-5, rtol=1e-5)
    for now, then in zip(resume["history"], uninterrupted[-1]["history"], strict=True):
        # Every image of every epoch counts once in the mean, on whichever worker.
        assert now["train/loss"] == pytest.approx(then["train/loss"], rel=1e-5)
        assert now["train/lr"] == then["train/lr"]


def resume_training(rank, num_workers, config, resume, kill_after):
    model = TwoExits(normed=False)
    snapshots = train(
        config, rank, num_workers, model, resume=resume, kill_after=kill_after, notice=True
    )
    return snapshots[-1]


def test_nan_loss_on_one_worker_stops_all_workers_before_the_step(two_workers):
    ends = [worker["diverged"] for worker in two_workers]
    for end in ends:
        assert "epoch 2 of 4, step 2 of 10" in end["error"]
        assert_same(end["after"], end["before"])
    assert_same(ends[0]["after"], ends[1]["after"])


@pytest.mark.parametrize(("num_images", "num_batches"), [(57, [5, 4]), (1, [1, 0])])
def test_validation_of_unequal_shares_is_exact(two_workers, num_images, num_batches):
    first, second = (worker["evaluated"][num_images] for worker in two_workers)
    assert [first.pop("num_batches"), second.pop("num_batches")] == num_batches
    assert_same(first, second)
    alone = evaluate_shares(0, 1, num_images)
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    # Each worker reads every second image; restore the order of the split.
    order = torch.cat([torch.arange(num_images)[k::2] for k in range(2)]).argsort()
    for key, values in alone["scores"].items():
        gathered = first["scores"][key][:, order]
        torch.testing.assert_close(gathered, values, atol=1e-6, rtol=1e-6)
