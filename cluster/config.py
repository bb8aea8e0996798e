"""Settings of the workers, of the place of their checkpoints, and of the registry."""

import os
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a run asks of Ray; the defaults suit one small machine."""

    num_workers: int | tuple[int, int] = 2
    """Processes that train together, each on its part of every batch. As [least, most]: as many of
    them as the cluster has room for, fewer when nodes are lost and more when they come back."""
    cpus_per_worker: int = 1
    """CPU cores of one worker: its torch threads and its data threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: gpus_per_worker for each worker; auto: gpu where Ray has enough now, otherwise cpu."""
    gpus_per_worker: float = 1.0
    """GPUs of a worker, where it has any; a part of one, such as 0.25, for a run of one worker with
    a small network, so that several runs share a GPU."""
    storage_path: str = "outputs/runs"
    """Folder of the checkpoints, seen by every node: a path, or an address such as s3://bucket/runs."""
    cache_dir: str = "~/.cache/ranet"
    """Folder on every node's own disk for copies of prepared images that lie in S3."""
    cache_max_bytes: int = 0
    """Bytes that a node's copies may take together; 0: what the disk holds."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; each one also holds the best weights so far."""
    max_consecutive_failures: int = 3
    """Failures in a row, lost nodes among them, after which workers are started again; a report
    from the workers in between, and the count begins anew."""
    start_timeout_seconds: float = 900.0
    """How long a run may be without workers, at its start or after a loss, in seconds; after that
    it fails."""
    elastic_check_seconds: float = 60.0
    """How often to look whether there is room for more workers, in seconds. They all start again
    then, from the last checkpoint."""

    @property
    def min_workers(self) -> int:
        """Fewest workers that the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Workers where the cluster has room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def __post_init__(self) -> None:
        if isinstance(self.num_workers, int):
            bounds = (self.num_workers, self.num_workers)
        else:  # a YAML file and JSON give a list
            bounds = tuple(self.num_workers)
            object.__setattr__(self, "num_workers", bounds)
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(
                "cluster.num_workers must be 1 or more, or [least, most] of such, "
                f"got {self.num_workers}"
            )
        for name in ("cpus_per_worker", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.{name} must be 1 or more, got {getattr(self, name)}")
        if self.device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"cluster.device must be auto, cpu or gpu, got {self.device!r}")
        if self.gpus_per_worker != 1 and not (0 < self.gpus_per_worker < 1 == self.max_workers):
            raise ValueError(
                "cluster.gpus_per_worker must be 1, or a part of 1 where cluster.num_workers is 1 "
                f"(workers that train together cannot share a GPU), got {self.gpus_per_worker} "
                f"with {self.max_workers} workers"
            )
        if not self.storage_path:
            raise ValueError("cluster.storage_path must name a folder, got an empty string")
        _check_storage(self.storage_path)
        for name in ("max_consecutive_failures", "cache_max_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"cluster.{name} must be 0 or more, got {getattr(self, name)}")
        if not self.cache_dir:
            raise ValueError("cluster.cache_dir must name a folder, got an empty string")
        for name in ("start_timeout_seconds", "elastic_check_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cluster.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """MLflow's model registry."""

    model_name: str = "ranet"
    """Registered name of the model; its versions compete for the alias champion."""

    def __post_init__(self) -> None:
        if not self.model_name.strip() or any(mark in self.model_name for mark in "/:'\""):
            raise ValueError(
                "registry.model_name must be a name without slashes, colons and quotes, "
                f"got {self.model_name!r}"
            )


def check_name(name: str, setting: str = "name") -> None:
    """Refuse a name of a run or sweep that is no name of a folder, or no word in MLflow's filters.

    Raises:
        ValueError: it is none; the message names the setting.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{setting} must be letters, digits, dots, dashes and underscores, at most 100, "
            f"got {name!r}"
        )


def _check_storage(storage: str) -> None:
    """Refuse a storage that leads elsewhere than it says, or has keys in it: it is kept and shown.

    Raises:
        ValueError: without the keys.
    """
    if "://" not in storage:
        return
    place, _, options = storage.partition("?")
    if "@" in place or re.search("key|secret|token|password", options, re.IGNORECASE):
        raise ValueError(
            "cluster.storage_path has a key or a password in it, and MLflow, checkpoints and logs keep "
            "it: leave it out; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment, or "
            "the role of the nodes, are used"
        )
    if {".", ".."} & set(place.split("/")):
        raise ValueError(
            f"cluster.storage_path must have no . or .. between its slashes, got {storage}"
        )


def in_submitted_job() -> bool:
    """Say whether this is the script of a `ray job submit`, whose folder is thrown away."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
