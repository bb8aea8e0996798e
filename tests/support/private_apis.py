"""Check that private APIs of a dependency exist."""

import importlib
from types import ModuleType

import pytest


def require_module(module: str, problem: str) -> ModuleType:
    """Import a module; fail with `problem` if it is gone."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        pytest.fail(problem)


def require_attribute(module: str, name: str, problem: str) -> None:
    """Check that a module has a dotted name, or fail with `problem`."""
    found = require_module(module, problem)
    for part in name.split("."):
        assert hasattr(found, part), problem
        found = getattr(found, part)
