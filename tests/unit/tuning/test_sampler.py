"""Sampling, rejection and learning of candidates."""

from functools import partial

import numpy as np
import pytest
from optuna.trial import TrialState

from pipelines.sweep_candidates import check_candidate
from tests.support.sweeps import BASE, accept, make_sampler, result_of, sweep_of
from tuning.config import CostLimits, Dimension, RejectedError
from tuning.objective import Objective
from tuning.pareto import pareto_front
from tuning.sampler import SpaceExhaustedError


def values(dimension: Dimension, count: int = 100) -> list:
    sampler = make_sampler({"x": dimension})
    return [sampler.next()[0].params["x"] for _ in range(count)]


def test_sampled_numbers_cover_their_range():
    uniform = np.array(values(Dimension(uniform=(0.5, 2.0))))
    assert uniform.min() >= 0.5
    assert uniform.max() <= 2.0
    assert 1.1 < uniform.mean() < 1.4
    logarithmic = np.array(values(Dimension(log_uniform=(1e-4, 1e-2))))
    assert 0.35 < (logarithmic < 1e-3).mean() < 0.65
    assert sorted(values(Dimension(integers=(3, 6)), 4)) == [3, 4, 5, 6]


def test_choices_are_sampled_completely_and_exclusively():
    assert {str(v) for v in values(Dimension(choice=("sgd", (1, 2), None)), 3)} == {
        "sgd", "[1, 2]", "None",
    }  # fmt: skip
    lists = values(Dimension(choice=(1, 2), length=3), 8)
    assert len({tuple(value) for value in lists}) == 8


def test_exhausted_space_names_the_cost_limit_that_rejects_all_valid_networks(tmp_path):
    space = {"model.scales": Dimension(choice=([2, 1], [3, 1], [3, 2], [1, 2, 3]))}
    sweep = sweep_of(space, cost_limits=CostLimits(mult_adds=(1, 2)))
    sampler = make_sampler(space, partial(check_candidate, sweep, BASE))
    with pytest.raises(SpaceExhaustedError) as caught:
        sampler.next()
    assert "most by model.scales: " in str(caught.value)
    assert "; of the valid networks, all by cost_limits.mult_adds: cost_limits.mult_adds is" in str(
        caught.value
    )


def test_rejected_candidates_are_counted_and_none_is_sampled_twice():
    def check(params):
        if params["x"] == 0:
            raise RejectedError("x", "x must not be 0")
        return accept(params)

    sampler = make_sampler({"x": Dimension(choice=(0, 1, 2))}, check)
    assert {sampler.next()[0].params["x"] for _ in range(2)} == {1, 2}
    with pytest.raises(
        SpaceExhaustedError, match=r"has only 2 different candidates.*most by x: x must not"
    ):
        sampler.next()
    assert sampler.rejected["x"] > 50


def test_check_ahead_uses_up_no_candidates():
    sampler = make_sampler({"x": Dimension(choice=(1, 2))})
    with pytest.raises(SpaceExhaustedError, match="has only 2 different candidates"):
        sampler.check_ahead(3)
    sampler.check_ahead(2)
    assert {sampler.next()[0].params["x"] for _ in range(2)} == {1, 2}
    assert not sampler.rejected


def test_candidates_of_learned_trials_are_not_sampled_again():
    sampler = make_sampler({"x": Dimension(choice=(1, 2, 3))})
    assert sampler.learn(result_of({"x": 2}, (1.0,)))
    assert not sampler.learn(result_of({"x": 7}, (1.0,)))
    assert not sampler.learn(result_of({"y": 1}, (1.0,)))
    assert {sampler.next()[0].params["x"] for _ in range(2)} == {1, 3}


def test_resumed_trial_has_the_same_candidate():
    sampler = make_sampler({"x": Dimension(uniform=(0.0, 1.0)), "y": Dimension(choice=([1], [2]))})
    candidate, number = sampler.resume({"x": 0.25, "y": [2]})
    assert candidate.params == {"x": 0.25, "y": [2]}
    sampler.tell(number, TrialState.PRUNED, (1.0,), 3)


def optimum(search: str, seed: int) -> float:
    """Return the distance from the optimum after 40 candidates."""
    space = {name: Dimension(uniform=(0.0, 1.0)) for name in ("x", "y")}
    sampler = make_sampler(space, method=search, seed=seed)
    best = 9.0
    for _ in range(40):
        candidate, number = sampler.next()
        loss = abs(candidate.params["x"] - 0.3) + abs(candidate.params["y"] - 0.7)
        sampler.tell(number, TrialState.COMPLETE, (-loss,))
        best = min(best, loss)
    return best


def test_tpe_finds_better_candidates_than_random_search():
    tpe, chance = (np.median([optimum(s, k) for k in range(5)]) for s in ("tpe", "random"))
    assert tpe < 0.7 * chance


def test_tpe_with_two_objectives_finds_the_known_front():
    # x is the cost and y only lowers accuracy, so the front is y = 0, accuracy = sqrt(cost).
    space = {name: Dimension(uniform=(0.0, 1.0)) for name in ("x", "y")}
    objective = Objective(metrics=("accuracy", "mult_adds"))
    sampler = make_sampler(space, method="tpe", objective=objective, num_trials=80)
    points = []
    for _ in range(80):
        candidate, number = sampler.next()
        x, y = candidate.params["x"], candidate.params["y"]
        points.append((x**0.5 - y, x))
        sampler.tell(number, TrialState.COMPLETE, points[-1])
    front = [points[k] for k in pareto_front(points, objective.directions)]
    assert len(front) >= 8
    harm = [x**0.5 - accuracy for accuracy, x in front]
    assert np.median(harm) < 0.1  # 0.5 with random search
    assert min(x for _, x in front) < 0.1
    assert max(x for _, x in front) > 0.6
