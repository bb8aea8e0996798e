"""A sweep over whole runs, stopped and started again."""

import json

import psutil
import pytest

from tests.e2e.training import client, committed_epochs, runs, steps, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SWEEP = """
name: small-sweep
run: config.yaml
settings: {train.epochs: 3}
space:
  model.scales: {choice: [[1, 2], [2, 1]]} # the second is no network
  model.growth_rate: {choice: [4, 6]}
  train.exit_loss_weights: {uniform: [0.5, 2.0], length: 2}
num_trials: 2
"""


def test_a_killed_sweep_goes_on_with_the_same_trials(tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        sweep.wait_until(lambda: committed_epochs(tmp_path) >= 1)
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait(400) == 0, sweep.output()
        ranking = [line.split() for line in sweep.output().splitlines() if "--model.scales" in line]
        _, left = psutil.wait_procs(sweep.family(), timeout=30)
        assert left == []

    database = client(tmp_path)
    every = {run.info.run_name: run for run in runs(database)}
    parent = every.pop("small-sweep-1")
    assert parent.info.status == "FINISHED"
    assert len(every) == 2
    scores = {}
    for run in every.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert json.loads(run.data.params["model.scales"]) == [1, 2]
        assert steps(database, run.info.run_id) == [1, 2, 3]
        history = database.get_metric_history(run.info.run_id, "val/exit2/top1")
        scores[run.info.run_id] = max(entry.value for entry in history)
    weights = {run.data.params["train.exit_loss_weights"] for run in every.values()}
    assert len(weights) == 2

    rows = [line for line in ranking if line[0] in ("1", "2")]
    assert [row[4] for row in rows] == sorted(scores, key=lambda run_id: -scores[run_id])
    for row in rows:
        assert float(row[1]) == pytest.approx(scores[row[4]], abs=0.005)


def test_a_space_without_a_single_network_is_refused_before_a_run_is_opened(tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("[[1, 2], [2, 1]]", "[[2, 1]]"))
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait() == 1
        last = sweep.output().splitlines()[-1]
    assert last.startswith("error: space gave 0 different samples")
    assert "model.scales must start at 1" in last
    assert runs(client(tmp_path)) == []


def test_a_trial_that_fails_is_named_in_one_sentence(tmp_path):
    sweep_text = SWEEP.replace("train.epochs: 3", "train.optim.lr: 1.0e+30")
    (tmp_path / "sweep.yaml").write_text(sweep_text.replace("num_trials: 2", "num_trials: 1"))
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait() == 1
        assert "Traceback" not in sweep.output()
        last = sweep.output().splitlines()[-1]
    assert last.startswith("error: 1 of 1 trials failed: worker 0 failed: the loss")
    assert {run.info.status for run in runs(client(tmp_path))} == {"FAILED"}
