"""Search the settings of a run for the best networks.

    python pipelines/tune.py --config configs/sweeps/digits.yaml [--num_trials=8 ...]
    ray job submit --working-dir . -- python pipelines/tune.py --config configs/sweeps/digits.yaml

Each trial is a training, compared on the validation split only; the test split is never read. The
results are configs for pipelines/train.py.
"""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cluster.cli import (
    CommandLine,
    configure_logging,
    main_guard,
    parse_settings,
    script_command,
)
from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.connection import connected
from cluster.execution.resources import check_capacity, wants_gpu
from cluster.paths import with_portable_paths
from cluster.storage.checkpoints import has_checkpoints
from cluster.tracking import client, failures, runs
from cluster.tracking.provenance import provenance_tags
from cluster.tracking.record import TrackedRun
from pipelines.data.format.metadata import DatasetInfo
from pipelines.run import EvaluationConfig, Run, identity
from pipelines.start import check_machine, log_images, resolve
from pipelines.sweep_candidates import best_config, check_candidate, check_space, trial_config
from pipelines.train import prepare_images, train_trial
from tuning.config import Sweep
from tuning.reference_curves import reference_curve_for
from tuning.report import write_report
from tuning.results import SweepResults, TrialResult
from tuning.sampler import Sampler
from tuning.search import SearchConfig, search
from tuning.space import as_arguments, flatten_choices
from tuning.trial_store import TrialStore, read_trials

logger = logging.getLogger(__name__)

_OBJECTIVE = "sweep.objective"


def main() -> None:
    """Read the sweep, run its trials, and report the results."""
    options = command_line().read()
    sweep, new_attempt = options.settings, options.new_attempt
    configure_logging()
    with main_guard():
        client.check_reachable()
        run = common_run(sweep)
        runs.check_can_start(sweep.name, settings=identity_of(sweep, run), new_attempt=new_attempt)
        sampler = make_sampler(sweep, run)
        sampler.check_ahead(sweep.num_trials)
        with connected(run.cluster, oversubscribe=False):
            check_capacity(run.cluster)
            # The base network need not meet its own budgets: only the best configs are evaluated.
            info = prepare_images(
                replace(run, evaluation=EvaluationConfig(budget_fractions=(1.0,)))
            )
            run_trials(sweep, run, sampler, info, new_attempt)


def command_line() -> CommandLine:
    """Declare the option of an invocation beside the settings of a sweep."""
    parser = CommandLine(__doc__, Sweep)
    parser.add_argument(
        "--new-attempt",
        action="store_true",
        help="abandon an unfinished sweep of this name and start from scratch as a new attempt",
    )
    return parser


def common_run(sweep: Sweep) -> Run:
    """Read the run that all trials start from, and resolve it."""
    run = parse_settings(Run, ["--config", sweep.base_config, *as_arguments(sweep.overrides)])
    check_space(sweep, run)
    check_machine(run)  # trials keep their workers; `check_capacity` rejects too many
    return resolve(run)


def make_sampler(sweep: Sweep, run: Run) -> Sampler[Run]:
    """Create the sampler of a sweep, with warm start.

    Raises:
        ValueError: a sweep of `warm_start` does not exist, or is not comparable.
    """
    earlier = [result for name in sweep.warm_start for result in earlier_results(name, sweep, run)]
    sampler = Sampler(
        sweep.space,
        method=sweep.sampler,
        objective=sweep.objective,
        num_trials=sweep.num_trials,
        seed=sweep.seed,
        check=partial(check_candidate, sweep, run),
    )
    if earlier:
        known = sum(sampler.learn(result) for result in earlier)
        print(f"warm start with {known} of {len(earlier)} trials of {', '.join(sweep.warm_start)}")
    return sampler


def earlier_results(name: str, sweep: Sweep, run: Run) -> list[TrialResult]:
    """Read the trials of another sweep, if its accuracies are comparable.

    Raises:
        ValueError: there is no such sweep, or its accuracies are not comparable.
    """
    found = runs.last_attempt(name)
    if found is None or _OBJECTIVE not in found.data.params:
        raise ValueError(
            f"warm_start has {name}: MLflow at {failures.masked(client.tracking_uri())} has no "
            "sweep of that name"
        )
    mine = _comparable_settings(sweep, run)
    differing = [key for key, value in mine.items() if found.data.params.get(key) != value]
    if differing:
        raise ValueError(
            f"warm_start has {name}, whose accuracies are not comparable: it differs in "
            + "; ".join(f"{key}: {found.data.params.get(key)} -> {mine[key]}" for key in differing)
        )
    return read_trials(client.tracking_uri(), found.info.run_id)[0]


def identity_of(sweep: Sweep, run: Run) -> dict[str, str]:
    """Return the settings that must be unchanged to resume a sweep."""
    settings = _settings_of(sweep)
    return _comparable_settings(sweep, run) | {
        f"sweep.{k}": json.dumps(value) for k, value in settings.items()
    }


def _settings_of(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep's configuration as lists and mappings."""
    return json.loads(json.dumps(asdict(with_portable_paths(sweep))))


def classes_in(info: DatasetInfo) -> tuple[str, ...]:
    """Return the names of the classes that have training images."""
    counts = info.samples_per_class["train"]
    return tuple(name for name, count in zip(info.class_names, counts, strict=True) if count)


def run_trials(
    sweep: Sweep, run: Run, sampler: Sampler[Run], info: DatasetInfo, new_attempt: bool = False
) -> None:
    """Run the trials of a sweep, then write its report.

    Args:
        sweep: the sweep.
        run: the run that all trials start from; its images are prepared.
        sampler: sampler of the candidates.
        info: summary of the prepared images, whose published RANet curve is plotted as well.
        new_attempt: abandon an unfinished attempt and start from scratch.

    Raises:
        RunError: trials were lost, which the next invocation resumes, or all have failed.
    """
    cluster = replace(run.cluster, device="gpu" if wants_gpu(run.cluster) else "cpu")
    run = replace(run, cluster=cluster)
    with runs.open_run(
        sweep.name,
        settings=identity_of(sweep, run),
        parameters={},
        tags=provenance_tags(),
        config_text=yaml.safe_dump(_settings_of(sweep), sort_keys=False),
        new_attempt=new_attempt,
    ) as record:
        log_images(record, info)
        with TrialStore(record, trial_config) as store:
            warn_of_lost_checkpoints(store, cluster.storage_path)
            summary = search(
                sampler,
                store,
                partial(train_trial, sweep.objective),
                SearchConfig(
                    cluster=cluster,
                    objective=sweep.objective,
                    early_stopping=sweep.early_stopping,
                    num_trials=sweep.num_trials,
                    num_epochs=run.train.epochs,
                ),
            )
        published = reference_curve_for(classes_in(info))
        results = results_of(sweep, cluster, store, summary.rejected, published)
        report(results, sweep, run, record)
        if summary.lost:
            raise RunError(
                f"{len(summary.lost)} trials were lost, the last one: {summary.lost[-1]}; "
                f"run the sweep {sweep.name} again to resume them"
            )
        if not results.ranking:
            raise RunError(
                f"all {len(store.results)} trials failed, the last one: {store.results[-1].error}"
            )


def warn_of_lost_checkpoints(store: TrialStore[Run], storage_path: str) -> None:
    """Log a warning for each unfinished trial that cannot resume where it ended."""
    for trial in store.unfinished:
        folder = trial.run.data.tags.get(runs.STORAGE_TAG, "")
        if "epoch" in trial.run.data.metrics and not has_checkpoints(storage_path, folder):
            logger.warning(
                "trial %d is unfinished, but its checkpoints %s/%s are gone: it starts from "
                "scratch",
                trial.number,
                storage_path,
                folder,
            )


def results_of(
    sweep: Sweep,
    cluster: ClusterConfig,
    store: TrialStore[Run],
    rejected: Mapping[str, int],
    published: str,
) -> SweepResults:
    """Collect the results of a sweep for its report."""
    return SweepResults(
        name=sweep.name,
        objectives=sweep.objective.metrics,
        directions=sweep.objective.directions,
        budgets=sweep.objective.budgets_mult_adds,
        trials=tuple(
            replace(result, params=flatten_choices(result.params)) for result in store.results
        ),
        rejected=rejected,
        seconds=store.seconds,
        devices=cluster.max_workers
        * (cluster.gpus_per_worker if cluster.device == "gpu" else cluster.cpus_per_worker),
        device=cluster.device.upper(),
        published=published,
    )


def report(results: SweepResults, sweep: Sweep, run: Run, record: TrackedRun) -> None:
    """Write tables, plots and configs, and print the summary."""
    params_of = {each.number: each.params for each in read_trials(record.uri, record.run_id)[0]}

    def config_of(result: TrialResult, name: str, budget: float | None) -> str:
        return best_config(check_candidate(sweep, run, params_of[result.number]), name, budget)

    folder = Path("outputs") / "sweeps" / record.storage_name
    summary = write_report(folder, results, config_of)
    record.log_folder(folder, "sweep")
    print(f"\n{summary}\n\nfiles       {folder}")
    print(f"MLflow run  {record.run_id} ({sweep.name}, attempt {record.attempt})")
    for file in sorted(folder.glob("best*.yaml")):
        print(f"train it:   {script_command('train.py')} --config {shlex.quote(str(file))}")


def _comparable_settings(sweep: Sweep, run: Run) -> dict[str, str]:
    """Return the settings that make two sweeps' accuracies comparable."""
    names = {"name", "cluster.storage_path"}
    shared = {key: value for key, value in identity(run).items() if key not in names}
    return shared | {_OBJECTIVE: json.dumps(asdict(sweep.objective))}


if __name__ == "__main__":
    main()
