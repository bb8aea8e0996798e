"""Cluster descriptions, and configurations that run on these clusters."""

import torch
import yaml

from cluster.cli import parse_settings
from pipelines.preflight import checkpoint_bytes
from pipelines.run import Run
from ranet import RANet
from tests.unit.test_project import ROOT
from tuning.config import Sweep
from tuning.space import as_arguments

IMAGENET_BYTES = 1_331_167 * 58_000
"""Size of the ImageNet files that each node copies: a JPEG 90 of 421 px has 43 KB
(docs/results.md),
scaled here by area to the default of 500 px."""

RAY_SECONDS = 5
"""Interval at which Ray Train's controller asks which nodes are draining."""
SLOW_UPLOAD_BYTES_PER_SECOND = 50e6
"""Rate at which a checkpoint must still be saved in time; docs/scaling.md assumes 250 MB/s."""


def largest_checkpoint_bytes():
    """Size of a checkpoint of the largest network among the configurations."""
    runs = [read_config(path.stem) for path in (ROOT / "configs").glob("*.yaml")]
    with torch.device("meta"):
        return max(checkpoint_bytes(run.train, RANet(run.model)) for run in runs)


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
