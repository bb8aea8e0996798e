"""Threshold search: exact budgets, and higher accuracy than simple rules."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ranet.inference.threshold_search import fit_budgets, fit_thresholds
from ranet.inference.thresholds import assign_exits, score_budget

INF = math.inf


def num_correct(confidences: Tensor, correct: Tensor, thresholds: Tensor) -> int:
    exits = assign_exits(confidences, thresholds)
    return int(correct.gather(0, exits[None]).sum())


def exact_mean_cost(confidences: Tensor, costs: list[float], thresholds: Tensor) -> Fraction:
    exits = assign_exits(confidences, thresholds).tolist()
    return sum((Fraction(costs[k]) for k in exits), Fraction(0)) / len(exits)


def make_outputs(num_images: int, skills: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Confidences and correctness of exits with these accuracies."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.randn(num_images, generator=generator)
    noise = torch.randn(len(skills), num_images, generator=generator)
    margins = torch.tensor(skills)[:, None] - difficulty + 0.5 * noise
    return torch.sigmoid(2 * margins.abs()), margins > 0


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[float], list[float]]:
    """Small problems with many ties: confidences, correct, costs, budgets."""
    num_exits = draw(st.integers(1, 4))
    num_images = draw(st.integers(1, 12))
    levels = draw(st.sampled_from([1, 3, 1000]))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    shape = (num_exits, num_images)
    confidences = torch.randint(levels, shape, generator=generator) / levels
    correct = torch.rand(shape, generator=generator) < 0.6
    steps = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.7]), min_size=num_exits - 1))
    costs = list(itertools.accumulate([0.1, *steps[: num_exits - 1]]))
    shares = draw(st.lists(st.floats(0, 1.2), min_size=1, max_size=3))
    between = [costs[0] + share * (costs[-1] - costs[0]) for share in shares]
    return confidences, correct, costs, [*between, *costs]


@pytest.mark.parametrize("rule", ["joint", "geometric"])
@settings(max_examples=50)
@given(problem=problems())
def test_mean_cost_on_the_fitting_images_never_exceeds_the_budget(problem, rule) -> None:
    confidences, correct, costs, budgets = problem
    fitted = fit_budgets(confidences, correct, costs, budgets, rule=rule)
    assert fitted.shape == (len(budgets), len(costs))
    assert (fitted[:, -1] == -INF).all()
    for budget, thresholds in zip(budgets, fitted, strict=True):
        assert exact_mean_cost(confidences, costs, thresholds) <= Fraction(budget)


@settings(max_examples=30)
@given(problem=problems())
def test_joint_rule_is_at_least_as_accurate_as_geometric_rule_and_last_exit(
    problem,
) -> None:
    confidences, correct, costs, budgets = problem
    joint = fit_budgets(confidences, correct, costs, budgets)
    geometric = fit_budgets(confidences, correct, costs, budgets, rule="geometric")
    for budget, ours, theirs in zip(budgets, joint, geometric, strict=True):
        right = num_correct(confidences, correct, ours)
        assert right >= num_correct(confidences, correct, theirs)
        if budget >= costs[-1]:
            assert right >= int(correct[-1].sum())


def test_larger_budget_gives_higher_accuracy() -> None:
    confidences, correct = make_outputs(5000, [0.3, 0.7, 0.0, 1.3, 1.5])
    budgets = torch.linspace(10, 100, 19)
    fitted = fit_budgets(confidences, correct, [10, 25, 40, 60, 100], budgets)
    right = [num_correct(confidences, correct, thresholds) for thresholds in fitted]
    # Up to noise of 5 in 5000 images, because the expected correctness is maximised.
    assert all(later >= earlier - 5 for earlier, later in itertools.pairwise(right))
    assert right[-1] > right[0] + 1000


def every_policy(confidences: Tensor) -> list[Tensor]:
    """All thresholds with different exit assignments."""
    levels = [[*row.unique().tolist(), INF] for row in confidences[:-1]]
    return [torch.tensor([*chosen, -INF]) for chosen in itertools.product(*levels)]


@pytest.mark.parametrize("seed", range(30))
def test_joint_rule_is_within_one_image_in_six_of_the_best_thresholds(seed: int) -> None:
    confidences, correct = make_outputs(6, [0.0, 0.6, 1.2], seed)
    costs = [1.0, 2.0, 4.0]
    policies = every_policy(confidences)
    # Ten copies of each image: an advantage of one image in six is not significant.
    confidences, correct = (each.repeat_interleave(10, dim=1) for each in (confidences, correct))
    for budget in (1.0, 1.5, 2.0, 3.0, 4.0):
        best = max(
            num_correct(confidences, correct, policy)
            for policy in policies
            if exact_mean_cost(confidences, costs, policy) <= budget
        )
        fitted = fit_thresholds(confidences, correct, costs, budget)
        assert num_correct(confidences, correct, fitted) >= best - 10


def test_insignificant_advantage_falls_back_to_the_geometric_rule() -> None:
    # The same exit outputs, once as 60 images and once as 3,000.
    def advantage(copies: int) -> int:
        confidences, correct = make_outputs(60, [0.5, 0.6, 0.7], seed=4)
        confidences = confidences.repeat_interleave(copies, dim=1)
        correct = correct.repeat_interleave(copies, dim=1)
        joint, geometric = (
            fit_thresholds(confidences, correct, [1, 2, 4], 2.2, rule=rule)
            for rule in ("joint", "geometric")
        )
        right = (num_correct(confidences, correct, each) for each in (joint, geometric))
        return next(right) - next(right)

    assert advantage(copies=1) == 0
    assert advantage(copies=50) > 0


def test_joint_rule_finds_the_only_perfect_thresholds() -> None:
    # Exit 1 is correct on the confident half, exit 2 never, exit 3 always.
    confidences = torch.linspace(1, 0, 40).repeat(3, 1)
    correct = torch.tensor([[True] * 20 + [False] * 20, [False] * 40, [True] * 40])
    fitted = fit_thresholds(confidences, correct, [1, 5, 10], 5.5)
    assert assign_exits(confidences, fitted).tolist() == [0] * 20 + [2] * 20
    assert fitted[1] == INF


def test_joint_rule_skips_a_harmful_exit_where_the_geometric_rule_cannot() -> None:
    confidences, correct = make_outputs(4000, [0.3, 1.0, 0.0, 1.5])
    half = slice(0, 2000), slice(2000, None)
    fit, held_out = ((confidences[:, part], correct[:, part]) for part in half)
    costs = [10, 30, 60, 100]
    scores = {}
    for rule in ("joint", "geometric"):
        thresholds = fit_thresholds(*fit, costs, 60, rule=rule)
        scores[rule] = score_budget(*held_out, costs, thresholds)
    assert scores["joint"].shares[2] < 0.01
    assert scores["joint"].top1 > scores["geometric"].top1 + 3
    assert scores["joint"].mean_cost == pytest.approx(60, rel=0.03)


def test_joint_rule_does_not_overfit_few_images() -> None:
    confidences, correct = make_outputs(6000, [0.3, 0.7, 1.0, 1.3, 1.5])
    costs = [10, 25, 40, 60, 100]
    budgets = [20, 40, 70, 100]
    gain = []
    for start in range(0, 900, 150):
        fit = slice(start, start + 150)
        held_out = confidences[:, 1500:], correct[:, 1500:]
        top1 = {}
        for rule in ("joint", "geometric"):
            fitted = fit_budgets(confidences[:, fit], correct[:, fit], costs, budgets, rule=rule)
            top1[rule] = [score_budget(*held_out, costs, t).top1 for t in fitted]
        gain.append(torch.tensor(top1["joint"]) - torch.tensor(top1["geometric"]))
    assert torch.stack(gain).mean() > -0.3


def test_geometric_shares_decrease_by_one_factor_and_use_the_budget() -> None:
    confidences = torch.stack(
        [torch.rand(8000, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    )
    correct = torch.ones_like(confidences, dtype=torch.bool)
    # Shares 4/7, 2/7, 1/7 (q = 1/2) cost exactly this.
    budget = (4 * 7 + 2 * 14 + 1 * 21) / 7
    thresholds = fit_thresholds(confidences, correct, [7, 14, 21], budget, rule="geometric")
    score = score_budget(confidences, correct, [7, 14, 21], thresholds)
    assert score.shares == pytest.approx((4 / 7, 2 / 7, 1 / 7), abs=1e-3)
    assert score.mean_cost == pytest.approx(budget, rel=1e-3)


@settings(max_examples=15)
@given(problem=problems(), seed=st.integers(0, 100))
def test_exit_assignment_is_independent_of_image_order_and_confidence_scale(
    problem, seed: int
) -> None:
    confidences, correct, costs, budgets = problem
    fitted = fit_budgets(confidences, correct, costs, budgets)
    order = torch.randperm(confidences.shape[1], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        fit_budgets(confidences[:, order], correct[:, order], costs, budgets), fitted
    )
    scaled = fit_budgets(8 * confidences, correct, costs, budgets)
    for ours, theirs in zip(fitted, scaled, strict=True):
        assert torch.equal(assign_exits(confidences, ours), assign_exits(8 * confidences, theirs))


def test_thresholds_are_returned_in_the_order_of_the_budgets() -> None:
    confidences, correct = make_outputs(300, [0.0, 0.6, 1.2])
    budgets = torch.tensor([4.0, 1.0, 2.0, 4.0])
    fitted = fit_budgets(confidences, correct, torch.tensor([1, 2, 4]), budgets)
    costs = [score_budget(confidences, correct, [1, 2, 4], t).mean_cost for t in fitted]
    assert costs[1] == 1.0
    assert costs[1] < costs[2] <= 2.0 < costs[0]
    assert torch.equal(fitted[0], fitted[3])
    one = fit_thresholds(confidences, correct, [1, 2, 4], 1.0)
    assert torch.equal(one, torch.tensor([-INF, INF, -INF]))
    assert fit_budgets(confidences, correct, [1, 2, 4], []).shape == (0, 3)


def test_infinite_budget_is_at_least_as_accurate_as_the_last_exit() -> None:
    confidences, correct = make_outputs(500, [0.3, 1.4, 1.2])
    fitted = fit_thresholds(confidences, correct, [1, 2, 4], INF)
    assert num_correct(confidences, correct, fitted) >= int(correct[-1].sum())


def test_single_exit_takes_all_images() -> None:
    fitted = fit_thresholds(torch.tensor([[0.3, 0.4]]), torch.tensor([[True, False]]), [5], 5)
    assert fitted.tolist() == [-INF]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_thresholds_have_the_type_of_the_confidences_and_keep_the_budget(
    dtype: torch.dtype,
) -> None:
    confidences, correct = make_outputs(400, [0.0, 0.6, 1.2])
    confidences = confidences.to(dtype)
    fitted = fit_thresholds(confidences, correct, [1.0, 2.0, 4.0], 2.5)
    assert fitted.dtype == dtype
    assert exact_mean_cost(confidences, [1.0, 2.0, 4.0], fitted) <= 2.5


def test_thresholds_are_midpoints_between_leaving_and_staying_images() -> None:
    confidences, correct = make_outputs(300, [0.0, 0.6, 1.2])
    fitted = fit_thresholds(confidences, correct, [1, 2, 4], 2.5)
    arrived = torch.ones(300, dtype=torch.bool)
    for k in range(2):
        leaving = arrived & (confidences[k] >= fitted[k])
        arrived &= ~leaving
        lowest, highest = confidences[k, leaving].min(), confidences[k, arrived].max()
        assert fitted[k] == pytest.approx(((lowest + highest) / 2).item())


GOOD = torch.tensor([[0.5, 0.6], [0.7, 0.8]])
RIGHT = torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(
    ("confidences", "correct", "costs", "budget", "message"),
    [
        (GOOD, RIGHT[:, :1], [1, 2], 2, r"correct must be bool of the shape"),
        (GOOD, RIGHT.float(), [1, 2], 2, r"correct must be bool of the shape"),
        (GOOD[0], RIGHT[0], [1, 2], 2, r"shape \(exits, images\)"),
        (GOOD.int(), RIGHT, [1, 2], 2, r"confidences must be floating point"),
        (GOOD[:, :0], RIGHT[:, :0], [1, 2], 2, r"at least one exit and one image"),
        (GOOD[:0], RIGHT[:0], [], 2, r"at least one exit and one image"),
        (GOOD / 0, RIGHT, [1, 2], 2, r"confidences must be finite, got 4 entries"),
        (GOOD * math.nan, RIGHT, [1, 2], 2, r"confidences must be finite, got 4 entries"),
        (GOOD, RIGHT, [1, 2, 3], 2, r"one entry for each of the 2 exits .* got shape \(3,\)"),
        (GOOD, RIGHT, [0, 2], 2, r"above 0 and never decrease .* got \[0.0, 2.0\]"),
        (GOOD, RIGHT, [2, 1], 2, r"never decrease"),
        (GOOD, RIGHT, [1, INF], 2, r"costs must be finite"),
        (GOOD, RIGHT, [1, math.nan], 2, r"costs must be finite"),
        (GOOD, RIGHT, [1.5, 2], 1.4, r"at least the first exit's cost, 1.5, got 1.4"),
        (GOOD, RIGHT, [1, 2], math.nan, r"at least the first exit's cost, 1.0, got nan"),
    ],
)
def test_invalid_argument_is_rejected(confidences, correct, costs, budget, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(confidences, correct, costs, budget)


def test_unknown_rule_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"rule must be joint or geometric, got 'best'"):
        fit_thresholds(GOOD, RIGHT, [1, 2], 2, rule="best")  # pyright: ignore[reportArgumentType]
