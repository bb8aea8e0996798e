"""Fit exit thresholds to a compute budget on held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ranet.inference.thresholds import check_exit_scores

Rule = Literal["joint", "geometric"]
"""joint: optimise all thresholds for accuracy; geometric: share of exit k proportional to q^k."""

_RIDGE = 1.0  # of the regression on standardised features; equals the weight of one image
_PRIOR_IMAGES = 5000  # number of images at which observed and predicted correctness weigh the same
_CORNER_GAP = 0.01  # share of the budget; hull corners closer than this are not refined
_STEPS_BETWEEN = 16  # interpolation steps between two corners
_BISECTIONS = 18  # of log q in [-20, 20]: resolves one image in 50,000


def fit_thresholds(
    confidences: Tensor,
    correct: Tensor,
    costs: Sequence[float] | Tensor,
    budget: float,
    *,
    rule: Rule = "joint",
) -> Tensor:
    """Fit the thresholds (exits,) of one budget; see `fit_budgets`."""
    return fit_budgets(confidences, correct, costs, [budget], rule=rule)[0]


def fit_budgets(
    confidences: Tensor,
    correct: Tensor,
    costs: Sequence[float] | Tensor,
    budgets: Sequence[float] | Tensor,
    *,
    rule: Rule = "joint",
) -> Tensor:
    """Fit the thresholds (budgets, exits) of several budgets, for use in `assign_exits`.

    The mean cost of the fitting images never exceeds the budget; this comparison is exact. The
    joint rule classifies at least as many fitting images correctly as the geometric rule, and, if
    the budget covers the cost of the last exit, as the last exit. The exit assignment depends only
    on the ranks of the confidences, not on their scale or on the order of the images.

    Args:
        confidences: (exits, images), finite; any score that increases with certainty.
        correct: (exits, images), bool; true if the exit predicts the label.
        costs: (exits,) cumulative cost of an image that leaves at the exit, above 0 and never
            decreasing; for example mult-adds or milliseconds.
        budgets: mean cost per image, in the unit of the costs, in any order.
        rule: joint, or geometric for the heuristic of the authors' code.

    Returns:
        Thresholds with the type and device of the confidences. Plus infinity: no image leaves at
        the exit; minus infinity: all remaining images leave, as at the last exit.

    Raises:
        ValueError: an argument is invalid, or a budget is below the cost of the first exit.
    """
    checked_costs = check_exit_scores(confidences, correct, costs)
    first_cost, last_cost = checked_costs[0].item(), checked_costs[-1].item()
    for budget in map(float, budgets):
        if not budget >= first_cost:
            raise ValueError(
                f"budget must be at least the first exit's cost, {first_cost!r}, "
                f"got {budget!r}: every image runs the first exit"
            )
    limits = [min(float(budget), last_cost) for budget in budgets]
    if rule not in ("joint", "geometric"):
        raise ValueError(f"rule must be joint or geometric, got {rule!r}")
    search = _Search(confidences.cpu(), correct.cpu(), checked_costs)
    fit = search.joint if rule == "joint" else search.geometric
    fitted = fit(sorted(set(limits)))
    thresholds = {budget: search.thresholds(policy) for budget, policy in fitted.items()}
    if not limits:
        return confidences.new_empty((0, len(checked_costs)))
    return torch.stack([thresholds[budget] for budget in limits]).to(confidences.device)


@dataclass(frozen=True)
class _Policy:
    """Exit policy given by rank cuts, with its fitting results."""

    cuts: tuple[int, ...]
    """For each exit but the last: an image leaves if its rank is at most this value."""
    value: float
    """Mean over the images of `_Search.values` at their exits."""
    cost: float
    """Mean cost per image, as a float."""
    num_correct: int
    """Images classified correctly."""
    total_cost: Fraction
    """Exact sum of the costs of all images."""


class _Search:
    """Search for policies on one set of fitting images."""

    def __init__(self, confidences: Tensor, correct: Tensor, costs: Tensor) -> None:
        # A canonical order of the images makes rounding independent of their input order.
        fixed = torch.arange(confidences.shape[1])
        for row in (*correct.to(torch.uint8), *confidences):
            fixed = fixed[row[fixed].argsort(stable=True)]
        confidences, correct = confidences[:, fixed], correct[:, fixed]
        self.num_exits, self.num_images = confidences.shape
        self.confidences, self.correct, self.costs = confidences, correct, costs
        self.exact_costs = [Fraction(cost) for cost in costs.tolist()]
        ascending = confidences.sort(dim=1).values
        # Rank of an image: number of images with at least its confidence; ties share a rank.
        self.ranks = self.num_images - torch.searchsorted(ascending, confidences)
        self.order = confidences.argsort(dim=1, descending=True, stable=True)
        ranks_in_order = self.ranks.gather(1, self.order)
        self.inside_tie = ranks_in_order != torch.arange(1, self.num_images + 1)
        # Prior: more expensive exits are more accurate, up to a difference that this number of
        # images cannot resolve. Otherwise a chance advantage would leave part of a budget unused.
        prior = (costs / costs[-1])[:, None] / self.num_images**0.5
        self.values = _expected_correct(self.ranks / self.num_images, correct) + prior

    def exits(self, cuts: Sequence[int]) -> Tensor:
        """Return the exit of each image, counted from 0."""
        exits = torch.full((self.num_images,), self.num_exits - 1)
        for k in reversed(range(self.num_exits - 1)):
            exits.masked_fill_(self.ranks[k] <= cuts[k], k)
        return exits

    def policy(self, cuts: Sequence[int]) -> _Policy:
        """Evaluate cuts on the fitting images."""
        exits = self.exits(cuts)
        counts = exits.bincount(minlength=self.num_exits).tolist()
        total_cost = sum(
            (count * cost for count, cost in zip(counts, self.exact_costs, strict=True)),
            Fraction(0),
        )
        return _Policy(
            cuts=tuple(cuts),
            value=self.values.gather(0, exits[None]).mean().item(),
            cost=float(total_cost / self.num_images),
            num_correct=int(self.correct.gather(0, exits[None]).sum()),
            total_cost=total_cost,
        )

    def all_at(self, k: int) -> _Policy:
        """Return the policy by which all images leave at exit k."""
        return self.policy([self.num_images if j == k else 0 for j in range(self.num_exits - 1)])

    def fits(self, policy: _Policy, budget: float) -> bool:
        """Return whether the exact mean cost is at most the budget."""
        return policy.total_cost <= Fraction(budget) * self.num_images

    def thresholds(self, policy: _Policy) -> Tensor:
        """Convert cuts to thresholds midway between leaving and staying images."""
        thresholds = self.confidences.new_full((self.num_exits,), torch.inf)
        thresholds[-1] = -torch.inf
        arrived = torch.ones(self.num_images, dtype=torch.bool)
        for k, cut in enumerate(policy.cuts):
            leaving = arrived & (self.ranks[k] <= cut)
            arrived = arrived & ~leaving
            if leaving.any():
                lowest = self.confidences[k, leaving].min()
                if not arrived.any():
                    thresholds[k] = -torch.inf
                    break
                highest = self.confidences[k, arrived].max()
                middle = lowest / 2 + highest / 2
                # Two adjacent floats have no midpoint.
                thresholds[k] = middle if middle > highest else lowest
        return thresholds

    def geometric(self, budgets: Sequence[float]) -> dict[float, _Policy]:
        """Fit geometric policies: shares proportional to q^k, the largest affordable q."""
        fitted = {}
        best, start = self.all_at(0), -20.0
        for budget in budgets:  # ascending, so each search starts at the result of the previous one
            low, high = start, 20.0
            for _ in range(_BISECTIONS):
                log_q = (low + high) / 2
                policy = self.policy(self._geometric_cuts(log_q))
                if self.fits(policy, budget):
                    low, best = log_q, policy
                else:
                    high = log_q
            fitted[budget], start = best, low
        return fitted

    def _geometric_cuts(self, log_q: float) -> list[int]:
        shares = (log_q * torch.arange(self.num_exits, dtype=torch.float64)).softmax(0)
        cuts = []
        arrived = torch.ones(self.num_images, dtype=torch.bool)
        for k, wanted in enumerate((shares * self.num_images).long().tolist()[:-1]):
            candidates = arrived.index_select(0, self.order[k]).cumsum(0)
            # Differs from the authors' code only in ties: all images of equal confidence leave.
            taken = 0 < wanted <= candidates[-1]
            last = self.order[k, torch.searchsorted(candidates, wanted)] if taken else None
            cuts.append(0 if last is None else int(self.ranks[k, last]))
            arrived &= self.ranks[k] > cuts[k]
        return cuts

    def joint(self, budgets: Sequence[float]) -> dict[float, _Policy]:
        """Fit joint policies: the highest value within each budget over all cuts."""
        geometric = self.geometric(budgets)
        single_exits = [self.all_at(k) for k in range(self.num_exits)]
        found = [*single_exits, self._ascend(0.0, single_exits[-1])]
        fitted = {}
        for budget in budgets:
            between = self._refine(found, budget)
            candidates = [geometric[budget], *between, *found]
            # The value overfits less than the number of correct predictions. But a policy must
            # not be worse than the geometric rule, which does not use the labels.
            best = max(
                (
                    policy
                    for policy in candidates
                    if self.fits(policy, budget)
                    and policy.num_correct >= geometric[budget].num_correct
                ),
                key=lambda policy: (policy.value, -policy.total_cost, policy.cuts),
            )
            found.append(best)
            fitted[budget] = best if self._is_better(best, geometric[budget]) else geometric[budget]
        return fitted

    def _is_better(self, policy: _Policy, other: _Policy) -> bool:
        """Return whether a policy is better by one standard error.

        The standard error of the difference is the square root of the number of images that
        exactly one of both policies classifies correctly. The difference is reduced by one image
        (McNemar's test with Edwards' correction).
        """
        hits, other_hits = (
            self.correct.gather(0, self.exits(each.cuts)[None])[0] for each in (policy, other)
        )
        return policy.num_correct - other.num_correct - 1 >= int((hits != other_hits).sum()) ** 0.5

    def _refine(self, found: list[_Policy], budget: float) -> list[_Policy]:
        """Add the hull corners around the budget to `found`; return interpolated policies.

        The policies that maximise value - price * cost for some price are the corners of the
        upper hull of value over cost. The price at which two corners have the same objective
        yields the corner between both corners, if one exists.
        """
        while True:
            corners = _hull(found)
            above = next((i for i, p in enumerate(corners) if not self.fits(p, budget)), None)
            if above is None:
                return []
            low, high = corners[above - 1], corners[above]
            if high.cost - low.cost <= _CORNER_GAP * budget:
                break
            price = (high.value - low.value) / (high.cost - low.cost)
            new = max(
                (self._ascend(price, start) for start in (low, high)),
                key=lambda policy: policy.value - price * policy.cost,
            )
            if new.value - price * new.cost <= low.value - price * low.cost + 1e-9:
                break
            found.append(new)
        steps = [step / _STEPS_BETWEEN for step in range(1, _STEPS_BETWEEN)]
        return [
            self.policy(
                [round(a + step * (b - a)) for a, b in zip(low.cuts, high.cuts, strict=True)]
            )
            for step in steps
        ]

    def _ascend(self, price: float, start: _Policy) -> _Policy:
        """Maximise value - price * cost by coordinate ascent over exits."""
        gains = self.values - price * self.costs[:, None]
        cuts = list(start.cuts)
        objective = -torch.inf
        while True:
            arrived = [torch.ones(self.num_images, dtype=torch.bool)]
            for k, cut in enumerate(cuts[:-1]):
                arrived.append(arrived[k] & (self.ranks[k] > cut))
            continuing = gains[-1].clone()
            for k in reversed(range(self.num_exits - 1)):
                # Gain of leaving over continuing, summed in order of decreasing confidence: the
                # best cut is at the maximum of the sum.
                better = torch.where(arrived[k], gains[k] - continuing, 0.0)
                better = better.index_select(0, self.order[k]).cumsum(0)
                better[self.inside_tie[k]] = -torch.inf
                best = int(better.argmax())
                cuts[k] = best + 1 if better[best] > 1e-9 else 0
                continuing = torch.where(self.ranks[k] <= cuts[k], gains[k], continuing)
            reached = continuing.mean().item()
            if reached <= objective + 1e-9:
                return self.policy(cuts)
            objective = reached


def _hull(policies: Sequence[_Policy]) -> list[_Policy]:
    """Corners of the upper hull of value over cost, by ascending cost."""
    corners: list[_Policy] = []
    for policy in sorted(policies, key=lambda policy: (policy.total_cost, -policy.value)):
        if corners and policy.value <= corners[-1].value:
            continue
        while len(corners) > 1 and (policy.value - corners[-1].value) * (
            corners[-1].cost - corners[-2].cost
        ) >= (corners[-1].value - corners[-2].value) * (policy.cost - corners[-1].cost):
            corners.pop()
        corners.append(policy)
    return corners


def _expected_correct(ranks: Tensor, correct: Tensor) -> Tensor:
    """Estimate each exit's probability of being correct from ranks.

    These ranks alone determine which images leave at an exit, so the expected correctness of a
    policy is the same with this estimate as with the observed correctness, but less noisy. The
    estimate is a ridge regression on rank and squared rank. With more images, the observed
    correctness gets a higher weight, because its noise decreases.
    """
    features = torch.stack([ranks, ranks.square()], dim=1).double()
    features = features - features.mean(dim=-1, keepdim=True)
    deviation = features.square().mean(dim=-1, keepdim=True).sqrt()
    features = (features / deviation.clamp(min=1e-6)).flatten(0, 1)
    observed_weight = correct.shape[1] / (correct.shape[1] + _PRIOR_IMAGES)
    expected = []
    for k, observed in enumerate(correct.double()):
        known = features[: 2 * (k + 1)]
        gram = known @ known.T + _RIDGE * torch.eye(len(known), dtype=torch.float64)
        weights = torch.linalg.solve(gram, known @ (observed - observed.mean()))
        predicted = observed.mean() + weights @ known
        expected.append(torch.lerp(predicted, observed, observed_weight))
    return torch.stack(expected)
