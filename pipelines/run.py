"""Every setting of a run, read from a YAML file and the command line."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import yaml

from cluster.cli import read_settings
from cluster.config import ClusterConfig, RegistryConfig, check_name
from pipelines.data.config import DataConfig
from ranet.config import ModelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation of a trained network."""

    budget_fractions: tuple[float, ...] = (0.25, 0.33, 0.5, 0.75, 1.0)
    """Budgets to report and to compare versions by, as fractions of the last exit's mult-adds."""

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
            raise ValueError(f"evaluation.budget_fractions must rise, got {self.budget_fractions}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, from images to a registered model."""

    name: str = "cifar10"
    """Name of the run; a second start goes on with an unfinished run, or repeats a finished one."""
    fresh: bool = False
    """Give up an unfinished run of this name and start anew."""
    dry_run: bool = False
    """Only say what the run would take and lack, with status 0 if it would start."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and how they are read."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the network is trained."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers and storage."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Budgets that the network is evaluated at."""
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    """Where the model is registered."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.train.batch_size < self.cluster.max_workers:
            raise ValueError(
                f"train.batch_size must be at least cluster.num_workers "
                f"({self.cluster.max_workers}), got {self.train.batch_size}: "
                "it counts the images of all workers"
            )
        for size in self.train.progressive_sizes:
            try:
                replace(self.model, image_size=size)
            except ValueError as error:
                raise ValueError(
                    f"train.progressive_sizes has {size}, which this network cannot take: {error}"
                ) from error
        if self.train.progressive_sizes and self.data.augment.crop == "pad4":
            raise ValueError(
                "train.progressive_sizes needs data.augment.crop random_resized or none, got pad4, which cuts "
                "windows of model.image_size"
            )
        weights = self.train.loss.exit_weights
        if weights and len(weights) != self.model.num_exits:
            raise ValueError(
                f"train.loss.exit_weights must have one entry per exit, {self.model.num_exits}, "
                f"got {len(weights)}: {weights}"
            )


def read_run(argv: Sequence[str] | None = None) -> Run:
    """Read a run from `--config FILE` and `--section.field=value`, or leave with status 2.

    Args:
        argv: the command line without the name of the script; by default that of this process.
    """
    return read_settings(Run, argv)


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return every setting by its dotted name; strings as they are, others as JSON."""
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
    """Return the settings that a resumed run must share; the number of workers is none of them."""
    free = {"fresh", "dry_run", *(f"cluster.{entry.name}" for entry in fields(run.cluster))}
    return {
        key: value
        for key, value in flatten(run).items()
        if key == "cluster.storage_path" or key not in free
    }


def config_text(run: Run) -> str:
    """Return the run as YAML that `--config` reads."""
    settings = asdict(run)
    for order in ("fresh", "dry_run"):  # for one start, no property of the run
        del settings[order]
    # By way of JSON, tuples become lists, which YAML knows.
    return yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False)
