"""Configuration of a run, parsed from YAML and the command line."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import yaml

from cluster.cli import read_settings
from cluster.config import ClusterConfig, RegistryConfig, check_name
from cluster.paths import with_portable_paths
from pipelines.data.config import DataConfig
from ranet.config import ModelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation of a trained network."""

    budget_fractions: tuple[float, ...] = (0.25, 0.33, 0.5, 0.75, 1.0)
    """Budgets that are reported and that compare versions of a model, as fractions of the last
    exit's
    mult-adds: above 0, at most 1, ascending, in steps of 0.01."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget_fractions", tuple(self.budget_fractions))
        if not self.budget_fractions or any(
            not 0 < budget <= 1 or not math.isclose(budget, round(budget, 2), abs_tol=1e-9)
            for budget in self.budget_fractions
        ):
            raise ValueError(
                "evaluation.budget_fractions must be above 0 and up to 1 in steps of 0.01, "
                f"got {self.budget_fractions}"
            )
        if self.budget_fractions != tuple(sorted(set(self.budget_fractions))):
            raise ValueError(
                "evaluation.budget_fractions must be in ascending order, got "
                f"{self.budget_fractions}"
            )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Training run, from images to a registered model."""

    name: str = "cifar10"
    """Name of the run. Re-running resumes an unfinished run, or starts a new attempt of a finished
    one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images, their preparation and their augmentation."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training of the network."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers and storage."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation of the trained network."""
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    """Registration of the model in MLflow."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.train.batch_size < self.cluster.max_workers:
            raise ValueError(
                f"train.batch_size must be at least cluster.num_workers "
                f"({self.cluster.max_workers}), got {self.train.batch_size}: "
                "it is the number of images of all workers per step"
            )
        for size in self.train.progressive_sizes:
            try:
                replace(self.model, image_size=size)
            except ValueError as error:
                raise ValueError(
                    f"train.progressive_sizes contains {size}, which this network cannot process: "
                    f"{error}"
                ) from error
        if self.train.progressive_sizes and self.data.augment.crop == "pad4":
            raise ValueError(
                "train.progressive_sizes needs data.augment.crop random_resized or none, got pad4, "
                "which crops to model.image_size"
            )
        weights = self.train.loss.exit_weights
        if weights and len(weights) != self.model.num_exits:
            raise ValueError(
                f"train.loss.exit_weights must have one entry per exit, {self.model.num_exits}, "
                f"got {len(weights)}: {weights}"
            )


def read_run(argv: Sequence[str] | None = None) -> Run:
    """Parse a run from the command line, or exit with status 2.

    Args:
        argv: Command line without the name of the script; None: the command line of this process.
    """
    return read_settings(Run, argv)


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return all settings by dotted name: strings unchanged, other values as JSON."""
    flat: dict[str, str] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        key = f"{prefix}{entry.name}"
        if is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def identity(run: Run) -> dict[str, str]:
    """Return the settings that must not change when a run resumes.

    Settings of `cluster` may change, except the location of the checkpoints. Paths below the
    working folder are relative: a job runs in another folder each time it is submitted.
    """
    return {
        key: value
        for key, value in flatten(with_portable_paths(run)).items()
        if key == "cluster.storage_path" or not key.startswith("cluster.")
    }


def config_text(run: Run) -> str:
    """Serialize a run as YAML for `--config`, with paths relative to the working folder."""
    # YAML has no tuples; JSON turns them into lists.
    settings = json.loads(json.dumps(asdict(with_portable_paths(run))))
    return yaml.safe_dump(settings, sort_keys=False)
