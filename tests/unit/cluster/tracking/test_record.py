"""Metrics and checkpoints of a run: logged once, also after an outage."""

import json
import time
from pathlib import Path

from mlflow import MlflowClient

from cluster.execution.mlflow_callback import MlflowCallback
from cluster.tracking.record import MetricWriter, TrackedRun
from tests.support.tracking import begin


def history(epochs: int) -> list[dict[str, float]]:
    return [{"epoch": float(k), "train/loss": 1 / k} for k in range(1, epochs + 1)]


def logged(client: MlflowClient, record: TrackedRun) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(record.run_id, "train/loss")]


def test_metric_writer_logs_every_step_once(client):
    with begin() as record:
        writer = MetricWriter(record, keep_checkpoints=2)
        for metrics in history(3):
            writer.put(metrics)
        assert writer.flush(timeout=30)
        again = MetricWriter(record, keep_checkpoints=2)
        for metrics in history(4):
            again.put(metrics)
        assert again.flush(timeout=30)
        record.log_history(history(5))
        record.log_history(history(5))
    assert logged(client, record) == [(k, 1 / k) for k in range(1, 6)]


def test_last_epoch_is_logged_before_the_controller_ends(client, monkeypatch):
    log_batch = MlflowClient.log_batch

    def slow(*arguments, **named):
        time.sleep(0.2)
        return log_batch(*arguments, **named)

    with begin() as record:
        monkeypatch.setattr(MlflowClient, "log_batch", slow)
        callback = MlflowCallback(record, keep_checkpoints=1, last_epoch=2)
        for metrics in history(2):
            callback.after_report(None, [metrics | {"previous_epochs": []}], None)
        assert len(logged(client, record)) == 2
        began = time.monotonic()
        record.log_history(history(2))
        assert time.monotonic() - began < 1  # there is nothing to wait for


def test_newest_checkpoints_are_listed_with_step_metrics_and_uri(client, tmp_path):
    with begin() as record:
        for k in range(1, 4):
            record.log_checkpoint({"epoch": k, "val/loss": 1 / k}, f"/runs/{k}", keep=2)
        record.log_checkpoint({"epoch": 3, "val/loss": 1 / 3}, "/runs/3 with scores", keep=2)
    assert noted(client, record, tmp_path) == [
        {"step": 2, "location": "/runs/2", "metrics": {"epoch": 2, "val/loss": 0.5}},
        {"step": 3, "location": "/runs/3 with scores", "metrics": {"epoch": 3, "val/loss": 1 / 3}},
    ]


def test_checkpoint_within_an_epoch_is_listed_but_logs_no_metrics(client, tmp_path):
    with begin() as record:
        writer = MetricWriter(record, keep_checkpoints=3)
        for epoch, step in ((0, 5), (1, 0), (1, 5), (1, 5), (1, 9)):
            within = {"epoch": float(epoch), "step": float(step)}
            metrics = within if step else history(epoch)[-1]
            writer.put(metrics, f"/runs/{epoch}-{step}")
        assert writer.flush(timeout=30)
    assert logged(client, record) == [(1, 1)]
    places = [each["location"] for each in noted(client, record, tmp_path)]
    assert places == ["/runs/1-0", "/runs/1-5", "/runs/1-9"]


def noted(client, record, folder) -> list[dict]:
    path = client.download_artifacts(record.run_id, "checkpoints.json", str(folder))
    return json.loads(Path(path).read_text())


def test_metric_writer_warns_once_and_delivers_after_an_outage(client, tmp_path, caplog):
    with begin() as record:
        hidden = tmp_path / "artifacts hidden"
        database = tmp_path / "mlflow.db"
        client._tracking_client.store.engine.dispose()
        database.rename(hidden)
        database.mkdir()  # what SQLite cannot open
        writer = MetricWriter(record, keep_checkpoints=2, retry_seconds=0.1)
        for metrics in history(3):
            writer.put(metrics)
        time.sleep(1.5)
        database.rmdir()
        hidden.rename(database)
        assert writer.flush(timeout=60)
    assert logged(client, record) == [(k, 1 / k) for k in range(1, 4)]
    warnings = [each.message for each in caplog.records if "does not answer" in each.message]
    assert len(warnings) == 1
