"""Results of a sweep: ranking, Pareto front, best trial per budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tuning.pareto import Direction, pareto_front
from tuning.space import WEIGHTS

State = Literal["finished", "stopped", "failed"]
"""finished: trained to the last epoch; stopped: stopped early by the scheduler; failed: see
error."""


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """End of a trial, as the driver observed it."""

    trial_id: str
    """Name of the trial in Ray Tune."""
    state: State
    """State in which the trial ended."""
    epochs: int
    """Epochs trained, including those before a restart."""
    seconds: float
    """Time that the workers of the trial worked, in seconds."""
    values: tuple[float, ...] = ()
    """Objectives, in the order of the sweep; empty if no epoch was measured."""
    budgets: tuple[float, ...] = ()
    """Budgets at which `accuracies` were measured, in mean mult-adds per image, ascending."""
    accuracies: tuple[float, ...] = ()
    """Top-1 in percent at each budget, on validation images that thresholds were not fitted to;
    after the last epoch if the trial was stopped early."""
    exits: tuple[float, ...] = ()
    """Validation top-1 of every exit, in percent."""
    error: str = ""
    """Error of a failed trial, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class TrialResult(TrialEnd):
    """Result of one trial: its end, its parameters and its costs."""

    number: int
    """Number of the trial in the order of sampling, from 1."""
    run_id: str
    """ID of the trial's MLflow run."""
    params: Mapping[str, Any]
    """Sampled values by the names of the space."""
    cost: tuple[int, ...]
    """Cumulative mult-adds of every exit."""
    parameters: int
    """Number of parameters of the network."""
    memory_bytes: int
    """Estimated bytes of a training step on one worker."""


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Results of a sweep, with what is needed to rank them."""

    name: str
    """Name of the sweep."""
    objectives: tuple[str, ...]
    """Names of the objectives."""
    directions: tuple[Direction, ...]
    """Direction of each objective."""
    budgets: tuple[float, ...]
    """Budgets to find the best configs for, in mean mult-adds per image, ascending; empty: each
    trial
    was measured at the cost of its own last exit."""
    trials: tuple[TrialResult, ...]
    """All trials, in any order."""
    rejected: Mapping[str, int]
    """Number of candidates rejected before training, by the bound that rejected them."""
    seconds: float
    """Time of all invocations of the sweep, in seconds."""
    devices: float
    """Number of CPUs or GPUs per trial."""
    device: str
    """CPU or GPU."""
    published: str = ""
    """Data set whose published RANet curve is plotted as well; empty: none."""

    @cached_property
    def measured(self) -> tuple[TrialResult, ...]:
        """Trials to compare. Failed trials are excluded, because they would fail again."""
        return tuple(each for each in self.trials if each.values and each.state != "failed")

    @cached_property
    def ranking(self) -> tuple[TrialResult, ...]:
        """Measured trials, best first; with several objectives the Pareto front comes first."""
        by_value = sorted(
            self.measured,
            key=lambda result: (self._loss(result), result.cost[-1], result.number),
        )
        return tuple(sorted(by_value, key=lambda result: result.number not in self.front))

    @cached_property
    def front(self) -> frozenset[int]:
        """Numbers of the trials on the Pareto front."""
        indices = pareto_front([result.values for result in self.measured], self.directions)
        return frozenset(self.measured[index].number for index in indices)

    def best(self, budget: float) -> TrialResult | None:
        """Return the most accurate, then cheapest, trial within a budget."""
        candidates = [result for result in self.measured if budget in result.budgets]
        return max(
            candidates,
            key=lambda each: (accuracy_at(each, budget), -each.cost[-1], -each.number),
            default=None,
        )

    def points(self) -> list[tuple[float, float, TrialResult]]:
        """Return cost, accuracy and trial of every measurement, cheapest networks first.

        The cost is the budget, or the cost of the last exit if that is lower.
        """
        return [
            (min(budget, float(result.cost[-1])), top1, result)
            for result in sorted(self.measured, key=lambda each: (each.cost[-1], each.number))
            for budget, top1 in zip(result.budgets, result.accuracies, strict=True)
        ]

    def varied(self, result: TrialResult) -> dict[str, Any]:
        """Return the varied parameters of a trial by short name."""
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
        """Return the ranked values of each varied parameter by short name.

        Lists of real numbers are split into one column per entry, counted from 1. The value is None
        for a trial without the parameter.
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
    """Return a trial's top-1 accuracy in percent at a budget."""
    return result.accuracies[result.budgets.index(budget)]


def format_value(value: Any) -> str:
    """Format a parameter briefly."""
    if isinstance(value, tuple):
        return "-".join(map(format_value, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def millions(count: float) -> str:
    """Format a large number in millions or billions, to three digits."""
    return f"{count / 1e6:.3g} M" if count < 999.5e6 else f"{count / 1e9:.3g} G"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
