"""Compare population-based training of exit loss weights with constant weights.

    python -m benchmarks.population FOLDER [--seeds 0 1 2 3 4]     # again: resume

Train eight networks as in the comparison of weights of benchmarks.sweeps, and score the best one
on validation on the test images. Three methods with the same initial weights:

- uniform: all with uniform exit loss weights;
- constant: each with its own random weights, from the space of that comparison;
- population: starts with the same weights; after each epoch from the second on, the worst quarter
  copies network, optimizer and weights of one of the best quarter, and changes each weight by a
  factor of 0.8 or 1.2 or, with probability 1/4, samples it again (Jaderberg et al. 2017,
  "Population based training of neural networks", truncation selection; Ray Tune's defaults).
"""

import argparse
import json
import logging
import math
import random
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.sweeps import (
    ACCURACY,
    FREE,
    LEAST,
    MOST,
    UNIFORM,
    WEIGHTED_EXITS,
    StoppedEarly,
    best_epoch,
    fit_trial,
    normalized,
    print_weights,
    score_test,
    weights_sweep,
)
from pipelines.run import Run
from pipelines.tune import check_candidate
from ranet.protocols import Metrics, Snapshot
from ranet.training.log_reporter import LogReporter
from tuning.config import Sweep
from tuning.objective import budget_metric
from tuning.sampler import Candidate

Method = Literal["uniform", "constant", "population"]
METHODS: tuple[Method, ...] = ("uniform", "constant", "population")
MEMBERS = 8
FIRST_LOOK = 2
"""Epochs before the first change."""
QUARTER = MEMBERS // 4
FACTORS = (0.8, 1.2)
DRAWN_ANEW = 0.25


@dataclass(frozen=True)
class Winner:
    """The network of a population that is best on validation."""

    weights: list[list[float]]
    """Sampled exit loss weights of each epoch."""
    accuracies: list[float]
    """Top-1 in percent at the budgets, on validation images that thresholds were not fitted to."""
    test: list[float]
    """On the test images, thresholds fitted on validation."""


@dataclass
class Member:
    """One training, an epoch at a time."""

    seed: int
    """Of its initial weights and the order of images; another member's, where it took that over."""
    free: list[float]
    """Exit loss weights of the next epoch."""
    trained: list[list[float]]
    """Those of its epochs so far."""
    snapshot: Snapshot | None = None

    def train_epoch(self, sweep: Sweep, run: Run) -> None:
        """Train for one more epoch."""
        reporter = OneEpoch()
        with suppress(StoppedEarly):
            fit_trial(self.candidate(sweep, run), sweep.objective, reporter, self.snapshot)
        self.snapshot = reporter.snapshot
        self.trained.append(self.free)

    def candidate(self, sweep: Sweep, run: Run) -> Candidate[Run]:
        """Return what is trained."""
        found = check_candidate(sweep, run, {"exit_weights.family": "free", FREE: self.free})
        return replace(
            found, run=replace(found.run, train=replace(found.run.train, seed=self.seed))
        )

    def reached(self) -> float:
        """Objective after the last epoch."""
        assert self.snapshot is not None, "an epoch was trained"
        return self.snapshot["history"][-1][ACCURACY]

    def take_over(self, other: "Member", chance: random.Random) -> None:
        """Become a copy of another member that continues with changed weights."""
        self.seed, self.snapshot = other.seed, other.snapshot
        self.trained = list(other.trained)
        self.free = [
            sample_weight(chance)
            if chance.random() < DRAWN_ANEW
            else min(MOST, max(LEAST, weight * chance.choice(FACTORS)))
            for weight in other.free
        ]


class OneEpoch(LogReporter):
    """Keeps the snapshot of an epoch and ends the training."""

    snapshot: Snapshot | None = None

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Take an epoch.

        Raises:
            StoppedEarly: always.
        """
        self.snapshot = snapshot
        raise StoppedEarly


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where winners are noted")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="populations")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    winners: dict[str, list[Winner]] = {method: [] for method in METHODS}
    for seed in arguments.seeds:
        for method in METHODS:
            file = arguments.folder / f"{method}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(asdict(train_population(method, seed))))
            winners[method].append(Winner(**json.loads(file.read_text())))
    print_weights(winners, ("population", "uniform"), ("population", "constant"))
    print("\nWeights of the populations' winners, first and last epoch:\n")
    for winner in winners["population"]:
        print(f"- {normalized(winner.weights[0])} -> {normalized(winner.weights[-1])}")


def train_population(method: Method, seed: int) -> Winner:
    """Train a population and score its best member."""
    sweep, run = weights_sweep()
    chance = random.Random(seed)
    members = [
        Member(seed * MEMBERS + number, [sample_weight(chance) for _ in range(WEIGHTED_EXITS)], [])
        for number in range(MEMBERS)
    ]
    if method == "uniform":
        for member in members:
            member.free = UNIFORM
    for epoch in range(run.train.epochs):
        if method == "population" and epoch >= FIRST_LOOK:
            ranked = sorted(members, key=Member.reached)
            for member in ranked[:QUARTER]:
                member.take_over(chance.choice(ranked[-QUARTER:]), chance)
        for member in members:
            member.train_epoch(sweep, run)
    scored = [(best_epoch(member.snapshot), member) for member in members if member.snapshot]
    metrics, best = max(scored, key=lambda each: each[0][ACCURACY])
    assert best.snapshot is not None, "it was trained"
    budgets = sweep.objective.budgets_mult_adds
    return Winner(
        weights=best.trained,
        accuracies=[metrics[budget_metric(k)] for k in range(len(budgets))],
        test=score_test(best.candidate(sweep, run), best.snapshot, budgets),
    )


def sample_weight(chance: random.Random) -> float:
    """Sample a weight with a uniformly distributed logarithm."""
    return 10 ** chance.uniform(math.log10(LEAST), math.log10(MOST))


if __name__ == "__main__":
    main()
