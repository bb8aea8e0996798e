"""Compare samplers at equal trial-epochs, and searched exit loss weights.

    python -m benchmarks.sweeps FOLDER [--seeds 0 1 2]       # again: resume

The sweep of configs/sweeps/digits.yaml, with the code of pipelines/tune.py for sampling, rejecting,
measuring and stopping candidates. Only Ray's processes are missing: trials are trained here, one
after the other. Each complete sweep, and each complete training of the comparison of weights, is
saved in FOLDER.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from torch import nn

from benchmarks.hypervolume import hypervolume
from cluster.cli import parse_settings
from pipelines.data.config import Split, normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run
from pipelines.tune import make_sampler
from ranet import RANet, mult_adds
from ranet.evaluation.exit_outputs import ExitOutputs, collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.inference.threshold_search import fit_budgets
from ranet.inference.thresholds import score_budget
from ranet.model.preprocessing import Normalize
from ranet.protocols import Metrics, Reporter, Snapshot
from ranet.training.log_reporter import LogReporter
from ranet.training.loop import fit
from ranet.training.state import TrainState
from tuning.config import CostLimits, Dimension, EarlyStopping, Sweep
from tuning.objective import EPOCH, Objective, budget_metric, objective_metric
from tuning.sampler import Candidate
from tuning.search import make_scheduler
from tuning.space import as_arguments

Method = Literal["random", "TPE", "TPE + ASHA"]
METHODS: tuple[Method, ...] = ("random", "TPE", "TPE + ASHA")
SWEEP = "configs/sweeps/digits.yaml"
TRIALS = 16
"""Of a sweep that stops none; the others have as many epochs."""
BUDGETS = (0.45e6, 0.6e6, 1.2e6)
"""In mult-adds, at whose accuracies networks are compared."""
WORST = (2.4e6, 50.0)
"""Mult-adds and accuracy that the hypervolume is counted from."""
ACCURACY = objective_metric("accuracy")
SHARES = (0.25, 0.5, 1.0)
"""Of the last exit's mult-adds, at which exit loss weights are compared."""
WEIGHT_TRIALS = 20
WEIGHT_SEEDS = (1, 2, 3, 4, 5)
WEIGHTED = {
    "model.scales": [1, 2],
    "model.num_blocks": 2,
    "model.extra_blocks": 2,
    "model.growth_rate": 5,
    "model.stem_channels": 8,
    "train.optim.lr": 0.1,
    "train.batch_size": 16,  # with 64, six epochs are too few for the late exits to learn
}
"""The network whose exit loss weights are searched; it has 4 exits."""
FREE = "exit_weights.free"
WEIGHTED_EXITS = 4
LEAST, MOST = 0.1, 10.0
"""Distribution of an exit's weight: uniform in its logarithm."""
UNIFORM = [1.0] * WEIGHTED_EXITS


@dataclass(frozen=True)
class Entry:
    """One training."""

    params: dict[str, Any]
    """Values by the names of the space."""
    is_stopped: bool
    epochs: int
    value: float
    """The objective, of the epoch whose weights would be registered; of a stopped one, the last."""
    accuracies: list[float]
    """Top-1 in percent at the budgets, on validation images that thresholds were not fitted to."""
    test: list[float]
    """On the test images, thresholds fitted on validation; for the comparison of weights alone."""
    seconds: float


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where trainings are noted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the sweeps")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    def sweep_by(method: Method, seed: int) -> list[Entry]:
        return noted(
            folder / f"{method.replace(' ', '')}-{seed}.json", lambda: run_sweep(method, seed)
        )

    by_seed = [{method: sweep_by(method, seed) for method in METHODS} for seed in arguments.seeds]
    print_sweeps({method: [found[method] for found in by_seed] for method in METHODS})
    searched = noted(folder / "weights.json", search_weights)
    best = max(searched, key=lambda entry: entry.value)
    compared = {
        name: [
            noted(folder / f"{name}-{seed}.json", lambda s=seed, d=draw: [train_weighted(d, s)])[0]
            for seed in WEIGHT_SEEDS
        ]
        for name, draw in (("uniform", dict(best.params) | {FREE: UNIFORM}), ("best", best.params))
    }
    print(f"Best weights of {len(searched)} trials: {normalized(best.params[FREE])}\n")
    print_weights(compared, ("best", "uniform"))


def noted(file: Path, make: Callable[[], list[Entry]]) -> list[Entry]:
    """Read entries, or make and write them."""
    if not file.exists():
        file.write_text(json.dumps([asdict(entry) for entry in make()], indent=1))
    return [Entry(**entry) for entry in json.loads(file.read_text())]


def read_sweep(
    network: Mapping[str, Any] = MappingProxyType({}), **changes: Any
) -> tuple[Sweep, Run]:
    """Read a sweep with changed fields, and its base run.

    Its objective has `BUDGETS`, whatever the file has, so that tables of several days compare.

    Args:
        network: settings of that run, besides those of the sweep.
        changes: fields of the sweep.
    """
    sweep = parse_settings(Sweep, ["--config", SWEEP])
    sweep = replace(sweep, **{"objective": Objective(budgets_mult_adds=BUDGETS)} | changes)
    run = parse_settings(
        Run, ["--config", sweep.base_config, *as_arguments({**sweep.overrides, **network})]
    )
    prepare(run.data, run.model.image_size)
    return sweep, run


def run_sweep(method: Method, seed: int) -> list[Entry]:
    """Search until the epochs of `TRIALS` whole trials are used."""
    sweep, run = read_sweep(
        sampler="random" if method == "random" else "tpe", num_trials=TRIALS, seed=seed
    )
    if method != "TPE + ASHA":
        sweep = replace(sweep, early_stopping=EarlyStopping())
    return search(sweep, run, TRIALS * run.train.epochs)


def search(sweep: Sweep, run: Run, num_epochs: int) -> list[Entry]:
    """Sample and train candidates while epochs for a trial remain."""
    sampler = make_sampler(sweep, run)
    scheduler = make_scheduler(sweep.early_stopping, ACCURACY, "max", run.train.epochs)
    entries: list[Entry] = []
    while num_epochs >= run.train.epochs:
        candidate, number = sampler.next()
        entry = train(candidate, sweep.objective, scheduler)
        num_epochs -= entry.epochs
        entries.append(entry)
        state = TrialState.PRUNED if entry.is_stopped else TrialState.COMPLETE
        sampler.tell(number, state, [entry.value], entry.epochs)
    return entries


def weights_sweep() -> tuple[Sweep, Run]:
    """Return the search for exit loss weights of one network."""
    space = {
        "exit_weights.family": Dimension(choice=("free",)),
        FREE: Dimension(log_uniform=(LEAST, MOST), length=WEIGHTED_EXITS),
    }
    sweep, run = read_sweep(
        WEIGHTED,
        space=space,
        cost_limits=CostLimits(),
        early_stopping=EarlyStopping(),
        num_trials=WEIGHT_TRIALS,
    )
    costs = mult_adds(run.model)
    budgets = tuple(max(costs[0], share * costs[-1]) for share in SHARES)
    return replace(sweep, objective=Objective(budgets_mult_adds=budgets)), run


def search_weights() -> list[Entry]:
    """Search for exit loss weights."""
    sweep, run = weights_sweep()
    return search(sweep, run, WEIGHT_TRIALS * run.train.epochs)


def train_weighted(draw: Mapping[str, Any], seed: int) -> Entry:
    """Train with some weights and a seed that was not searched with."""
    sweep, run = weights_sweep()
    candidate, _ = make_sampler(sweep, run).resume(draw)
    candidate = replace(
        candidate, run=replace(candidate.run, train=replace(candidate.run.train, seed=seed))
    )
    return train(candidate, sweep.objective, FIFOScheduler(), test=True)


class StoppedEarly(Exception):  # noqa: N818 - no error
    """The scheduler gives a trial up."""


class Judged(LogReporter):
    """Reporter that stops a training when the scheduler says so."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        """Introduce a new trial to the scheduler."""
        self.scheduler = scheduler
        self.trial: Any = SimpleNamespace(trial_id=str(id(self)))
        self.history: list[Metrics] = []
        scheduler.on_trial_add(None, self.trial)  # pyright: ignore[reportArgumentType]

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Keep the metrics.

        Raises:
            StoppedEarly: the trial is stopped early.
        """
        self.history.append(metrics)
        told = {EPOCH: metrics[EPOCH], ACCURACY: metrics[ACCURACY]}
        decision = self.scheduler.on_trial_result(
            None,  # pyright: ignore[reportArgumentType]
            self.trial,
            told,
        )
        if decision == TrialScheduler.STOP:
            raise StoppedEarly


def train(
    candidate: Candidate[Run],
    objective: Objective,
    scheduler: TrialScheduler,
    *,
    test: bool = False,
) -> Entry:
    """Train a candidate like a trial, and score it.

    Args:
        candidate: what to train.
        objective: what is measured after every epoch.
        scheduler: says when to stop.
        test: score the best weights on the test images as well.
    """
    start = time.monotonic()
    judged = Judged(scheduler)
    scored: list[float] = []
    is_stopped = False
    try:
        snapshot = fit_trial(candidate, objective, judged)
        told = best_epoch(snapshot)
        if test:
            scored = score_test(candidate, snapshot, objective.budgets_mult_adds)
    except StoppedEarly:
        told, is_stopped = judged.history[-1], True
    return Entry(
        params=dict(candidate.params),
        is_stopped=is_stopped,
        epochs=len(judged.history),
        value=told[ACCURACY],
        accuracies=[told[budget_metric(k)] for k in range(len(objective.budgets_mult_adds))],
        test=scored,
        seconds=time.monotonic() - start,
    )


def fit_trial(
    candidate: Candidate[Run],
    objective: Objective,
    reporter: Reporter,
    resume: Snapshot | None = None,
) -> Snapshot:
    """Train a network by a candidate's settings, measured after every epoch."""
    run = candidate.run
    torch.manual_seed(run.train.seed)

    def measure(network: nn.Module) -> Metrics:
        return objective.measure(answers(run, network, "val"), candidate.cost, None)

    training = TrainState(run.train, RANet(run.model), Normalize(*normalization(run.data)))
    train, val = open_split(run, "train"), open_split(run, "val")
    return fit(training, train, val, reporter, resume=resume, measure=measure)


def best_epoch(snapshot: Snapshot) -> Metrics:
    """Return the metrics of the epoch whose weights would be registered."""
    return snapshot["history"][snapshot["best"]["epoch"] - 1]


def score_test(
    candidate: Candidate[Run], snapshot: Snapshot, budgets: Sequence[float]
) -> list[float]:
    """Accuracies of the best weights in percent, with validation thresholds."""
    run, cost = candidate.run, candidate.cost
    model = RANet(run.model)
    model.load_state_dict(snapshot["best"]["model"])
    val, test = (answers(run, model, split) for split in ("val", "test"))
    return [
        score_budget(test.confidences, test.correct, cost, thresholds).top1
        for thresholds in fit_budgets(val.confidences, val.correct, cost, budgets)
    ]


def answers(run: Run, network: nn.Module, split: Split) -> ExitOutputs:
    """Answer the images of a split, every exit by itself."""
    forward = ForwardPass(network, Normalize(*normalization(run.data)))
    return collect_exit_outputs(forward, open_split(run, split)).single


def open_split(run: Run, split: Split) -> Any:
    """Open the batches of a split."""
    return open_batches(
        run.data, split, image_size=run.model.image_size, batch_size=run.train.batch_size,
        worker=Worker(seed=run.train.seed),
    )  # fmt: skip


def print_sweeps(sweeps: Mapping[Method, Sequence[Sequence[Entry]]]) -> None:
    """Print what each method found, by seed, and mean and standard deviation."""
    heads = ["search", "trials", "stopped", "hypervolume, %", "best objective, %"]
    print(table_row([*heads, *(f"best at {budget / 1e6:g} M" for budget in BUDGETS)]))
    print("|---" * (len(heads) + len(BUDGETS)) + "|")
    for method, runs in sweeps.items():
        trials = ", ".join(str(len(entries)) for entries in runs)
        stopped = ", ".join(str(sum(entry.is_stopped for entry in entries)) for entries in runs)
        columns = zip(*(found(entries) for entries in runs), strict=True)
        print(table_row([method, trials, stopped, *(by_seed(column) for column in columns)]))
    seconds = [sum(entry.seconds for entry in entries) for r in sweeps.values() for entries in r]
    print(f"\nSeconds a sweep: {min(seconds):.0f} to {max(seconds):.0f}\n")


def found(entries: Sequence[Entry]) -> list[float]:
    """Return hypervolume, best objective and best accuracies of finished trials.

    The hypervolume is that of the front of budget and accuracy, in percent of that of full accuracy
    at the smallest budget.
    """
    whole = [entry for entry in entries if not entry.is_stopped]
    best = [max(column) for column in zip(*(entry.accuracies for entry in whole), strict=True)]
    volume = hypervolume(list(zip(BUDGETS, best, strict=True)), ("minimize", "maximize"), WORST)
    full = (WORST[0] - BUDGETS[0]) * (100 - WORST[1])
    return [100 * volume / full, max(entry.value for entry in whole), *best]


class Scored(Protocol):
    """Training with validation and test accuracies at `SHARES`, in percent."""

    @property
    def accuracies(self) -> list[float]:
        """On validation images that thresholds were not fitted to."""
        ...

    @property
    def test(self) -> list[float]:
        """On the test images, thresholds fitted on validation."""
        ...


def print_weights(compared: Mapping[str, Sequence[Scored]], *pairs: tuple[str, str]) -> None:
    """Print the accuracies of each weighting, and paired differences.

    Args:
        compared: trainings of each weighting, as many of one as of another.
        pairs: names of two weightings.
    """
    heads = [f"{split} {share:.0%}" for split in ("validation", "test") for share in SHARES]
    print(table_row(["weights", *heads]))
    print("|---" * (1 + len(heads)) + "|")
    rows = {
        name: np.array([[*each.accuracies, *each.test] for each in trained])
        for name, trained in compared.items()
    }
    rows |= {f"{first} - {second}": rows[first] - rows[second] for first, second in pairs}
    for name, values in rows.items():
        print(table_row([name, *(spread(column) for column in values.T)]))


def normalized(weights: Sequence[float]) -> str:
    """Weights whose mean is 1, as text."""
    return ", ".join(f"{weight * len(weights) / sum(weights):.2f}" for weight in weights)


def table_row(cells: Sequence[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def by_seed(values: Sequence[float]) -> str:
    """Each value, and their mean and standard deviation."""
    return f"{', '.join(f'{value:.2f}' for value in values)}: {spread(values)}"


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    main()
