"""Train a RANet on two or more workers, evaluate it, and register it.

    python pipelines/train.py --config configs/digits.yaml [--train.optim.lr=0.1 ...] [--dry-run]
    ray job submit --working-dir . -- python pipelines/train.py --config configs/cifar10.yaml

Uses the Ray cluster that RAY_ADDRESS names, as it does in a submitted job, or starts a local one.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint, UserCallback

from cluster.config import in_submitted_job
from cluster.execution.connection import connected
from cluster.execution.mlflow_callback import MlflowCallback
from cluster.execution.parallel_map import parallel_map
from cluster.execution.reporter import SNAPSHOT, checkpoint_uri, load_checkpoint
from cluster.execution.trainer import launch, resolve_storage
from cluster.storage.s3 import is_uri
from cluster.tracking import runs as tracking
from cluster.tracking.runs import TrackedRun
from pipelines.data import DatasetInfo, prepare
from pipelines.data.config import prepared_path
from pipelines.evaluation.report import (
    check_budgets,
    check_classes,
    curve_line,
    evaluate_outputs,
    format_tables,
    log_evaluation,
    register_model,
    save_examples,
)
from pipelines.preflight import preflight
from pipelines.run import (
    Run,
    config_text,
    configure_logging,
    flatten,
    identity,
    main_guard,
    read_run,
)
from pipelines.workers import TrainOutput, read_trained, train_worker, trial_worker
from ranet import mult_adds
from ranet.protocols import Snapshot
from tuning.objective import Objective


def main() -> None:
    """Read the run, train it, and register the model."""
    run = read_run()
    configure_logging()
    with main_guard():
        if run.dry_run:
            expected = preflight(run)
            print(expected)
            sys.exit(0 if expected.starts else 1)
        tracking.check_reachable()
        tracking.check_startable(run.name, settings=identity(run), fresh=run.fresh)
        info = prepare_images(run)
        with track(run) as record:
            trained = train(run, record)
            print(offer(run, record, trained, info))


def prepare_images(run: Run) -> DatasetInfo:
    """Prepare the images, and refuse what cannot work before a run is opened."""
    resolve_storage(run.cluster.storage_path)
    check_budgets(mult_adds(run.model), run.evaluation.budget_fractions)
    info = prepare(run.data, run.model.image_size, spread=partial(parallel_map, run.cluster))
    check_classes(run, info)
    return info


def track(run: Run) -> AbstractContextManager[TrackedRun]:
    """Open the MLflow run that the run's name means."""
    return tracking.start(
        run.name,
        settings=identity(run),
        parameters=flatten(run),
        tags=tracking.provenance(),
        config_text=config_text(run),
        fresh=run.fresh,
    )


def train(run: Run, record: TrackedRun) -> TrainOutput:
    """Train on Ray, going on where an earlier start of this record stopped.

    Args:
        run: what to train; its images are prepared.
        record: the run in MLflow, which gets metrics and checkpoints.
    """
    checkpoint = _launch(train_worker, {"run": _located(run)}, run, record)
    trained = read_trained(checkpoint)
    # Nothing is lost even where the controller, which sends metrics while training, was killed.
    record.log_history(trained.snapshot["history"])
    record.log_checkpoint(
        trained.snapshot["history"][-1], checkpoint_uri(checkpoint), run.cluster.keep_checkpoints
    )
    _keep_best_and_last(record, trained, checkpoint)
    return trained


def train_trial(
    objective: Objective,
    run: Run,
    record: TrackedRun,
    callbacks: Sequence[UserCallback],
    watch: Any,
) -> Snapshot:
    """Train a run of a sweep, going on where an earlier start stopped; test is never read.

    Args:
        objective: what is measured after every epoch.
        run: what to train; its images are prepared.
        record: the trial in MLflow, which gets metrics and checkpoints.
        callbacks: called in Ray's controller process after every epoch.
        watch: where the workers of all trials give signs of life.

    Returns:
        The state after the last epoch.
    """
    task = {"run": _located(run), "objective": objective}
    checkpoint = _launch(trial_worker, task, run, record, callbacks, watch)
    return load_checkpoint(checkpoint)[SNAPSHOT]


def _launch(
    worker: Callable[[dict[str, Any]], None],
    task: dict[str, Any],
    run: Run,
    record: TrackedRun,
    callbacks: Sequence[UserCallback] = (),
    watch: Any = None,
) -> Checkpoint:
    """Run a worker on what the run asks of Ray; its metrics and checkpoints go to the record."""
    with connected(run.cluster):
        return launch(
            worker,
            task,
            name=record.storage_name,
            storage=run.cluster.storage_path,
            cluster=run.cluster,
            callbacks=[
                MlflowCallback(record, run.cluster.keep_checkpoints, run.train.epochs),
                *callbacks,
            ],
            watch=watch,
        )


def offer(run: Run, record: TrackedRun, trained: TrainOutput, info: DatasetInfo) -> str:
    """Evaluate and register the best weights; return the closing lines for people."""
    evaluation = evaluate_outputs(
        mult_adds(run.model), trained.val, trained.test, run.evaluation.budget_fractions
    )
    best = trained.snapshot["best"]
    version = register_model(run, best["model"], evaluation, info, record.run_id)
    plot = log_evaluation(
        evaluation,
        record.run_id,
        version.model_id,
        folder=Path("outputs") / "evaluation" / record.storage_name,
        title=f"{run.name}: best of {run.train.epochs} epochs",
    )
    example = (
        "IMAGE"  # a job's folder is thrown away, and S3 has copies on the workers' nodes alone
        if in_submitted_job() or is_uri(run.data.prepared_dir)
        else save_examples(run, plot.parent / "examples")[0]
    )
    pages = record.uri if record.uri.startswith("http") else "make ui"
    python = Path(sys.executable)
    here = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
    lines = [
        "",
        format_tables(evaluation),
        "",
        curve_line(plot),
        f"MLflow run  {record.run_id} ({run.name}, attempt {record.attempt})",
        f"model       {version.sentence}",
        "",
        f"see it in the browser:  {pages}",
        f"classify an image:      {here} pipelines/predict.py "
        f"models:/{version.name}/{version.version} {example} --budget 0.5",
    ]
    return "\n".join(lines)


def _located(run: Run) -> Run:
    """Return the run as a worker needs it: whole paths, and no more data threads than CPUs."""
    data = replace(
        run.data,
        folder=prepared_path(run.data, run.model.image_size),
        decode_threads=run.data.decode_threads or run.cluster.cpus_per_worker,
    )
    return replace(run, data=data)


def _keep_best_and_last(record: TrackedRun, trained: TrainOutput, checkpoint: Checkpoint) -> None:
    with checkpoint.as_directory() as folder:
        record.log_folder(folder, "checkpoints/last")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(trained.snapshot["best"], Path(folder) / "best.pt")
        record.log_folder(folder, "checkpoints/best")


if __name__ == "__main__":
    main()
