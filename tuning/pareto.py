"""Which results no other one beats, and where they lie far apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Direction = Literal["minimize", "maximize"]
"""Whether less or more of an objective is better."""


def pareto_front(
    points: Sequence[Sequence[float]], directions: Sequence[Direction]
) -> tuple[int, ...]:
    """Return the places of the points that no other beats, in the order of the points.

    A point beats another that it is no worse than in every objective and better than in one, so
    equal points leave each other on the front.

    Args:
        points: values of the objectives of each point.
        directions: of each objective.

    Raises:
        ValueError: a point has not one value per objective, or one that is not a number.
    """
    losses = losses_of(points, directions)
    # In rising order a point can only be beaten by one before it: by one of the front so far.
    front: list[int] = []
    for place in sorted(range(len(losses)), key=losses.__getitem__):
        if not any(_beats(losses[other], losses[place]) for other in front):
            front.append(place)
    return tuple(sorted(front))


@dataclass(frozen=True)
class Gap:
    """Two neighbours on a front of cost and accuracy, and the room between them."""

    cheaper: tuple[float, float]
    """Cost and accuracy."""
    dearer: tuple[float, float]
    share: float
    """Of the rectangle that the whole front spans, what one better point in between could add."""


def gaps(points: Sequence[tuple[float, float]]) -> list[Gap]:
    """Return the gaps of the front of (cost, accuracy) points, the widest first.

    A point between two neighbours can add at most the rectangle that they span, so where that is
    large the front is thin: little is known of what the costs between them could give.

    Raises:
        ValueError: as `pareto_front`.
    """
    front = sorted({points[place] for place in pareto_front(points, ("minimize", "maximize"))})
    whole = (front[-1][0] - front[0][0]) * (front[-1][1] - front[0][1]) if front else 0.0
    found = [
        Gap(cheaper, dearer, (dearer[0] - cheaper[0]) * (dearer[1] - cheaper[1]) / whole)
        for cheaper, dearer in pairwise(front)
    ]
    return sorted(found, key=lambda gap: -gap.share)


def losses_of(
    points: Sequence[Sequence[float]], directions: Sequence[Direction]
) -> list[tuple[float, ...]]:
    """Turn every objective into one of which less is better."""
    signs = [{"minimize": 1.0, "maximize": -1.0}[direction] for direction in directions]
    losses = []
    for point in points:
        if len(point) != len(signs) or any(math.isnan(value) for value in point):
            raise ValueError(
                f"a point must have one number for each of {len(signs)} objectives, got {point}"
            )
        losses.append(tuple(sign * value for sign, value in zip(signs, point, strict=True)))
    return losses


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
