"""Runs that are interrupted and resumed under their name."""

import os
import signal
import time

import pytest
import torch

from pipelines.data.config import normalization
from pipelines.data.format.metadata import with_normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.run import read_run
from ranet import RANet
from ranet.model.preprocessing import Normalize
from ranet.training.log_reporter import LogReporter
from ranet.training.loop import fit
from ranet.training.state import TrainState
from tests.support.training import (
    CONFIG,
    assert_equal_states,
    client,
    committed,
    committed_epochs,
    newest_checkpoint,
    runs,
    snapshot,
    steps,
    training,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


SMALL_BATCHES = "--train.batch_size=16"
"""So many steps in an epoch that the run does not end before it is interrupted."""


@pytest.fixture(scope="module")
def trained_in_one_process(tmp_path_factory):
    """Last snapshot of a run in small batches, trained without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    run = read_run(["--config", str(config), SMALL_BATCHES, f"--data.prepared_dir={folder}/digits"])
    data = with_normalization(run.data, prepare(run.data, run.model.image_size))
    torch.manual_seed(run.train.seed)
    device = torch.device("cpu")
    train, val = (
        open_batches(
            run.data, split, image_size=run.model.image_size, batch_size=run.train.batch_size,
            worker=Worker(seed=run.train.seed, device=device),
        )
        for split in ("train", "val")
    )  # fmt: skip
    training = TrainState(run.train, RANet(run.model), Normalize(*normalization(data)))
    return fit(training, train, val, LogReporter())


def trained_without_a_break(folder, *arguments):
    folder.mkdir()
    with training(folder, *arguments) as whole:
        assert whole.wait() == 0, whole.output()
        assert whole.left() == []
    [run] = runs(client(folder))
    return snapshot(folder, client(folder), run.info.run_id)


def check_against(unbroken, folder):
    [run] = runs(client(folder))
    resumed = snapshot(folder, client(folder), run.info.run_id)
    for part in ("epoch", "model", "optimizer", "best"):
        assert_equal_states(resumed[part], unbroken[part])
    for now, then in zip(resumed["history"], unbroken["history"], strict=True):
        assert now["val/loss"] == then["val/loss"]
    assert steps(client(folder), run.info.run_id) == list(range(1, unbroken["epoch"] + 1))
    assert run.info.status == "FINISHED"


def test_run_interrupted_and_killed_twice_reaches_the_weights_of_an_uninterrupted_run(
    trained_in_one_process, tmp_path
):
    with training(tmp_path, SMALL_BATCHES) as first:
        first.wait_until(lambda: committed_epochs(tmp_path) >= 1)
        os.kill(first.process.pid, signal.SIGINT)
        assert first.wait(60) == 130, first.output()
        assert first.output().splitlines()[-1].startswith("interrupted;")
        assert "Traceback" not in first.output()
        assert first.left() == []
    assert [run.info.status for run in runs(client(tmp_path))] == ["KILLED"]
    reached = committed_epochs(tmp_path)
    assert reached < 5
    with training(tmp_path, SMALL_BATCHES) as second:
        second.wait_until(lambda: committed_epochs(tmp_path) > reached)
        os.kill(second.process.pid, signal.SIGKILL)  # the driver alone: Ray must follow
        second.wait()
    assert [run.info.status for run in runs(client(tmp_path))] == ["RUNNING"]
    assert committed_epochs(tmp_path) < 6
    with training(tmp_path, SMALL_BATCHES) as third:
        third.wait_until(lambda: list(tmp_path.glob("mlruns/**/checkpoints/best/best.pt")))
        third.process.kill()
        third.wait()
    assert client(tmp_path).search_model_versions() == []
    with training(tmp_path, SMALL_BATCHES) as fourth:  # registration alone is left
        assert fourth.wait() == 0, fourth.output()
        assert "epoch 6/6" not in fourth.output()
        assert "the champion" in fourth.output()
    check_against(trained_in_one_process, tmp_path)
    assert len(list(tmp_path.glob("outputs/runs/*"))) == 1
    [run] = runs(client(tmp_path))
    [version] = client(tmp_path).search_model_versions()
    assert version.run_id == run.info.run_id
    assert steps(client(tmp_path), run.info.run_id, "test/exit1/top1") == [0]


def test_run_stops_with_a_checkpoint_after_its_hours_and_resumes(trained_in_one_process, tmp_path):
    with training(tmp_path, SMALL_BATCHES, "--cluster.max_hours=0.0001") as first:
        assert first.wait() == 1, first.output()
        output = first.output()
    # The workers check the time after the first step, when the limit of 0.4 s has passed.
    last = "error: cluster.max_hours is over: stopped after 0 epochs and 1 steps, with a checkpoint"
    assert output.splitlines()[-1].startswith(last)
    assert "Traceback" not in output
    assert committed(tmp_path) == (0, 1)
    with training(tmp_path, SMALL_BATCHES) as second:
        assert second.wait() == 0, second.output()
        assert "resuming after 0 epochs and 1 steps" in second.output()
    check_against(trained_in_one_process, tmp_path)


def test_s3_outage_during_a_checkpoint_and_a_killed_worker_do_not_change_the_weights(
    trained_in_one_process, s3, bucket, tmp_path
):
    storage = f"--cluster.storage_path=s3://{bucket}/runs"
    with training(tmp_path, SMALL_BATCHES, "--train.checkpoint_every_steps=13", storage) as process:

        def epochs():
            return process.output().count("validation top-1")

        process.wait_until(epochs)
        s3.kill()
        reached = epochs()
        time.sleep(20)
        assert epochs() <= reached + 1  # it waits for a checkpoint: one more if its line was late
        s3.start()
        process.wait_until(lambda: epochs() > reached + 1)
        assert "resuming after" not in process.output()  # by the worker that waited
        process.worker().kill()
        assert process.wait() == 0, process.output()
        output = process.output()
    assert "was lost: it was killed" in output
    assert output.count("consecutive failure 1") == output.count("resuming after") == 1
    check_against(trained_in_one_process, tmp_path)


def test_run_that_lost_a_worker_and_a_checkpoint_reaches_the_weights_of_an_uninterrupted_run(
    tmp_path,
):
    # Both within an epoch of 21 steps.
    two = (
        "--cluster.num_workers=2", "--data.loader=ffcv", "--train.checkpoint_every_steps=4",
        "--train.epochs=4",
    )  # fmt: skip
    unbroken = trained_without_a_break(tmp_path / "whole", *two)
    folder = tmp_path / "broken"
    folder.mkdir()
    with training(folder, *two, "--cluster.max_consecutive_failures=0") as first:
        first.wait_until(lambda: committed(folder) >= (1, 4) and committed(folder)[1])
        first.worker().send_signal(signal.SIGKILL)
        assert first.wait(120) == 1, first.output()
        assert "was lost" in first.output().splitlines()[-1]
        assert first.left() == []
    assert [run.info.status for run in runs(client(folder))] == ["FAILED"]
    assert committed_epochs(folder) < 4
    damaged = newest_checkpoint(folder) / "snapshot.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with training(folder, *two) as second:
        assert second.wait() == 0, second.output()
        assert f"{damaged.parent} is damaged: snapshot.pt, of " in second.output()
    check_against(unbroken, folder)
    assert len(list(folder.glob("outputs/runs/*"))) == 1
