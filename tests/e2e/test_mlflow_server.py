"""MLflow server of a team: PostgreSQL, artifacts in S3, users, two hosts."""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from ray.job_submission import JobStatus

from cluster.errors import TrackingError
from cluster.local.cluster import LocalCluster
from cluster.local.network import free_ports
from cluster.local.services import BUCKET
from cluster.mlflow_server import add_user
from cluster.mlflow_server import main as server_command
from cluster.tracking import client, runs
from tests.support.jobs import IMAGES, Job, from_a_page
from tests.support.planted_secrets import files, findings, objects
from tests.support.postgres import Postgres, binaries, postgres_server
from tests.support.training import PROJECT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(binaries() is None, reason="needs Debian's postgresql (make test)"),
]

ADMIN_PASSWORD = "admin-Zq81-planted"
SERVER_KEY = "flask-key-Zq82-planted"


class Server:
    """`make mlflow-server`, which can be stopped and started again."""

    def __init__(self, cluster: LocalCluster, database: Postgres, log: Path) -> None:
        self.database = database
        self.log = log
        self.address = database.address
        [self.port] = free_ports(self.address, 1)
        self.uri = f"http://{self.address}:{self.port}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))},
            **cluster.environment,
            **database.environment,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/team",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.address}:{self.port}",
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": SERVER_KEY,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "cluster.mlflow_server", "serve",
                "--host", self.address, "--port", str(self.port), "--workers", "1"]  # fmt: skip

    def failed_start(self, **changes: str) -> str:
        """Return the error of a server that cannot start in this environment."""
        outcome = subprocess.run(
            self.command(), cwd=PROJECT, env=self.environment | changes,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert outcome.returncode == 1
        return outcome.stderr.splitlines()[-1]

    def start(self) -> None:
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=PROJECT, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"{self.uri}/health", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                assert self._process.poll() is None, self.log.read_text()[-3000:]
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(
    cluster_of_session: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    network = ipaddress.ip_network(cluster_of_session.subnet)
    with postgres_server(str(network[1])) as database:  # which the hosts reach
        started = Server(cluster_of_session, database, tmp_path_factory.mktemp("server") / "log")
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="module")
def passwords(server: Server) -> dict[str, str]:
    """Passwords of an administrator, a writer and a reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
        return {
            "admin": ADMIN_PASSWORD,
            "ada": add_user("ada", may_write=True),
            "reader": add_user("reader", may_write=False),
        }


@pytest.fixture
def user(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Be some user of the server in this process, or none."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("HOME", "/nonexistent")  # a developer's own credentials

    def be(name: str | None = None, password: str = "") -> None:
        for variable, value in (("USERNAME", name), ("PASSWORD", password)):
            if name is None:
                monkeypatch.delenv(f"MLFLOW_TRACKING_{variable}", raising=False)
            else:
                monkeypatch.setenv(f"MLFLOW_TRACKING_{variable}", str(value))

    be()
    return be


def start_a_run(name: str) -> None:
    # More than the free space in PostgreSQL's pages; shorter than what it would compress.
    settings = {f"train.setting{k}": "x" * 1900 for k in range(100)}
    with runs.open_run(name, settings=settings, parameters={}, tags={}, config_text=""):
        pass


def test_rejected_credentials_are_reported_before_the_run_is_opened(
    server, user, passwords, capsys
):
    with pytest.raises(TrackingError, match="rejects calls without a user; set MLFLOW_TRACK"):
        client.check_reachable()
    user("ada", "wrong-password-Zq84")
    with pytest.raises(TrackingError, match=r"rejects user ada with this password") as caught:
        client.check_reachable()
    assert "Zq84" not in str(caught.value)
    user("reader", passwords["reader"])
    client.check_reachable()
    with pytest.raises(TrackingError, match="user reader may not do this; ask its administrator"):
        start_a_run("not-allowed")
    with pytest.raises(SystemExit) as ending:
        server_command(["add-user", "friend"])
    assert ending.value.code == 1
    assert "did not create user friend: user reader may not do this" in capsys.readouterr().err


def test_server_with_a_broken_configuration_does_not_start(server):
    error = server.failed_start(MLFLOW_SERVER_ALLOWED_HOSTS="*")
    assert "MLFLOW_SERVER_ALLOWED_HOSTS must list the host names and ports" in error
    assert "PostgreSQL cannot be used" in (error := server.failed_start(PGPASSWORD="wrong-Zq85"))
    assert "Zq85" not in error
    assert "no such bucket" in server.failed_start(
        MLFLOW_ARTIFACTS_DESTINATION="s3://nowhere/mlflow"
    )
    assert "S3 denies access" in server.failed_start(AWS_SECRET_ACCESS_KEY="wrong")


def test_unknown_host_name_of_the_server_is_named(server, user, monkeypatch):
    user("admin", ADMIN_PASSWORD)
    as_number = int(ipaddress.ip_address(server.address))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{as_number}:{server.port}")
    with pytest.raises(TrackingError, match=r"add the name and port .* MLFLOW_SERVER_ALL"):
        client.check_reachable()


def test_requests_from_pages_of_other_hosts_are_rejected(server, passwords):
    admin = ("admin", ADMIN_PASSWORD)
    assert from_a_page(server.uri, server.uri, auth=admin) == 200
    assert from_a_page(server.uri, "http://elsewhere.example", auth=admin) == 403


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_full_disk_of_postgresql_is_reported_before_workers_start(server, user, passwords):
    user("ada", passwords["ada"])
    with (
        server.database.full_disk(),
        pytest.raises(TrackingError, match="free space on the disk of the database where"),
    ):
        start_a_run("no-room")
    start_a_run("room-again")


def written(cluster: LocalCluster, server: Server, job: Job) -> Iterator[tuple[str, bytes]]:
    """All that a run leaves anywhere: stores, databases, and everybody's logs."""
    yield "the job's log", job.output().encode()
    yield "the job's description", repr(job.details()).encode()
    yield "PostgreSQL", server.database.dump().encode()
    yield from objects(cluster.s3(), BUCKET)
    scratch = [Path(cluster.scratch) / name for name in ("head", *cluster.hosts)]
    yield from files(Path(cluster.folder) / "logs", server.log.parent, *scratch)


def test_two_hosts_train_while_the_server_restarts_and_a_reader_pulls_the_model(
    cluster, server, user, passwords, tmp_path
):
    # The driver's machine has the user's password; workers and their hosts have none.
    home = Path(cluster.folder) / "home" / "head" / ".mlflow"
    home.mkdir(exist_ok=True)
    (home / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = {passwords['ada']}\n"
    )
    user("reader", passwords["reader"])
    try:
        job = Job(cluster, tmp_path, "team", "--train.epochs=8", "--cluster.num_workers=2",
                  f"--data.prepared_dir={IMAGES}", tracking_uri=server.uri)  # fmt: skip
        job.wait_until(lambda: len(job.epochs()) >= 2)
        server.stop()
        job.wait_until(lambda: "MLflow does not answer" in job.output())
        server.start()
        assert job.wait() is JobStatus.SUCCEEDED, job.output()
    finally:
        (home / "credentials").unlink()
    assert "training on 2 workers" in job.output()
    assert job.run().info.status == "FINISHED"
    for metric in ("val/exit1/top1", "train/loss", "epoch"):
        assert job.epochs(metric) == list(range(1, 9))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert key not in os.environ  # artifacts come through the server
    planted = [cluster.secret, cluster.ray_token, server.database.password, SERVER_KEY]
    planted += passwords.values()
    files_of_a_run = ("snapshot.pt", "scores.pt", "config.yaml", "MLmodel", "job-driver", "worker-")
    assert not findings(planted, written(cluster, server, job), files_of_a_run)
    model = mlflow.pyfunc.load_model("models:/small@champion")
    answers = model.predict(np.zeros((2, 3, 16, 16), np.uint8), params={"budget_fraction": 1.0})
    assert len(answers) == 2
    with pytest.raises(mlflow.MlflowException, match="Permission denied"):
        MlflowClient().set_registered_model_alias("small", "champion", "1")
