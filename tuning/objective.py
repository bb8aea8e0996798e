"""Objectives of a sweep: accuracy, area under the curve, mult-adds, latency."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ranet.evaluation.cross_fit import cross_fit
from ranet.evaluation.exit_outputs import ExitOutputs
from ranet.inference.thresholds import score_budget
from tuning.pareto import Direction

AUC_POINTS = 16
"""Number of budgets at which accuracy is measured for the area under the curve."""
EPOCH = "epoch"
SECONDS = "sweep/seconds"
"""Metric: seconds that the workers of a trial have worked, including those before a restart."""

DIRECTIONS: Mapping[str, Direction] = {
    "accuracy": "maximize",
    "accuracy_auc": "maximize",
    "mult_adds": "minimize",
    "latency_ms": "minimize",
}
"""Direction of each metric that can be an objective."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Metrics that compare trials, measured on validation after every epoch."""

    metrics: tuple[str, ...] = ("accuracy",)
    """accuracy: mean top-1 in percent over budgets_mult_adds; accuracy_auc: mean top-1 in percent
    over auc_range_mult_adds; mult_adds: of the last exit, per image; latency_ms: of the last exit,
    for one image on the worker's device. With several metrics the sweep searches their Pareto
    front."""
    budgets_mult_adds: tuple[float, ...] = ()
    """Budgets in mean mult-adds per image; empty: the cost of each network's last exit."""
    auc_range_mult_adds: tuple[float, float] | None = None
    """Min and max budget of accuracy_auc, in mult-adds per image."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "budgets_mult_adds", tuple(sorted(self.budgets_mult_adds)))
        for name in self.metrics:
            if name not in DIRECTIONS:
                raise ValueError(
                    f"objective.metrics must be among {', '.join(DIRECTIONS)}, got {name!r}"
                )
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"objective.metrics must be one or more different names, got {list(self.metrics)}"
            )
        if any(not 0 < budget < math.inf for budget in self.budgets_mult_adds):
            raise ValueError(
                "objective.budgets_mult_adds must be above 0 and finite, "
                f"got {list(self.budgets_mult_adds)}"
            )
        if self.auc_range_mult_adds is not None:
            object.__setattr__(self, "auc_range_mult_adds", tuple(self.auc_range_mult_adds))
            low, high = self.auc_range_mult_adds
            if not 0 < low < high < math.inf:
                raise ValueError(
                    "objective.auc_range_mult_adds must be [min, max] with 0 < min < max, "
                    f"got {list(self.auc_range_mult_adds)}"
                )
        if ("accuracy_auc" in self.metrics) != (self.auc_range_mult_adds is not None):
            raise ValueError(
                "objective.auc_range_mult_adds must be given if and only if accuracy_auc is among "
                f"objective.metrics, got {self.auc_range_mult_adds} with {', '.join(self.metrics)}"
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Direction of each objective."""
        return tuple(DIRECTIONS[name] for name in self.metrics)

    @property
    def min_budget_mult_adds(self) -> float:
        """Smallest budget, which the first exit of every network must meet."""
        return min(
            (*self.budgets_mult_adds, *(self.auc_range_mult_adds or ())[:1]), default=math.inf
        )

    def budgets_of(self, cost: Sequence[int]) -> tuple[float, ...]:
        """Return the budgets of a network in mult-adds, ascending.

        Args:
            cost: cumulative mult-adds of every exit.
        """
        return self.budgets_mult_adds or (float(cost[-1]),)

    def measure(
        self, scores: ExitOutputs, cost: Sequence[int], latency_ms: float | None
    ) -> dict[str, float]:
        """Compute an epoch's metrics: accuracy at each budget, and each objective.

        Args:
            scores: exit outputs for the validation split.
            cost: cumulative mult-adds of every exit.
            latency_ms: latency of the last exit; None if it is not an objective.
        """
        budgets = self.budgets_of(cost)
        values = {"accuracy": 0.0, "mult_adds": float(cost[-1])}
        grid = []
        if self.auc_range_mult_adds is not None:
            grid = np.linspace(*self.auc_range_mult_adds, AUC_POINTS).tolist()
        measured = cross_fitted(scores, cost, [*budgets, *grid])
        at_budgets, along = measured[: len(budgets)], measured[len(budgets) :]
        values["accuracy"] = sum(at_budgets) / len(at_budgets)
        if self.auc_range_mult_adds is not None:
            low, high = self.auc_range_mult_adds
            values["accuracy_auc"] = float(np.trapezoid(along, grid)) / (high - low)
        if latency_ms is not None:
            values["latency_ms"] = latency_ms
        return {
            **{objective_metric(name): values[name] for name in self.metrics},
            **{budget_metric(k): top1 for k, top1 in enumerate(at_budgets)},
        }


def objective_metric(name: str) -> str:
    """Return the name of an objective among the metrics of an epoch."""
    return f"objective/{name}"


def budget_metric(index: int) -> str:
    """Return the metric name of the accuracy at a budget.

    Args:
        index: index of the budget in ascending order, from 0.
    """
    return f"objective/budget{index + 1}_top1"


def cross_fitted(
    scores: ExitOutputs, cost: Sequence[int], budgets: Sequence[float]
) -> tuple[float, ...]:
    """Compute cross-fitted top-1 accuracy in percent within each budget.

    Thresholds are fitted on one half of the images and evaluated on the other half, then the other
    way round.

    Args:
        scores: outputs for at least two images.
        cost: cumulative cost of every exit.
        budgets: mean costs per image, in the unit of `cost`.
    """
    num_samples = scores.correct.shape[1]
    num_correct = torch.zeros(len(budgets), dtype=torch.float64)
    for fold in cross_fit(scores.confidences, scores.correct, cost, budgets):
        rest = fold.held_out
        for k, thresholds in enumerate(fold.thresholds):
            scored = score_budget(
                scores.confidences[:, rest], scores.correct[:, rest], cost, thresholds
            )
            num_correct[k] += scored.top1 * len(rest)
    return tuple((num_correct / num_samples).tolist())
