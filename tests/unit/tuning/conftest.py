"""Fixtures for tests of sweeps."""

from tests.support.sweep_fixtures import database, parent, small_ray

__all__ = ["database", "parent", "small_ray"]
