"""Warm starts, and a whole sweep with known results."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient, artifacts

from cluster.cli import parse_settings
from cluster.errors import UntrainableError
from cluster.storage.checkpoints import RAY_LIST
from cluster.tracking import runs
from cluster.tracking.record import MetricWriter, TrackedRun
from pipelines import tune
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run
from ranet import ModelConfig, mult_adds
from ranet.protocols import Snapshot
from tests.support.sweeps import BASE, accept, end_of, make_config, sweep_of
from tuning.config import Dimension, Sweep
from tuning.objective import Objective
from tuning.sampler import SpaceExhaustedError
from tuning.trial_store import TrialStore, read_trials

SMALL = ModelConfig(
    scales=(1, 2), growth_factors=(2, 1), bottleneck_factors=(2, 1), image_size=16, stem_channels=8,
    layers_per_block=2, num_blocks=1, extra_blocks=1,
)  # fmt: skip


def test_warm_start_learns_the_trials_of_a_comparable_sweep(database, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.0)

    def note(name: str, settings, *trials: tuple[dict, float]) -> None:
        start = runs.open_run(name, settings=settings, parameters={}, tags={}, config_text="")
        with start as record, TrialStore(record, make_config) as store:
            for number, (params, accuracy) in enumerate(trials, start=1):
                store.open(number, accept(params))
                store.close(number, end_of((accuracy,), number))

    space = {"model.growth_rate": Dimension(choice=(4, 6, 8))}
    earlier = sweep_of(space, name="earlier")
    tried = ({"model.growth_rate": 4}, 50.0), ({"model.growth_rate": 8}, 60.0)
    note("earlier", tune.identity_of(earlier, BASE), *tried, ({"train.seed": 3}, 55.0))
    note("a-training", {"train.seed": "0"})

    sweep = sweep_of(space, name="later", warm_start=("earlier",))
    sampler = tune.make_sampler(sweep, BASE)
    assert "warm start with 2 of 3 trials of earlier" in capsys.readouterr().out
    assert sampler.next()[0].params == {"model.growth_rate": 6}
    with pytest.raises(SpaceExhaustedError):
        sampler.next()

    for name in ("nobody", "a-training"):
        with pytest.raises(ValueError, match=f"warm_start has {name}: .* has no sweep of that"):
            tune.make_sampler(replace(sweep, warm_start=(name,)), BASE)
    other = replace(BASE, train=replace(BASE.train, epochs=7))
    with pytest.raises(ValueError, match=r"differs in train.epochs: \d+ -> 7$"):
        tune.make_sampler(sweep, other)
    with pytest.raises(ValueError, match=r"differs in sweep.objective: "):
        tune.make_sampler(replace(sweep, objective=Objective(budgets_mult_adds=(1e9,))), BASE)


def test_unfinished_trial_without_checkpoints_is_reported(database, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.0)

    def open_sweep() -> AbstractContextManager[TrackedRun]:
        return runs.open_run("sweep", settings={}, parameters={}, tags={}, config_text="")

    names = []

    def interrupted_sweep() -> None:
        with open_sweep() as record, TrialStore(record, make_config) as store:
            for number in (1, 2, 3):
                trial, _ = store.open(number, accept({"model.growth_rate": number}))
                names.append(trial.storage_name)
                if number > 1:
                    trial.client.log_metric(trial.run_id, "epoch", 1.0, step=1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_sweep()
    (tmp_path / names[1] / "checkpoint_1").mkdir(parents=True)
    (tmp_path / names[1] / RAY_LIST).touch()

    with open_sweep() as record, TrialStore(record, make_config) as store:
        assert [each.number for each in store.unfinished] == [1, 2, 3]
        tune.warn_of_lost_checkpoints(store, str(tmp_path))
    assert [each.message for each in caplog.records if "are gone" in each.message] == [
        f"trial 3 is unfinished, but its checkpoints {tmp_path}/{names[2]} are gone: it starts "
        "from scratch"
    ]


@pytest.mark.timeout(300)
def test_sweep_with_an_untrainable_trial_finds_the_front(
    database, small_ray, tmp_path, monkeypatch
):
    def train(objective, run, record, callbacks, heartbeats) -> Snapshot:
        """Return a made-up accuracy that grows with growth rate up to 4."""
        growth, cost = run.model.growth_rate, mult_adds(run.model)
        if growth == 8:
            raise UntrainableError("worker 0 failed: the loss is infinite")
        accuracy = {4: 60.0, 6: 60.0, 7: 70.0}[growth]
        metrics = {
            "epoch": 1.0, "sweep/seconds": 2.0, "val/exit1/top1": accuracy,
            "objective/accuracy": accuracy, "objective/mult_adds": float(cost[-1]),
            "objective/budget1_top1": accuracy,
        }  # fmt: skip
        writer = MetricWriter(record, keep_checkpoints=1)
        writer.put(metrics)
        assert writer.flush(30)
        return {"history": [metrics], "best": {"epoch": 1}}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "train_trial", train)
    sweep = Sweep(
        name="known", num_trials=4, space={"model.growth_rate": Dimension(choice=(4, 6, 7, 8))},
        objective=Objective(metrics=("accuracy", "mult_adds")),
    )  # fmt: skip
    run = replace(BASE, model=SMALL, cluster=small_ray, train=replace(BASE.train, epochs=1))
    data = replace(run.data, source="digits", prepared_dir=str(tmp_path / "digits"))
    info = prepare(data, run.model.image_size)
    tune.run_trials(sweep, run, tune.make_sampler(sweep, run), info)

    parent = runs.last_attempt("known")
    assert parent is not None
    assert parent.info.status == "FINISHED"
    folder = artifacts.download_artifacts(
        run_id=parent.info.run_id, artifact_path="images", tracking_uri=database
    )
    assert "digits" in Path(folder, "summary.txt").read_text()
    results, left = read_trials(database, parent.info.run_id)
    by_growth = {each.params["model.growth_rate"]: each for each in results}
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
