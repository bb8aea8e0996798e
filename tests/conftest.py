"""Fixtures that every test may use."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from cluster.local import processes
from cluster.local.s3_server import S3Server
from tests.support import sqlite
from tests.support.s3 import s3_server
from tests.support.training import WORKER_NICENESS

# Tests run on busy machines: the time that an example takes says nothing about the test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread per test process, so that rounding errors repeat."""
    torch.set_num_threads(1)


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Folder for RAY_TMPDIR; its processes end with the test."""
    monkeypatch.setenv(WORKER_NICENESS, "0")
    with processes.ray_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images: RANET_SHARED_DATA, or shared/data beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RANET_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist; set RANET_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite file of MLflow, to be copied."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    path.write_bytes(sqlite.empty_database())
    return path


@pytest.fixture(scope="session")
def s3_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests: it takes six seconds to start."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_of_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Real S3 server at AWS_ENDPOINT_URL; restarted if a test kills it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_of_session.environment().items():
        monkeypatch.setenv(name, value)
    yield s3_of_session
    if not s3_of_session.is_running():
        s3_of_session.start()


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """A fresh bucket of that server."""
    letters = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    name = f"{letters[:40].strip('-')}-{time.time_ns() % 10**9}"
    client = s3.client()
    client.create_bucket(Bucket=name)
    client.close()
    return name
