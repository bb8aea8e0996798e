"""One trial of a sweep: a whole run, as its own pipeline trains it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import mlflow
from ray import tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.tracking import Record
from ranet.training.reporter import Snapshot
from tuning.space import as_arguments


class Trained(Protocol):
    """What a training leaves behind."""

    @property
    def snapshot(self) -> Snapshot:
        """State after the last epoch, which holds the best one's value."""
        ...


_Run = TypeVar("_Run")


def make_trial(
    *,
    parse: Callable[[list[str]], _Run],
    track: Callable[[_Run], AbstractContextManager[Record]],
    train: Callable[[_Run, Record, Sequence[UserCallback]], Trained],
    arguments: Sequence[str],
    name: str,
    tracking_uri: str,
) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune calls with each sample.

    Args:
        parse: makes a run from command-line arguments.
        track: opens the MLflow run of a run.
        train: trains a run.
        arguments: those that all trials share.
        name: beginning of each run's name; the trial's id follows, so that a trial that is
            started again goes on with its own run.
        tracking_uri: address of MLflow.
    """

    def trial(sample: dict[str, Any]) -> None:
        mlflow.set_tracking_uri(tracking_uri)
        name_of_trial = f"{name}-{tune.get_context().get_trial_id()}"
        run = parse([*arguments, *as_arguments(sample), f"--name={name_of_trial}"])
        with track(run) as record:
            trained = train(run, record, [TuneReportCallback()])
            best = trained.snapshot["best"]["value"]
            tune.report({"val_top1": best, "run_id": record.run_id})

    return trial
