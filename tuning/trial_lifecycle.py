"""Life cycle of the trials that Ray Tune runs: begin, report, end."""

import logging
from dataclasses import dataclass, field
from typing import Any, Generic

from optuna.trial import TrialState

from cluster.errors import UntrainableError
from cluster.execution.heartbeat import Heartbeats
from cluster.tracking import runs as tracking
from ranet.evaluation.accuracy import validation_top1
from ranet.protocols import Metrics
from tuning.objective import EPOCH, SECONDS, Objective, budget_metric, objective_metric
from tuning.results import State, TrialEnd
from tuning.sampler import Candidate, RunT, Sampler
from tuning.space import as_arguments
from tuning.trainable import BEST, METRICS, Task
from tuning.trial_store import TrialStore, Unfinished

logger = logging.getLogger(__name__)

_OPTUNA_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True)
class Proposal(Generic[RunT]):
    """A candidate to train in the next trial."""

    candidate: Candidate[RunT]
    sampler_number: int
    """Number of the candidate for `Sampler.tell`."""
    unfinished: Unfinished | None = None
    """The trial of a previous invocation to resume; None for a new trial."""


@dataclass
class _LiveTrial(Generic[RunT]):
    """A trial that Tune is running, and its reports so far."""

    number: int
    candidate: Candidate[RunT]
    sampler_number: int
    storage_name: str
    """Name of the training in Ray Train."""
    measured_before: dict[int, float]
    """First objective by epoch, measured by previous invocations."""
    seconds_before: float
    """Seconds that the workers worked in previous invocations."""
    history: list[Metrics] = field(default_factory=list)
    best: Metrics | None = None
    """Metrics of the best epoch; None until the training is complete."""


class TrialLifecycle(Generic[RunT]):
    """Begins trials, collects their reports, and saves how each ended."""

    def __init__(
        self,
        sampler: Sampler[RunT],
        store: TrialStore[RunT],
        *,
        objective: Objective,
        heartbeats: Heartbeats,
    ) -> None:
        """Start without trials.

        Args:
            sampler: sampler of the candidates; it receives the result of each trial.
            store: store of the trials.
            objective: objective of the sweep.
            heartbeats: heartbeats of the trials, with their controllers.
        """
        self._sampler, self._store = sampler, store
        self._objective, self._heartbeats = objective, heartbeats
        self._live: dict[str, _LiveTrial[RunT]] = {}
        self.num_consecutive_losses = 0
        """Number of trials lost since a trial last reported an epoch."""
        self.lost: list[Exception] = []
        """Errors of trials lost with the cluster, which the next invocation resumes."""

    @property
    def num_live(self) -> int:
        """Number of trials that Tune is running."""
        return len(self._live)

    def begin(self, trial_id: str, number: int, proposal: Proposal[RunT]) -> Task[RunT]:
        """Open a trial in the store.

        Args:
            trial_id: name of the trial in Tune.
            number: number of the trial.
            proposal: the candidate to train.

        Raises:
            tracking.FAILURES: MLflow failed; the trial has not begun.
        """
        unfinished, candidate = proposal.unfinished, proposal.candidate
        record, run = self._store.open(number, candidate, unfinished)
        measured, seconds = {}, 0.0
        if unfinished is not None:
            measured = self.measured(record.run_id)
            seconds = unfinished.run.data.metrics.get(SECONDS, 0.0)
        self._live[trial_id] = _LiveTrial(
            number, candidate, proposal.sampler_number, record.storage_name, measured, seconds
        )
        logger.info(
            "trial %d %s, %.4g M mult-adds: %s", number, "resumed" if unfinished else "started",
            candidate.cost[-1] / 1e6, " ".join(as_arguments(candidate.params)),
        )  # fmt: skip
        return Task(run, record)

    def reported(self, trial_id: str, report: dict[str, Any]) -> None:
        """Record a report; the last one repeats the last epoch."""
        trial = self._live[trial_id]
        self.num_consecutive_losses = 0
        trial.best = report.get(BEST, trial.best)
        if not trial.history or trial.history[-1][EPOCH] < report[EPOCH]:
            trial.history.append(report[METRICS])
            self._store.note_seconds()

    def ended(self, trial_id: str, error: Exception | None = None) -> None:
        """Save the end of a trial."""
        trial = self._live.pop(trial_id)
        if error is not None and not isinstance(error, UntrainableError):
            self._lose(trial, error)
            return
        end = self._end_of(trial_id, trial, error)
        if end.state == "stopped":
            # Tune kills the trial's process next, and Ray Train's controller with it: the
            # controller must release its workers before.
            self._heartbeats.abort(trial.storage_name)
        self._store.close(trial.number, end, trial.history)
        self._sampler.tell(trial.sampler_number, _OPTUNA_STATES[end.state], end.values, end.epochs)
        if error is not None:
            logger.error("trial %d failed: %s", trial.number, error)
            return
        values = zip(self._objective.metrics, end.values, strict=True)
        logger.info(
            "trial %d %s after %d epochs: %s", trial.number,
            "stopped early" if end.state == "stopped" else end.state, end.epochs,
            ", ".join(f"{name} {value:.4g}" for name, value in values),
        )  # fmt: skip

    def measured_before(self, trial_id: str) -> dict[int, float]:
        """Return a trial's first objective by epoch, as measured by previous invocations."""
        return self._live[trial_id].measured_before

    def measured(self, run_id: str) -> dict[int, float]:
        """Return the first objective by epoch of a trial's MLflow run."""
        metric = objective_metric(self._objective.metrics[0])
        return tracking.history(self._store.uri, run_id, metric)

    def _lose(self, trial: _LiveTrial[RunT], error: Exception) -> None:
        logger.error("trial %d was lost: %s", trial.number, error)
        self.lost.append(error)
        self.num_consecutive_losses += 1
        self._store.close_lost(trial.number)
        self._sampler.tell(trial.sampler_number, TrialState.FAIL)

    def _end_of(self, trial_id: str, trial: _LiveTrial[RunT], error: Exception | None) -> TrialEnd:
        state: State = "finished" if trial.best is not None else "stopped"
        if error is not None:
            state = "failed"
        last = trial.history[-1] if trial.history else {}
        metrics = trial.best or last
        names = [objective_metric(name) for name in self._objective.metrics]
        budgets = self._objective.budgets_of(trial.candidate.cost) if metrics else ()
        return TrialEnd(
            trial_id=trial_id,
            state=state,
            epochs=int(last[EPOCH]) if last else max(trial.measured_before, default=0),
            seconds=last[SECONDS] if last else trial.seconds_before,
            values=tuple(metrics[name] for name in names) if metrics else (),
            budgets=budgets,
            accuracies=tuple(metrics[budget_metric(k)] for k in range(len(budgets))),
            exits=tuple(validation_top1(metrics)),
            error="" if error is None else str(error),
        )
