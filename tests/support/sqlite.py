"""Empty SQLite file of MLflow, to be copied."""

import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient


@cache
def empty_database() -> bytes:
    """Make it once for all tests of a session."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()
