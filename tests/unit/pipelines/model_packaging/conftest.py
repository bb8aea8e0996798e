"""A registered model for the tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.pyfunc import PyFuncModel

from cluster.tracking import registry
from pipelines.model_packaging.package import RegisteredVersion
from tests.support.registered import register_tiny


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def client(mlflow_folder: Path, empty_database: Path) -> Iterator[MlflowClient]:
    shutil.copy(empty_database, mlflow_folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_folder}/mlflow.db")
        patch.chdir(mlflow_folder)
        yield MlflowClient()


@pytest.fixture(scope="module")
def version(client: MlflowClient, mlflow_folder: Path) -> RegisteredVersion:
    return register_tiny(client, mlflow_folder)


@pytest.fixture(scope="module")
def model(version: RegisteredVersion) -> PyFuncModel:
    return registry.load(f"models:/{version.name}@champion")
