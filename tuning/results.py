"""What a sweep did: its trials ranked, and what differs between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tuning.pareto import Direction, pareto_front
from tuning.space import WEIGHTS

State = Literal["finished", "stopped", "failed"]
"""finished: trained to the last epoch; stopped: given up early by the scheduler; failed: see error.
"""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial: what it tried, what that costs, and what came of it."""

    number: int
    """Place in the order of the sampler, from 1."""
    trial_id: str
    """Tune's name of the trial."""
    run_id: str
    """Its MLflow run; empty where it ended before it had one."""
    params: Mapping[str, Any]
    """Sampled values by dotted name."""
    state: State
    """How it ended."""
    epochs: int
    """Epochs trained, those before a restart included."""
    seconds: float
    """Time that its workers were held."""
    cost: tuple[int, ...]
    """Cumulative mult-adds of every exit."""
    parameters: int
    """Weights of the network."""
    memory_bytes: int
    """Estimated bytes of a training step on one worker."""
    values: tuple[float, ...] = ()
    """Its objectives, in the order of the sweep; empty where none was measured."""
    budgets: tuple[float, ...] = ()
    """Mean mult-adds per image at which `accuracies` were measured, rising."""
    accuracies: tuple[float, ...] = ()
    """Top-1 in percent at those budgets, on validation images that thresholds were not fitted to.
    Of a stopped trial, those after its last epoch."""
    exits: tuple[float, ...] = ()
    """Validation top-1 of every exit, in percent."""
    error: str = ""
    """What stopped a failed trial, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """What a sweep did."""

    name: str
    """Name of the sweep."""
    objectives: tuple[str, ...]
    """Names of the values of a trial."""
    directions: tuple[Direction, ...]
    """Whether less or more of each is better."""
    budgets: tuple[float, ...]
    """Mean mult-adds per image to find the best configs for, rising; empty: no budgets, every trial
    was measured at its own last exit's cost."""
    trials: tuple[TrialResult, ...]
    """All trials, in any order."""
    rejected: Mapping[str, int]
    """Samples that no worker was taken for, by reason."""
    seconds: float
    """Time that the sweep took, that of all its starts together."""
    devices: float
    """CPUs or GPUs that a trial holds."""
    device: str
    """Which of the two."""
    published: str = ""
    """Data set whose published RANet is drawn as well, if there is one."""

    @cached_property
    def measured(self) -> tuple[TrialResult, ...]:
        """Trials to compare; one that failed is none, however far it came: it would fail again."""
        return tuple(each for each in self.trials if each.values and each.state != "failed")

    @cached_property
    def ranking(self) -> tuple[TrialResult, ...]:
        """Measured trials, best first; of several objectives those on the front come first."""
        by_value = sorted(
            self.measured,
            key=lambda result: (self._loss(result), result.cost[-1], result.number),
        )
        return tuple(sorted(by_value, key=lambda result: result.number not in self.front))

    @cached_property
    def front(self) -> frozenset[int]:
        """Numbers of the trials that no other beats in all objectives."""
        places = pareto_front([result.values for result in self.measured], self.directions)
        return frozenset(self.measured[place].number for place in places)

    def best(self, budget: float) -> TrialResult | None:
        """Return the most accurate trial within a budget, of equal ones the cheapest."""
        able = [result for result in self.measured if budget in result.budgets]
        return max(
            able,
            key=lambda each: (accuracy_at(each, budget), -each.cost[-1], -each.number),
            default=None,
        )

    def points(self) -> list[tuple[float, float, TrialResult]]:
        """Return cost, accuracy and trial of every measurement, those of cheap networks first.

        Within a larger budget a network costs its all.
        """
        return [
            (min(budget, float(result.cost[-1])), top1, result)
            for result in sorted(self.measured, key=lambda each: (each.cost[-1], each.number))
            for budget, top1 in zip(result.budgets, result.accuracies, strict=True)
        ]

    def varied(self, result: TrialResult) -> dict[str, Any]:
        """Return those settings of a trial that are not the same in all, by short name."""
        names = list(dict.fromkeys(name for each in self.trials for name in each.params))
        short = [
            name if name.startswith(WEIGHTS) else name.rpartition(".")[2] for name in names
        ]  # "family" alone says nothing
        return {
            last if short.count(last) == 1 else name: _frozen(result.params[name])
            for name, last in zip(names, short, strict=True)
            if name in result.params
            and len({_frozen(each.params.get(name)) for each in self.trials}) > 1
        }

    def columns(self) -> dict[str, list[Any]]:
        """Return the values of each varied setting, by short name, in the order of the ranking.

        Lists of real numbers are taken apart, entries counted from 1; None where a trial has none.
        """
        rows = [self.varied(result) for result in self.ranking]
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            lists = [value for value in values if isinstance(value, tuple)]
            if any(isinstance(entry, float) for value in lists for entry in value):
                for k in range(max(map(len, lists))):
                    columns[f"{name}[{k + 1}]"] = [
                        value[k] if isinstance(value, tuple) and k < len(value) else None
                        for value in values
                    ]
            else:
                columns[name] = values
        return {name: values for name, values in columns.items() if len(set(values)) > 1}

    def _loss(self, result: TrialResult) -> float:
        return result.values[0] * {"minimize": 1, "maximize": -1}[self.directions[0]]


def accuracy_at(result: TrialResult, budget: float) -> float:
    """Return the top-1 in percent of a trial at one of its budgets."""
    return result.accuracies[result.budgets.index(budget)]


def format_value(value: Any) -> str:
    """Write a setting briefly."""
    if isinstance(value, tuple):
        return "-".join(map(format_value, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def millions(count: float) -> str:
    """Write a large number to three digits."""
    return f"{count / 1e6:.3g} M" if count < 999.5e6 else f"{count / 1e9:.3g} G"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
