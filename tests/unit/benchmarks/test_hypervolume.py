"""Hypervolumes: known cases, and any case against the definition."""

import math
from itertools import product

import pytest
from hypothesis import given

from benchmarks.hypervolume import hypervolume
from tests.support.grid_points import NUM_LEVELS, is_no_worse, objectives


def test_empty_set_has_no_hypervolume():
    assert hypervolume([], ("minimize", "maximize"), (1, 0)) == 0


def test_hypervolume_of_two_points_is_the_area_of_their_rectangles():
    # From cost 40 down and accuracy 50 up: 30 x 10 for the first, 20 x 30 more for the second.
    assert (
        hypervolume([(10, 60), (20, 90)], ("minimize", "maximize"), (40, 50)) == 30 * 10 + 20 * 30
    )


def test_point_beyond_the_reference_adds_no_hypervolume():
    points = [(10, 60)]
    far = [(50, 99), (40, 80), (1, 50)]
    volume = hypervolume(points, ("minimize", "maximize"), (40, 50))
    assert hypervolume(points + far, ("minimize", "maximize"), (40, 50)) == volume


@given(objectives)
def test_hypervolume_counts_the_dominated_cells(case):
    points, directions = case
    reference = tuple(NUM_LEVELS if each == "minimize" else -1 for each in directions)
    # A cell is named by its worst corner, at least one step from the reference. Points that are
    # no worse than its best corner dominate it.
    cells = product(*(
        range(NUM_LEVELS) if each == "minimize" else range(NUM_LEVELS - 1, -1, -1)
        for each in directions
    ))  # fmt: skip
    covered = sum(any(is_no_worse(p, cell, directions) for p in points) for cell in cells)
    assert hypervolume(points, directions, reference) == covered


def test_infinite_hypervolume_raises_an_error():
    with pytest.raises(ValueError, match="finite numbers"):
        hypervolume([(-math.inf, 1)], ("minimize", "maximize"), (9, 0))


@pytest.mark.parametrize("point", [(1.0, math.nan), (1.0,), (1.0, 2.0, 3.0)])
def test_hypervolume_of_points_without_one_number_per_objective_raises_an_error(point):
    points = [(1.0, 2.0), point]
    with pytest.raises(ValueError, match="one number for each of 2 objectives, got"):
        hypervolume(points, ("minimize", "maximize"), (9, 0))
