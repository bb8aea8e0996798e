"""Cluster descriptions, and configurations that run on these clusters."""

import yaml

from cluster.cli import parse_settings
from pipelines.run import Run
from tests.unit.test_project import ROOT
from tuning.config import Sweep
from tuning.space import as_arguments

IMAGENET_BYTES = 1_331_167 * 58_000
"""Size of the ImageNet files that each node copies: a JPEG 90 of 421 px has 43 KB
(docs/results.md),
scaled here by area to the default of 500 px."""


def kuberay(name):
    return yaml.safe_load(
        (ROOT / "cluster" / "provisioning" / "kuberay" / f"{name}.yaml").read_text()
    )


def read_config(name):
    return parse_settings(Run, ["--config", str(ROOT / "configs" / f"{name}.yaml")])


def read_sweep(name):
    """Base configuration of a sweep's trials."""
    sweep = parse_settings(Sweep, ["--config", str(ROOT / "configs" / f"{name}.yaml")])
    return parse_settings(
        Run, ["--config", str(ROOT / sweep.base_config), *as_arguments(sweep.overrides)]
    )


def groups_of(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
