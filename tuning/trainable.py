"""Ray Tune trainable of a trial, run on the driver's node."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ray import tune
from ray.train import Checkpoint, UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.execution.heartbeat import Heartbeats
from cluster.execution.reporter import metrics_in
from cluster.tracking.record import TrackedRun
from ranet.protocols import Snapshot
from tuning.objective import EPOCH
from tuning.sampler import RunT

METRICS = "metrics"
"""Key of the metrics of an epoch in a trial's reports to Tune."""
BEST = "best"
"""Key of the best epoch's metrics in a trial's last report: its weights would be registered."""

_RunT_contra = TypeVar("_RunT_contra", contravariant=True)


class Train(Protocol[_RunT_contra]):
    """Function that trains a run and returns its last snapshot."""

    def __call__(
        self,
        run: _RunT_contra,
        record: TrackedRun,
        callbacks: Sequence[UserCallback],
        heartbeats: Heartbeats,
        /,
    ) -> Snapshot:
        """Train a run.

        Args:
            run: the run to train.
            record: MLflow run of the trial.
            callbacks: callbacks for Ray Train's controller.
            heartbeats: heartbeats that the trials of a sweep share.
        """
        ...


@dataclass(frozen=True)
class Task(Generic[RunT]):
    """Run of a trial, and its MLflow run."""

    run: RunT
    record: TrackedRun


class EpochReports(TuneReportCallback):
    """Report the metrics of every whole epoch to Tune."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Report epochs, but no checkpoints within an epoch."""
        for reported in metrics_in(metrics[0]):
            if "step" not in reported:
                super().after_report(run_context, [report(reported)], None)


def report(metrics: dict[str, float]) -> dict[str, Any]:
    """Return a report to Tune, with the scheduler's metrics on top."""
    objectives = {name: value for name, value in metrics.items() if name.startswith("objective/")}
    return {EPOCH: metrics[EPOCH], **objectives, METRICS: metrics}


def make_trainable(train: Train[RunT], heartbeats: Heartbeats) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune calls with the config `{"task": Task}`.

    Args:
        train: function that trains a run.
        heartbeats: heartbeats of the workers of all trials.
    """

    def trial(config: dict[str, Any]) -> None:
        task: Task[RunT] = config["task"]
        snapshot = train(task.run, task.record, [EpochReports()], heartbeats)
        # The controller that logs metrics may have been killed before the last ones were sent.
        task.record.log_history(snapshot["history"])
        best = snapshot["history"][snapshot["best"]["epoch"] - 1]
        tune.report(report(snapshot["history"][-1]) | {BEST: best})

    return trial
