"""Storage of a run is checked before Ray is asked for anything."""

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


def test_relative_storage_lies_below_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_storage("outputs/runs") == str(tmp_path / "outputs" / "runs")
    assert list((tmp_path / "outputs" / "runs").iterdir()) == []


def test_an_address_of_another_kind_is_left_to_ray():
    for address in ("gs://bucket/runs", "s3://bucket/runs?region=eu-west-1"):
        assert resolve_storage(address) == address


def test_a_bucket_without_a_folder_is_refused():
    with pytest.raises(
        ValueError, match=r"cluster.storage_path must be a path or s3://bucket/folder"
    ):
        resolve_storage("s3://bucket")


def test_a_submitted_job_must_say_where_its_results_go(submitted_job, tmp_path):
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


def test_a_submitted_job_may_use_a_database_outside_its_folder(
    submitted_job, monkeypatch, tmp_path_factory
):
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    check_reachable()


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cluster.storage_path is .*: cannot write to .*Not a direct"
    ):
        resolve_storage(str(tmp_path / "file" / "runs"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_full_storage_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(ValueError, match="No space left on device"):
        resolve_storage(str(tmp_path))
