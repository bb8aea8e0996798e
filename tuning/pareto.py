"""Pareto front, and the largest gaps on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Direction = Literal["minimize", "maximize"]
"""Direction of an objective, as Optuna names it."""


def pareto_front(
    points: Sequence[Sequence[float]], directions: Sequence[Direction]
) -> tuple[int, ...]:
    """Return the indices of the non-dominated points, ascending.

    A point dominates another if it is no worse in every objective and better in at least one, so
    equal points do not dominate each other.

    Args:
        points: values of the objectives of each point.
        directions: direction of each objective.

    Raises:
        ValueError: a point does not have one number per objective, or a number is nan.
    """
    losses = losses_of(points, directions)
    # In ascending order a point can only be dominated by a point of the front so far.
    front: list[int] = []
    for index in sorted(range(len(losses)), key=losses.__getitem__):
        if not any(_dominates(losses[other], losses[index]) for other in front):
            front.append(index)
    return tuple(sorted(front))


@dataclass(frozen=True)
class Gap:
    """Gap between two neighbours on a front of cost and accuracy."""

    cheaper: tuple[float, float]
    """Cost and accuracy of the cheaper neighbour."""
    costlier: tuple[float, float]
    """Cost and accuracy of the costlier neighbour."""
    share: float
    """Area of the rectangle between the neighbours, as a fraction of the whole front's rectangle.
    One point between the neighbours could add at most this area."""


def gaps(points: Sequence[tuple[float, float]]) -> list[Gap]:
    """Return the gaps on the front of (cost, accuracy) points, largest first.

    Raises:
        ValueError: as for `pareto_front`.
    """
    front = sorted({points[index] for index in pareto_front(points, ("minimize", "maximize"))})
    whole = (front[-1][0] - front[0][0]) * (front[-1][1] - front[0][1]) if front else 0.0
    found = [
        Gap(cheaper, costlier, (costlier[0] - cheaper[0]) * (costlier[1] - cheaper[1]) / whole)
        for cheaper, costlier in pairwise(front)
    ]
    return sorted(found, key=lambda gap: -gap.share)


def losses_of(
    points: Sequence[Sequence[float]], directions: Sequence[Direction]
) -> list[tuple[float, ...]]:
    """Negate maximized objectives, so that less is better in each.

    Raises:
        ValueError: a point does not have one number per objective, or a number is nan.
    """
    signs = [{"minimize": 1.0, "maximize": -1.0}[direction] for direction in directions]
    losses = []
    for point in points:
        if len(point) != len(signs) or any(math.isnan(value) for value in point):
            raise ValueError(
                f"a point must have one number for each of {len(signs)} objectives, got {point}"
            )
        losses.append(tuple(sign * value for sign, value in zip(signs, point, strict=True)))
    return losses


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
