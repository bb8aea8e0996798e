"""Reachability and version of the MLflow server, and its error messages."""

import socket
import time

import mlflow
import pytest

from cluster.errors import TrackingError
from cluster.tracking.client import check_reachable, check_version
from cluster.tracking.failures import first_line
from cluster.tracking.runs import check_can_start, storage_to_resume
from tests.support.tracking import SETTINGS, begin

pytestmark = pytest.mark.usefixtures("client")

OURS = mlflow.__version__.split(".")


def test_error_messages_mask_passwords(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(
        TrackingError, match=r"http://\*\*\*@127\.0\.0\.1:9, with a password"
    ) as caught:
        begin().__enter__()
    assert "secret" not in str(caught.value)
    error = OSError("API request to http://user:secret@host/api failed: postgresql://u:p@db/x")
    assert first_line(error) == "API request to http://***@host/api failed: postgresql://***@db/x"


@pytest.mark.parametrize("version", ["2.99.0", f"{OURS[0]}.{int(OURS[1]) - 1}.9", "<html>no", ""])
def test_older_or_unknown_server_version_is_rejected(version):
    with pytest.raises(TrackingError, match=r"is version .*: install .*MLFLOW_TRACKING_URI"):
        check_version("http://mlflow", version)


@pytest.mark.parametrize("version", [mlflow.__version__, f"{OURS[0]}.{int(OURS[1]) + 1}.0rc1"])
def test_server_of_the_same_or_a_newer_minor_version_is_accepted(version):
    check_version("http://mlflow", version)


def test_unreachable_server_is_reported_within_seconds(monkeypatch):
    with socket.socket() as taken:  # bound, but nobody answers
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(TrackingError, match=r"does not answer .*MLFLOW_TRACKING_URI"):
            begin().__enter__()
        assert time.monotonic() - began < 10


def test_file_that_is_not_a_database_is_rejected(monkeypatch, tmp_path):
    (tmp_path / "text.db").write_text("no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(TrackingError, match=r"text.db cannot be used: .*file is not a database"):
        begin().__enter__()


@pytest.mark.parametrize(
    "uri",
    ["127.0.0.1:5000", "mlflow.example.com", "http:/127.0.0.1", "http//x", "./mlruns",
     "file:///tmp/mlruns", "sqlite://mlflow.db", "sqlite:///", "databricks"],
)  # fmt: skip
def test_uri_that_mlflow_cannot_use_is_rejected_with_the_forms(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"it must be http://HOST:PORT .* or sqlite:///FILE"):
        check_reachable()


def test_sqlite_file_in_a_missing_folder_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/missing/mlflow.db")
    with pytest.raises(TrackingError, match=f"the folder {tmp_path}/missing does not exist"):
        check_reachable()


def test_checks_before_a_run_create_no_database(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty/mlflow.db")
    check_reachable()
    check_can_start("digits", settings=SETTINGS)
    assert storage_to_resume("digits") is None
    assert list((tmp_path / "empty").iterdir()) == []
