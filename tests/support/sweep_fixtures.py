"""Fixtures for tests of sweeps: MLflow database and small Ray cluster."""

import os
import shutil
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from cluster.config import ClusterConfig
from cluster.execution.connection import connected
from cluster.tracking.record import TrackedRun


@pytest.fixture
def database(empty_database, tmp_path) -> str:
    """Tracking URI of an empty MLflow database for the test."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def parent(database, tmp_path) -> TrackedRun:
    client = MlflowClient(database)
    sweep = client.create_run(client.create_experiment("ranet", str(tmp_path)))
    return TrackedRun(database, sweep.info.run_id, "sweep", attempt=1, resumed=False)


@pytest.fixture
def small_ray(tmp_path, ray_folder, monkeypatch) -> Iterator[ClusterConfig]:
    """Local Ray cluster with capacity for one trial."""
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = ClusterConfig(
        num_workers=1, cpus_per_worker=os.cpu_count() or 1, device="cpu", storage_path=str(tmp_path)
    )
    with connected(cluster):
        yield cluster
