"""By what trials are compared: accuracy within a budget, area under the curve, cost, latency."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ranet.evaluation.exit_outputs import ExitOutputs
from ranet.inference.threshold_search import fit_budgets
from ranet.inference.thresholds import score_budget
from tuning.pareto import Direction

AREA_POINTS = 16
"""Budgets at which the curve is measured for its area."""
EPOCH = "epoch"
SECONDS = "sweep/seconds"
"""Metric: seconds that the workers of a trial have worked, those before a restart included."""

DIRECTIONS: Mapping[str, Direction] = {
    "accuracy": "maximize",
    "area": "maximize",
    "mult_adds": "minimize",
    "latency": "minimize",
}
"""The objectives by name, and which way is better."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is measured of a trial after every epoch, on the validation images alone."""

    names: tuple[str, ...] = ("accuracy",)
    """accuracy: top-1 in percent, mean over `budgets`; area: its mean over `area_range`; mult_adds
    of the last exit; latency of the last exit in ms, for one image on the worker's device. Several:
    their Pareto front is searched."""
    budgets: tuple[float, ...] = ()
    """Mult-adds that an image may cost on average; empty: each network's own last exit."""
    area_range: tuple[float, float] | None = None
    """Lowest and highest budget of `area`, in mult-adds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "budgets", tuple(sorted(self.budgets)))
        for name in self.names:
            if name not in DIRECTIONS:
                raise ValueError(
                    f"objective.names must be among {', '.join(DIRECTIONS)}, got {name!r}"
                )
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"objective.names must be one or more different names, got {list(self.names)}"
            )
        if any(not 0 < budget < math.inf for budget in self.budgets):
            raise ValueError(
                f"objective.budgets must be above 0 mult-adds, got {list(self.budgets)}"
            )
        if self.area_range is not None:
            object.__setattr__(self, "area_range", tuple(self.area_range))
            low, high = self.area_range
            if not 0 < low < high < math.inf:
                raise ValueError(
                    "objective.area_range must be a low and a higher number of mult-adds, "
                    f"got {list(self.area_range)}"
                )
        if ("area" in self.names) != (self.area_range is not None):
            raise ValueError(
                "objective.area_range must be given where area is among objective.names, and "
                f"only there, got {self.area_range} with {', '.join(self.names)}"
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Which way each of the objectives is better."""
        return tuple(DIRECTIONS[name] for name in self.names)

    @property
    def least_budget(self) -> float:
        """Smallest budget at which a network must be able to answer, in mult-adds."""
        return min((*self.budgets, *(self.area_range or ())[:1]), default=math.inf)

    def budgets_of(self, cost: Sequence[int]) -> tuple[float, ...]:
        """Budgets of a network with these cumulative costs of its exits, rising."""
        return self.budgets or (float(cost[-1]),)

    def measure(
        self, scores: ExitOutputs, cost: Sequence[int], latency: float | None
    ) -> dict[str, float]:
        """Give the metrics of an epoch: accuracies at the budgets, and each objective.

        Args:
            scores: of the validation images.
            cost: cumulative mult-adds of every exit.
            latency: milliseconds of the last exit; None where it is no objective.
        """
        budgets = self.budgets_of(cost)
        values = {"accuracy": 0.0, "mult_adds": float(cost[-1])}
        grid = []
        if self.area_range is not None:
            grid = np.linspace(*self.area_range, AREA_POINTS).tolist()
        measured = cross_fitted(scores, cost, [*budgets, *grid])
        at_budgets, along = measured[: len(budgets)], measured[len(budgets) :]
        values["accuracy"] = sum(at_budgets) / len(at_budgets)
        if self.area_range is not None:
            low, high = self.area_range
            values["area"] = float(np.trapezoid(along, grid)) / (high - low)
        if latency is not None:
            values["latency"] = latency
        return {
            **{objective_metric(name): values[name] for name in self.names},
            **{budget_metric(k): top1 for k, top1 in enumerate(at_budgets)},
        }


def objective_metric(name: str) -> str:
    """Name of an objective among the metrics of an epoch."""
    return f"objective/{name}"


def budget_metric(index: int) -> str:
    """Name of the accuracy at the budget of this place, among the metrics of an epoch."""
    return f"objective/budget{index + 1}_top1"


def cross_fitted(
    scores: ExitOutputs, cost: Sequence[int], budgets: Sequence[float]
) -> tuple[float, ...]:
    """Give the top-1 in percent within each budget, on images the thresholds were not fitted to.

    Thresholds are fitted on one half of the images and scored on the other, both ways.

    Args:
        scores: at least two images.
        cost: cumulative cost of every exit.
        budgets: mean costs per image, in the unit of `cost`.
    """
    num_samples = scores.correct.shape[1]
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    right = torch.zeros(len(budgets), dtype=torch.float64)
    for fit, rest in (halves, halves[::-1]):
        fitted = fit_budgets(scores.confidences[:, fit], scores.correct[:, fit], cost, budgets)
        for k, thresholds in enumerate(fitted):
            scored = score_budget(
                scores.confidences[:, rest], scores.correct[:, rest], cost, thresholds
            )
            right[k] += scored.top1 * len(rest)
    return tuple((right / num_samples).tolist())
