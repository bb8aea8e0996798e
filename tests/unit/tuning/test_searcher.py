"""Trials that the searcher starts, and the results that it stores."""

from dataclasses import replace
from itertools import count

from cluster.config import ClusterConfig
from cluster.errors import UntrainableError
from cluster.execution.heartbeat import Heartbeats
from cluster.tracking.record import MetricWriter
from tests.support.sweeps import accept, make_config, make_sampler
from tuning.config import Dimension
from tuning.objective import Objective
from tuning.searcher import SweepSearcher
from tuning.trial_lifecycle import TrialLifecycle
from tuning.trial_store import TrialStore

HEARTBEATS = Heartbeats(None)
"""No actor: none of these trials is stopped early."""


def test_resumed_trial_counts_the_time_before_its_interruption(parent, small_ray):
    candidate = accept({"x": 1})
    with TrialStore(parent, make_config) as store:
        record, _ = store.open(1, candidate)
        writer = MetricWriter(record, keep_checkpoints=1)
        writer.put({"epoch": 1.0, "sweep/seconds": 7.0, "objective/accuracy": 50.0})
        assert writer.flush(30)
    with TrialStore(replace(parent, resumed=True), make_config) as store:
        sampler = make_sampler({"x": Dimension(integers=(1, 3))})
        trials = TrialLifecycle(sampler, store, objective=Objective(), heartbeats=HEARTBEATS)
        searcher = SweepSearcher(sampler, store, trials, cluster=small_ray, num_trials=1)
        assert searcher.suggest("again") is not None
        trials.ended("again", UntrainableError("worker 0 failed: the loss is infinite"))
        [result] = store.results
    assert (result.state, result.epochs, result.seconds) == ("failed", 1, 7.0)


def test_searcher_starts_one_trial_more_than_the_cluster_has_capacity_for(parent, monkeypatch):
    capacity = [2]
    monkeypatch.setattr("tuning.searcher.capacity_for", lambda cluster: capacity[0])
    with TrialStore(parent, make_config) as store:
        sampler = make_sampler({"x": Dimension(integers=(1, 100))})
        trials = TrialLifecycle(sampler, store, objective=Objective(), heartbeats=HEARTBEATS)
        searcher = SweepSearcher(sampler, store, trials, cluster=ClusterConfig(), num_trials=50)
        names = (str(number) for number in count())

        def begun() -> list[str]:
            """Ask for trials until the searcher returns none."""
            found = []
            while searcher.suggest(name := next(names)) is not None:
                found.append(name)
            return found

        running = begun()
        assert len(running) == 3
        capacity[0] = 4  # two hosts joined
        running += (more := begun())
        assert len(more) == 2
        capacity[0] = 1  # three hosts were lost
        assert begun() == []
        for name in running[:3]:
            trials.ended(name, UntrainableError("worker 0 failed: the loss is infinite"))
            assert begun() == []
        trials.ended(running[3], UntrainableError("worker 0 failed: the loss is infinite"))
        assert len(begun()) == 1
