"""Measure the overhead of a trial: processes, MLflow, start and end.

    python -m benchmarks.trials --out FILE [--trials 8] [--epochs 2]     # a line of JSON a trial
    python -m benchmarks.trials --out FILE --cpus 2                      # all cores to one trial
    python -m benchmarks.trials --out FILE --table

Runs trials of configs/sweeps/digits.yaml like pipelines/tune.py, on a local Ray, as many in
parallel as there is capacity for, without early stopping, with its own MLflow file.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from benchmarks.network import describe_machine
from cluster.cli import parse_settings
from cluster.execution.connection import connected
from cluster.execution.heartbeat import Heartbeats
from cluster.tracking import runs
from cluster.tracking.record import TrackedRun
from pipelines.run import EvaluationConfig, Run
from pipelines.sweep_candidates import trial_config
from pipelines.train import prepare_images, train_trial
from pipelines.tune import common_run, make_sampler
from ranet.protocols import Snapshot
from tuning.config import EarlyStopping, Sweep
from tuning.objective import SECONDS, Objective
from tuning.results import TrialEnd
from tuning.sampler import Candidate
from tuning.search import SearchConfig, search
from tuning.trial_store import TrialStore, Unfinished

STAGES = {
    "MLflow run opened": ("asked", "opened"),
    "trial's process started, with its imports, or taken over": ("opened", "called"),
    "controller and worker started, with their imports": ("called", "working"),
    "training": ("working", "reported"),
    "workers and controller ended": ("reported", "returned"),
    "last metrics delivered, Tune told, run closed": ("returned", "closed"),
}
"""Stage: the moments between which it lies."""


def main() -> None:
    """Run the trials, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of a trial (default: 1)")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        lines = arguments.out.read_text().splitlines()
        print_table([json.loads(line) for line in lines])
        return
    with tempfile.TemporaryDirectory() as name:
        moments = measure(Path(name), arguments.trials, arguments.epochs, arguments.cpus)
    with arguments.out.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in moments)


def measure(folder: Path, num_trials: int, epochs: int, cpus: int) -> list[dict[str, float]]:
    """Run a sweep and return the times of every trial."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    sweep = parse_settings(Sweep, ["--config", "configs/sweeps/digits.yaml"])
    places = {"data.prepared_dir": f"{folder}/images", "cluster.storage_path": f"{folder}/runs"}
    sweep = replace(
        sweep,
        overrides=sweep.overrides
        | {"train.epochs": epochs, "cluster.cpus_per_worker": cpus}
        | places,
        early_stopping=EarlyStopping(),
        num_trials=num_trials,
    )
    run = common_run(sweep)
    sampler = make_sampler(sweep, run)
    prepare_images(replace(run, evaluation=EvaluationConfig(budget_fractions=(1.0,))))
    notes = folder / "notes"
    notes.mkdir()
    with (
        connected(run.cluster),
        runs.open_run(
            sweep.name, settings={}, parameters={}, tags={}, config_text="{}\n"
        ) as record,
        TimedStore(record, notes) as store,
    ):
        search(
            sampler, store, partial(timed_train, notes, sweep.objective),
            SearchConfig(
                cluster=run.cluster, objective=sweep.objective,
                early_stopping=sweep.early_stopping, num_trials=num_trials, num_epochs=epochs,
            ),
        )  # fmt: skip
    noted = [json.loads(file.read_text()) for file in sorted(notes.glob("*-*.json"))]
    found: dict[str, dict[str, float]] = {}
    for trial, moments in noted:
        found.setdefault(trial, {}).update(moments)
    return sorted(found.values(), key=lambda each: each["asked"])


def note(notes: Path, trial: str, **moments: float) -> None:
    """Keep moments of a trial."""
    name = f"{trial}-{'-'.join(moments)}.json"
    (notes / name).write_text(json.dumps((trial, moments)))


class TimedStore(TrialStore[Run]):
    """Notes when trials are opened and closed."""

    def __init__(self, parent: TrackedRun, notes: Path) -> None:
        """Take what `measure` has."""
        super().__init__(parent, trial_config)
        self._notes = notes

    def open(
        self, number: int, candidate: Candidate[Run], before: Unfinished | None = None
    ) -> tuple[TrackedRun, Run]:
        """Open the run of a trial."""
        asked = time.time()
        record, run = super().open(number, candidate, before)
        note(self._notes, record.name, asked=asked, opened=time.time())
        return record, run

    def close(
        self, number: int, end: TrialEnd, history: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Close it."""
        name = self._open[number][0].name
        super().close(number, end, [dict(metrics) for metrics in history])
        note(self._notes, name, closed=time.time())


class Reports(UserCallback):
    """Notes, in Ray's controller, when the worker began and when it reported."""

    def __init__(self, notes: Path, trial: str) -> None:
        """Take where to note, and the name of the trial."""
        self._notes, self._trial = notes, trial

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Note the last epoch, over what the epochs before it left."""
        now = time.time()
        note(self._notes, self._trial, working=now - metrics[0][SECONDS], reported=now)


def timed_train(
    notes: Path,
    objective: Objective,
    run: Run,
    record: TrackedRun,
    callbacks: Sequence[UserCallback],
    heartbeats: Heartbeats,
) -> Snapshot:
    """Train as a sweep does."""
    called = time.time()
    timed = [*callbacks, Reports(notes, record.name)]
    snapshot = train_trial(objective, run, record, timed, heartbeats)
    note(notes, record.name, called=called, returned=time.time())
    return snapshot


def print_table(trials: Sequence[Mapping[str, float]]) -> None:
    """Print the stages, and the idle time of a worker's resources."""
    print(describe_machine())
    print(
        f"\n| stage, seconds | median of {len(trials)} trials | least | most |\n|---|---|---|---|"
    )
    for stage, (start, end) in STAGES.items():
        seconds = sorted(trial[end] - trial[start] for trial in trials)
        print(f"| {stage} | {statistics.median(seconds):.1f} | {seconds[0]:.1f} | "
              f"{seconds[-1]:.1f} |")  # fmt: skip
    gaps = idle(trials)
    print(f"| a place without a worker, between two trials | {statistics.median(gaps):.1f} | "
          f"{min(gaps):.1f} | {max(gaps):.1f} |")  # fmt: skip


def idle(trials: Sequence[Mapping[str, float]]) -> list[float]:
    """Seconds between two trials on the same resources."""
    gaps = []
    ends: list[float] = []
    for trial in sorted(trials, key=lambda each: each["working"]):
        past = [end for end in ends if end <= trial["working"]]
        if past:  # the place that stood free the longest
            ends.remove(min(past))
            gaps.append(trial["working"] - min(past))
        ends.append(trial["reported"])
    return gaps


if __name__ == "__main__":
    main()
