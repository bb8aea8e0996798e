"""Accuracy of exits and budgets, and fitted thresholds."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.evaluation.budgets import Evaluation, budget_grid, check_budgets, evaluate_outputs
from pipelines.evaluation.report import format_tables
from ranet.evaluation.exit_outputs import ExitOutputs, SplitOutputs
from tests.support.exit_outputs import COSTS, TEST, VAL, make_exit_outputs


def test_evaluation_with_an_ensemble_reports_accuracies_of_the_ensemble():
    # Exit 2 is correct on every other image, the ensemble on all images, exit 1 on none.
    confidences = torch.linspace(1, 0, 200).repeat(2, 1)
    none, half = torch.zeros(200, dtype=torch.bool), torch.arange(200) % 2 == 0
    single = torch.stack([none, half])
    ensemble = torch.stack([none, ~none])
    answers = SplitOutputs(
        ExitOutputs(confidences, single, single), ExitOutputs(confidences, ensemble, ensemble)
    )
    evaluation = evaluate_outputs(COSTS, answers, answers, (0.34, 1.0))
    assert evaluation.exit_ensemble == "mean_logits"
    assert [row.test_top1 for row in evaluation.exits] == [0, 100]
    assert evaluation.reported[-1].test_top1 == 100
    assert "averages the logits of all exits passed" in format_tables(evaluation)
    assert "averages the logits" not in format_tables(evaluate_outputs(COSTS, VAL, TEST, (1.0,)))


def test_accuracy_of_an_exit_counts_all_images(evaluation: Evaluation):
    first, last = evaluation.exits
    assert (first.mult_adds, first.val_top1, first.test_top1) == (10, 50, 25)
    assert (last.mult_adds, last.val_top1, last.test_top1) == (30, 100, 75)
    assert (first.test_top5, last.test_top5) == (50, 100)


def test_thresholds_are_fitted_on_validation_and_measured_on_test_images(
    evaluation: Evaluation,
):
    # 0.67 of 30 is a mean of 20: two of the four validation images may continue to exit 2.
    row = next(row for row in evaluation.reported if row.budget_fraction == 0.67)
    assert row.val_top1 == 100
    assert 0.3 < row.thresholds[0] <= 0.8
    assert row.exit_shares == (25, 75)
    assert row.test_top1 == 50
    assert row.test_mult_adds == 25


def test_thresholds_do_not_depend_on_test_images(evaluation: Evaluation):
    other = make_exit_outputs([[0.0] * 4, [1.0] * 4], [[1] * 4, [0] * 4])
    again = evaluate_outputs(COSTS, VAL, other, (0.34, 0.67, 1.0))
    assert [row.thresholds for row in again.curve] == [row.thresholds for row in evaluation.curve]


def test_smallest_budget_makes_every_image_leave_at_the_first_exit(evaluation: Evaluation):
    assert evaluation.curve[0].budget_fraction == 10 / 30
    assert evaluation.curve[0].exit_shares == (100, 0)
    assert evaluation.curve[0].test_mult_adds == 10


def test_val_top1_is_the_mean_validation_accuracy_of_the_reported_budgets(
    evaluation: Evaluation,
):
    assert [row.budget_fraction for row in evaluation.reported] == [0.34, 0.67, 1.0]
    assert evaluation.val_top1 == pytest.approx((50 + 100 + 100) / 3)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=8, unique=True).map(sorted))
@example([29, 100])  # 100 * 0.29 is below 29
def test_budget_grid_has_at_least_40_budgets_from_first_to_last_exit(costs: list[int]):
    grid = budget_grid(tuple(costs))
    assert len(grid) >= 40
    assert grid[0] == costs[0] / costs[-1]
    assert grid[-1] == 1
    assert list(grid) == sorted(set(grid))


def test_budget_grid_contains_fractions_of_two_decimals_exactly():
    assert set(budget_grid((1, 5))) >= {k / 100 for k in range(21, 101)}
    assert set(budget_grid((9, 10))) >= {k / 100 for k in range(91, 101)}


def test_budget_grid_of_a_network_with_one_exit_has_one_budget():
    assert budget_grid((7,)) == (1.0,)


def test_budget_below_the_first_exit_is_rejected_with_the_smallest_valid_one():
    with pytest.raises(
        ValueError, match=r"evaluation.budget_fractions must be 0.34 or more, got \(0.2, 1\)"
    ):
        check_budgets(COSTS, (0.2, 1))
    check_budgets(COSTS, (0.34, 1))
