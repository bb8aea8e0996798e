"""Accuracy of every exit and of every budget, with fitted thresholds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ranet.config import ExitEnsemble
from ranet.evaluation.exit_outputs import (
    ExitOutputs,
    SplitOutputs,
    anytime_accuracy,
    select_ensemble,
)
from ranet.inference.threshold_search import fit_budgets
from ranet.inference.thresholds import score_budget
from ranet.model.metadata import BudgetAccuracy, ExitAccuracy

_MIN_BUDGETS = 40


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of every exit and every stored budget."""

    exits: tuple[ExitAccuracy, ...]
    curve: tuple[BudgetAccuracy, ...]
    """All budgets of `budget_grid`, in ascending order."""
    reported: tuple[BudgetAccuracy, ...]
    """Budgets of evaluation.budget_fractions."""
    exit_ensemble: ExitEnsemble
    """Ensemble of exits, chosen on the validation images."""

    @property
    def val_top1(self) -> float:
        """Validation top-1 in percent, averaged over the reported budgets."""
        return sum(row.val_top1 for row in self.reported) / len(self.reported)


def check_budgets(costs: tuple[int, ...], budget_fractions: tuple[float, ...]) -> None:
    """Reject budgets below the cost of the first exit.

    Args:
        costs: Cumulative mult-adds of every exit.
        budget_fractions: Fractions of the last exit's mult-adds.

    Raises:
        ValueError: The smallest fraction is below the first exit's.
    """
    smallest = math.ceil(100 * costs[0] / costs[-1]) / 100
    if min(budget_fractions) < smallest:
        raise ValueError(
            f"evaluation.budget_fractions must be {smallest} or more, got {budget_fractions}: "
            f"the first exit of this network costs {costs[0]:,} of {costs[-1]:,} mult-adds"
        )


def budget_grid(costs: tuple[int, ...]) -> tuple[float, ...]:
    """Return the budget fractions whose thresholds are stored with a model.

    They reach from the first exit's fraction to 1.

    The step is 0.01, or the largest smaller power of ten that gives at least 40 budgets. A network
    with a single exit has the single budget fraction 1.
    """
    first = costs[0] / costs[-1]
    if first == 1:
        return (1.0,)
    steps = 100
    while steps * (1 - first) < _MIN_BUDGETS:
        steps *= 10
    return (first, *(k / steps for k in range(1, steps + 1) if k / steps > first))


def evaluate_outputs(
    costs: tuple[int, ...],
    val: SplitOutputs,
    test: SplitOutputs,
    budget_fractions: tuple[float, ...],
) -> Evaluation:
    """Fit thresholds on validation images; measure accuracy on test images.

    Args:
        costs: Cumulative mult-adds of every exit.
        val: Exit outputs of the validation images.
        test: Exit outputs of the test images.
        budget_fractions: Fractions of the last exit's mult-adds to report, in steps of 0.01.
    """
    check_budgets(costs, budget_fractions)
    grid = budget_grid(costs)
    wanted = {round(fraction, 2) for fraction in budget_fractions}
    # In mult-adds; rounding must not push the smallest budget below the first exit.
    budgets = {fraction: max(costs[0], fraction * costs[-1]) for fraction in grid}
    ensemble = select_ensemble(val, costs, [budgets[k] for k in grid if k in wanted])
    on_val, on_test = val.of(ensemble), test.of(ensemble)
    thresholds = fit_budgets(on_val.confidences, on_val.correct, costs, list(budgets.values()))
    curve = tuple(
        _measure_budget(fraction, row, costs, on_val, on_test)
        for fraction, row in zip(grid, thresholds, strict=True)
    )
    accuracies = torch.stack((*anytime_accuracy(on_val), *anytime_accuracy(on_test)), dim=1)
    exits = tuple(
        ExitAccuracy(cost, *row) for cost, row in zip(costs, accuracies.tolist(), strict=True)
    )
    reported = tuple(row for row in curve if row.budget_fraction in wanted)
    return Evaluation(exits=exits, curve=curve, reported=reported, exit_ensemble=ensemble)


def _measure_budget(
    fraction: float, thresholds: Tensor, costs: tuple[int, ...], val: ExitOutputs, test: ExitOutputs
) -> BudgetAccuracy:
    on_val, on_test = (
        score_budget(outputs.confidences, outputs.correct, costs, thresholds)
        for outputs in (val, test)
    )
    return BudgetAccuracy(
        budget_fraction=fraction,
        thresholds=tuple(thresholds.tolist()),
        val_top1=on_val.top1,
        test_top1=on_test.top1,
        test_mult_adds=on_test.mean_cost,
        exit_shares=tuple(100 * share for share in on_test.shares),
    )
