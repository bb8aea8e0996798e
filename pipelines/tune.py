"""Search over settings of a run: each trial is a whole training, ranked by validation accuracy.

python pipelines/tune.py --config configs/sweeps/digits.yaml [--num_trials=8 ...]
ray job submit --working-dir . -- python pipelines/tune.py --config configs/sweeps/digits.yaml
"""

import json
from dataclasses import asdict, replace
from functools import partial

import yaml
from ray.tune import ResultGrid

from cluster import tracking
from cluster.launch import RunError, connected, resolve_storage
from pipelines.data.config import prepared_folder, prepared_settings
from pipelines.run import (
    Run,
    configure_logging,
    flatten,
    identity,
    one_sentence,
    parse_settings,
    read_settings,
)
from pipelines.train import make_ready, track, train
from ranet import mult_adds
from tuning.search import RandomSearch, cause_of, search
from tuning.space import Sweep, as_arguments
from tuning.trial import make_trial


def main() -> None:
    """Read the sweep, run its trials, and print them, best first."""
    sweep = read_settings(Sweep)
    configure_logging()
    with one_sentence():
        run = common_run(sweep)
        make_ready(run)
        run_trials(sweep, run)


def common_run(sweep: Sweep) -> Run:
    """Read the run that all trials start from, with paths that hold on every node."""
    run = parse_settings(Run, ["--config", sweep.run, *as_arguments(sweep.settings)])
    for name in prepared_settings(run.data, run.model.image_size):
        if name in sweep.space:
            raise ValueError(f"space has {name}: all trials of a sweep read the same images")
    return replace(
        run,
        data=replace(run.data, folder=prepared_folder(run.data, run.model.image_size)),
        cluster=replace(run.cluster, storage=resolve_storage(run.cluster.storage)),
    )


def run_trials(sweep: Sweep, run: Run) -> None:
    """Search, and print the ranking.

    Raises:
        RunError: trials failed; another start repeats those alone.
    """
    arguments = as_arguments(flatten(run))
    parse = partial(parse_settings, Run)
    searcher = RandomSearch(
        sweep.space,
        num_trials=sweep.num_trials,
        seed=sweep.seed,
        check=lambda sample: parse([*arguments, *sample]),
    )
    properties = json.loads(json.dumps(asdict(replace(sweep, fresh=False))))
    with (
        tracking.start(
            sweep.name,
            settings=identity(run) | {f"sweep.{k}": json.dumps(v) for k, v in properties.items()},
            parameters={},
            tags=tracking.provenance(),
            config_text=yaml.safe_dump(properties, sort_keys=False),
            fresh=sweep.fresh,
        ) as record,
        connected(run.cluster),
    ):
        trial = make_trial(
            parse=parse,
            track=partial(track, parent=record.run_id),
            train=train,
            arguments=arguments,
            name=sweep.name,
            tracking_uri=record.uri,
        )
        results = search(
            trial,
            searcher,
            num_trials=sweep.num_trials,
            cluster=run.cluster,
            name=record.storage_name,
            storage=run.cluster.storage,
            resume=record.resumed,
        )
        table = ranking(results, arguments)
        record.client.log_text(record.run_id, table, "ranking.txt")
        print(f"{table}\n\nMLflow run  {record.run_id} ({sweep.name}, attempt {record.attempt})")
        if results.num_errors:
            raise RunError(
                f"{results.num_errors} of {len(results)} trials failed: "
                f"{cause_of(results.errors[0])}; start {sweep.name} again to repeat them"
            )


def ranking(results: ResultGrid, arguments: list[str]) -> str:
    """Table of the trials that ended, best first.

    Args:
        results: what Tune kept.
        arguments: those that all trials share.
    """
    rows = []
    for result in results:
        if result.error is None:
            assert result.metrics is not None
            assert result.config is not None
            sample = as_arguments(result.config)
            cost = mult_adds(parse_settings(Run, [*arguments, *sample]).model)[-1]
            rows.append(
                (result.metrics["val_top1"], cost, result.metrics["run_id"], " ".join(sample))
            )
    rows.sort(reverse=True)
    lines = ["rank   val top-1 %   mult-adds   MLflow run                         settings"]
    lines += [
        f"{rank:4d}  {top1:12.2f}  {cost / 1e6:8.2f} M   {run_id}   {settings}"
        for rank, (top1, cost, run_id, settings) in enumerate(rows, start=1)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
