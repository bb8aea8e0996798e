"""Thresholds for a compute budget: who leaves at which exit, fitted on held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ranet.inference.thresholds import check_scores

Rule = Literal["joint", "geometric"]
"""joint: all thresholds together, for accuracy; geometric: exit k gets a share like q^k."""

_RIDGE = 1.0  # on standardised features: the weight of one image
_PRIOR_IMAGES = 5000  # as many images count half by their answers, half by the regression
_CORNER_GAP = 0.01  # of the budget: corners of the hull this close are not refined further
_STEPS_BETWEEN = 16  # policies tried between two corners
_BISECTIONS = 18  # of log q, from -20 to 20: finer than one image in 50,000


def fit_thresholds(
    confidences: Tensor,
    correct: Tensor,
    costs: Sequence[float] | Tensor,
    budget: float,
    *,
    rule: Rule = "joint",
) -> Tensor:
    """Fit the confidence thresholds (exits,) of one budget; see `fit_budgets`."""
    return fit_budgets(confidences, correct, costs, [budget], rule=rule)[0]


def fit_budgets(
    confidences: Tensor,
    correct: Tensor,
    costs: Sequence[float] | Tensor,
    budgets: Sequence[float] | Tensor,
    *,
    rule: Rule = "joint",
) -> Tensor:
    """Fit the confidence thresholds (budgets, exits) of many budgets, for use by `assign_exits`.

    The mean cost on the fitting images never exceeds the budget, exactly, and the joint rule
    gets no fewer of them right than the geometric rule; with a budget of the last exit's cost
    or more, no fewer than the last exit. Who leaves where depends neither on the order of the
    images nor on the scale of the confidences, only on their ranks.

    Args:
        confidences: (exits, samples), finite; any score that rises with trust will do.
        correct: (exits, samples), bool: whether the exit's answer is right.
        costs: (exits,) cumulative cost of an image that leaves at the exit, above 0 and not
            falling: mult-adds, milliseconds, ...
        budgets: mean cost per image, in the unit of the costs, in any order.
        rule: joint, or geometric for the rule of thumb of published code.

    Returns:
        Thresholds in the type of the confidences and on their device: plus infinity where
        nobody leaves, minus infinity where everybody does, as at the last exit.

    Raises:
        ValueError: for input of the wrong form, or a budget below the first exit's cost.
    """
    checked_costs = check_scores(confidences, correct, costs)
    cheapest, dearest = checked_costs[0].item(), checked_costs[-1].item()
    for budget in map(float, budgets):
        if not budget >= cheapest:
            raise ValueError(
                f"budget must be at least the first exit's cost, {cheapest!r}, "
                f"got {budget!r}: every image pays for the first exit"
            )
    limits = [min(float(budget), dearest) for budget in budgets]
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
    """Who leaves where, and what that gives on the fitting images."""

    cuts: tuple[int, ...]
    """Per exit but the last: an image leaves if its place there is at most this."""
    value: float
    """Mean of `_Search.values`."""
    cost: float
    """Mean cost, rounded."""
    num_correct: int
    total_cost: Fraction
    """Cost of all images together, exact."""


class _Search:
    """One set of fitting images, sorted once, and the searches for policies on it."""

    def __init__(self, confidences: Tensor, correct: Tensor, costs: Tensor) -> None:
        # In one fixed order of the images, sums round alike whatever order they came in.
        fixed = torch.arange(confidences.shape[1])
        for row in (*correct.to(torch.uint8), *confidences):
            fixed = fixed[row[fixed].argsort(stable=True)]
        confidences, correct = confidences[:, fixed], correct[:, fixed]
        self.num_exits, self.num_samples = confidences.shape
        self.confidences, self.correct, self.costs = confidences, correct, costs
        self.exact_costs = [Fraction(cost) for cost in costs.tolist()]
        ascending = confidences.sort(dim=1).values
        # Place of an image: how many are at least as confident. Equal confidences share one.
        self.places = self.num_samples - torch.searchsorted(ascending, confidences)
        self.order = confidences.argsort(dim=1, descending=True, stable=True)
        places_in_order = self.places.gather(1, self.order)
        self.inside_tie = places_in_order != torch.arange(1, self.num_samples + 1)
        # Exits that cost more are believed to be better, as far as so few images could not
        # tell: else a spare budget would be left unspent for a lead that is mere luck.
        belief = (costs / costs[-1])[:, None] / self.num_samples**0.5
        self.values = _expected_correct(self.places / self.num_samples, correct) + belief

    def exits(self, cuts: Sequence[int]) -> Tensor:
        """Give the exit of each image, counted from 0."""
        exits = torch.full((self.num_samples,), self.num_exits - 1)
        for k in reversed(range(self.num_exits - 1)):
            exits.masked_fill_(self.places[k] <= cuts[k], k)
        return exits

    def policy(self, cuts: Sequence[int]) -> _Policy:
        """Measure cuts on the fitting images."""
        exits = self.exits(cuts)
        counts = exits.bincount(minlength=self.num_exits).tolist()
        total_cost = sum(
            (count * cost for count, cost in zip(counts, self.exact_costs, strict=True)),
            Fraction(0),
        )
        return _Policy(
            cuts=tuple(cuts),
            value=self.values.gather(0, exits[None]).mean().item(),
            cost=float(total_cost / self.num_samples),
            num_correct=int(self.correct.gather(0, exits[None]).sum()),
            total_cost=total_cost,
        )

    def all_at(self, k: int) -> _Policy:
        """Send every image to exit k."""
        return self.policy([self.num_samples if j == k else 0 for j in range(self.num_exits - 1)])

    def fits(self, policy: _Policy, budget: float) -> bool:
        """Whether the mean cost is at most the budget, without rounding."""
        return policy.total_cost <= Fraction(budget) * self.num_samples

    def thresholds(self, policy: _Policy) -> Tensor:
        """Turn cuts into thresholds, halfway between those who leave and those who stay."""
        thresholds = self.confidences.new_full((self.num_exits,), torch.inf)
        thresholds[-1] = -torch.inf
        arrived = torch.ones(self.num_samples, dtype=torch.bool)
        for k, cut in enumerate(policy.cuts):
            leaving = arrived & (self.places[k] <= cut)
            arrived = arrived & ~leaving
            if leaving.any():
                lowest = self.confidences[k, leaving].min()
                if not arrived.any():
                    thresholds[k] = -torch.inf
                    break
                highest = self.confidences[k, arrived].max()
                middle = lowest / 2 + highest / 2
                # Neighbouring floats have no middle.
                thresholds[k] = middle if middle > highest else lowest
        return thresholds

    def geometric(self, budgets: Sequence[float]) -> dict[float, _Policy]:
        """Give exit k a share proportional to q^k, with the largest q within the budget."""
        fitted = {}
        best, start = self.all_at(0), -20.0
        for budget in budgets:  # rising, so each search starts where the last one ended
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
        arrived = torch.ones(self.num_samples, dtype=torch.bool)
        for k, wanted in enumerate((shares * self.num_samples).long().tolist()[:-1]):
            candidates = arrived.index_select(0, self.order[k]).cumsum(0)
            # Differs from published code in nothing but the tie: all of equal confidence leave.
            taken = 0 < wanted <= candidates[-1]
            last = self.order[k, torch.searchsorted(candidates, wanted)] if taken else None
            cuts.append(0 if last is None else int(self.places[k, last]))
            arrived &= self.places[k] > cuts[k]
        return cuts

    def joint(self, budgets: Sequence[float]) -> dict[float, _Policy]:
        """Maximise the value within each budget, over all cuts together."""
        geometric = self.geometric(budgets)
        singles = [self.all_at(k) for k in range(self.num_exits)]
        found = [*singles, self._ascend(0.0, singles[-1])]
        fitted = {}
        for budget in budgets:
            between = self._refine(found, budget)
            candidates = [geometric[budget], *between, *found]
            # Value overfits less than the count of right answers, but must not lose to a rule
            # that never saw the answers.
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
            fitted[budget] = best if self._leads(best, geometric[budget]) else geometric[budget]
        return fitted

    def _leads(self, policy: _Policy, rival: _Policy) -> bool:
        """Tell whether a policy gets more images right than a rival, by a standard error or more.

        The error of the lead is the root of the number of images that only one of them gets
        right; one image is taken off the lead (McNemar's test with Edwards' correction).
        """
        own, other = (
            self.correct.gather(0, self.exits(each.cuts)[None])[0] for each in (policy, rival)
        )
        return policy.num_correct - rival.num_correct - 1 >= int((own != other).sum()) ** 0.5

    def _refine(self, found: list[_Policy], budget: float) -> list[_Policy]:
        """Add to `found` the best policies around the budget; give some that lie between them.

        The policies that are best at some price per unit of cost are the corners of the upper
        hull of value against cost. The price that two corners agree on finds the corner between
        them, if there is one.
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
        """Improve value - price * cost, one exit at a time, last to first, until nothing gains."""
        gains = self.values - price * self.costs[:, None]
        cuts = list(start.cuts)
        objective = -torch.inf
        while True:
            arrived = [torch.ones(self.num_samples, dtype=torch.bool)]
            for k, cut in enumerate(cuts[:-1]):
                arrived.append(arrived[k] & (self.places[k] > cut))
            onward = gains[-1].clone()
            for k in reversed(range(self.num_exits - 1)):
                # How much better it is to leave here than to go on, summed from the most
                # confident image downwards: the best cut is where the sum is largest.
                better = torch.where(arrived[k], gains[k] - onward, 0.0)
                better = better.index_select(0, self.order[k]).cumsum(0)
                better[self.inside_tie[k]] = -torch.inf
                best = int(better.argmax())
                cuts[k] = best + 1 if better[best] > 1e-9 else 0
                onward = torch.where(self.places[k] <= cuts[k], gains[k], onward)
            reached = onward.mean().item()
            if reached <= objective + 1e-9:
                return self.policy(cuts)
            objective = reached


def _hull(policies: Sequence[_Policy]) -> list[_Policy]:
    """Give the corners of the upper hull of value against cost, from the cheapest to the best."""
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


def _expected_correct(places: Tensor, correct: Tensor) -> Tensor:
    """Estimate the chance that each exit is right from the places at it and all before it.

    Whether an image leaves at an exit depends on these places alone, so that a policy is worth
    the same by this chance as by the answers themselves, without the noise of the answers. The
    estimate is a ridge regression on place and squared place; the more images there are, the
    more the answers count themselves, so that it cannot mislead where there is no noise to fear.
    """
    features = torch.stack([places, places.square()], dim=1).double()
    features = features - features.mean(dim=-1, keepdim=True)
    deviation = features.square().mean(dim=-1, keepdim=True).sqrt()
    features = (features / deviation.clamp(min=1e-6)).flatten(0, 1)
    trust = correct.shape[1] / (correct.shape[1] + _PRIOR_IMAGES)
    expected = []
    for k, answers in enumerate(correct.double()):
        known = features[: 2 * (k + 1)]
        gram = known @ known.T + _RIDGE * torch.eye(len(known), dtype=torch.float64)
        weights = torch.linalg.solve(gram, known @ (answers - answers.mean()))
        preflight = answers.mean() + weights @ known
        expected.append(torch.lerp(preflight, answers, trust))
    return torch.stack(expected)
