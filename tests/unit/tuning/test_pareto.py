"""Fronts, hypervolumes and gaps: known ones, and any against their definitions."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.pareto import Direction, Gap, gaps, hypervolume, pareto_front

NUM_LEVELS = 5
objectives = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        st.lists(st.tuples(*[st.integers(0, NUM_LEVELS - 1)] * count), max_size=8),
        st.tuples(*[st.sampled_from(["minimize", "maximize"])] * count),
    )
)
"""Points on a small grid, so that ties and equal points are common; and directions."""


def is_no_worse(one, other, directions: tuple[Direction, ...]) -> bool:
    return all(
        a <= b if direction == "minimize" else a >= b
        for a, b, direction in zip(one, other, directions, strict=True)
    )


def test_of_cost_and_accuracy_those_stay_that_nothing_cheaper_or_equal_matches():
    points = [(10, 90.0), (20, 92.0), (20, 91.0), (30, 92.0), (40, 95.0), (5, 60.0), (50, 94.9)]
    assert pareto_front(points, ("minimize", "maximize")) == (0, 1, 4, 5)


def test_equal_points_stay_together():
    assert pareto_front([(1, 2), (1, 2), (2, 2)], ("minimize", "minimize")) == (0, 1)


def test_of_one_objective_the_best_stay():
    assert pareto_front([(3,), (5,), (5,), (1,)], ("maximize",)) == (1, 2)


def test_no_points_have_no_front_no_volume_and_no_gaps():
    assert pareto_front([], ("minimize", "maximize")) == ()
    assert hypervolume([], ("minimize", "maximize"), (1, 0)) == 0
    assert gaps([]) == []


@given(objectives)
def test_the_front_is_what_no_other_point_beats(case):
    points, directions = case
    expected = tuple(
        place
        for place, point in enumerate(points)
        if not any(other != point and is_no_worse(other, point, directions) for other in points)
    )
    assert pareto_front(points, directions) == expected


def test_the_volume_of_two_steps_is_that_of_their_rectangles():
    # From cost 40 down and accuracy 50 up: 30 x 10 for the first, 20 x 30 more for the second.
    assert (
        hypervolume([(10, 60), (20, 90)], ("minimize", "maximize"), (40, 50)) == 30 * 10 + 20 * 30
    )


def test_a_point_beyond_the_reference_adds_nothing():
    points = [(10, 60)]
    far = [(50, 99), (40, 80), (1, 50)]
    volume = hypervolume(points, ("minimize", "maximize"), (40, 50))
    assert hypervolume(points + far, ("minimize", "maximize"), (40, 50)) == volume


@given(objectives)
def test_the_volume_counts_the_cells_that_a_point_is_better_than(case):
    points, directions = case
    reference = tuple(NUM_LEVELS if each == "minimize" else -1 for each in directions)
    # A cell by its worst corner, one step from the reference or more: it is covered by points
    # that are no worse than its best corner.
    cells = product(*(
        range(NUM_LEVELS) if each == "minimize" else range(NUM_LEVELS - 1, -1, -1)
        for each in directions
    ))  # fmt: skip
    covered = sum(any(is_no_worse(p, cell, directions) for p in points) for cell in cells)
    assert hypervolume(points, directions, reference) == covered


@pytest.mark.parametrize("point", [(1.0, math.nan), (1.0,), (1.0, 2.0, 3.0)])
def test_what_is_not_a_number_for_each_objective_is_refused(point):
    points = [(1.0, 2.0), point]
    with pytest.raises(ValueError, match="one number for each of 2 objectives, got"):
        pareto_front(points, ("minimize", "maximize"))
    with pytest.raises(ValueError, match="one number for each of 2 objectives, got"):
        hypervolume(points, ("minimize", "maximize"), (9, 0))


def test_an_infinite_volume_is_refused():
    with pytest.raises(ValueError, match="finite numbers"):
        hypervolume([(-math.inf, 1)], ("minimize", "maximize"), (9, 0))


def test_the_widest_gap_is_where_one_point_could_add_most():
    beaten = (26.0, 60.0)
    assert gaps([(10.0, 60.0), (50.0, 92.0), (18.0, 80.0), beaten, (18.0, 80.0)]) == [
        Gap((18.0, 80.0), (50.0, 92.0), share=0.3),
        Gap((10.0, 60.0), (18.0, 80.0), share=0.125),
    ]


def test_a_single_point_has_no_gap():
    assert gaps([(10.0, 60.0), (12.0, 60.0)]) == []
