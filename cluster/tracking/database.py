"""MLflow's SQLite database: created atomically, and bound to its folder."""

import os
import shlex
import sqlite3
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment

from cluster.cli import python_command
from cluster.errors import TrackingError
from cluster.storage.files import atomic_write
from cluster.tracking.mlflow_internals import create_database

FOLDER_TAG = "ranet.folder"
"""Tag of the experiment: folder of the SQLite database, which holds the artifacts beside it."""

_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's database with absolute paths of artifacts, by table."""


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for other URIs."""
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    return Path(path).expanduser() if uri.startswith("sqlite:///") else None


def ensure_database(uri: str) -> None:
    """Create the database of a SQLite URI if it is missing.

    MLflow takes seconds to create the tables, and cannot use a database that was left half
    created. The database appears under its name only when complete.

    Raises:
        OSError: the folder cannot be written.
    """
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    with FileLock(file.with_name(f"{file.name}.lock")):
        if file.exists():  # another process created it meanwhile
            return
        with atomic_write(file) as part:
            # Left by a killed process.
            part.unlink(missing_ok=True)
            part.with_name(f"{part.name}-journal").unlink(missing_ok=True)
            create_database(f"sqlite:///{part}", _folder(file) / "mlruns")


def create_experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Create an experiment and return its ID.

    With a SQLite database, the artifacts are in the folder of the database.
    """
    file = sqlite_file(uri)
    if file is None:
        return client.create_experiment(name)
    folder = _folder(file)
    return client.create_experiment(
        name, artifact_location=str(folder / "mlruns" / name), tags={FOLDER_TAG: str(folder)}
    )


def check_folder(experiment: Experiment, uri: str) -> None:
    """Check that a SQLite database was not moved or copied.

    MLflow stores absolute paths: after a copy, runs would write into the original folder, and after
    a move no artifact would be found.

    Raises:
        TrackingError: the folder was moved or copied; the message has the command that repairs it.
    """
    file, before = sqlite_file(uri), experiment.tags.get(FOLDER_TAG)
    if file is not None and before is not None and Path(before) != _folder(file):
        raise TrackingError(
            f"{file} was moved or copied from {before}, where its artifacts would be read and "
            f"written; to use the artifacts in {_folder(file)}, run: "
            f"{python_command()} -m cluster.tracking.relocate {shlex.quote(str(file))}"
        )


def relocate(file: Path) -> str:
    """Change the artifact paths of a database to its present folder.

    Returns:
        The folder of before.

    Raises:
        TrackingError: the database does not name its folder.
    """
    with sqlite3.connect(file) as database:
        found = database.execute(
            "SELECT value FROM experiment_tags WHERE key = ?", (FOLDER_TAG,)
        ).fetchone()
        if found is None:
            raise TrackingError(f"{file} has no experiment of this project; nothing to change")
        before, after = found[0], str(_folder(file))
        for table, columns in _LOCATIONS.items():
            for column in columns:
                for prefix in ("", "file://"):
                    old = f"{prefix}{before}{os.sep}"
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (f"{prefix}{after}{os.sep}", len(old) + 1, len(old), old),
                    )
        database.execute("UPDATE experiment_tags SET value = ? WHERE key = ?", (after, FOLDER_TAG))
    return before


def _folder(file: Path) -> Path:
    return file.resolve().parent
