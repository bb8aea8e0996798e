"""One trial of a sweep: a whole training on Ray, in a process beside the sweep's driver."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ray import tune
from ray.train import Checkpoint, UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.execution.reporter import metrics_in
from cluster.tracking.record import TrackedRun
from ranet.protocols import Snapshot
from tuning.objective import EPOCH

METRICS = "metrics"
"""In what a trial reports to Tune: the metrics of an epoch."""
BEST = "best"
"""In its last report: the metrics of the epoch whose weights a training would register."""

Train: TypeAlias = Callable[[Any, TrackedRun, Sequence[UserCallback], Any], Snapshot]
"""Trains a run; called with the run, its MLflow run, callbacks for Ray's controller and the watch
that the trials of a sweep share. Gives the last snapshot."""


@dataclass(frozen=True)
class Task:
    """What a trial is to do."""

    run: Any
    record: TrackedRun


class EpochReports(TuneReportCallback):
    """Hands the metrics of every whole epoch to Tune."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Leave out checkpoints within an epoch, which measure nothing."""
        for told in metrics_in(metrics[0]):
            if "step" not in told:
                super().after_report(run_context, [report(told)], None)


def report(metrics: dict[str, float]) -> dict[str, Any]:
    """Return what Tune is told of an epoch: all of it, and at the top what the scheduler reads."""
    objectives = {name: value for name, value in metrics.items() if name.startswith("objective/")}
    return {EPOCH: metrics[EPOCH], **objectives, METRICS: metrics}


def make_trainable(train: Train, watch: Any) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune calls with `task`, a Task.

    Args:
        train: trains a run.
        watch: where the workers of all trials give signs of life.
    """

    def trial(config: dict[str, Any]) -> None:
        task: Task = config["task"]
        snapshot = train(task.run, task.record, [EpochReports()], watch)
        # Nothing is lost even where the controller, which sends metrics, was killed.
        task.record.log_history(snapshot["history"])
        best = snapshot["history"][snapshot["best"]["epoch"] - 1]
        tune.report(report(snapshot["history"][-1]) | {BEST: best})

    return trial
