"""Runs the trials of a sweep by Ray Tune, as many at a time as the cluster has room for."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from optuna.trial import TrialState
from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.config import ClusterConfig
from cluster.errors import RunError, TrackingError, UntrainableError
from cluster.execution.heartbeat import abort, start_heartbeats
from cluster.execution.resources import capacity_for
from cluster.tracking import runs as tracking
from ranet.evaluation.accuracy import validation_top1
from ranet.protocols import Metrics
from tuning.objective import EPOCH, SECONDS, Objective, budget_metric, objective_metric
from tuning.sampler import Candidate, Sampler, SpaceExhaustedError
from tuning.space import EarlyStopping, as_arguments
from tuning.trainable import BEST, METRICS, Task, Train, make_trainable
from tuning.trial_result import State, TrialResult
from tuning.trial_store import TrialStore, Unfinished

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_LOSSES = 3
"""Trials in a row that fail by no fault of their own, after which a sweep ends."""
_TRIAL_BYTES = 500e6


@dataclass
class _Live:
    """A trial that Tune has, and what it has reported."""

    number: int
    candidate: Candidate
    asked: int
    """The number by which the draws know it."""
    storage_name: str
    """Ray's name of its training."""
    before: dict[int, float]
    """Its objective by epoch, as an earlier start measured it."""
    seconds_before: float
    """What its workers had worked by then."""
    history: list[Metrics] = field(default_factory=list)
    best: Metrics | None = None


class SweepSearcher(Searcher):
    """Gives Tune the trials of a sweep one by one, and writes down how each ended.

    One more trial than there is room for is under way: while it waits, its processes start, and
    Ray's autoscaler sees that it would be of use to have another node.
    """

    def __init__(
        self,
        draws: Sampler,
        book: TrialStore,
        *,
        cluster: ClusterConfig,
        objective: Objective,
        num_trials: int,
        num_epochs: int,
        watch: Any = None,
    ) -> None:
        """Take over the trials that an earlier start left behind; they go first.

        Args:
            draws: where samples come from; it learns what became of them.
            book: where trials are written down.
            cluster: what each trial asks of Ray.
            objective: what is compared.
            num_trials: trials in all, those of earlier starts included.
            num_epochs: epochs of a trial that is not stopped.
            watch: knows the controllers of the trials.
        """
        super().__init__()
        self._draws, self._book, self._cluster, self._watch = draws, book, cluster, watch
        self._objective, self._num_trials, self._num_epochs = objective, num_trials, num_epochs
        for result in book.results:
            draws.learn(result)
        if book.num_opened:
            draws.reseed()
        self._waiting = [(each, *draws.again(each.draw)) for each in book.unfinished]
        self._opened = book.num_opened
        self._drawn: tuple[Unfinished | None, Candidate, int] | None = None
        self._live: dict[str, _Live] = {}
        self._lost_in_a_row = 0
        self.lost: list[Exception] = []
        """What trials failed of that the next start goes on with."""

    @property
    def is_done(self) -> bool:
        """Whether no trial is left to begin or to go on with."""
        return not self._waiting and self._drawn is None and self._opened >= self._num_trials

    @property
    def rejected(self) -> dict[str, int]:
        """Draws that were refused, by bound, those of earlier starts included."""
        total = self._draws.rejected + type(self._draws.rejected)(self._book.rejected)
        return dict(total.most_common())

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None while there is no room, FINISHED where there is none left."""
        if self._lost_in_a_row >= MAX_CONSECUTIVE_LOSSES:
            return Searcher.FINISHED
        if len(self._live) > capacity_for(self._cluster):
            return None
        if self._drawn is None:
            if self.is_done:
                return Searcher.FINISHED
            try:
                self._drawn = self._waiting.pop(0) if self._waiting else (None, *self._draws.next())
            except SpaceExhaustedError as error:
                logger.warning("the sweep ends after %d trials: %s", self._opened, error)
                self._num_trials = self._opened
                return Searcher.FINISHED
        before, candidate, asked = self._drawn
        number = self._opened + 1 if before is None else before.number
        try:
            record, run = self._book.open(number, candidate, before)
            history = {} if before is None else self._measured(record.run_id)
        except tracking.FAILURES as error:
            logger.warning("MLflow does not answer, no trial is begun until it does: %s", error)
            return None
        self._drawn = None
        self._opened = max(self._opened, number)
        worked = 0.0 if before is None else before.run.data.metrics.get(SECONDS, 0.0)
        self._live[trial_id] = _Live(number, candidate, asked, record.storage_name, history, worked)
        self._book.note_rejected(self.rejected)
        logger.info(
            "trial %d %s, %.4g M mult-adds: %s", number, "goes on" if before else "begins",
            candidate.cost[-1] / 1e6, " ".join(as_arguments(candidate.draw)),
        )  # fmt: skip
        return {"task": Task(run, record)}

    def reported(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep what a trial reports; its last report repeats the last epoch."""
        live = self._live[trial_id]
        self._lost_in_a_row = 0
        live.best = result.get(BEST, live.best)
        if not live.history or live.history[-1][EPOCH] < result[EPOCH]:
            live.history.append(result[METRICS])
            self._book.note_seconds()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Wait for `ended`, which is told the error as well."""

    def ended(self, trial_id: str, error: Exception | None = None) -> None:
        """Write down a trial that came to its end, was stopped, or failed."""
        live = self._live.pop(trial_id)
        if error is not None and not isinstance(error, UntrainableError):
            logger.error("trial %d was lost: %s", live.number, error)
            self.lost.append(error)
            self._lost_in_a_row += 1
            self._book.give_up(live.number)
            self._draws.tell(live.asked, TrialState.FAIL)
            return
        last = live.best or (live.history[-1] if live.history else {})
        num_epochs = int(live.history[-1][EPOCH]) if live.history else max(live.before, default=0)
        state: State = "finished" if live.best is not None else "stopped"
        if error is not None:
            state = "failed"
        if state == "stopped":  # next Tune ends the trial's process, and with it Ray's controller
            abort(self._watch, live.storage_name)
        names = [objective_metric(name) for name in self._objective.names]
        values = tuple(last[name] for name in names) if last else ()
        budgets = self._objective.budgets_of(live.candidate.cost) if last else ()
        result = TrialResult(
            number=live.number,
            trial_id=trial_id,
            run_id="",
            settings={},
            state=state,
            epochs=num_epochs,
            seconds=live.history[-1][SECONDS] if live.history else live.seconds_before,
            cost=(),
            parameters=0,
            memory=0,
            values=values,
            budgets=budgets,
            accuracies=tuple(last[budget_metric(k)] for k in range(len(budgets))),
            exits=tuple(validation_top1(last)),
            error="" if error is None else str(error),
        )
        self._book.close(result, live.history)
        state_of = {
            "finished": TrialState.COMPLETE,
            "stopped": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        self._draws.tell(live.asked, state_of[state], values, num_epochs)
        if error is not None:
            logger.error("trial %d failed: %s", live.number, error)
        else:
            logger.info(
                "trial %d %s after %d epochs: %s", live.number, state, num_epochs,
                ", ".join(
                    f"{name} {value:.4g}"
                    for name, value in zip(self._objective.names, values, strict=True)
                ),
            )  # fmt: skip

    def before(self, trial_id: str) -> dict[int, float]:
        """Return a trial's objective by epoch, as an earlier start measured it."""
        return self._live[trial_id].before

    def earlier(self) -> dict[str, dict[int, float]]:
        """Return the objective by epoch of every trial that an earlier start brought to its end."""
        return {each.trial_id: self._measured(each.run_id) for each in self._book.results}

    def _measured(self, run_id: str) -> dict[int, float]:
        metric = objective_metric(self._objective.names[0])
        return tracking.history(self._book.uri, run_id, metric)

    def __getstate__(self) -> dict[str, Any]:
        """Leave all out of the copy that Tune writes of what it was given."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file, which Tune moves to its place: MLflow has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a sweep goes on from MLflow."""
        raise NotImplementedError


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
    draws: Sampler,
    book: TrialStore,
    train: Train,
    *,
    cluster: ClusterConfig,
    objective: Objective,
    stopping: EarlyStopping,
    num_trials: int,
    num_epochs: int,
) -> SweepSearcher:
    """Run the trials that are left to their ends; `book.results` has them all then.

    Args:
        draws: where samples come from.
        book: where trials are written down, and what earlier starts wrote.
        train: trains a run.
        cluster: what each trial asks of Ray.
        objective: what is compared.
        stopping: when a trial is given up early.
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
        draws, book, cluster=cluster, objective=objective,
        num_trials=num_trials, num_epochs=num_epochs, watch=watch,
    )  # fmt: skip
    metric = objective_metric(objective.names[0])
    mode = "min" if objective.directions[0] == "minimize" else "max"
    scheduler = make_scheduler(stopping, metric, mode, num_epochs)
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
                num_samples=num_trials - len(book.results),
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
    stopping: EarlyStopping, metric: str, mode: str, num_epochs: int
) -> TrialScheduler:
    """Make Tune's scheduler; it looks at whole epochs, and never at the last one."""
    if stopping.method == "none" or num_epochs <= stopping.first_epoch:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=metric,
        mode=mode,
        grace_period=stopping.first_epoch,
        reduction_factor=stopping.factor,
        brackets=stopping.brackets,
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
