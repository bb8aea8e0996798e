"""Evaluation of a registered model by the script."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from cluster.config import ClusterConfig
from pipelines.data.config import normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.model_packaging.package import register_model
from pipelines.run import config_text
from ranet.evaluation.exit_outputs import anytime_accuracy, collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from tests.support.image_files import with_settings
from tests.support.paths import PROJECT
from tests.support.registered import MODEL, RUN, create_run, trained_network

pytestmark = pytest.mark.e2e

SCRIPT = PROJECT / "pipelines" / "evaluate.py"


@pytest.mark.timeout(300)
def test_script_reproduces_the_accuracy_of_the_registered_weights(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = replace(
        RUN,
        data=with_settings(RUN.data, prepared_dir=str(tmp_path / "digits"), crop="none"),
        cluster=ClusterConfig(storage_path=str(tmp_path / "runs")),
    )
    info = prepare(run.data, MODEL.image_size)
    client = MlflowClient()
    network = trained_network()
    version = register_model(
        run, network.model.state_dict(), network.evaluation, info, create_run(client, tmp_path)
    )
    # The model's own normalisation counts, not the config's.
    config = tmp_path / "tiny.yaml"
    config.write_text(config_text(replace(run, data=replace(run.data, mean=(0, 0, 0)))))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"models:/{version.name}@champion", "--config", str(config),
         "--evaluation.budget_fractions=[0.5, 0.9]"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "budget   mult-adds" in done.stdout
    (plot,) = tmp_path.glob("outputs/evaluation/*/budget_curve.png")
    assert str(plot.relative_to(tmp_path)) in done.stdout

    cpu = torch.device("cpu")
    test = open_batches(
        run.data, "test", image_size=MODEL.image_size, batch_size=50, worker=Worker(device=cpu)
    )
    forward = ForwardPass(network.model, Normalize(*normalization(run.data)))
    answers = collect_exit_outputs(forward, test)
    top1, _ = anytime_accuracy(answers.of(network.evaluation.exit_ensemble))
    experiment = client.get_experiment_by_name("ranet")
    assert experiment is not None
    (found,) = client.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'tiny-evaluation-1'"
    )
    assert found.info.status == "FINISHED"
    metrics = found.data.metrics
    assert [metrics[f"test/exit{k}/top1"] for k in (1, 2, 3)] == pytest.approx(top1.tolist())
    assert {"test/budget_0.50/top1", "test/budget_0.90/top1"} <= metrics.keys()
    assert "test/budget_0.75/top1" not in metrics

    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"models:/{version.name}@champion", "--config", str(config),
         "--data.split_seed=5", f"--data.prepared_dir={tmp_path / 'other'}"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "are not the images that were held out when the model was trained" in done.stderr


def test_missing_model_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--name=tiny"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: trained_model is required; see --help\n"
