"""Logging of an evaluation to MLflow: metrics, tables, curves and the plot."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.errors import TrackingError
from pipelines.evaluation.budgets import Evaluation
from pipelines.evaluation.mlflow_log import log_evaluation
from tests.support.registered import create_run


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowClient()


def test_logged_evaluation_has_metrics_tables_plot_and_curves_of_the_model(
    evaluation: Evaluation, client: MlflowClient, tmp_path: Path
):
    run_id = create_run(client, tmp_path)
    experiment_id = client.get_run(run_id).info.experiment_id
    model_id = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id).model_id
    plot = log_evaluation(evaluation, run_id, model_id, folder=tmp_path / "out", title="a title")

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["test/exit1/top1"] == 25
    assert run.data.metrics["test/exit2/top5"] == 100
    assert run.data.metrics["test/budget_0.67/top1"] == 50
    assert run.data.metrics["val/budget_mean/top1"] == evaluation.val_top1
    curve = client.get_metric_history(run_id, "test/anytime/top1")
    assert [(point.step, point.value) for point in curve] == [(10, 25), (30, 75)]
    on_model = client.get_logged_model(model_id).metrics or []
    assert {"test/anytime/top1", "test/budgeted/top1"} <= {metric.key for metric in on_model}

    table = json.loads(
        Path(client.download_artifacts(run_id, "evaluation/budgets.json")).read_text()
    )
    assert table["columns"][:2] == ["budget_fraction", "val_top1"]
    assert len(table["data"]) == len(evaluation.curve)
    assert Path(client.download_artifacts(run_id, "evaluation/budget_curve.png")).stat().st_size
    assert plot == tmp_path / "out" / "budget_curve.png"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_evaluation_logged_twice_has_no_duplicates(
    evaluation: Evaluation, client: MlflowClient, tmp_path: Path
):
    run_id = create_run(client, tmp_path)
    for _ in range(2):
        log_evaluation(evaluation, run_id, folder=tmp_path / "out", title="a title")
    names = client.get_run(run_id).data.metrics.keys()
    histories = {name: client.get_metric_history(run_id, name) for name in names}
    assert [point.value for point in histories["test/exit1/top1"]] == [25]
    for points in histories.values():
        assert len({point.step for point in points}) == len(points)
    experiment_id = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment_id, "evaluation/exits.json")
    assert table["test_top1"].tolist() == [25, 75]


def test_unreachable_mlflow_gives_one_clear_sentence(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot log the evaluation.*start"):
        log_evaluation(evaluation, "0" * 32, folder=tmp_path, title="a title")
