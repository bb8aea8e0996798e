"""Train a RANet with Ray Train, then evaluate and register it.

    python pipelines/train.py --config configs/digits.yaml [--train.optim.lr=0.1 ...] [--dry-run]
    ray job submit --working-dir . -- python pipelines/train.py --config configs/cifar10.yaml

Runs on the Ray cluster at RAY_ADDRESS, which is set in a submitted job; without RAY_ADDRESS it
starts a local cluster.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from ray.train import Checkpoint, UserCallback

from cluster.cli import CommandLine, configure_logging, main_guard, script_command
from cluster.config import in_submitted_job
from cluster.execution.connection import connected
from cluster.execution.heartbeat import Heartbeats
from cluster.execution.mlflow_callback import MlflowCallback
from cluster.execution.parallel_map import parallel_map
from cluster.execution.trainer import launch
from cluster.storage.checkpoints import SNAPSHOT, checkpoint_uri, load_checkpoint
from cluster.storage.filesystem import resolve_storage
from cluster.storage.s3 import is_uri
from cluster.tracking import client, runs
from cluster.tracking.record import TrackedRun
from pipelines.data.fit import check_fit
from pipelines.data.format.metadata import DatasetInfo
from pipelines.data.preparation.prepare import prepare
from pipelines.data.summary import describe
from pipelines.evaluation.budgets import check_budgets, evaluate_outputs
from pipelines.evaluation.examples import save_examples
from pipelines.evaluation.mlflow_log import log_evaluation
from pipelines.evaluation.report import curve_line, format_tables
from pipelines.model_packaging.package import register_model
from pipelines.preflight import preflight
from pipelines.run import Run, identity
from pipelines.start import log_images, on_this_machine, resolve, track
from pipelines.workers import TrainOutput, TrialTask, read_trained, train_worker, trial_worker
from ranet import mult_adds
from ranet.protocols import Snapshot
from tuning.objective import Objective

_Task = TypeVar("_Task")


def main() -> None:
    """Prepare the images, train, evaluate and register."""
    options = command_line().read()
    run, new_attempt = options.settings, options.new_attempt
    configure_logging()
    with main_guard():
        if options.dry_run:
            report = preflight(run, new_attempt=new_attempt)
            print(report)
            sys.exit(0 if report.can_start else 1)
        client.check_reachable()
        runs.check_can_start(run.name, settings=identity(run), new_attempt=new_attempt)
        run = on_this_machine(run)
        info = prepare_images(run)
        with track(run, new_attempt=new_attempt) as record:
            log_images(record, info)
            trained = train(resolve(run), record)
            print(evaluate_and_register(run, record, trained, info))


def command_line() -> CommandLine:
    """Declare the options of an invocation beside the settings of a run."""
    parser = CommandLine(__doc__, Run)
    parser.add_argument(
        "--new-attempt",
        action="store_true",
        help="abandon an unfinished run of this name and train from scratch as a new attempt",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print costs and missing requirements without starting anything; "
        "exit status 0 if the run can start",
    )
    return parser


def prepare_images(run: Run) -> DatasetInfo:
    """Prepare the images and reject settings that do not fit them."""
    resolve_storage(run.cluster.storage_path)
    check_budgets(mult_adds(run.model), run.evaluation.budget_fractions)
    info = prepare(
        run.data,
        run.model.image_size,
        parallel_map=partial(parallel_map, run.cluster),
        check=partial(check_fit, run.data, run.model, run.train.batch_size),
    )
    print(describe(info))
    return info


def train(run: Run, record: TrackedRun) -> TrainOutput:
    """Train on Ray, resuming from the latest checkpoint of the attempt.

    Args:
        run: The resolved run; its images must be prepared.
        record: MLflow run that metrics and checkpoints are logged to.
    """
    checkpoint = _launch(train_worker, run, run, record)
    trained = read_trained(checkpoint)
    # Ray's controller logs metrics while training. If it was killed, some may be missing in MLflow.
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
    heartbeats: Heartbeats,
) -> Snapshot:
    """Train a trial of a sweep; test images are never read.

    Args:
        objective: Objective that is measured after every epoch.
        run: Resolved run of the trial; its images must be prepared.
        record: MLflow run of the trial, which metrics and checkpoints are logged to.
        callbacks: Called in Ray's controller process after every epoch.
        heartbeats: Heartbeats of the workers of all trials.

    Returns:
        The snapshot after the last epoch.
    """
    task = TrialTask(run, objective)
    checkpoint = _launch(trial_worker, task, run, record, callbacks, heartbeats)
    return load_checkpoint(checkpoint)[SNAPSHOT]


def _launch(
    function: Callable[[_Task], None],
    task: _Task,
    run: Run,
    record: TrackedRun,
    callbacks: Sequence[UserCallback] = (),
    heartbeats: Heartbeats | None = None,
) -> Checkpoint:
    """Launch a worker function and log its metrics and checkpoints."""
    with connected(run.cluster):
        return launch(
            function,
            task,
            cluster=run.cluster,
            name=record.storage_name,
            callbacks=[
                MlflowCallback(record, run.cluster.keep_checkpoints, run.train.epochs),
                *callbacks,
            ],
            heartbeats=heartbeats,
        )


def evaluate_and_register(
    run: Run, record: TrackedRun, trained: TrainOutput, info: DatasetInfo
) -> str:
    """Evaluate and register the best weights; return the summary to print."""
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
        "IMAGE"  # the folder of a job is deleted, and only worker nodes have copies of images in S3
        if in_submitted_job() or is_uri(run.data.prepared_dir)
        else save_examples(run, plot.parent / "examples")[0]
    )
    pages = record.uri if record.uri.startswith("http") else "make ui"
    lines = [
        "",
        format_tables(evaluation),
        "",
        curve_line(plot),
        f"MLflow run  {record.run_id} ({run.name}, attempt {record.attempt})",
        f"model       {version.sentence}",
        "",
        f"see it in the browser:  {pages}",
        f"classify an image:      {script_command('predict.py')} "
        f"{shlex.quote(f'models:/{version.name}/{version.version}')} {shlex.quote(str(example))} "
        "--budget-fraction 0.5",
    ]
    return "\n".join(lines)


def _keep_best_and_last(record: TrackedRun, trained: TrainOutput, checkpoint: Checkpoint) -> None:
    with checkpoint.as_directory() as folder:
        record.log_folder(folder, "checkpoints/last")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(trained.snapshot["best"], Path(folder) / "best.pt")
        record.log_folder(folder, "checkpoints/best")


if __name__ == "__main__":
    main()
