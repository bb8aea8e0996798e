"""Ranking of trials."""

from dataclasses import replace

from tests.support.sweep_results import sweep_results, trial


def test_trials_are_ranked_by_objective_then_cost():
    dear, cheap = trial(1, 80, 90, top=12e6), trial(2, 85, 85, top=11e6)
    best, unmeasured = trial(3, 86, 87), trial(4, state="failed", error="no memory")
    ranked = sweep_results(dear, cheap, best, unmeasured).ranking
    assert [each.number for each in ranked] == [3, 2, 1]
    latency = sweep_results(dear, replace(best, values=(3.0,)), directions=("minimize",))
    assert [each.number for each in latency.ranking] == [3, 1]


def test_failed_trial_is_never_the_best():
    diverged = trial(1, 95, 96, 97, state="failed", error="the loss is nan")
    found = sweep_results(diverged, trial(2, 70, 80, 81))
    assert [each.number for each in found.ranking] == [2]
    assert found.front == {2}
    assert {result.number for *_, result in found.points()} == {2}
    assert all(found.best(budget) == found.ranking[0] for budget in found.budgets)


def test_best_of_a_budget_is_the_most_accurate_trial_within_it():
    small, large = trial(1, 70, 80, 81), trial(2, 85, 90, top=30e6)
    found = sweep_results(small, large, trial(3, 70, 80, 81, top=19e6))
    best = {budget: found.best(budget) for budget in found.budgets}
    numbers = [None if each is None else each.number for each in best.values()]
    assert numbers == [3, 2, 2]
    assert sweep_results(large).best(5e6) is None
