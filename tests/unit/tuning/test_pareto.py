"""Pareto fronts and gaps: known cases, and any case against the definition."""

import math

import pytest
from hypothesis import given

from tests.support.grid_points import is_no_worse, objectives
from tuning.pareto import Gap, gaps, pareto_front


def test_pareto_front_keeps_non_dominated_points():
    points = [(10, 90.0), (20, 92.0), (20, 91.0), (30, 92.0), (40, 95.0), (5, 60.0), (50, 94.9)]
    assert pareto_front(points, ("minimize", "maximize")) == (0, 1, 4, 5)


def test_equal_points_are_all_on_the_front():
    assert pareto_front([(1, 2), (1, 2), (2, 2)], ("minimize", "minimize")) == (0, 1)


def test_front_of_one_objective_is_the_best_points():
    assert pareto_front([(3,), (5,), (5,), (1,)], ("maximize",)) == (1, 2)


def test_empty_set_has_no_front_and_no_gaps():
    assert pareto_front([], ("minimize", "maximize")) == ()
    assert gaps([]) == []


@given(objectives)
def test_front_matches_the_definition_of_dominance(case):
    points, directions = case
    expected = tuple(
        place
        for place, point in enumerate(points)
        if not any(other != point and is_no_worse(other, point, directions) for other in points)
    )
    assert pareto_front(points, directions) == expected


@pytest.mark.parametrize("point", [(1.0, math.nan), (1.0,), (1.0, 2.0, 3.0)])
def test_front_of_points_without_one_number_per_objective_raises_an_error(point):
    points = [(1.0, 2.0), point]
    with pytest.raises(ValueError, match="one number for each of 2 objectives, got"):
        pareto_front(points, ("minimize", "maximize"))


def test_largest_gap_is_where_one_point_could_add_most():
    beaten = (26.0, 60.0)
    assert gaps([(10.0, 60.0), (50.0, 92.0), (18.0, 80.0), beaten, (18.0, 80.0)]) == [
        Gap((18.0, 80.0), (50.0, 92.0), share=0.3),
        Gap((10.0, 60.0), (18.0, 80.0), share=0.125),
    ]


def test_single_point_has_no_gap():
    assert gaps([(10.0, 60.0), (12.0, 60.0)]) == []
