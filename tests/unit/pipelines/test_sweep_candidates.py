"""Candidates of a sweep: runs, costs and rejections."""

from typing import Any

import numpy as np
import pytest

from cluster.cli import parse_settings
from pipelines.run import Run, flatten
from pipelines.sweep_candidates import best_config, check_candidate, check_space
from ranet import mult_adds
from tests.support.sweeps import BASE, sweep_of
from tuning.config import CostLimits, Dimension, RejectedError
from tuning.objective import Objective
from tuning.space import as_arguments


def test_candidate_equals_the_run_parsed_from_its_settings():
    params = {"model.growth_rate": 8, "exit_weights.family": "power", "exit_weights.strength": 1.0}
    candidate = check_candidate(sweep_of(), BASE, params)
    assert candidate.run.model.growth_rate == 8
    assert candidate.cost == mult_adds(candidate.run.model)
    assert np.mean(candidate.run.train.loss.exit_weights) == pytest.approx(1, abs=1e-3)
    again = parse_settings(Run, as_arguments({**flatten(BASE), **candidate.settings}))
    assert again == candidate.run


@pytest.mark.parametrize(
    ("params", "settings", "bound"),
    [
        ({"model.scales": [3, 2, 1]}, {}, "model.scales"),
        ({"model.growht_rate": 3}, {}, "model.growht_rate"),
        ({"train.optim.lr": -1.0}, {}, "train.optim.lr"),
        ({}, {"cost_limits": CostLimits(mult_adds=(1, 2))}, "cost_limits.mult_adds"),
        (
            {},
            {"cost_limits": CostLimits(first_exit_mult_adds=(1, 2))},
            "cost_limits.first_exit_mult_adds",
        ),
        ({}, {"cost_limits": CostLimits(parameters=(1, 2))}, "cost_limits.parameters"),
        ({}, {"cost_limits": CostLimits(memory_bytes=(1, 2))}, "cost_limits.memory_bytes"),
        ({}, {"objective": Objective(budgets_mult_adds=(10.0,))}, "objective.budgets_mult_adds"),
    ],
)
def test_invalid_candidate_is_rejected_by_the_name_of_its_bound(params, settings, bound):
    with pytest.raises(RejectedError) as caught:
        check_candidate(sweep_of(**settings), BASE, params)
    assert caught.value.bound == bound


def test_cost_limits_may_have_a_single_bound():
    (mult_adds,) = {check_candidate(sweep_of(), BASE, {}).cost[-1]}
    for bounds, fits in (((None, mult_adds), True), ((None, mult_adds - 1), False),
                         ((mult_adds, None), True), ((mult_adds + 1, None), False)):  # fmt: skip
        sweep = sweep_of(cost_limits=CostLimits(mult_adds=bounds))
        if fits:
            check_candidate(sweep, BASE, {})
        else:
            with pytest.raises(RejectedError, match=r"cost_limits\.mult_adds is"):
                check_candidate(sweep, BASE, {})
    with pytest.raises(ValueError, match=r"cost_limits.memory_bytes must be .*got \[-1, None\]"):
        CostLimits(memory_bytes=(-1, None))


def test_candidates_that_train_the_same_have_the_same_key():
    same = (
        {"train.optim.lr": 0.1}, {"train.optim.lr": 0.1, "train.seed": 0},
        {"train.optim.lr": 0.1, "exit_weights.family": "uniform"},
        {"train.optim.lr": 0.1, "exit_weights.family": "power", "exit_weights.strength": 0.0},
    )  # fmt: skip
    assert len({check_candidate(sweep_of(), BASE, params).key for params in same}) == 1
    ones = {check_candidate(sweep_of(), BASE, {"train.optim.lr": lr}).key for lr in (1, 1.0, 0.1)}
    assert len(ones) == 2


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.growht_rate": [3]}, "model.growht_rate, which is not a setting; did you mean "
                                     "model.growth_rate"),
        ({"exit_weights.strenght": [3]}, "exit_weights.strenght, .*did you mean exit_weights.str"),
        ({"pair": [{"train.optim.lr": 0.1}, {"modle.scales": [1]}]}, "modle.scales, which is not"),
        ({"registry.model_name": ["a", "b"]}, "registry.model_name: it is the same for all trials"),
        ({"name": ["a", "b"]}, "name: it is the same for all trials of a sweep"),
        ({"cluster.num_workers": [1, 64]}, "cluster.num_workers: it is the same for all"),
        ({"train.epochs": [1, 2]}, "train.epochs: it is the same for all trials"),
        ({"data.split_seed": [1, 2]}, "data.split_seed: all trials of a sweep use the same"),
    ],
)  # fmt: skip
def test_space_with_a_setting_common_to_all_trials_raises_an_error(space, message):
    sweep = sweep_of({name: Dimension(choice=choices) for name, choices in space.items()})
    with pytest.raises(ValueError, match=f"^space has {message}"):
        check_space(sweep, BASE)


def test_space_may_have_shorthands_and_mapping_choices():
    names = ("scale_factors", "exit_weights.family", "exit_weights.strength", "exit_weights.free")
    space: dict[str, Any] = {name: Dimension(choice=(1,)) for name in names}
    space["shape"] = Dimension(choice=({"model.scales": [1]}, {"model.growth_rate": 4}))
    space["data.augment.crop"] = Dimension(choice=("none", "pad4"))
    check_space(sweep_of(space), BASE)


def test_best_config_parses_as_a_run_evaluated_at_its_budget(tmp_path):
    candidate = check_candidate(sweep_of(), BASE, {"model.growth_rate": 4})
    file = tmp_path / "best.yaml"
    file.write_text(best_config(candidate, "best-20M", 0.7 * candidate.cost[-1]))
    run = parse_settings(Run, ["--config", str(file)])
    assert run.name == "best-20M"
    assert run.model.growth_rate == 4
    assert 0.7 in run.evaluation.budget_fractions
    assert min(run.evaluation.budget_fractions) >= candidate.cost[0] / candidate.cost[-1]
