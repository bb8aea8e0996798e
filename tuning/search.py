"""Run the trials of a sweep in parallel with Ray Tune."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from cluster.config import ClusterConfig
from cluster.errors import EXPECTED_ERRORS
from cluster.execution.heartbeat import Heartbeats
from cluster.execution.ray_internals import keep_credentials_out_of_trials, trial_error
from tuning.config import EarlyStopping
from tuning.objective import EPOCH, Objective, objective_metric
from tuning.sampler import RunT, Sampler
from tuning.searcher import SweepSearcher
from tuning.trainable import Train, make_trainable
from tuning.trial_lifecycle import TrialLifecycle
from tuning.trial_store import TrialStore

_TRIAL_BYTES = 500e6


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Number of trials, their resources, their objective and when to stop them."""

    cluster: ClusterConfig
    """Resources of each trial."""
    objective: Objective
    """Objective of the sweep."""
    early_stopping: EarlyStopping
    """Early stopping of trials."""
    num_trials: int
    """Total number of trials, including those of previous invocations."""
    num_epochs: int
    """Epochs of a trial that is not stopped early."""


@dataclass(frozen=True)
class SearchSummary:
    """Rejections and losses of a search."""

    rejected: dict[str, int]
    """Number of rejected candidates of all invocations, by bound."""
    lost: list[Exception]
    """Errors of trials lost with the cluster, which the next invocation resumes."""


class _TrialCallback(tune.Callback):
    """Tune callback that follows each trial from its start to its end.

    The sequence at the end of a trial:

    1. Tune tells the scheduler, which may have stopped the trial early.
    2. Tune calls the searcher's `on_trial_complete`. That call has no exception, so that the
       searcher could not tell a failed trial from a lost one; it does nothing.
    3. Tune calls `on_trial_complete` or `on_trial_error` of this callback. By then Tune has
       written the exception to the trial's error file. `TrialLifecycle.ended` saves the result in
       the store and reports it to the sampler.
    4. Tune ends the trial's process, and asks the searcher for the next trial.
    """

    def __init__(self, trials: TrialLifecycle[Any], scheduler: TrialScheduler, metric: str) -> None:
        self._trials, self._scheduler, self._metric = trials, scheduler, metric

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        measured = self._trials.measured_before(trial.trial_id)
        replay(self._scheduler, trial, self._metric, measured)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._trials.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.ended(trial.trial_id, cause_of(trial_error(trial)))


def search(
    sampler: Sampler[RunT], store: TrialStore[RunT], train: Train[RunT], config: SearchConfig
) -> SearchSummary:
    """Run the remaining trials of a sweep; afterwards `store.results` has all results.

    Args:
        sampler: sampler of the candidates.
        store: store of the trials, with those of previous invocations.
        train: function that trains a run.
        config: trials, resources, objective and early stopping.
    """
    _configure_tune()
    heartbeats = Heartbeats.start()
    trials = TrialLifecycle(sampler, store, objective=config.objective, heartbeats=heartbeats)
    searcher = SweepSearcher(
        sampler, store, trials, cluster=config.cluster, num_trials=config.num_trials
    )
    # The scheduler compares new trials with those of previous invocations.
    metric = objective_metric(config.objective.metrics[0])
    mode = "min" if config.objective.directions[0] == "minimize" else "max"
    scheduler = make_scheduler(config.early_stopping, metric, mode, config.num_epochs)
    for trial_id, measured in searcher.measured_by_trial().items():
        ended = SimpleNamespace(trial_id=trial_id)
        scheduler.on_trial_add(None, ended)  # pyright: ignore[reportArgumentType]
        replay(scheduler, ended, metric, measured)
    if not searcher.is_done:
        with tempfile.TemporaryDirectory() as folder:
            tune.Tuner(
                _on_driver_node(make_trainable(train, heartbeats)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=config.num_trials - len(store.results),
                    trial_dirname_creator=_folder,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="tune", storage_path=folder, verbose=0,
                    callbacks=[_TrialCallback(trials, scheduler, metric)],
                ),
            ).fit()  # fmt: skip
    return SearchSummary(rejected=searcher.rejected, lost=trials.lost)


def _configure_tune() -> None:
    # Ctrl-C must end the sweep instead of ending the search normally.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # MLflow has what they would log
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # trials read relative paths
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output ignores verbose=0
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # TrialLifecycle logs failures
    keep_credentials_out_of_trials()


def make_scheduler(
    early_stopping: EarlyStopping, metric: str, mode: str, num_epochs: int
) -> TrialScheduler:
    """Create Tune's scheduler, which decides after whole epochs."""
    if early_stopping.method == "none" or num_epochs <= early_stopping.first_epoch:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=metric,
        mode=mode,
        grace_period=early_stopping.first_epoch,
        reduction_factor=early_stopping.factor,
        brackets=early_stopping.brackets,
        max_t=num_epochs - 1,
        stop_last_trials=False,
    )


def replay(scheduler: TrialScheduler, trial: Any, metric: str, measured: dict[int, float]) -> None:
    """Replay a trial's epochs of previous invocations to a scheduler."""
    for epoch, value in sorted(measured.items()):
        scheduler.on_trial_result(
            None,  # pyright: ignore[reportArgumentType]
            trial,
            {EPOCH: epoch, metric: value},
        )


def cause_of(error: Exception) -> Exception:
    """Unwrap the expected error behind a Ray task error."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, EXPECTED_ERRORS):
        return error.cause
    return error


def _on_driver_node(trial: Callable[[dict[str, Any]], None]) -> Any:
    """Pin the processes of trials to the driver's node."""
    driver_node = ray.get_runtime_context().get_node_id()
    [resources] = [node["Resources"] for node in ray.nodes() if node["NodeID"] == driver_node]
    address = next(name for name in resources if name.startswith("node:") and "__" not in name)
    # No CPU: a trial's process only waits, and any share could be what the last worker needs.
    return tune.with_resources(trial, {"memory": _TRIAL_BYTES, address: 0.001})


def _folder(trial: Any) -> str:
    return trial.trial_id
