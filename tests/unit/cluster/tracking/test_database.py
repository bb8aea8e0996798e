"""SQLite database of MLflow: atomic creation, and moved or copied folders."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from cluster.errors import TrackingError
from cluster.tracking import runs
from cluster.tracking.database import ensure_database, relocate, sqlite_file
from cluster.tracking.registry import load
from tests.support.tracking import SETTINGS, begin

pytestmark = pytest.mark.filterwarnings("ignore:.*type hints:UserWarning")
CREATE = "import sys; from cluster.tracking.database import ensure_database as e; e(sys.argv[1])"


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////x/mlflow.db", "/x/mlflow.db"),
        ("sqlite:///~/mlflow.db", str(Path("~/mlflow.db").expanduser())),
        ("sqlite:////x/mlflow.db?timeout=5", "/x/mlflow.db"),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://u@h/db", None),
    ],
)
def test_file_of_a_sqlite_uri_is_found(uri, file):
    assert sqlite_file(uri) == (None if file is None else Path(file))


def create(folder: Path) -> subprocess.Popen[bytes]:
    uri = f"sqlite:///{folder}/mlflow.db"
    return subprocess.Popen([sys.executable, "-c", CREATE, uri], stderr=subprocess.DEVNULL)


def test_creation_killed_at_any_time_leaves_no_incomplete_database(tmp_path):
    part = tmp_path / "mlflow.db.part"
    for delay in (0.0, 0.3):
        process = create(tmp_path)
        while not part.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ensure_database(uri)
    assert not part.exists()
    assert len(MlflowClient(uri).search_experiments()) == 1


def test_database_that_several_processes_create_at_once_is_complete(tmp_path):
    processes = [create(tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()) == 1


@pytest.fixture
def trained(client, tmp_path, monkeypatch) -> Path:
    """Folder with a database, a run and a model."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.move(tmp_path / "mlflow.db", folder / "mlflow.db")
    monkeypatch.chdir(folder)
    use(folder, monkeypatch)
    with begin() as record:
        record.client.log_text(record.run_id, "text", "notes/a.txt")
    with mlflow.start_run(run_id=record.run_id):
        mlflow.pyfunc.log_model(
            name="model", python_model=lambda model_input: model_input,
            registered_model_name="identity", pip_requirements=[],
        )  # fmt: skip
    return folder


def use(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("is_copy", [False, True])
def test_moved_or_copied_folder_is_rejected_until_its_paths_are_corrected(
    trained, tmp_path, is_copy, monkeypatch
):
    new = tmp_path / "new place"
    (shutil.copytree if is_copy else shutil.move)(trained, new)
    use(new, monkeypatch)
    command = f"{sys.executable} -m cluster.tracking.relocate '{new}/mlflow.db'"
    for call in (
        lambda: runs.check_can_start("digits", settings=SETTINGS),
        lambda: begin().__enter__(),
        lambda: load("models:/identity/1"),
    ):
        with pytest.raises(TrackingError, match="was moved or copied from") as caught:
            call()
        assert command in str(caught.value)
    assert relocate(new / "mlflow.db") == str(trained)
    assert load("models:/identity/1").predict(["x"]) == ["x"]
    with begin() as record:
        record.client.log_text(record.run_id, "text", "notes/b.txt")
    with sqlite3.connect(new / "mlflow.db") as database:
        assert str(trained) not in "\n".join(database.iterdump())
    assert len(list(new.glob("mlruns/**/b.txt"))) == 1
    if is_copy:
        assert not list(trained.glob("mlruns/**/b.txt"))


def test_linked_folder_is_not_a_moved_one(trained, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(trained)
    use(tmp_path / "link", monkeypatch)
    with begin():
        pass
