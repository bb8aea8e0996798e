"""Exact hypervolume of the results of a sweep."""

import math
from collections.abc import Sequence

from tuning.pareto import Direction, losses_of


def hypervolume(
    points: Sequence[Sequence[float]],
    directions: Sequence[Direction],
    reference: Sequence[float],
) -> float:
    """Return the volume dominated by the points, up to a reference point.

    Points beyond the reference in any objective do not count. The time grows with the number of
    points to the power of the number of objectives, which suits the results of a sweep.

    Args:
        points: values of the objectives of each point, finite.
        directions: direction of each objective.
        reference: worst value of each objective.

    Raises:
        ValueError: as for `pareto_front`, or a number is infinite.
    """
    (worst,) = losses_of([reference], directions)
    losses = losses_of(points, directions)
    if not all(math.isfinite(value) for row in (worst, *losses) for value in row):
        raise ValueError(
            f"hypervolume needs finite numbers, got reference {list(reference)} and points "
            f"{[list(point) for point in points]}"
        )
    inside = {row for row in losses if all(a < b for a, b in zip(row, worst, strict=True))}
    return _volume(sorted(inside, key=lambda row: row[-1]), worst)


def _volume(losses: Sequence[tuple[float, ...]], worst: tuple[float, ...]) -> float:
    """Add up slices along the last objective, by which `losses` is sorted."""
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
