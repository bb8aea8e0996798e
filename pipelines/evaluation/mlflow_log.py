"""Log an evaluation to MLflow: metrics, tables, curves and the plot."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from mlflow.entities import Metric

from cluster.tracking import registry
from cluster.tracking.mlflow_internals import LOGGED_ARTIFACTS_TAG
from pipelines.evaluation.budgets import Evaluation
from pipelines.evaluation.report import plot_curve


def log_evaluation(
    evaluation: Evaluation, run_id: str, model_id: str | None = None, *, folder: Path, title: str
) -> Path:
    """Log metrics, tables and the plot to an MLflow run.

    Logging again after an interruption does not duplicate anything.

    Args:
        evaluation: Evaluation to log.
        run_id: ID of the MLflow run.
        model_id: ID of an MLflow model that the metrics are linked to.
        folder: Local folder of the plot.
        title: Title of the plot.

    Returns:
        Path of the plot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "budget_curve.png"
    plot_curve(evaluation, title).savefig(plot, dpi=150)
    now = round(time.time() * 1000)
    metrics = [Metric(key, value, now, 0, model_id) for key, value in _metrics(evaluation).items()]
    # MLflow plots metrics over integer steps: the steps of these curves are mult-adds.
    metrics += [Metric(key, value, now, step, model_id) for key, step, value in _curves(evaluation)]
    with registry.client_to(f"log the evaluation to MLflow run {run_id}") as client:
        client.log_artifact(run_id, str(plot), "evaluation")
        # Not log_table, which would append the rows to the rows of a previous invocation.
        tables = {f"evaluation/{name}.json": table for name, table in _tables(evaluation).items()}
        for file, table in tables.items():
            client.log_dict(run_id, table.to_dict("split", index=False), file)
        shown = [{"path": file, "type": "table"} for file in tables]
        client.set_tag(run_id, LOGGED_ARTIFACTS_TAG, json.dumps(shown))
        if metrics[0].key not in client.get_run(run_id).data.metrics:
            client.log_batch(run_id, metrics)
    return plot


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    metrics = {"val/budget_mean/top1": evaluation.val_top1}
    for number, row in enumerate(evaluation.exits, start=1):
        metrics[f"test/exit{number}/top1"] = row.test_top1
        metrics[f"test/exit{number}/top5"] = row.test_top5
    for row in evaluation.reported:
        metrics[f"val/budget_{row.budget_fraction:.2f}/top1"] = row.val_top1
        metrics[f"test/budget_{row.budget_fraction:.2f}/top1"] = row.test_top1
        metrics[f"test/budget_{row.budget_fraction:.2f}/mult_adds"] = row.test_mult_adds
    return metrics


def _curves(evaluation: Evaluation) -> list[tuple[str, int, float]]:
    """Return metric name, mult-adds and accuracy of every point.

    Among budgets of equal cost, the last one counts.
    """
    anytime = {row.mult_adds: row.test_top1 for row in evaluation.exits}
    budgeted = {round(row.test_mult_adds): row.test_top1 for row in evaluation.curve}
    return [
        (f"test/{name}/top1", cost, top1)
        for name, points in (("anytime", anytime), ("budgeted", budgeted))
        for cost, top1 in points.items()
    ]


def _tables(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    exits = pd.DataFrame([asdict(row) for row in evaluation.exits])
    exits.insert(0, "exit", range(1, len(exits) + 1))
    budgets = pd.DataFrame(
        {
            "budget_fraction": row.budget_fraction,
            "val_top1": row.val_top1,
            "test_top1": row.test_top1,
            "test_mult_adds": row.test_mult_adds,
            **{f"exit{k}_share": share for k, share in enumerate(row.exit_shares, start=1)},
        }
        for row in evaluation.curve
    )
    return {"exits": exits, "budgets": budgets}
