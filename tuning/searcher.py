"""Ray Tune searcher of a sweep: unfinished trials first, then new candidates."""

import logging
from pathlib import Path
from typing import Any, Generic

from ray.tune.search import Searcher

from cluster.config import ClusterConfig
from cluster.execution.resources import capacity_for
from cluster.tracking import client
from tuning.sampler import RunT, Sampler, SpaceExhaustedError
from tuning.trial_lifecycle import Proposal, TrialLifecycle
from tuning.trial_store import TrialStore

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_LOSSES = 3
"""Trials lost in a row with the cluster, after which a sweep ends."""


class SweepSearcher(Searcher, Generic[RunT]):
    """Searcher that gives Tune the trials of a sweep one by one.

    One trial more than the cluster has capacity for is given out: its processes start while it
    waits, and Ray's autoscaler sees the demand for another node.

    Ray's `OptunaSearch` cannot be used: it neither rejects candidates nor continues a study from
    MLflow.
    """

    def __init__(
        self,
        sampler: Sampler[RunT],
        store: TrialStore[RunT],
        trials: TrialLifecycle[RunT],
        *,
        cluster: ClusterConfig,
        num_trials: int,
    ) -> None:
        """Teach the sampler the results of previous invocations, and queue unfinished trials.

        Args:
            sampler: sampler of the candidates.
            store: store of the trials.
            trials: life cycle of the trials that Tune runs.
            cluster: resources of each trial.
            num_trials: total number of trials, including those of previous invocations.
        """
        super().__init__()
        self._sampler, self._store, self._trials = sampler, store, trials
        self._cluster, self._num_trials = cluster, num_trials
        for result in store.results:
            sampler.learn(result)
        if store.num_opened:
            sampler.reseed()
        self._waiting = [
            Proposal(*sampler.resume(each.params), unfinished=each) for each in store.unfinished
        ]
        self._num_opened = store.num_opened
        self._proposal: Proposal[RunT] | None = None

    @property
    def is_done(self) -> bool:
        """No trial is left to start or resume."""
        return not self._waiting and self._proposal is None and self._num_opened >= self._num_trials

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rejected candidates of all invocations by bound, most frequent first."""
        total = self._sampler.rejected + type(self._sampler.rejected)(self._store.rejected)
        return dict(total.most_common())

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config, None without capacity, or FINISHED."""
        if self._trials.num_consecutive_losses >= MAX_CONSECUTIVE_LOSSES:
            return Searcher.FINISHED
        if self._trials.num_live > capacity_for(self._cluster):
            return None
        # A proposal is kept while MLflow fails, so that its candidate is not lost.
        if self._proposal is None:
            if self.is_done:
                return Searcher.FINISHED
            try:
                self._proposal = (
                    self._waiting.pop(0) if self._waiting else Proposal(*self._sampler.next())
                )
            except SpaceExhaustedError as error:
                logger.warning("the sweep ends after %d trials: %s", self._num_opened, error)
                self._num_trials = self._num_opened
                return Searcher.FINISHED
        unfinished = self._proposal.unfinished
        number = self._num_opened + 1 if unfinished is None else unfinished.number
        try:
            task = self._trials.begin(trial_id, number, self._proposal)
        except client.FAILURES as error:
            logger.warning("MLflow does not respond; no trial starts until it does: %s", error)
            return None
        self._proposal = None
        self._num_opened = max(self._num_opened, number)
        self._store.note_rejected(self.rejected)
        return {"task": task}

    def measured_by_trial(self) -> dict[str, dict[int, float]]:
        """Return the first objective by epoch of every ended trial."""
        return {each.trial_id: self._trials.measured(each.run_id) for each in self._store.results}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the callback in `tuning.search` ends the trial."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: MLflow holds the state of the sweep."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Tune requires, empty: MLflow holds the sweep's state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Raise an error: a sweep resumes from MLflow, never from Tune's files."""
        raise NotImplementedError
