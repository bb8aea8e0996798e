"""Sweeps of whole runs, interrupted and resumed, on one or several hosts."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus
from ray.util import placement_group, placement_group_table

from cluster.cli import parse_settings
from cluster.config import ClusterConfig
from cluster.execution.resources import capacity_for, worker_resources
from pipelines.data.config import DataConfig
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run
from tests.support.jobs import IMAGES, STORAGE, Job, check_copies, check_nothing_is_held
from tests.support.planted_secrets import files, findings
from tests.support.training import client, runs, steps, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SWEEP = """
name: small-sweep
base_config: {config}
overrides: {settings}
space:
  model.scales: {{choice: [[1, 2], [2, 1]]}} # the second is not a valid network
  model.growth_rate: {{choice: [4, 6, 40]}} # the last is too large
  train.optim.lr: {{choice: [{lrs}]}}
  train.loss.curriculum: {{uniform: [-1.0, 1.0]}}
cost_limits: {{mult_adds: [0, 4.0e+6]}}
objective: {{metrics: {objectives}}}
early_stopping: {{method: {stopping}, first_epoch: 1, factor: 2}}
num_trials: {trials}
"""


def write_sweep(
    folder, *, lrs="0.1", objectives="[accuracy]", stopping="none", trials=4, **settings
):
    file = folder / "sweep.yaml"
    file.write_text(
        SWEEP.format(config=folder / "config.yaml", lrs=lrs, objectives=objectives,
                     stopping=stopping, trials=trials,
                     settings=json.dumps({"train.epochs": 3} | settings))
    )  # fmt: skip
    return file


def children(database) -> dict[int, Any]:
    """Return the MLflow runs of the trials by number."""
    return {int(r.data.tags["sweep.number"]): r for r in runs(database) if is_trial(r)}


def is_trial(run) -> bool:
    return "sweep.number" in run.data.tags


def ended(database) -> dict[int, dict]:
    """Return the results of ended trials in MLflow by number."""
    tags = {number: run.data.tags for number, run in children(database).items()}
    return {n: json.loads(t["sweep.result"]) for n, t in tags.items() if "sweep.result" in t}


def interrupted(database) -> set[int]:
    """Return the numbers of trials that have trained but not ended."""
    reached = {n for n, run in children(database).items() if steps(database, run.info.run_id)}
    return reached - ended(database).keys()


def check_every_epoch_once(database) -> None:
    for number, result in ended(database).items():
        run_id = children(database)[number].info.run_id
        assert steps(database, run_id) == list(range(1, result["epochs"] + 1)), number


def test_killed_and_stopped_sweep_resumes_and_yields_a_trainable_config(tmp_path):
    # One of the two learning rates diverges.
    write_sweep(tmp_path, lrs="0.1, 1.0e+30", stopping="asha", trials=3)
    database = client(tmp_path)
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        sweep.wait_until(lambda: (tmp_path / "mlflow.db").exists() and ended(database))
    killed = ended(database)
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        sweep.wait_until(lambda: len(ended(database)) > len(killed))
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.wait(60) == 130, sweep.output()
    assert "RUNNING" not in {run.info.status for run in runs(database)}
    before = ended(database)
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait(400) == 0, sweep.output()
        output = sweep.output()
        assert sweep.left() == []

    [parent] = [run for run in runs(database) if not is_trial(run)]
    assert parent.info.status == "FINISHED"
    results = ended(database)
    assert sorted(results) == [1, 2, 3]
    assert {
        number: results[number] for number in before
    } == before  # ended trials did not run again
    of_state = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    for number, run in children(database).items():
        result = results[number]
        assert run.info.status == of_state[result["state"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        diverges = json.loads(run.data.params["train.optim.lr"]) > 1
        assert (result["state"] == "failed") == diverges
        assert ("infinite" in result["error"]) == diverges
        assert run.data.params["model.scales"] == "[1, 2]"
        if result["epochs"]:
            assert run.data.metrics.keys() >= {
                "val/exit1/top1", "val/exit2/top1", "objective/accuracy", "objective/budget1_top1",
            }  # fmt: skip
    check_every_epoch_once(database)
    rejected = json.loads(parent.data.tags["sweep.rejected"])
    assert set(rejected) <= {"model.scales", "cost_limits.mult_adds"}
    assert sum(rejected.values()) > 0
    assert "Traceback" not in output

    [best] = tmp_path.glob("outputs/sweeps/*/best.yaml")
    assert str(best.relative_to(tmp_path)) in output
    run = parse_settings(Run, ["--config", str(best)])
    assert run.train.optim.lr == 0.1
    assert run.name == "small-sweep-best"
    with training(tmp_path, config=str(best)) as trained:
        assert trained.wait() == 0, trained.output()
    assert database.get_registered_model("small").aliases.keys() >= {"champion"}


SECRETS = {
    "AWS_ACCESS_KEY_ID": "id-Zq96-planted",
    "AWS_SECRET_ACCESS_KEY": "key-Zq97-planted",
    "AWS_SECURITY_TOKEN": "security-Zq98-planted",
    "AWS_SESSION_TOKEN": "session-Zq99-planted",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-Zq91-planted",
}
"""Credentials in the environment of the driver."""


def test_sweep_writes_no_credentials_of_its_environment_anywhere(tmp_path):
    file = write_sweep(tmp_path, trials=1)
    with training(tmp_path, script="tune.py", config=str(file), **SECRETS) as sweep:
        assert sweep.wait() == 0, sweep.output()
        written = files(tmp_path, Path(sweep.ray_folder))
        looked_for = ("log.txt", "mlflow.db", "runtime_env_agent.log", "worker-", "snapshot.pt")
        assert not findings(["-planted"], written, looked_for)


CASES = """
name: cases
base_config: config.yaml
overrides: {{cluster.num_workers: 2, train.epochs: 2, data.prepared_dir: {folder}}}
space:
  case:
    choice:
    - {{train.optim.lr: 1.0e-7}} # too small to learn
    - {{train.optim.lr: 0.1}}
    - {{model.stem_channels: 1000000}} # 65 GB for a batch
sampler: random # this seed samples the second first, so that worse trials are stopped
seed: 0
early_stopping: {{method: asha, first_epoch: 1, factor: 2}}
num_trials: 3
"""


def test_sweep_of_two_workers_survives_bad_trials_and_never_reads_test(tmp_path):
    folder = tmp_path / "digits"
    prepare(DataConfig(source="digits", prepared_dir=str(folder)), 16)
    test = folder / "test.beton"
    test.write_bytes(bytes(test.stat().st_size))  # unreadable
    (tmp_path / "sweep.yaml").write_text(CASES.format(folder=folder))
    with training(tmp_path, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait() == 0, sweep.output()
        output = sweep.output()

    database = client(tmp_path)
    ends = {}
    for run in children(database).values():
        [case] = json.loads(run.data.tags["sweep.params"]).values()
        result = json.loads(run.data.tags["sweep.result"])
        assert run.data.params["cluster.num_workers"] == "2"
        ends[str(case)] = result["state"], run.info.status, steps(database, run.info.run_id)
        is_too_large = "failed: not enough memory: " in result["error"]
        assert is_too_large == (result["state"] == "failed")
    assert ends == {
        "{'train.optim.lr': 0.1}": ("finished", "FINISHED", [1, 2]),
        "{'train.optim.lr': 1e-07}": ("stopped", "KILLED", [1]),
        "{'model.stem_channels': 1000000}": ("failed", "FAILED", []),
    }
    ended_at = {number: run.info.end_time for number, run in children(database).items()}
    assert (
        ended_at[3] - ended_at[2] < 120_000
    )  # Ray would hold the resources of a killed trial for 180 s
    assert "Traceback" not in output


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_more_workers_than_the_machine_has_raise_an_error_before_preparation(tmp_path, device):
    write_sweep(tmp_path)
    asked = {"cluster.device": device, "cluster.num_workers": 64, "train.epochs": 1}
    settings = f"--overrides={json.dumps(asked)}"
    with training(tmp_path, settings, script="tune.py", config="sweep.yaml") as sweep:
        assert sweep.wait() == 1
        last = sweep.output().splitlines()[-1]
    assert last.startswith("error: cluster.num_workers requests 64 workers")
    assert "which exceeds the capacity" in last
    assert runs(client(tmp_path)) == []
    assert not (tmp_path / "data").exists()


@pytest.fixture
def declared_gpu(ray_folder: str) -> Iterator[None]:
    """Ray with one declared GPU, which no process uses."""
    ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, _temp_dir=ray_folder)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("declared_gpu")
def test_two_small_trials_share_a_gpu_and_a_third_waits():
    cluster = ClusterConfig(device="gpu", num_workers=1, gpus_per_worker=0.5)
    assert capacity_for(cluster) == 2
    groups = [placement_group([worker_resources(cluster)]) for _ in range(3)]
    ready, _ = ray.wait([group.ready() for group in groups], num_returns=2, timeout=60)
    assert len(ready) == 2
    states = [placement_group_table(group)["state"] for group in groups]
    assert sorted(states) == ["CREATED", "CREATED", "PENDING"]


def kill_driver(cluster) -> None:
    """Kill the driver process of a submitted sweep, and no other process."""
    [driver] = [
        process for process in cluster.processes("head")
        if process.cmdline()[1:2] == ["pipelines/tune.py"]
    ]  # fmt: skip
    driver.kill()


def test_submitted_sweep_survives_a_lost_host_and_is_resumed_by_the_same_command(cluster, tmp_path):
    places = {"cluster.storage_path": STORAGE, "data.prepared_dir": IMAGES}
    file = write_sweep(
        tmp_path, objectives="[accuracy, latency_ms]", trials=3, **{"train.epochs": 8}, **places
    )

    def submit() -> Job:
        command = ("python", "pipelines/tune.py", "--config", str(file))
        return Job(cluster, tmp_path, "small-sweep", command=command)

    job = submit()
    database = job.tracking

    def epochs() -> dict[int, list[int]]:
        return {n: list(steps(database, run.info.run_id)) for n, run in children(database).items()}

    job.wait_until(lambda: sum(len(each) >= 1 for each in epochs().values()) >= 2)
    cluster.kill("host2")
    reached = epochs()
    job.wait_until(lambda: "was lost" in job.output() or ended(database))
    cluster.start("host2")
    job.wait_until(lambda: ended(database) and interrupted(database))
    before, cut = ended(database), interrupted(database)
    kill_driver(cluster)
    assert job.wait() is JobStatus.FAILED
    check_nothing_is_held(cluster)

    again = submit()
    again.wait_until(lambda: len(ended(database)) > len(before))
    again.stop()
    assert again.wait() is JobStatus.STOPPED
    check_nothing_is_held(cluster)
    deadline = time.monotonic() + 30
    while any(run.info.status == "RUNNING" for run in runs(database) if is_trial(run)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for number in cut:
        assert f"trial {number} resumed" in again.output()
    assert "resuming after" in again.output()
    before = ended(database)

    last = submit()
    assert last.wait(240) is JobStatus.SUCCEEDED, last.output()
    results = ended(database)
    assert sorted(results) == [1, 2, 3]
    assert {number: results[number] for number in before} == before
    assert {result["state"] for result in results.values()} == {"finished"}
    for accuracy, milliseconds in (result["values"] for result in results.values()):
        assert 0 < accuracy <= 100
        assert 0.1 < milliseconds < 1000
    check_copies(cluster)
    assert reached.keys() <= results.keys()
    check_every_epoch_once(database)
    assert last.run().info.status == "FINISHED"
    assert {run.info.status for run in children(database).values()} == {"FINISHED"}
