"""Search over settings of a run for the best network within a budget.

    python pipelines/tune.py --config configs/sweeps/digits.yaml [--num_trials=8 ...]
    ray job submit --working-dir . -- python pipelines/tune.py --config configs/sweeps/digits.yaml

Each trial is a training of its own, compared by answers to validation images alone; test is never
read. What comes out are configs for pipelines/train.py.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import RunError
from cluster.execution.connection import connected
from cluster.execution.resources import check_capacity, wants_gpu
from cluster.execution.trainer import resolve_storage
from cluster.tracking import runs as tracking
from cluster.tracking.runs import TrackedRun
from pipelines.data import DatasetInfo
from pipelines.data.config import prepared_path
from pipelines.run import (
    Run,
    configure_logging,
    identity,
    main_guard,
    parse_settings,
    read_settings,
)
from pipelines.sweep_candidates import best_config, check_candidate, check_space, describe
from pipelines.train import prepare_images, train_trial
from tuning.reference_curves import reference_curve_for
from tuning.report import write_report
from tuning.results import SweepResults
from tuning.sampler import Sampler
from tuning.search import search
from tuning.space import Sweep, as_arguments
from tuning.trial_result import TrialResult
from tuning.trial_store import TrialStore, read_trials

_OBJECTIVE = "sweep.objective"


def main() -> None:
    """Read the sweep, run its trials, and tell what came of them."""
    sweep = read_settings(Sweep)
    configure_logging()
    with main_guard():
        tracking.check_reachable()
        run = common_run(sweep)
        tracking.check_startable(sweep.name, settings=identity_of(sweep, run), fresh=sweep.fresh)
        draws = make_sampler(sweep, run)
        draws.check_ahead(sweep.num_trials)
        with connected(run.cluster, crowded=False):
            check_capacity(run.cluster)
            # Budgets are those of the best configs, not of the network that trials start from.
            info = prepare_images(replace(run, registry=replace(run.registry, budgets=(1.0,))))
            run_trials(sweep, run, draws, reference_curve_for(classes_in(info)))


def common_run(sweep: Sweep) -> Run:
    """Read the run that all trials start from, with paths that hold on every node."""
    run = parse_settings(Run, ["--config", sweep.run, *as_arguments(sweep.settings)])
    check_space(sweep, run)
    return replace(
        run,
        data=replace(run.data, folder=prepared_path(run.data, run.model.image_size)),
        cluster=replace(run.cluster, storage=resolve_storage(run.cluster.storage_path)),
    )


def make_sampler(sweep: Sweep, run: Run) -> Sampler:
    """Open the space of a sweep, and tell it what the trials of earlier sweeps showed.

    Raises:
        ValueError: a sweep of `warm_start` is not there, or is none to learn from.
    """
    earlier = [result for name in sweep.warm_start for result in earlier_results(name, sweep, run)]
    draws = Sampler(
        sweep.space,
        search=sweep.search,
        objective=sweep.objective,
        num_trials=sweep.num_trials,
        seed=sweep.seed,
        check=partial(check_candidate, sweep, run),
    )
    if earlier:
        known = sum(draws.learn(result) for result in earlier)
        print(f"{known} of {len(earlier)} trials of {', '.join(sweep.warm_start)} are known")
    return draws


def earlier_results(name: str, sweep: Sweep, run: Run) -> list[TrialResult]:
    """Read the trials of an earlier sweep that was about the same.

    Raises:
        ValueError: there is no such sweep, or it was about something else.
    """
    found = tracking.last_attempt(name)
    if found is None or _OBJECTIVE not in found.data.params:
        raise ValueError(
            f"warm_start has {name}: MLflow at {tracking.masked(tracking.tracking_uri())} knows no "
            "sweep of that name"
        )
    mine = _about(sweep, run)
    others = [key for key, value in mine.items() if found.data.params.get(key) != value]
    if others:
        raise ValueError(
            f"warm_start has {name}, whose accuracies mean something else: it differs in "
            + "; ".join(f"{key}: {found.data.params.get(key)} -> {mine[key]}" for key in others)
        )
    return read_trials(tracking.tracking_uri(), found.info.run_id)[0]


def identity_of(sweep: Sweep, run: Run) -> dict[str, str]:
    """Return the settings of a sweep that a start must share to go on with it."""
    settings = _settings_of(sweep)
    return _about(sweep, run) | {f"sweep.{k}": json.dumps(value) for k, value in settings.items()}


def _settings_of(sweep: Sweep) -> dict[str, Any]:
    """Return all that a sweep is, as lists and mappings, but whether it starts afresh."""
    return json.loads(json.dumps(asdict(replace(sweep, fresh=False))))


def classes_in(info: DatasetInfo) -> tuple[str, ...]:
    """Return the names of those classes that have images to train on."""
    counts = info.samples_per_class["train"]
    return tuple(name for name, count in zip(info.class_names, counts, strict=True) if count)


def run_trials(sweep: Sweep, run: Run, draws: Sampler, published: str) -> None:
    """Search, and leave the report and the winning configs.

    Args:
        sweep: what is searched.
        run: what all trials start from; its images are prepared.
        draws: where samples come from.
        published: data set whose published RANet is drawn as well, if there is one.

    Raises:
        RunError: trials were lost, which another start goes on with, or all have failed.
    """
    cluster = replace(run.cluster, device="gpu" if wants_gpu(run.cluster) else "cpu")
    run = replace(run, cluster=cluster)
    with tracking.start(
        sweep.name,
        settings=identity_of(sweep, run),
        parameters={},
        tags=tracking.provenance(),
        config_text=yaml.safe_dump(_settings_of(sweep), sort_keys=False),
        fresh=sweep.fresh,
    ) as record:
        with TrialStore(record, describe) as book:
            trials = search(
                draws,
                book,
                partial(train_trial, sweep.objective),
                cluster=cluster,
                objective=sweep.objective,
                stopping=sweep.stopping,
                num_trials=sweep.num_trials,
                num_epochs=run.train.epochs,
            )
        outcome = SweepResults(
            name=sweep.name,
            objectives=sweep.objective.names,
            directions=sweep.objective.directions,
            budgets=sweep.objective.budgets,
            results=tuple(flat(result) for result in book.results),
            rejected=trials.rejected,
            seconds=book.seconds,
            devices=cluster.max_workers
            * (cluster.gpus_per_worker if cluster.device == "gpu" else cluster.cpus_per_worker),
            device=cluster.device.upper(),
            published=published,
        )
        report(outcome, sweep, run, record)
        if trials.lost:
            raise RunError(
                f"{len(trials.lost)} trials were lost, the last one: {trials.lost[-1]}; "
                f"start {sweep.name} again to go on with them"
            )
        if not outcome.ranking:
            raise RunError(
                f"all {len(book.results)} trials failed, the last one: {book.results[-1].error}"
            )


def report(outcome: SweepResults, sweep: Sweep, run: Run, record: TrackedRun) -> None:
    """Write table, pictures and configs to a folder and to MLflow, and print the summary."""
    draws = {each.number: each.settings for each in read_trials(record.uri, record.run_id)[0]}

    def config_of(result: TrialResult, name: str, budget: float | None) -> str:
        return best_config(check_candidate(sweep, run, draws[result.number]), name, budget)

    folder = Path("outputs") / "sweeps" / record.storage_name
    summary = write_report(folder, outcome, config_of)
    record.log_folder(folder, "sweep")
    print(f"\n{summary}\n\nfiles       {folder}")
    print(f"MLflow run  {record.run_id} ({sweep.name}, attempt {record.attempt})")
    for file in sorted(folder.glob("best*.yaml")):
        print(f"train it:   python pipelines/train.py --config {file}")


def flat(result: TrialResult) -> TrialResult:
    """Return a trial whose choices of several settings are shown one by one."""
    settings: dict[str, Any] = {}
    for name, value in result.settings.items():
        settings |= value if isinstance(value, Mapping) else {name: value}
    return replace(result, settings=settings)


def _about(sweep: Sweep, run: Run) -> dict[str, str]:
    """Return what must be the same for the accuracies of two sweeps to be compared."""
    names = {"name", "cluster.storage_path"}
    shared = {key: value for key, value in identity(run).items() if key not in names}
    return shared | {_OBJECTIVE: json.dumps(asdict(sweep.objective))}


if __name__ == "__main__":
    main()
