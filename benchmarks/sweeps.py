"""Compare ways to search at equal trial-epochs, and uniform exit loss weights with searched ones.

    python -m benchmarks.sweeps FOLDER [--minutes 3]      # again, until it prints tables

Small networks on scikit-learn's digits, really trained, one after the other in this process. Every
training is noted in FOLDER at once; a later start goes on with what is missing. The samplers are
Optuna's, and the rule for stopping early is that of Ray Tune's ASHA; Ray itself takes no part.
"""

import argparse
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial

from pipelines.data import Split, open_batches, prepare
from pipelines.run import Run, parse_settings
from ranet import RANet, mult_adds
from ranet.inference.anytime import Scores, collect_answers
from ranet.inference.budgeted import fit_budgets, score_budget
from ranet.model.normalize import Normalize
from ranet.training.loop import fit
from ranet.training.reporter import LogReporter, Metrics, Snapshot
from tuning.front import hypervolume
from tuning.objective import cross_fitted
from tuning.space import as_arguments

Method = Literal["random", "TPE", "TPE + ASHA"]
METHODS: tuple[Method, ...] = ("random", "TPE", "TPE + ASHA")
SEEDS = (0, 1, 2)
EPOCHS = 6
TRIAL_EPOCHS = 16 * EPOCHS
"""Of a whole sweep, whatever its method makes of them."""
RUNG = 2
"""Epochs after which ASHA stops a trial that is not among the best third so far."""
STARTUP_TRIALS = 6
"""Random ones, before TPE has something to learn from."""
BUDGETS = (0.4e6, 0.7e6, 1.0e6, 1.5e6, 2.0e6)
"""Mult-adds per image; the objective is the mean accuracy over them."""
MOST_MULT_ADDS = 3e6
"""Of the last exit."""
REFERENCE = (2.5e6, 50.0)
"""Mult-adds and accuracy that the hypervolume is counted from."""
SHARES = (0.25, 0.5, 1.0)
"""Of the last exit's mult-adds, at which exit loss weights are compared."""
WEIGHT_TRIALS = 20
WEIGHT_SEEDS = tuple(range(1, 6))
COMMON = {
    "data.source": "digits",
    "data.loader": "memory",
    "data.flip": False,
    "data.mean": [0.3] * 3,
    "data.std": [0.36] * 3,
    "data.validation_share": 0.4,
    "model.image_size": 16,
    "model.exit_channels": 32,
    "model.layers_per_block": 2,
    "train.epochs": EPOCHS,
    "train.select_by": "mean_exit",
    "train.optim.schedule": "cosine",
    "train.optim.warmup_epochs": 1,
    "train.optim.nesterov": True,
}
SCALES = {"1 2": ([1, 2], [2, 1]), "1 1 2": ([1, 1, 2], [2, 2, 1]), "1 2 2": ([1, 2, 2], [2, 1, 1])}
"""Scales by name, with their growth and bottleneck factors."""
WEIGHTED = {
    "model.scales": [1, 2],
    "model.growth_factors": [2, 1],
    "model.bottleneck_factors": [2, 1],
    "model.growth_rate": 5,
    "model.stem_channels": 8,
    "train.optim.lr": 0.1,
    "train.batch_size": 16,  # with 64, six epochs are too few for the late exits to learn
}
"""The network whose exit loss weights are searched; it has 4 exits."""


@dataclass(frozen=True)
class Entry:
    """One training."""

    draw: int
    """Place of its sample among all that were drawn, those refused included."""
    params: dict[str, Any]
    values: list[float]
    """Mean of `accuracies`: at the rung, where trials may be stopped there, and at the end."""
    accuracies: list[float]
    """Top-1 in percent, the last measured, at the budgets that it can meet."""
    test: list[float]
    """On the test images, thresholds fitted on validation; for the comparison of weights alone."""
    epochs: int
    seconds: float


def main() -> None:
    """Do what is missing, as far as the time goes, and print the tables when all is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where trainings are noted")
    parser.add_argument("--minutes", type=float, default=1e9, help="start none after so many")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    end = time.monotonic() + 60 * arguments.minutes
    folder = arguments.folder
    try:
        searched = search_weights(folder, end)
        best = max(searched, key=lambda entry: entry.values[-1])
        compared = compare_weights(folder, best, end)
        by_seed = [{m: run_sweep(folder, m, seed, end) for m in METHODS} for seed in SEEDS]
    except TimeoutError:
        print("not complete: start again to go on")
        return
    print_sweeps({method: [found[method] for found in by_seed] for method in METHODS})
    print_weights(searched, best, compared)


def run_sweep(folder: Path, method: Method, seed: int, end: float) -> list[Entry]:
    """Search for networks until the trial-epochs are spent."""
    file = folder / f"{method.replace(' ', '')}-{seed}.jsonl"
    entries = read(file)
    while (left := TRIAL_EPOCHS - sum(entry.epochs for entry in entries)) >= RUNG:
        draw, trial, run = draw_run(folder, method, seed, entries, network_settings)
        budgets = [budget for budget in BUDGETS if budget >= mult_adds(run.model)[0]]
        rung = [entry.values[0] for entry in entries] if method == "TPE + ASHA" else None
        stop_at = min(left, EPOCHS)
        note(file, entries, train(run, draw, trial.params, budgets, rung, stop_at, end))
    return entries


def search_weights(folder: Path, end: float) -> list[Entry]:
    """Search for exit loss weights of one network."""
    file = folder / "weights.jsonl"
    entries = read(file)
    while len(entries) < WEIGHT_TRIALS:
        draw, trial, run = draw_run(folder, "TPE", 0, entries, weight_settings)
        note(file, entries, train(run, draw, trial.params, shares(run), None, EPOCHS, end))
    return entries


def compare_weights(folder: Path, best: Entry, end: float) -> dict[tuple[str, int], Entry]:
    """Train with uniform and with the best weights, with seeds that were not searched with."""
    compared = {}
    for seed in WEIGHT_SEEDS:
        for name, params in (
            ("uniform", {f"weight{k}": 1.0 for k in range(4)}),
            ("best", best.params),
        ):
            file = folder / f"{name}-{seed}.jsonl"
            entries = read(file)
            if not entries:
                settings = weight_settings(FixedTrial(params)) | {"train.seed": seed}
                run = make_run(folder, settings)
                note(
                    file, entries, train(run, 0, params, shares(run), None, EPOCHS, end, test=True)
                )
            compared[name, seed] = entries[0]
    return compared


def shares(run: Run) -> list[float]:
    """Budgets of a network at `SHARES` of its last exit, none below its first."""
    costs = mult_adds(run.model)
    return [max(costs[0], share * costs[-1]) for share in SHARES]


def network_settings(trial: Trial | FixedTrial) -> dict[str, Any]:
    """Draw the shape of a network, its exit loss weights and its optimizer."""
    scales, factors = SCALES[trial.suggest_categorical("scales", list(SCALES))]
    num_blocks = trial.suggest_int("num_blocks", 1, 2)
    extra_blocks = trial.suggest_int("extra_blocks", 1, 2)
    num_exits = num_blocks + extra_blocks * (len(scales) - 1)
    slope = trial.suggest_float("weight_slope", -0.9, 0.9)
    return {
        "model.scales": scales,
        "model.growth_factors": factors,
        "model.bottleneck_factors": factors,
        "model.num_blocks": num_blocks,
        "model.extra_blocks": extra_blocks,
        "model.growth_rate": trial.suggest_int("growth_rate", 2, 8),
        "model.stem_channels": trial.suggest_categorical("stem_channels", [4, 6, 8, 12]),
        "model.compress_factor": trial.suggest_categorical("compress_factor", [0.25, 0.5]),
        "train.exit_loss_weights": (1 + slope * np.linspace(-1, 1, num_exits)).tolist(),
        "train.label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.2),
        "train.optim.lr": trial.suggest_float("lr", 0.005, 1.0, log=True),
        "train.optim.weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
    }


def weight_settings(trial: Trial | FixedTrial) -> dict[str, Any]:
    """Draw a weight for each exit of one network; they are scaled to a mean of 1."""
    weights = [trial.suggest_float(f"weight{k}", 0.1, 10.0, log=True) for k in range(4)]
    return WEIGHTED | {"train.exit_loss_weights": [w * 4 / sum(weights) for w in weights]}


def draw_run(
    folder: Path,
    method: Method,
    seed: int,
    entries: Sequence[Entry],
    settings: Callable[[Trial], dict[str, Any]],
) -> tuple[int, Trial, Run]:
    """Draw samples, knowing all entries, until one is a network of the right cost."""
    first = entries[-1].draw + 1 if entries else 0
    study = optuna.create_study(direction="maximize")
    distributions = {}
    for draw in range(first, first + 1000):
        study.sampler = make_sampler(method, 10_000 * seed + draw)
        if not distributions:  # those of a sample that is thrown away
            probe = study.ask()
            settings(probe)
            distributions = probe.distributions
            study.tell(probe, state=TrialState.FAIL)
            study.add_trials(told(entries, distributions))
            study.sampler = make_sampler(method, 10_000 * seed + draw)
        trial = study.ask()
        try:
            run = make_run(folder, settings(trial))
        except ValueError:
            continue
        costs = mult_adds(run.model)
        if costs[0] <= BUDGETS[-1] and costs[-1] <= MOST_MULT_ADDS:
            return draw, trial, run
    raise RuntimeError("the space gives no network of the right cost")


def told(entries: Iterable[Entry], distributions: Mapping[str, Any]) -> list[FrozenTrial]:
    """Give entries as Optuna's trials; of a stopped one the last value, as Ray tells it."""
    return [
        create_trial(params=entry.params, distributions=dict(distributions), value=entry.values[-1])
        for entry in entries
    ]


def make_sampler(method: Method, seed: int) -> BaseSampler:
    """Return the sampler for one draw."""
    if method == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def make_run(folder: Path, settings: Mapping[str, Any]) -> Run:
    """Make the run of a sample, with its images prepared."""
    everything = COMMON | {"data.folder": str(folder / "digits")} | dict(settings)
    run = parse_settings(Run, as_arguments(everything))
    prepare(run.data, run.model.image_size)
    return run


def train(
    run: Run,
    draw: int,
    params: Mapping[str, Any],
    budgets: Sequence[float],
    rung: Sequence[float] | None,
    most_epochs: int,
    end: float,
    *,
    test: bool = False,
) -> Entry:
    """Train a network, and score it.

    Args:
        run: what to train.
        draw: place of the sample.
        params: the sample.
        budgets: mean mult-adds to score at.
        rung: values that earlier trials had at the rung, to stop a worse one; None: stop none.
        most_epochs: stop after so many.
        end: start nothing after this time.
        test: score on the test images as well, after the last epoch.

    Raises:
        TimeoutError: the time is over.
    """
    if time.monotonic() > end:
        raise TimeoutError
    start = time.monotonic()
    torch.manual_seed(run.train.seed)
    model = RANet(run.model)
    scorer = Scorer(run, model, budgets, rung, most_epochs)
    with contextlib.suppress(StoppedEarly):
        fit(
            run.train, model, scorer.open("train"), scorer.open("val"), scorer,
            normalize=scorer.normalize, device=torch.device("cpu"),
        )  # fmt: skip
    return Entry(
        draw=draw,
        params=dict(params),
        values=scorer.values,
        accuracies=scorer.accuracies,
        test=scorer.score_test() if test else [],
        epochs=scorer.epochs,
        seconds=time.monotonic() - start,
    )


class StoppedEarly(Exception):  # noqa: N818 - no error
    """A trial is given up, or has used up the epochs that were left."""


class Scorer(LogReporter):
    """Scores a network after the rung and after its last epoch, and stops it where it is due."""

    def __init__(
        self,
        run: Run,
        model: RANet,
        budgets: Sequence[float],
        rung: Sequence[float] | None,
        most_epochs: int,
    ) -> None:
        """Take what `train` does."""
        self.run, self.model, self.budgets = run, model, budgets
        self.rung, self.most_epochs = rung, most_epochs
        self.normalize = Normalize(run.data.mean, run.data.std)
        self.values: list[float] = []
        self.accuracies: list[float] = []
        self.epochs = 0

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Score where it is time to, and stop a trial by the rule of Ray Tune's ASHAScheduler."""
        self.epochs = int(metrics["epoch"])
        at_rung = self.epochs == RUNG and self.rung is not None
        if at_rung or self.epochs == self.most_epochs:
            self.accuracies = self.score_val()
            self.values.append(sum(self.accuracies) / len(BUDGETS))
        if at_rung and self.rung and self.values[-1] < np.percentile(self.rung, 100 * 2 / 3):
            raise StoppedEarly
        if self.epochs == self.most_epochs:
            raise StoppedEarly

    def score_val(self) -> list[float]:
        """Accuracies in percent at the budgets, thresholds fitted on the other half each time."""
        return list(cross_fitted(self.answers("val"), mult_adds(self.run.model), self.budgets))

    def score_test(self) -> list[float]:
        """Accuracies in percent at the budgets, thresholds fitted on the validation images."""
        costs = mult_adds(self.run.model)
        val, test = self.answers("val"), self.answers("test")
        return [
            score_budget(test.confidences, test.correct, costs, thresholds).top1
            for thresholds in fit_budgets(val.confidences, val.correct, costs, self.budgets)
        ]

    def answers(self, split: Split) -> Scores:
        """Answer the images of a split, every exit by itself."""
        return collect_answers(
            self.model, self.open(split), normalize=self.normalize, device=torch.device("cpu")
        ).alone

    def open(self, split: Split) -> Any:
        """Open the batches of a split."""
        return open_batches(
            self.run.data,
            split,
            image_size=self.run.model.image_size,
            batch_size=self.run.train.batch_size,
            rank=0,
            num_workers=1,
            seed=self.run.train.seed,
            device=torch.device("cpu"),
        )


def read(file: Path) -> list[Entry]:
    """Read what was noted."""
    if not file.exists():
        return []
    return [Entry(**json.loads(line)) for line in file.read_text().splitlines()]


def note(file: Path, entries: list[Entry], entry: Entry) -> None:
    """Add an entry to the file and to those at hand."""
    with file.open("a") as stream:
        stream.write(json.dumps(asdict(entry)) + "\n")
    entries.append(entry)


def print_sweeps(sweeps: Mapping[Method, Sequence[Sequence[Entry]]]) -> None:
    """Print what each method found, mean and standard deviation over the seeds."""
    print(f"\n| {TRIAL_EPOCHS} trial-epochs | trials | hypervolume, % | best objective, % | "
          + " | ".join(f"best at {budget / 1e6:g} M" for budget in BUDGETS) + " |")  # fmt: skip
    print("|---" * (4 + len(BUDGETS)) + "|")
    for method, runs in sweeps.items():
        rows = [[len(entries), covered(entries), max(entry.values[-1] for entry in entries),
                 *(top1 for _, top1 in best_points(entries))] for entries in runs]  # fmt: skip
        print(
            f"| {method} | "
            + " | ".join(spread(column) for column in zip(*rows, strict=True))
            + " |"
        )
        seconds = sum(entry.seconds for entries in runs for entry in entries)
        print(f"<!-- {method}: {seconds:.0f} s, hypervolumes "
              f"{' '.join(f'{covered(entries):.2f}' for entries in runs)} -->")  # fmt: skip


def best_points(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """Budget and the best accuracy found at it."""
    points = []
    for k in range(1, len(BUDGETS) + 1):  # from the dearest: a network may not meet the cheapest
        found = [entry.accuracies[-k] for entry in entries if len(entry.accuracies) >= k]
        points.append((BUDGETS[-k], max(found, default=0.0)))
    return points[::-1]


def covered(entries: Sequence[Entry]) -> float:
    """Hypervolume of the front, in percent of that of full accuracy at the smallest budget."""
    whole = (REFERENCE[0] - BUDGETS[0]) * (100 - REFERENCE[1])
    return 100 * hypervolume(best_points(entries), ("minimize", "maximize"), REFERENCE) / whole


def print_weights(
    searched: Sequence[Entry], best: Entry, compared: Mapping[tuple[str, int], Entry]
) -> None:
    """Print the accuracies of both weightings at every share."""
    scale = 4 / sum(best.params.values())
    weights = ", ".join(f"{scale * best.params[f'weight{k}']:.2f}" for k in range(4))
    print(f"\nBest of {len(searched)}: weights {weights}")
    heads = [f"{split} {share:.0%}" for split in ("validation", "test") for share in SHARES]
    print(f"\n| weights | {' | '.join(heads)} |\n{'|---' * (1 + len(heads))}|")
    rows = {name: np.array([[*compared[name, seed].accuracies, *compared[name, seed].test]
                            for seed in WEIGHT_SEEDS]) for name in ("uniform", "best")}  # fmt: skip
    rows["best - uniform"] = rows["best"] - rows["uniform"]
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(spread(column) for column in values.T)} |")


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    main()
