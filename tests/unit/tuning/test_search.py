"""What a sweep draws, how a draw becomes a run, and what it remembers."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState

from cluster.config import ClusterConfig
from cluster.errors import UntrainableError
from cluster.execution.connection import connected
from cluster.tracking import runs as tracking
from cluster.tracking.runs import TrackedRun, children
from pipelines import tune
from pipelines.run import Run, flatten, parse_settings
from pipelines.sweep_candidates import best_config, check_candidate, check_space
from ranet import ModelConfig, RANet, mult_adds
from ranet.evaluation.exit_outputs import ExitOutputs
from ranet.protocols import Snapshot
from ranet.training.footprint import footprint
from tuning.objective import Objective, cross_fitted
from tuning.pareto import pareto_front
from tuning.sampler import Candidate, Sampler, SpaceExhaustedError
from tuning.search import SweepSearcher, make_scheduler, replay
from tuning.space import (
    CostLimits,
    Dimension,
    EarlyStopping,
    RejectedError,
    Sweep,
    as_arguments,
    expand_model,
    expand_weights,
)
from tuning.trial_result import TrialResult
from tuning.trial_store import TrialConfig, TrialStore, read_trials

BASE = Run(name="base")
COSTS = (100, 200, 400)


def accept(draw) -> Candidate:
    return Candidate(run=None, draw=draw, settings=draw, cost=COSTS)


def draws_of(space, check=accept, *, search: Any = "random", objective=None, seed=0, num_trials=40):
    return Sampler(
        space, search=search, objective=objective or Objective(), num_trials=num_trials,
        seed=seed, check=check,
    )  # fmt: skip


def values(dimension: Dimension, count: int = 100) -> list:
    draws = draws_of({"x": dimension})
    return [draws.next()[0].draw["x"] for _ in range(count)]


def result_of(draw, objectives, state: Any = "finished", number=1, epochs=3) -> TrialResult:
    return TrialResult(
        number=number, trial_id=str(number), run_id="", settings=draw, state=state, epochs=epochs,
        seconds=1.0, cost=COSTS, parameters=1, memory=1, values=objectives,
    )  # fmt: skip


def test_ranges_are_kept_and_filled():
    uniform = np.array(values(Dimension(uniform=(0.5, 2.0))))
    assert uniform.min() >= 0.5
    assert uniform.max() <= 2.0
    assert 1.1 < uniform.mean() < 1.4
    logarithmic = np.array(values(Dimension(log_uniform=(1e-4, 1e-2))))
    assert 0.35 < (logarithmic < 1e-3).mean() < 0.65
    assert sorted(values(Dimension(integers=(3, 6)), 4)) == [3, 4, 5, 6]


def test_every_choice_comes_and_nothing_else():
    assert {str(v) for v in values(Dimension(choice=("sgd", (1, 2), None)), 3)} == {
        "sgd", "[1, 2]", "None",
    }  # fmt: skip
    lists = values(Dimension(choice=(1, 2), length=3), 8)
    assert len({tuple(value) for value in lists}) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"space": {"a": {}}},
            "exactly one of choice, integers, uniform and log_uniform, got none",
        ),
        ({"space": {"a": {"choice": [1], "uniform": [0, 1]}}}, "got choice and uniform"),
        ({"space": {"a": {"uniform": [2, 1]}}}, r"uniform must be a low and a higher number"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, "log_uniform must be above 0"),
        ({"space": {"a": {"choice": [1], "length": 0}}}, "length must be 1 or more"),
        ({"space": {"a": {"chioce": [1]}}}, "chioce"),
        ({}, "space must name at least one setting"),
        ({"window": {"mult_adds": [3e6, 2e6]}}, r"window.mult_adds must be \[least, most\]"),
        ({"objective": {"names": ["acuracy"]}}, "must be among accuracy, area, .* got 'acuracy'"),
        ({"objective": {"names": ["area"]}}, "objective.area_range must be given where area"),
        (
            {"objective": {"names": ["accuracy", "mult_adds"]}, "stopping": {"method": "asha"}},
            "add --stopping.method=none",
        ),
        ({"name": "a b"}, "name must be letters"),
        (
            {"warm_start": ["digits", "a' OR name = 'b"]},
            r"each name in warm_start must be letters, .* got \"a' OR name = 'b\"",
        ),
        ({"search": "grid"}, "grid"),
        ({"windw": {"mult_adds": [1, 2]}}, "windw is not a setting; did you mean window"),
        ({"num_trails": 3}, "num_trails is not a setting; did you mean num_trials"),
        ({"objective.nmes": ["area"]}, "objective.nmes is not a setting; did you mean objective.n"),
        ({"cluster.num_workers": 2}, "cluster.num_workers is not a setting; "),
    ],
)
def test_a_wrong_sweep_is_refused(settings: dict, message: str):
    whole = {"space": {"train.seed": {"choice": [1]}}} | settings if settings else {}
    with pytest.raises(ValueError, match=message):
        parse_settings(Sweep, as_arguments(whole))


def test_a_setting_comes_back_from_the_command_line_as_it_was():
    assert parse_settings(Run, as_arguments(flatten(BASE))) == BASE


def test_factors_follow_the_scales_with_the_highest_resolution_last():
    draw = {"scale_factors": [8, 4, 2, 1], "model.scales": [1, 2, 3, 3]}
    assert expand_model(draw, (1, 2))["model.growth_factors"] == [4, 2, 1, 1]
    assert expand_model({"scale_factors": [4, 2, 1]}, (1, 2))["model.bottleneck_factors"] == [2, 1]
    with pytest.raises(RejectedError, match="an entry for each of the 3 scales"):
        expand_model({"scale_factors": [2, 1]}, (1, 2, 3))


def test_a_choice_may_set_several_settings():
    draw = {"shape": {"model.scales": [1, 2], "model.growth_rate": 4}, "train.seed": 1}
    assert expand_model(draw, (1,)) == {
        "model.scales": [1, 2], "model.growth_rate": 4, "train.seed": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "weights"),
    [
        ({"family": "uniform"}, [1, 1, 1]),
        ({"family": "linear", "strength": 0.5}, [0.5, 1, 1.5]),
        ({"family": "power", "strength": 1.0}, [0.5, 1, 1.5]),
        ({"family": "power", "strength": -1.0}, [1.636, 0.8182, 0.5455]),
        ({"family": "cost", "strength": 1.0}, [0.4286, 0.8571, 1.714]),
        ({"family": "free", "free": [1.0, 2.0, 3.0, 9.0]}, [0.5, 1, 1.5]),
    ],
)
def test_exit_weights_are_a_family_with_mean_one(draw: dict, weights: list):
    draw = {f"exit_weights.{name}": value for name, value in draw.items()}
    assert expand_weights(draw, COSTS) == pytest.approx(weights)


def test_impossible_exit_weights_are_rejected_by_their_setting():
    for draw, bound in (
        ({"exit_weights.family": "linear", "exit_weights.strength": 2.0}, "exit_weights.strength"),
        ({"exit_weights.free": [1.0]}, "exit_weights.free"),
        ({"exit_weights.family": "cubic"}, "exit_weights.family"),
    ):
        with pytest.raises(RejectedError) as caught:
            expand_weights(draw, COSTS)
        assert caught.value.bound == bound
    assert expand_weights({"train.seed": 1}, COSTS) is None


def sweep_of(space=None, **settings) -> Sweep:
    return Sweep(space=space or {"train.seed": Dimension(choice=(1,))}, **settings)


def test_a_sample_becomes_a_run_by_the_door_of_a_file():
    draw = {"model.growth_rate": 8, "exit_weights.family": "power", "exit_weights.strength": 1.0}
    candidate = check_candidate(sweep_of(), BASE, draw)
    assert candidate.run.model.growth_rate == 8
    assert candidate.cost == mult_adds(candidate.run.model)
    assert np.mean(candidate.run.train.loss.exit_weights) == pytest.approx(1, abs=1e-3)
    again = parse_settings(Run, as_arguments({**flatten(BASE), **candidate.settings}))
    assert again == candidate.run


@pytest.mark.parametrize(
    ("draw", "settings", "bound"),
    [
        ({"model.scales": [3, 2, 1]}, {}, "model.scales"),
        ({"model.growht_rate": 3}, {}, "model.growht_rate"),
        ({"train.optim.lr": -1.0}, {}, "train.optim.lr"),
        ({}, {"window": CostLimits(mult_adds=(1, 2))}, "window.mult_adds"),
        ({}, {"window": CostLimits(first_exit=(1, 2))}, "window.first_exit"),
        ({}, {"window": CostLimits(parameters=(1, 2))}, "window.parameters"),
        ({}, {"window": CostLimits(memory=(1, 2))}, "window.memory"),
        ({}, {"objective": Objective(budgets=(10.0,))}, "objective.budgets"),
    ],
)
def test_a_sample_outside_is_rejected_by_the_name_of_its_bound(draw, settings, bound):
    with pytest.raises(RejectedError) as caught:
        check_candidate(sweep_of(**settings), BASE, draw)
    assert caught.value.bound == bound


def test_windows_may_be_open_on_either_side():
    (mult_adds,) = {check_candidate(sweep_of(), BASE, {}).cost[-1]}
    for bounds, fits in (((None, mult_adds), True), ((None, mult_adds - 1), False),
                         ((mult_adds, None), True), ((mult_adds + 1, None), False)):  # fmt: skip
        sweep = sweep_of(window=CostLimits(mult_adds=bounds))
        if fits:
            check_candidate(sweep, BASE, {})
        else:
            with pytest.raises(RejectedError, match=r"window\.mult_adds is"):
                check_candidate(sweep, BASE, {})
    with pytest.raises(ValueError, match=r"window.memory must be .*got \[-1, None\]"):
        CostLimits(memory=(-1, None))


def test_draws_that_mean_one_training_are_one():
    same = (
        {"train.optim.lr": 0.1}, {"train.optim.lr": 0.1, "train.seed": 0},
        {"train.optim.lr": 0.1, "exit_weights.family": "uniform"},
        {"train.optim.lr": 0.1, "exit_weights.family": "power", "exit_weights.strength": 0.0},
    )  # fmt: skip
    assert len({check_candidate(sweep_of(), BASE, draw).key for draw in same}) == 1
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
        ({"data.split_seed": [1, 2]}, "data.split_seed: all trials of a sweep read the same"),
    ],
)  # fmt: skip
def test_a_space_sets_networks_and_their_training_alone(space, message):
    sweep = sweep_of({name: Dimension(choice=choices) for name, choices in space.items()})
    with pytest.raises(ValueError, match=f"^space has {message}"):
        check_space(sweep, BASE)


def test_shorthands_and_groups_of_settings_are_part_of_a_space():
    names = ("scale_factors", "exit_weights.family", "exit_weights.strength", "exit_weights.free")
    space: dict[str, Any] = {name: Dimension(choice=(1,)) for name in names}
    space["shape"] = Dimension(choice=({"model.scales": [1]}, {"model.growth_rate": 4}))
    space["data.augment.crop"] = Dimension(choice=("none", "pad4"))
    check_space(sweep_of(space), BASE)


def test_the_bound_that_refuses_all_networks_is_named_besides_what_makes_none(tmp_path):
    space = {"model.scales": Dimension(choice=([2, 1], [3, 1], [3, 2], [1, 2, 3]))}
    sweep = sweep_of(space, window=CostLimits(mult_adds=(1, 2)))
    draws = draws_of(space, partial(check_candidate, sweep, BASE))
    with pytest.raises(SpaceExhaustedError) as caught:
        draws.next()
    assert "most by model.scales: " in str(caught.value)
    assert "; of the networks, all by window.mult_adds: window.mult_adds is" in str(caught.value)


def test_a_best_config_trains_as_it_is_and_is_evaluated_at_its_budget(tmp_path):
    candidate = check_candidate(sweep_of(), BASE, {"model.growth_rate": 4})
    file = tmp_path / "best.yaml"
    file.write_text(best_config(candidate, "best-20M", 0.7 * candidate.cost[-1]))
    run = parse_settings(Run, ["--config", str(file)])
    assert run.name == "best-20M"
    assert run.model.growth_rate == 4
    assert 0.7 in run.evaluation.budget_fractions
    assert min(run.evaluation.budget_fractions) >= candidate.cost[0] / candidate.cost[-1]


def test_parameters_and_memory_are_those_of_the_network():
    config = ModelConfig(
        scales=(1, 2), growth_factors=(2, 1), bottleneck_factors=(2, 1), image_size=16,
        growth_rate=4, layers_per_block=2, num_blocks=1, extra_blocks=1,
    )  # fmt: skip
    network = RANet(config)
    images = torch.rand(8, 3, 16, 16)
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    count = sum(each.numel() for each in network.parameters())
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}
    activations = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in own)
    size = footprint(config, 8)
    assert size.parameters == count
    # A CPU takes some layers another way, and keeps a little more for them.
    assert size.memory == pytest.approx(12 * count + activations, rel=0.05)


def test_refused_draws_are_counted_and_replaced_and_none_comes_twice():
    def check(draw):
        if draw["x"] == 0:
            raise RejectedError("x", "x must not be 0")
        return accept(draw)

    draws = draws_of({"x": Dimension(choice=(0, 1, 2))}, check)
    assert {draws.next()[0].draw["x"] for _ in range(2)} == {1, 2}
    with pytest.raises(
        SpaceExhaustedError, match=r"gave 2 different samples.*most by x: x must not"
    ):
        draws.next()
    assert draws.rejected["x"] > 50


def test_a_space_is_looked_at_ahead_without_giving_anything_out():
    draws = draws_of({"x": Dimension(choice=(1, 2))})
    with pytest.raises(SpaceExhaustedError, match="gave 2 different samples"):
        draws.check_ahead(3)
    draws.check_ahead(2)
    assert {draws.next()[0].draw["x"] for _ in range(2)} == {1, 2}
    assert not draws.rejected


def test_what_earlier_trials_tried_is_not_drawn_again():
    draws = draws_of({"x": Dimension(choice=(1, 2, 3))})
    assert draws.learn(result_of({"x": 2}, (1.0,)))
    assert not draws.learn(result_of({"x": 7}, (1.0,)))
    assert not draws.learn(result_of({"y": 1}, (1.0,)))
    assert {draws.next()[0].draw["x"] for _ in range(2)} == {1, 3}


def test_a_trial_that_goes_on_has_the_sample_that_it_had():
    draws = draws_of({"x": Dimension(uniform=(0.0, 1.0)), "y": Dimension(choice=([1], [2]))})
    candidate, number = draws.again({"x": 0.25, "y": [2]})
    assert candidate.draw == {"x": 0.25, "y": [2]}
    draws.tell(number, TrialState.PRUNED, (1.0,), 3)


def optimum(search: str, seed: int) -> float:
    """Distance from the best place after 40 draws from the unit square."""
    space = {name: Dimension(uniform=(0.0, 1.0)) for name in ("x", "y")}
    draws = draws_of(space, search=search, seed=seed)
    best = 9.0
    for _ in range(40):
        candidate, number = draws.next()
        loss = abs(candidate.draw["x"] - 0.3) + abs(candidate.draw["y"] - 0.7)
        draws.tell(number, TrialState.COMPLETE, (-loss,))
        best = min(best, loss)
    return best


def test_the_search_learns_from_what_it_is_told():
    tpe, chance = (np.median([optimum(s, k) for k in range(5)]) for s in ("tpe", "random"))
    assert tpe < 0.7 * chance


def test_several_objectives_lead_to_their_known_front():
    # Less of x costs less; y only harms. So the front is y = 0, accuracy = root of cost.
    space = {name: Dimension(uniform=(0.0, 1.0)) for name in ("x", "y")}
    objective = Objective(names=("accuracy", "mult_adds"))
    draws = draws_of(space, search="tpe", objective=objective, num_trials=80)
    points = []
    for _ in range(80):
        candidate, number = draws.next()
        x, y = candidate.draw["x"], candidate.draw["y"]
        points.append((x**0.5 - y, x))
        draws.tell(number, TrialState.COMPLETE, points[-1])
    front = [points[k] for k in pareto_front(points, objective.directions)]
    assert len(front) >= 8
    harm = [x**0.5 - accuracy for accuracy, x in front]
    assert np.median(harm) < 0.1  # of random draws it is a half
    assert min(x for _, x in front) < 0.1
    assert max(x for _, x in front) > 0.6


def test_accuracy_within_a_budget_is_measured_on_images_that_thresholds_never_saw():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((2, 400), generator=generator)
    # Confidence says nothing: a fit can only find luck, which the other half does not share.
    correct = torch.rand((2, 400), generator=generator) < 0.5
    scores = ExitOutputs(noise, correct, correct)
    [accuracy] = cross_fitted(scores, (10, 20), [15.0])
    assert 40 < accuracy < 60
    certain = torch.stack((torch.arange(400) % 2 == 0, torch.ones(400, dtype=torch.bool)))
    scores = ExitOutputs(torch.where(certain, 0.9, 0.1), certain, certain)
    full, half = cross_fitted(scores, (10, 20), [20.0, 15.0])
    assert full == 100
    assert half == pytest.approx(100, abs=4)  # half of the images leave at the first exit


def test_the_objective_gives_each_of_its_names_and_every_budget():
    correct = torch.stack((torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)))
    scores = ExitOutputs(torch.full((2, 20), 0.5), correct, correct)
    metrics = Objective(
        names=("area", "mult_adds", "latency"), budgets=(100, 200), area_range=(100, 200)
    ).measure(scores, (100, 200), 1.5)
    assert metrics["objective/budget1_top1"] == 0
    assert metrics["objective/budget2_top1"] == 100
    assert 0 < metrics["objective/area"] < 60
    assert metrics["objective/mult_adds"] == 200
    assert metrics["objective/latency"] == 1.5
    own = Objective().measure(scores, (100, 200), None)
    assert own["objective/accuracy"] == 100


NOBODY: Any = None


def trial_of_tune(trial_id: str) -> Any:
    return SimpleNamespace(trial_id=trial_id)


def test_early_stopping_goes_on_where_an_earlier_start_left_it():
    def decision(*, replayed: bool):
        scheduler = make_scheduler(
            EarlyStopping(method="asha", first_epoch=1, factor=2), "m", "max", 4
        )
        for k in range(4):
            trial = trial_of_tune(f"earlier{k}")
            if replayed:
                scheduler.on_trial_add(NOBODY, trial)
                replay(scheduler, trial, "m", {1: 0.5 + k, 2: 0.6 + k})
        last = trial_of_tune("late")
        scheduler.on_trial_add(NOBODY, last)
        return scheduler.on_trial_result(NOBODY, last, {"epoch": 1, "m": 0.1})

    assert decision(replayed=True) == "STOP"
    assert decision(replayed=False) == "CONTINUE"


@pytest.fixture
def database(empty_database, tmp_path) -> str:
    """Address of an empty MLflow of the test's own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def parent(database, tmp_path) -> TrackedRun:
    client = MlflowClient(database)
    sweep = client.create_run(client.create_experiment("ranet", str(tmp_path)))
    return TrackedRun(database, sweep.info.run_id, "sweep", attempt=1, resumed=False)


def described(candidate, name) -> TrialConfig:
    return TrialConfig(run=name, settings={"x": "1"}, config_text="", parameters=1, memory=1)


def test_the_time_of_a_sweep_is_that_of_all_its_starts(parent):
    for resumed in (False, True):
        with TrialStore(replace(parent, resumed=resumed), described):
            time.sleep(0.3)
    began = time.monotonic()
    book = TrialStore(replace(parent, resumed=True), described)
    assert book.seconds - (time.monotonic() - began) > 0.55  # written to a tenth of a second


def test_a_trial_that_was_opened_again_because_mlflow_went_away_goes_on_once(parent, monkeypatch):
    uri, candidate = parent.uri, accept({"x": 1})

    def away(*_: object, **__: object) -> None:
        raise OSError("MLflow is away")

    with TrialStore(parent, described) as book:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            with pytest.raises(OSError, match="away"):
                book.open(1, candidate)
        record, _ = book.open(1, candidate)
    assert len(children(uri, parent.run_id)) == 2
    again = TrialStore(replace(parent, resumed=True), described)
    assert [each.run.info.run_id for each in again.unfinished] == [record.run_id]
    with again:
        again.open(1, candidate, again.unfinished[0])
        again.close(result_of({}, (50.0,)))
    ended, left = read_trials(uri, parent.run_id)
    assert [each.run_id for each in ended] == [record.run_id]
    assert left == []


def test_a_trial_that_reached_the_last_epoch_is_never_stopped():
    scheduler = make_scheduler(EarlyStopping(method="asha", first_epoch=1, factor=3), "m", "max", 3)
    for k, name in enumerate("abcd"):
        trial = trial_of_tune(name)
        scheduler.on_trial_add(NOBODY, trial)
        for epoch in (1, 2, 3):
            decision = scheduler.on_trial_result(NOBODY, trial, {"epoch": epoch, "m": float(-k)})
        assert decision == "CONTINUE"


def test_with_several_brackets_bad_trials_are_stopped_some_of_them_later():
    np.random.seed(0)  # noqa: NPY002 - Tune deals trials to brackets by it
    stopping = EarlyStopping(method="asha", first_epoch=1, factor=2, brackets=2)
    scheduler = make_scheduler(stopping, "m", "max", 8)

    def last_epoch(name: str, value: float) -> int:
        trial = trial_of_tune(name)
        scheduler.on_trial_add(NOBODY, trial)
        for epoch in range(1, 8):
            if scheduler.on_trial_result(NOBODY, trial, {"epoch": epoch, "m": value}) == "STOP":
                return epoch
        return 8

    assert {last_epoch(f"good{k}", 1.0 + k) for k in range(8)} == {8}
    assert {last_epoch(f"bad{k}", -1.0 - k) for k in range(8)} == {1, 2}


def test_a_warm_start_knows_the_trials_of_an_earlier_sweep_about_the_same(
    database, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(tracking, "SETTLE_SECONDS", 0.0)

    def note(name: str, settings, *trials: tuple[dict, float]) -> None:
        start = tracking.start(name, settings=settings, parameters={}, tags={}, config_text="")
        with start as record, TrialStore(record, described) as book:
            for number, (draw, accuracy) in enumerate(trials, start=1):
                book.open(number, accept(draw))
                book.close(result_of(draw, (accuracy,), number=number))

    space = {"model.growth_rate": Dimension(choice=(4, 6, 8))}
    earlier = sweep_of(space, name="earlier")
    tried = ({"model.growth_rate": 4}, 50.0), ({"model.growth_rate": 8}, 60.0)
    note("earlier", tune.identity_of(earlier, BASE), *tried, ({"train.seed": 3}, 55.0))
    note("a-training", {"train.seed": "0"})

    sweep = sweep_of(space, name="later", warm_start=("earlier",))
    draws = tune.make_sampler(sweep, BASE)
    assert "2 of 3 trials of earlier are known" in capsys.readouterr().out
    assert draws.next()[0].draw == {"model.growth_rate": 6}
    with pytest.raises(SpaceExhaustedError):
        draws.next()

    for name in ("nobody", "a-training"):
        with pytest.raises(ValueError, match=f"warm_start has {name}: .* knows no sweep of that"):
            tune.make_sampler(replace(sweep, warm_start=(name,)), BASE)
    other = replace(BASE, train=replace(BASE.train, epochs=7))
    with pytest.raises(ValueError, match=r"differs in train.epochs: \d+ -> 7$"):
        tune.make_sampler(sweep, other)
    with pytest.raises(ValueError, match=r"differs in sweep.objective: "):
        tune.make_sampler(replace(sweep, objective=Objective(budgets=(1e9,))), BASE)


SMALL = ModelConfig(
    scales=(1, 2), growth_factors=(2, 1), bottleneck_factors=(2, 1), image_size=16, stem_channels=8,
    layers_per_block=2, num_blocks=1, extra_blocks=1,
)  # fmt: skip


@pytest.fixture
def small_ray(tmp_path, ray_folder, monkeypatch) -> Iterator[ClusterConfig]:
    """Ray in a folder of its own, with room for one trial: fewer processes have to start."""
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = ClusterConfig(
        num_workers=1, cpus_per_worker=os.cpu_count() or 1, device="cpu", storage_path=str(tmp_path)
    )
    with connected(cluster):
        yield cluster


def test_what_a_trial_worked_before_it_was_cut_short_is_counted(parent, small_ray):
    candidate = accept({"x": 1})
    with TrialStore(parent, described) as book:
        record, _ = book.open(1, candidate)
        writer = tracking.MetricWriter(record, keep_checkpoints=1)
        writer.put({"epoch": 1.0, "sweep/seconds": 7.0, "objective/accuracy": 50.0})
        assert writer.flush(30)
    with TrialStore(replace(parent, resumed=True), described) as book:
        trials = SweepSearcher(
            draws_of({"x": Dimension(integers=(1, 3))}), book,
            cluster=small_ray, objective=Objective(), num_trials=1, num_epochs=2,
        )  # fmt: skip
        assert trials.suggest("again") is not None
        trials.ended("again", UntrainableError("worker 0 failed: the loss is infinite"))
        [result] = book.results
    assert (result.state, result.epochs, result.seconds) == ("failed", 1, 7.0)


def test_as_many_trials_are_under_way_as_the_cluster_has_room_for_and_one_more(parent, monkeypatch):
    room = [2]
    monkeypatch.setattr("tuning.search.capacity_for", lambda cluster: room[0])
    with TrialStore(parent, described) as book:
        trials = SweepSearcher(
            draws_of({"x": Dimension(integers=(1, 100))}), book,
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


@pytest.mark.timeout(300)
def test_a_sweep_finds_the_front_and_outlives_a_trial_that_cannot_be_trained(
    database, small_ray, tmp_path, monkeypatch
):
    def train(objective, run, record, callbacks, watch) -> Snapshot:
        """Know how good a network is: more growth is dearer, and 6 is no better than 4."""
        growth, cost = run.model.growth_rate, mult_adds(run.model)
        if growth == 8:
            raise UntrainableError("worker 0 failed: the loss is infinite")
        accuracy = {4: 60.0, 6: 60.0, 7: 70.0}[growth]
        metrics = {
            "epoch": 1.0, "sweep/seconds": 2.0, "val/exit1/top1": accuracy,
            "objective/accuracy": accuracy, "objective/mult_adds": float(cost[-1]),
            "objective/budget1_top1": accuracy,
        }  # fmt: skip
        writer = tracking.MetricWriter(record, keep_checkpoints=1)
        writer.put(metrics)
        assert writer.flush(30)
        return {"history": [metrics], "best": {"epoch": 1}}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "train_trial", train)
    sweep = Sweep(
        name="known", num_trials=4, space={"model.growth_rate": Dimension(choice=(4, 6, 7, 8))},
        objective=Objective(names=("accuracy", "mult_adds")),
    )  # fmt: skip
    run = replace(BASE, model=SMALL, cluster=small_ray, train=replace(BASE.train, epochs=1))
    tune.run_trials(sweep, run, tune.make_sampler(sweep, run), "")

    parent = tracking.last_attempt("known")
    assert parent is not None
    assert parent.info.status == "FINISHED"
    results, left = read_trials(database, parent.info.run_id)
    by_growth = {each.settings["model.growth_rate"]: each for each in results}
    assert {growth: each.state for growth, each in by_growth.items()} == {
        4: "finished", 6: "finished", 7: "finished", 8: "failed",
    }  # fmt: skip
    assert "infinite" in by_growth[8].error
    assert left == []
    client = MlflowClient(database)
    kept = {Path(each.path).name for each in client.list_artifacts(parent.info.run_id, "sweep")}
    front = {f"best-trial{by_growth[growth].number}.yaml" for growth in (4, 7)}
    assert {name for name in kept if name.endswith(".yaml")} == front
    assert {"ranking.csv", "summary.txt", "pareto.png"} <= kept
    for growth in (4, 7):
        name = f"sweep/best-trial{by_growth[growth].number}.yaml"
        file = client.download_artifacts(parent.info.run_id, name, str(tmp_path))
        assert parse_settings(Run, ["--config", file]).model.growth_rate == growth
