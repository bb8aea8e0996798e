"""Runs the trials of a sweep by Ray Tune, as many at a time as the cluster has room for."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from cluster.config import ClusterConfig
from cluster.errors import RunError, TrackingError
from cluster.execution.heartbeat import start_heartbeats
from tuning.config import EarlyStopping
from tuning.objective import EPOCH, Objective, objective_metric
from tuning.sampler import Sampler
from tuning.searcher import SweepSearcher
from tuning.trainable import Train, make_trainable
from tuning.trial_store import TrialStore

_TRIAL_BYTES = 500e6


class _Ends(tune.Callback):
    """Tells `SweepSearcher` how each trial ended, and the scheduler what earlier starts measured."""

    def __init__(self, trials: SweepSearcher, scheduler: TrialScheduler, metric: str) -> None:
        self._trials, self._scheduler, self._metric = trials, scheduler, metric

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        replay(self._scheduler, trial, self._metric, self._trials.before(trial.trial_id))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._trials.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.ended(trial.trial_id, cause_of(_error_of(trial)))


def search(
    sampler: Sampler,
    store: TrialStore,
    train: Train,
    *,
    cluster: ClusterConfig,
    objective: Objective,
    early_stopping: EarlyStopping,
    num_trials: int,
    num_epochs: int,
) -> SweepSearcher:
    """Run the trials that are left to their ends; `store.results` has them all then.

    Args:
        sampler: where samples come from.
        store: where trials are written down, and what earlier starts wrote.
        train: trains a run.
        cluster: what each trial asks of Ray.
        objective: what is compared.
        early_stopping: when a trial is given up early.
        num_trials: trials in all.
        num_epochs: epochs of a trial that is not stopped.
    """
    # Ctrl-C must end the sweep, not be taken for its result.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # MLflow has all that they would write
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # trials read relative paths
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the other output ignores verbose=0
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # we say what went wrong
    watch = start_heartbeats()
    trials = SweepSearcher(
        sampler, store, cluster=cluster, objective=objective,
        num_trials=num_trials, num_epochs=num_epochs, watch=watch,
    )  # fmt: skip
    metric = objective_metric(objective.metrics[0])
    mode = "min" if objective.directions[0] == "minimize" else "max"
    scheduler = make_scheduler(early_stopping, metric, mode, num_epochs)
    for trial_id, measured in trials.earlier().items():
        earlier = SimpleNamespace(trial_id=trial_id)
        scheduler.on_trial_add(None, earlier)  # pyright: ignore[reportArgumentType]
        replay(scheduler, earlier, metric, measured)
    if trials.is_done:
        return trials
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            _beside_driver(make_trainable(train, watch)),
            tune_config=tune.TuneConfig(
                search_alg=trials,
                scheduler=scheduler,
                num_samples=num_trials - len(store.results),
                trial_dirname_creator=_folder,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=folder, verbose=0,
                callbacks=[_Ends(trials, scheduler, metric)],
            ),
        ).fit()  # fmt: skip
    return trials


def make_scheduler(
    early_stopping: EarlyStopping, metric: str, mode: str, num_epochs: int
) -> TrialScheduler:
    """Make Tune's scheduler; it looks at whole epochs, and never at the last one."""
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
    """Tell a scheduler what a trial reported before this start; what it decides is not asked."""
    for epoch, value in sorted(measured.items()):
        scheduler.on_trial_result(
            None,  # pyright: ignore[reportArgumentType]
            trial,
            {EPOCH: epoch, metric: value},
        )


def _error_of(trial: Any) -> Exception:
    """Read what ended a trial where Tune has just written it; to its storage it copies it later."""
    if trial.pickled_error_file is None:
        return RuntimeError(f"Tune lost trial {trial.trial_id}")
    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


def cause_of(error: Exception) -> Exception:
    """Return what a trial was stopped by; of an error of our own, with all that Ray says of it."""
    expected = (RunError, TrackingError, ValueError, OSError)
    if isinstance(error, RayTaskError) and isinstance(error.cause, expected):
        return error.cause
    return error


def _beside_driver(trial: Callable[[dict[str, Any]], None]) -> Any:
    """Keep the processes of trials on the driver's node: then a lost node costs workers alone."""
    here = ray.get_runtime_context().get_node_id()
    [resources] = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
    address = next(name for name in resources if name.startswith("node:") and "__" not in name)
    # A trial only waits for its workers: any share of a CPU would be missing in a last worker.
    return tune.with_resources(trial, {"memory": _TRIAL_BYTES, address: 0.001})


def _folder(trial: Any) -> str:
    return trial.trial_id
