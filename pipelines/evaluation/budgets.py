"""Accuracy against mult-adds: of every exit, and of every budget whose thresholds go with a model."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ranet.evaluation.exit_outputs import (
    ExitOutputs,
    SplitOutputs,
    anytime_accuracy,
    select_ensemble,
)
from ranet.inference.ensemble import ExitEnsemble
from ranet.inference.threshold_search import fit_budgets, score_budget

_FEWEST_THRESHOLD_SETS = 40


@dataclass(frozen=True)
class ExitAccuracy:
    """Anytime prediction: every image answered by one exit. Accuracies in percent."""

    mult_adds: int
    val_top1: float
    val_top5: float
    test_top1: float
    test_top5: float


@dataclass(frozen=True)
class BudgetAccuracy:
    """Budgeted batch classification: thresholds of one budget. Accuracies in percent."""

    budget: float
    """Share of the last exit's mult-adds that an image may cost on average."""
    thresholds: tuple[float, ...]
    """Fitted on the validation images."""
    val_top1: float
    test_top1: float
    test_mult_adds: float
    """Mean over the test images."""
    exit_shares: tuple[float, ...]
    """Test images that leave at each exit, in percent."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of every exit, and of every budget whose thresholds go with the model."""

    exits: tuple[ExitAccuracy, ...]
    curve: tuple[BudgetAccuracy, ...]
    """Every threshold set, smallest budget first."""
    reported: tuple[BudgetAccuracy, ...]
    """Those of the budgets that were asked for."""
    answer: ExitEnsemble
    """Whether exits answer alone or together; chosen on the validation images."""

    @property
    def val_top1(self) -> float:
        """Validation top-1 in percent, mean over the reported budgets."""
        return sum(row.val_top1 for row in self.reported) / len(self.reported)


def check_budgets(costs: tuple[int, ...], budgets: tuple[float, ...]) -> None:
    """Refuse budgets that not even the first exit keeps.

    Args:
        costs: cumulative mult-adds of every exit.
        budgets: shares of the last exit's mult-adds.
    """
    smallest = math.ceil(100 * costs[0] / costs[-1]) / 100
    if min(budgets) < smallest:
        raise ValueError(
            f"evaluation.budget_fractions must be {smallest} or more, got {budgets}: the first exit of this "
            f"network costs {costs[0]:,} of {costs[-1]:,} mult-adds"
        )


def budget_grid(costs: tuple[int, ...]) -> tuple[float, ...]:
    """Budgets whose thresholds go with a model: the first exit's share, then even steps up to 1.

    The step is 0.01, or the largest smaller power of ten that gives 40 budgets. A network with a
    single exit has the single budget 1.
    """
    first = costs[0] / costs[-1]
    if first == 1:
        return (1.0,)
    steps = 100
    while steps * (1 - first) < _FEWEST_THRESHOLD_SETS:
        steps *= 10
    return (first, *(k / steps for k in range(1, steps + 1) if k / steps > first))


def evaluate_outputs(
    costs: tuple[int, ...], val: SplitOutputs, test: SplitOutputs, budgets: tuple[float, ...]
) -> Evaluation:
    """Fit thresholds on the validation images and score them, and every exit, on the test images.

    Args:
        costs: cumulative mult-adds of every exit.
        val: the network's answers to the validation images.
        test: its answers to the test images.
        budgets: shares of the last exit's mult-adds to report, in steps of 0.01.
    """
    check_budgets(costs, budgets)
    grid = budget_grid(costs)
    wanted = {round(budget, 2) for budget in budgets}
    # In mult-adds; never below the first exit by a rounding of its share.
    allowed = {budget: max(costs[0], budget * costs[-1]) for budget in grid}
    answer = select_ensemble(val, costs, [allowed[budget] for budget in grid if budget in wanted])
    on_val, on_test = val.by(answer), test.by(answer)
    thresholds = fit_budgets(on_val.confidences, on_val.correct, costs, list(allowed.values()))
    curve = tuple(
        _score_budget(budget, row, costs, on_val, on_test)
        for budget, row in zip(grid, thresholds, strict=True)
    )
    accuracies = torch.stack((*anytime_accuracy(on_val), *anytime_accuracy(on_test)), dim=1)
    exits = tuple(
        ExitAccuracy(cost, *row) for cost, row in zip(costs, accuracies.tolist(), strict=True)
    )
    reported = tuple(row for row in curve if row.budget in wanted)
    return Evaluation(exits=exits, curve=curve, reported=reported, answer=answer)


def _score_budget(
    budget: float, thresholds: Tensor, costs: tuple[int, ...], val: ExitOutputs, test: ExitOutputs
) -> BudgetAccuracy:
    on_val, on_test = (
        score_budget(scores.confidences, scores.correct, costs, thresholds)
        for scores in (val, test)
    )
    return BudgetAccuracy(
        budget=budget,
        thresholds=tuple(thresholds.tolist()),
        val_top1=on_val.top1,
        test_top1=on_test.top1,
        test_mult_adds=on_test.mean_cost,
        exit_shares=tuple(100 * share for share in on_test.shares),
    )
