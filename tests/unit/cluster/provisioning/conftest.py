"""Cluster file of the project."""

import pytest
import yaml

from tests.unit.test_project import ROOT


@pytest.fixture
def aws():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
