"""A run that is stopped, in any way, and started again under its name."""

import os
import signal

import pytest

from tests.e2e.training import (
    assert_equal_states,
    client,
    committed_epochs,
    runs,
    snapshot,
    steps,
    training,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def trained_without_a_break(folder, *arguments):
    folder.mkdir()
    with training(folder, *arguments) as whole:
        assert whole.wait() == 0, whole.output()
        assert whole.family() == []
    [run] = runs(client(folder))
    return snapshot(folder, client(folder), run.info.run_id)


def check_against(unbroken, folder):
    [run] = runs(client(folder))
    resumed = snapshot(folder, client(folder), run.info.run_id)
    for part in ("epoch", "model", "optimizer", "best"):
        assert_equal_states(resumed[part], unbroken[part])
    for now, then in zip(resumed["history"], unbroken["history"], strict=True):
        assert now["val/loss"] == then["val/loss"]
    assert steps(client(folder), run.info.run_id) == [1, 2, 3, 4, 5, 6]
    assert run.info.status == "FINISHED"
    assert len(list(folder.glob("outputs/runs/*"))) == 1


def test_a_run_interrupted_and_then_killed_ends_where_an_unbroken_one_does(tmp_path):
    unbroken = trained_without_a_break(tmp_path / "whole")
    folder = tmp_path / "broken"
    folder.mkdir()
    with training(folder) as first:
        first.wait_until(lambda: committed_epochs(folder) >= 1)
        os.kill(first.process.pid, signal.SIGINT)
        assert first.wait(60) == 130, first.output()
        assert first.output().splitlines()[-1].startswith("stopped;")
        assert "Traceback" not in first.output()
        assert first.family() == []
    assert [run.info.status for run in runs(client(folder))] == ["KILLED"]
    reached = committed_epochs(folder)
    assert reached < 5
    with training(folder) as second:
        second.wait_until(lambda: committed_epochs(folder) > reached)
        os.kill(second.process.pid, signal.SIGKILL)  # the driver alone: Ray must follow
        second.wait()
    assert [run.info.status for run in runs(client(folder))] == ["RUNNING"]
    assert committed_epochs(folder) < 6
    with training(folder) as third:
        assert third.wait() == 0, third.output()
    check_against(unbroken, folder)


def test_a_run_that_lost_a_worker_ends_where_an_unbroken_one_does(tmp_path):
    two = ("--cluster.num_workers=2", "--data.loader=ffcv")
    unbroken = trained_without_a_break(tmp_path / "whole", *two)
    folder = tmp_path / "broken"
    folder.mkdir()
    with training(folder, *two) as first:
        first.wait_until(lambda: committed_epochs(folder) >= 1)
        first.worker().send_signal(signal.SIGKILL)
        assert first.wait(120) == 1, first.output()
        assert first.output().splitlines()[-1].startswith("error: worker")
        assert first.family() == []
    assert [run.info.status for run in runs(client(folder))] == ["FAILED"]
    assert committed_epochs(folder) < 6
    with training(folder, *two) as second:
        assert second.wait() == 0, second.output()
    check_against(unbroken, folder)
