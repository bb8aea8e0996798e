import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from cluster.tracking import runs


@pytest.fixture
def client(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - MLflow resets it like this


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()
