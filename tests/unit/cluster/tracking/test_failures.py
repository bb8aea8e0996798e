"""Failures of MLflow: permanent or transient, and the remedies."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import mlflow
import pytest
import requests
from mlflow import MlflowException
from mlflow.exceptions import RestException
from sqlalchemy.exc import OperationalError

from cluster.errors import TrackingError
from cluster.tracking.failures import explain, is_permanent
from cluster.tracking.lease import LEASE_TAG, Lease
from cluster.tracking.record import MetricWriter
from cluster.tracking.registry import load
from tests.support.tracking import begin

SERVER = "start its server or set MLFLOW_TRACKING_URI"


def rest(code: str, message: str) -> RestException:
    return RestException({"error_code": code, "message": message})


@pytest.mark.parametrize(
    ("error", "permanent", "remedy"),
    [
        (requests.ConnectionError("refused"), False, SERVER),
        (requests.ReadTimeout("Read timed out"), False, SERVER),
        (MlflowException("API request failed: Max retries exceeded with url"), False, SERVER),
        (OperationalError("", {}, Exception("connection to server at x failed")), False, SERVER),
        (OperationalError("", {}, Exception("database is locked")), False, "another process holds"),
        (OperationalError("", {}, Exception("database or disk is full")), False, "free space"),
        (OperationalError("", {}, Exception("unable to open database file")), False, "its folder"),
        (rest("INTERNAL_ERROR", "bad"), False, "bad"),
        (rest("TEMPORARILY_UNAVAILABLE", "busy"), False, "busy"),
        (rest("RESOURCE_DOES_NOT_EXIST", "Run with id=x not found"), True, "correct the name"),
        (
            rest("RESOURCE_DOES_NOT_EXIST", "Failed to download artifacts from path 'x', please"),
            False,
            "the storage of its artifacts answer",
        ),
        (
            rest("INVALID_PARAMETER_VALUE", "The run abc1 must be in the 'active' state."),
            True,
            "mlflow runs restore --run-id abc1",
        ),
        (
            rest("INVALID_PARAMETER_VALUE", "The experiment 7 must be in the 'active' state."),
            True,
            "mlflow experiments restore --experiment-id 7",
        ),
        (rest("PERMISSION_DENIED", "no"), True, "ask its administrator"),
        (rest("UNAUTHENTICATED", "no"), True, "MLFLOW_TRACKING_USERNAME"),
        (OSError(28, "No space left on device", "/mlruns/x"), False, "free space there"),
        (OSError(122, "Disk quota exceeded", "/mlruns/x"), False, "free space there"),
        (PermissionError(13, "Permission denied", "/mlruns"), True, "correct that file or folder"),
    ],
)
def test_failure_has_a_remedy_that_fits(error, permanent, remedy):
    assert is_permanent(error) == permanent
    text = explain(error)
    assert remedy in text
    assert (SERVER in text) == (remedy == SERVER)


def test_run_deleted_while_it_trains_ends_at_once_and_resumes_after_its_restoration(client, caplog):
    began = time.monotonic()
    with pytest.raises(TrackingError) as caught, begin() as record:  # noqa: PT012
        writer = MetricWriter(record, keep_checkpoints=2, retry_seconds=0.1)
        client.delete_run(record.run_id)
        writer.put({"epoch": 1.0})
        assert not writer.flush(timeout=2)
        record.log_history([{"epoch": 1.0}])
    assert time.monotonic() - began < 30
    restore = f"mlflow runs restore --run-id {record.run_id}"
    assert restore in str(caught.value)
    assert "start digits again" in str(caught.value)
    assert SERVER not in str(caught.value)
    rejections = [each.message for each in caplog.records if "rejects metrics" in each.message]
    assert len(rejections) == 1
    assert restore in rejections[0]
    subprocess.run([sys.executable, "-m", *restore.split()], check=True, timeout=120)
    dead = replace(Lease.of_this_process(), started=0)  # as the ended driver leaves it
    client.set_tag(record.run_id, LEASE_TAG, json.dumps(asdict(dead)))
    with begin() as again:
        assert (again.run_id, again.resumed) == (record.run_id, True)


@pytest.mark.parametrize(
    "uri",
    ["models:/missing/1", "models:/missing@champion", "models:/ranet/7", "models:/ranet@nobody",
     "models:/ranet", "models:/m-0123456789abcdef", "runs:/0123456789abcdef/model",
     "models:/missing/latest", "missing-folder", "ranet", "/nowhere/model"],
)  # fmt: skip
def test_model_that_does_not_exist_is_rejected_without_advice_on_servers(uri, client):
    client.create_registered_model("ranet")
    with pytest.raises(TrackingError) as caught:
        load(uri)
    assert uri in str(caught.value)
    assert "ranet" in str(caught.value)
    assert "start its server" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_is_not_looked_up_in_a_new_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        with pytest.raises(TrackingError, match="run the command in the folder of the training"):
            load("models:/ranet@champion")
    finally:
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []
