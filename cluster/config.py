"""Settings of workers, checkpoint storage, image cache and model registry."""

import os
import re
from dataclasses import dataclass
from typing import Literal

from cluster.paths import path_field
from ranet.checks import check_choices, check_range


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Resources and storage of a run; the defaults suit one small machine."""

    num_workers: int | tuple[int, int] = 2
    """Number of workers, each a process with its share of every batch; [min, max] for elastic
    training: the number follows the capacity of the cluster."""
    cpus_per_worker: int = 1
    """CPU cores of each worker, used for its torch threads and its data loading threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of the workers; auto: gpu if the cluster has enough GPUs at the start, else cpu."""
    gpus_per_worker: float = 1.0
    """GPUs of each worker if the device is gpu. A fraction such as 0.25 lets several runs share a
    GPU; fractions require a single worker."""
    storage_path: str = path_field("outputs/runs")
    """Checkpoint folder, accessible from every node: a path, or a URI (s3://bucket/runs)."""
    cache_dir: str = path_field("~/.cache/ranet", "node")
    """Folder on the local disk of each node that caches prepared images from S3."""
    cache_max_bytes: int = 0
    """Size limit of the image cache of each node, in bytes. 0: limited by the disk only."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep; each also contains the best weights so far."""
    max_consecutive_failures: int = 3
    """Consecutive failures, including lost nodes, after which the workers are still restarted; the
    next failure ends the run. Every report of the workers resets the count."""
    start_timeout_seconds: float = 900.0
    """Timeout for a run without workers, at its start or after a failure, in seconds; the run fails
    afterwards."""
    max_hours: float = 0.0
    """Limit on the hours of an invocation or trial, from the request of its workers; training then
    stops with a checkpoint, and the same command resumes the run. 0: no limit."""
    elastic_check_seconds: float = 60.0
    """Interval between checks for capacity for more workers, in seconds. All workers restart from
    the last checkpoint when workers are added."""

    @property
    def min_workers(self) -> int:
        """Minimum number of workers of the run."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Maximum number of workers of the run."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def __post_init__(self) -> None:
        if isinstance(self.num_workers, int):
            bounds = (self.num_workers, self.num_workers)
        else:  # a YAML file and JSON give a list
            bounds = tuple(self.num_workers)
            object.__setattr__(self, "num_workers", bounds)
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(
                "cluster.num_workers must be 1 or more, or [min, max] with 1 <= min <= max, "
                f"got {self.num_workers}"
            )
        check_choices(self, "cluster")
        check_range(
            self,
            "cluster",
            cpus_per_worker=(1, None),
            cache_max_bytes=(0, None),
            max_hours=(0, None),
            keep_checkpoints=(1, None),
            max_consecutive_failures=(0, None),
        )
        if self.gpus_per_worker != 1 and not (0 < self.gpus_per_worker < 1 == self.max_workers):
            raise ValueError(
                "cluster.gpus_per_worker must be 1, or a fraction if cluster.num_workers is 1 "
                f"(workers of the same run cannot share a GPU), got {self.gpus_per_worker} "
                f"with {self.max_workers} workers"
            )
        if not self.storage_path:
            raise ValueError("cluster.storage_path must name a folder, got an empty string")
        _check_storage(self.storage_path)
        if not self.cache_dir:
            raise ValueError("cluster.cache_dir must name a folder, got an empty string")
        for name in ("start_timeout_seconds", "elastic_check_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cluster.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Settings of the MLflow model registry."""

    model_name: str = "ranet"
    """Name of the registered model; the alias champion marks its best version."""

    def __post_init__(self) -> None:
        if not self.model_name.strip() or any(mark in self.model_name for mark in "/:'\""):
            raise ValueError(
                "registry.model_name must not be empty or contain slashes, colons or quotes, "
                f"got {self.model_name!r}"
            )


def check_name(name: str, setting: str = "name") -> None:
    """Check that a name suits folders and MLflow filter strings.

    Args:
        name: name of a run or sweep.
        setting: name of the setting, for the message.

    Raises:
        ValueError: the name is empty, too long or contains other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{setting} must consist of letters, digits, dots, dashes and underscores, start with "
            "a "
            f"letter or digit and have at most 100 characters, got {name!r}"
        )


def _check_storage(storage: str) -> None:
    """Check that a storage URI has no credentials and relative segments.

    Raises:
        ValueError: the URI contains either; the message does not repeat credentials.
    """
    if "://" not in storage:
        return
    location, _, options = storage.partition("?")
    if "@" in location.split("/")[2] or re.search(
        "key|secret|token|password", options, re.IGNORECASE
    ):
        raise ValueError(
            "cluster.storage_path contains a key or a password, which would be stored in MLflow, "
            "checkpoints and logs; remove it and use the environment variables AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY or the role of the nodes"
        )
    if {".", ".."} & set(location.split("/")):
        raise ValueError(
            f"cluster.storage_path must not contain . or .. as a path segment, got {storage}"
        )


def in_submitted_job() -> bool:
    """Return whether this process is a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
