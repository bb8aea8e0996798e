"""Training on an existing cluster, and on one that is too small."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from cluster.local.network import free_ports
from cluster.local.processes import kill_marked
from tests.support.training import CONFIG, PROJECT, client, runs, steps, training, user_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def head(tmp_path, ray_folder):
    """Ray head with two CPUs; yields the environment of its clients."""
    with started_head(tmp_path, ray_folder) as environment:
        yield environment


@contextmanager
def started_head(tmp_path, ray_folder, *options, **variables):
    port, dashboard, agent = free_ports("127.0.0.1", 3)
    environment = user_environment() | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray_folder}
    environment |= variables
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
             f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
             "--object-store-memory=100000000", "--disable-usage-stats", *options],
            stdout=log, stderr=log, start_new_session=True, env=environment,
        )  # fmt: skip
    environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    yield environment
    kill_marked("RAY_TMPDIR", ray_folder)
    process.wait(30)


def submit(environment, config, *arguments, **variables):
    """Submit train.py from the project's folder and wait for its end."""
    command = [
        RAY, "job", "submit", "--working-dir", PROJECT,
        "--runtime-env-json", json.dumps({
            "env_vars": {k: str(v) for k, v in variables.items()},
            "excludes": ["/tests", "/outputs", "/data", "/mlruns"],
        }),
        "--", sys.executable, "pipelines/train.py", "--config", config, *arguments,
    ]  # fmt: skip
    while True:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if "Failed to connect" not in done.stdout + done.stderr:  # else the head listens not yet
            return done


def test_submitted_job_trains_on_the_cluster_and_leaves_nothing_in_its_folder(head, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    arguments = (
        tmp_path / "config.yaml",
        "--train.epochs=2",
        f"--data.prepared_dir={tmp_path}/digits",
    )
    refused = submit(head, *arguments, MLFLOW_TRACKING_URI=uri)
    assert refused.returncode != 0
    assert "error: cluster.storage_path is " in refused.stdout
    assert "/outputs/runs: the working folder of a submitted job is deleted" in refused.stdout
    storage = f"--cluster.storage_path={tmp_path}/runs"
    done = submit(head, *arguments, storage, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = runs(client(tmp_path))
    assert run.info.status == "FINISHED"
    assert steps(client(tmp_path), run.info.run_id) == [1, 2]
    assert len(list(tmp_path.glob("runs/small-1-*/checkpoint_*/snapshot.pt"))) == 2


def test_gpus_that_this_machine_does_not_have_are_an_error_before_the_run_is_opened(tmp_path):
    with training(tmp_path, "--cluster.device=gpu", "--cluster.num_workers=2") as process:
        assert process.wait(120) == 1, process.output()
    last = process.output().splitlines()[-1]
    assert last.startswith("error: cluster.device is gpu for 2 workers, but this machine has 0")
    assert not runs(client(tmp_path))


def wait_for_dashboard(head):
    """Wait for the dashboard of the head, which starts last."""
    deadline = time.monotonic() + 90
    while True:
        try:
            requests.get(f"{head['RAY_API_SERVER_ADDRESS']}/api/version", timeout=5)
            return
        except requests.RequestException:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_run_larger_than_the_cluster_waits_and_then_fails(head, tmp_path):
    wait_for_dashboard(head)
    with training(
        tmp_path, "--cluster.device=gpu", "--cluster.num_workers=2",
        "--cluster.start_timeout_seconds=3",
        RAY_ADDRESS=head["RAY_ADDRESS"], RAY_AUTH_MODE="disabled",
    ) as process:  # fmt: skip
        assert process.wait(120) == 1, process.output()
    last = process.output().splitlines()[-1]
    assert last.startswith("error: 2 workers with 1 CPUs and 1 GPU each did not start")
    assert "= 3: the cluster has" in last
    assert [run.info.status for run in runs(client(tmp_path))] == ["FAILED"]


def test_old_nvidia_driver_of_a_node_ends_the_run_before_workers_start(tmp_path, ray_folder):
    (tmp_path / "config.yaml").write_text(CONFIG)
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 570.133.20\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    with started_head(tmp_path, ray_folder, "--num-gpus=1", PATH=path) as environment:
        done = submit(
            environment, tmp_path / "config.yaml", "--cluster.device=gpu",
            f"--cluster.storage_path={tmp_path}/runs", f"--data.prepared_dir={tmp_path}/digits",
            MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db",
        )  # fmt: skip
    assert done.returncode == 1
    # Ray repeats the end of the log.
    [line] = {line for line in done.stdout.splitlines() if line.startswith("error: ")}
    assert "its NVIDIA driver is 570.133.20; torch " in line
    assert "Traceback" not in done.stdout
    assert "consecutive failure" not in done.stdout
