"""Which results no other one beats, how much they cover, and where they lie far apart."""

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
    losses = _losses(points, directions)
    # In rising order a point can only be beaten by one before it: by one of the front so far.
    front: list[int] = []
    for place in sorted(range(len(losses)), key=losses.__getitem__):
        if not any(_beats(losses[other], losses[place]) for other in front):
            front.append(place)
    return tuple(sorted(front))


def hypervolume(
    points: Sequence[Sequence[float]],
    directions: Sequence[Direction],
    reference: Sequence[float],
) -> float:
    """Return the volume between the points and a reference that is worse: exact.

    What lies beyond the reference in any objective counts nothing. The time grows with the number
    of points to the power of the number of objectives: meant for the results of sweeps.

    Args:
        points: values of the objectives of each point, finite.
        directions: of each objective.
        reference: value of each objective that is just not worth anything.

    Raises:
        ValueError: as `pareto_front`, or a number is infinite.
    """
    (worst,) = _losses([reference], directions)
    losses = _losses(points, directions)
    if not all(math.isfinite(value) for row in (worst, *losses) for value in row):
        raise ValueError(
            f"hypervolume needs finite numbers, got reference {list(reference)} and points "
            f"{[list(point) for point in points]}"
        )
    inside = {row for row in losses if all(a < b for a, b in zip(row, worst, strict=True))}
    return _volume(sorted(inside, key=lambda row: row[-1]), worst)


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


def _losses(
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


def _volume(losses: Sequence[tuple[float, ...]], worst: tuple[float, ...]) -> float:
    """Add up slices across the last objective, by which the losses are in rising order."""
    if not losses:
        return 0.0
    if len(worst) == 1:
        return worst[0] - losses[0][0]
    total = 0.0
    ends = [*(row[-1] for row in losses[1:]), worst[-1]]
    for count, (row, end) in enumerate(zip(losses, ends, strict=True), start=1):
        if end > row[-1]:
            below = sorted((other[:-1] for other in losses[:count]), key=lambda part: part[-1])
            total += (end - row[-1]) * _volume(below, worst[:-1])
    return total
