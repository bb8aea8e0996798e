"""Fixtures for tests of sweeps."""

from tests.support.sweep_fixtures import database, small_ray

__all__ = ["database", "small_ray"]
