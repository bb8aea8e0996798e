"""Training while its MLflow server comes and goes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow import MlflowClient

from tests.support.training import committed_epochs, runs, steps, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Server:
    """MLflow server on a SQLite file, which a test can restart."""

    def __init__(self, folder) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--port", str(self.port),
                 "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", str(self.folder / "artifacts")],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_metrics_are_logged_once_after_an_outage_of_mlflow(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    server = Server(tmp_path)
    try:
        # An epoch has 21 steps: the first and the fourth come with the checkpoint of the next.
        with training(
            folder, "--train.checkpoint_every_steps=30", MLFLOW_TRACKING_URI=server.uri
        ) as process:
            process.wait_until(lambda: committed_epochs(folder) >= 1)
            server.stop()
            process.wait_until(
                lambda: committed_epochs(folder) >= 4
            )  # training continues without the server
            server.start()
            assert process.wait() == 0, process.output()
            assert "training continues" in process.output()
        client = MlflowClient(server.uri)
        [run] = runs(client)
        assert run.info.status == "FINISHED"
        for metric in ("val/exit1/top1", "train/loss", "epoch"):
            assert steps(client, run.info.run_id, metric) == [1, 2, 3, 4, 5, 6]
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "checkpoints.json", "checkpoints"} <= names
    finally:
        server.stop()


def test_run_without_its_mlflow_server_ends_before_any_worker_starts(tmp_path):
    with socket.socket() as probe:  # a port on which nobody listens
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        began = time.monotonic()
        with training(tmp_path, MLFLOW_TRACKING_URI=uri) as process:
            assert process.wait(90) == 1
        assert time.monotonic() - began < 60
    assert process.output().splitlines()[-1].startswith(f"error: MLflow at {uri} does not answer")
    assert not (tmp_path / "outputs" / "runs").exists()
