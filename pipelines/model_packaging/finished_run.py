"""Trained network of a finished run, from the run's artifacts in MLflow."""

import json
import tempfile
from pathlib import Path

from mlflow import MlflowException
from ray.train import Checkpoint

from cluster.cli import parse_settings
from cluster.errors import TrackingError
from cluster.tracking import registry
from pipelines.data.summary import info_from_summary
from pipelines.evaluation.budgets import evaluate_outputs
from pipelines.model_packaging.contents import make_saved_model
from pipelines.run import Run
from pipelines.workers import read_trained
from ranet import mult_adds
from ranet.model.saved import SavedModel


def load_run(run_id: str) -> SavedModel:
    """Load the best weights of a finished run, and evaluate them.

    Args:
        run_id: ID of the MLflow run of a training.

    Raises:
        TrackingError: MLflow has no such run, or the run has not finished its training.
    """
    with tempfile.TemporaryDirectory() as folder:
        with registry.client_to(f"read the artifacts of run {run_id}") as client:
            tags = client.get_run(run_id).data.tags
            try:
                paths = {
                    name: Path(client.download_artifacts(run_id, name, folder))
                    for name in ("config.yaml", "images/summary.json", "checkpoints/last")
                }
            except (MlflowException, OSError) as error:
                raise TrackingError(
                    f"run {run_id} has no results of a training ({error}); give a run of "
                    "pipelines/train.py whose training has ended"
                ) from error
        run = parse_settings(Run, ["--config", str(paths["config.yaml"])])
        info = info_from_summary(json.loads(paths["images/summary.json"].read_text()))
        trained = read_trained(Checkpoint.from_directory(str(paths["checkpoints/last"])))
    evaluation = evaluate_outputs(
        mult_adds(run.model), trained.val, trained.test, run.evaluation.budget_fractions
    )
    return make_saved_model(run, trained.snapshot["best"]["model"], evaluation, info, tags)
