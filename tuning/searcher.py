"""Gives Ray Tune the trials of a sweep, and writes down how each ended."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from cluster.config import ClusterConfig
from cluster.errors import UntrainableError
from cluster.execution.heartbeat import abort
from cluster.execution.resources import capacity_for
from cluster.tracking import client, runs
from ranet.evaluation.accuracy import validation_top1
from ranet.protocols import Metrics
from tuning.objective import EPOCH, SECONDS, Objective, budget_metric, objective_metric
from tuning.results import State, TrialResult
from tuning.sampler import Candidate, Sampler, SpaceExhaustedError
from tuning.space import as_arguments
from tuning.trainable import BEST, METRICS, Task
from tuning.trial_store import TrialStore, Unfinished

logger = logging.getLogger(__name__)


MAX_CONSECUTIVE_LOSSES = 3
"""Trials in a row that fail by no fault of their own, after which a sweep ends."""


@dataclass
class _Live:
    """A trial that Tune has, and what it has reported."""

    number: int
    candidate: Candidate
    asked: int
    """The number by which the sampler know it."""
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
        sampler: Sampler,
        store: TrialStore,
        *,
        cluster: ClusterConfig,
        objective: Objective,
        num_trials: int,
        num_epochs: int,
        watch: Any = None,
    ) -> None:
        """Take over the trials that an earlier start left behind; they go first.

        Args:
            sampler: where samples come from; it learns what became of them.
            store: where trials are written down.
            cluster: what each trial asks of Ray.
            objective: what is compared.
            num_trials: trials in all, those of earlier starts included.
            num_epochs: epochs of a trial that is not stopped.
            watch: knows the controllers of the trials.
        """
        super().__init__()
        self._sampler, self._store, self._cluster, self._watch = sampler, store, cluster, watch
        self._objective, self._num_trials, self._num_epochs = objective, num_trials, num_epochs
        for result in store.results:
            sampler.learn(result)
        if store.num_opened:
            sampler.reseed()
        self._waiting = [(each, *sampler.resume(each.params)) for each in store.unfinished]
        self._opened = store.num_opened
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
        total = self._sampler.rejected + type(self._sampler.rejected)(self._store.rejected)
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
                self._drawn = (
                    self._waiting.pop(0) if self._waiting else (None, *self._sampler.next())
                )
            except SpaceExhaustedError as error:
                logger.warning("the sweep ends after %d trials: %s", self._opened, error)
                self._num_trials = self._opened
                return Searcher.FINISHED
        before, candidate, asked = self._drawn
        number = self._opened + 1 if before is None else before.number
        try:
            record, run = self._store.open(number, candidate, before)
            history = {} if before is None else self._measured(record.run_id)
        except client.FAILURES as error:
            logger.warning("MLflow does not answer, no trial is begun until it does: %s", error)
            return None
        self._drawn = None
        self._opened = max(self._opened, number)
        worked = 0.0 if before is None else before.run.data.metrics.get(SECONDS, 0.0)
        self._live[trial_id] = _Live(number, candidate, asked, record.storage_name, history, worked)
        self._store.note_rejected(self.rejected)
        logger.info(
            "trial %d %s, %.4g M mult-adds: %s", number, "goes on" if before else "begins",
            candidate.cost[-1] / 1e6, " ".join(as_arguments(candidate.params)),
        )  # fmt: skip
        return {"task": Task(run, record)}

    def reported(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep what a trial reports; its last report repeats the last epoch."""
        live = self._live[trial_id]
        self._lost_in_a_row = 0
        live.best = result.get(BEST, live.best)
        if not live.history or live.history[-1][EPOCH] < result[EPOCH]:
            live.history.append(result[METRICS])
            self._store.note_seconds()

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
            self._store.close_lost(live.number)
            self._sampler.tell(live.asked, TrialState.FAIL)
            return
        last = live.best or (live.history[-1] if live.history else {})
        num_epochs = int(live.history[-1][EPOCH]) if live.history else max(live.before, default=0)
        state: State = "finished" if live.best is not None else "stopped"
        if error is not None:
            state = "failed"
        if state == "stopped":  # next Tune ends the trial's process, and with it Ray's controller
            abort(self._watch, live.storage_name)
        names = [objective_metric(name) for name in self._objective.metrics]
        values = tuple(last[name] for name in names) if last else ()
        budgets = self._objective.budgets_of(live.candidate.cost) if last else ()
        result = TrialResult(
            number=live.number,
            trial_id=trial_id,
            run_id="",
            params={},
            state=state,
            epochs=num_epochs,
            seconds=live.history[-1][SECONDS] if live.history else live.seconds_before,
            cost=(),
            parameters=0,
            memory_bytes=0,
            values=values,
            budgets=budgets,
            accuracies=tuple(last[budget_metric(k)] for k in range(len(budgets))),
            exits=tuple(validation_top1(last)),
            error="" if error is None else str(error),
        )
        self._store.close(result, live.history)
        state_of = {
            "finished": TrialState.COMPLETE,
            "stopped": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        self._sampler.tell(live.asked, state_of[state], values, num_epochs)
        if error is not None:
            logger.error("trial %d failed: %s", live.number, error)
        else:
            logger.info(
                "trial %d %s after %d epochs: %s", live.number, state, num_epochs,
                ", ".join(
                    f"{name} {value:.4g}"
                    for name, value in zip(self._objective.metrics, values, strict=True)
                ),
            )  # fmt: skip

    def before(self, trial_id: str) -> dict[int, float]:
        """Return a trial's objective by epoch, as an earlier start measured it."""
        return self._live[trial_id].before

    def earlier(self) -> dict[str, dict[int, float]]:
        """Return the objective by epoch of every trial that an earlier start brought to its end."""
        return {each.trial_id: self._measured(each.run_id) for each in self._store.results}

    def _measured(self, run_id: str) -> dict[int, float]:
        metric = objective_metric(self._objective.metrics[0])
        return runs.history(self._store.uri, run_id, metric)

    def __getstate__(self) -> dict[str, Any]:
        """Leave all out of the copy that Tune writes of what it was given."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file, which Tune moves to its place: MLflow has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a sweep goes on from MLflow."""
        raise NotImplementedError
