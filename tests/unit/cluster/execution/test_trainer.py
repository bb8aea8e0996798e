"""Checks of a run's storage, before Ray is started."""

import os

import pytest

from cluster.errors import TrackingError
from cluster.storage.filesystem import resolve_storage
from cluster.tracking.client import check_reachable


@pytest.fixture
def submitted_job(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_relative_storage_is_resolved_from_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_storage("outputs/runs") == str(tmp_path / "outputs" / "runs")
    assert list((tmp_path / "outputs" / "runs").iterdir()) == []


def test_uri_with_another_scheme_or_options_is_left_unchanged():
    for uri in ("gs://bucket/runs", "s3://bucket/runs?region=eu-west-1"):
        assert resolve_storage(uri) == uri


def test_bucket_without_a_folder_is_rejected():
    with pytest.raises(
        ValueError, match=r"cluster.storage_path must be a path or s3://bucket/folder"
    ):
        resolve_storage("s3://bucket")


def test_submitted_job_requires_explicit_storage_and_tracking(submitted_job, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"cluster.storage_path is outputs/runs: the working folder of a submitted job",
    ):
        resolve_storage("outputs/runs")
    assert list(tmp_path.iterdir()) == []
    assert resolve_storage(str(tmp_path / "runs")) == str(tmp_path / "runs")
    with pytest.raises(
        TrackingError, match="MLFLOW_TRACKING_URI is not set: the working folder of a submitted job"
    ):
        check_reachable()


def test_submitted_job_may_use_a_database_outside_its_folder(
    submitted_job, monkeypatch, tmp_path_factory
):
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    check_reachable()


def test_unwritable_storage_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cluster.storage_path is .*: cannot write to .*Not a direct"
    ):
        resolve_storage(str(tmp_path / "file" / "runs"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_full_storage_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(ValueError, match="No space left on device"):
        resolve_storage(str(tmp_path))
