"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two cores are shared with worker processes, and one thread makes sums repeat."""
    torch.set_num_threads(1)


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
    """A fresh SQLite file of MLflow, to be copied: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
