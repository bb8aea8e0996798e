"""Which trials Tune is given, and how their ends are written down."""

from dataclasses import replace
from itertools import count

from cluster.config import ClusterConfig
from cluster.errors import UntrainableError
from cluster.tracking import runs as tracking
from tests.support.sweeps import accept, described, make_sampler
from tuning.config import Dimension
from tuning.objective import Objective
from tuning.searcher import SweepSearcher
from tuning.trial_store import TrialStore


def test_what_a_trial_worked_before_it_was_cut_short_is_counted(parent, small_ray):
    candidate = accept({"x": 1})
    with TrialStore(parent, described) as store:
        record, _ = store.open(1, candidate)
        writer = tracking.MetricWriter(record, keep_checkpoints=1)
        writer.put({"epoch": 1.0, "sweep/seconds": 7.0, "objective/accuracy": 50.0})
        assert writer.flush(30)
    with TrialStore(replace(parent, resumed=True), described) as store:
        trials = SweepSearcher(
            make_sampler({"x": Dimension(integers=(1, 3))}), store,
            cluster=small_ray, objective=Objective(), num_trials=1, num_epochs=2,
        )  # fmt: skip
        assert trials.suggest("again") is not None
        trials.ended("again", UntrainableError("worker 0 failed: the loss is infinite"))
        [result] = store.results
    assert (result.state, result.epochs, result.seconds) == ("failed", 1, 7.0)


def test_as_many_trials_are_under_way_as_the_cluster_has_room_for_and_one_more(parent, monkeypatch):
    room = [2]
    monkeypatch.setattr("tuning.searcher.capacity_for", lambda cluster: room[0])
    with TrialStore(parent, described) as store:
        trials = SweepSearcher(
            make_sampler({"x": Dimension(integers=(1, 100))}), store,
            cluster=ClusterConfig(), objective=Objective(), num_trials=50, num_epochs=2,
        )  # fmt: skip
        names = (str(number) for number in count())

        def begun() -> list[str]:
            """Ask for trials until there are no more now."""
            found = []
            while trials.suggest(name := next(names)) is not None:
                found.append(name)
            return found

        running = begun()
        assert len(running) == 3
        room[0] = 4  # two hosts have come
        running += (more := begun())
        assert len(more) == 2
        room[0] = 1  # three have gone
        assert begun() == []
        for name in running[:3]:
            trials.ended(name, UntrainableError("worker 0 failed: the loss is infinite"))
            assert begun() == []
        trials.ended(running[3], UntrainableError("worker 0 failed: the loss is infinite"))
        assert len(begun()) == 1
