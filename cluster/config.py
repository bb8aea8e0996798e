"""Settings of the workers and of the place where they keep their checkpoints."""

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a run asks of Ray; the defaults suit one small machine."""

    num_workers: int = 2
    """Processes that train together; each takes an equal part of every batch."""
    cpus_per_worker: int = 1
    """CPU cores of one worker: its torch threads and its data threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one for each worker; auto: gpu where Ray has enough of them now, otherwise cpu."""
    storage: str = "outputs/runs"
    """Folder of the checkpoints, seen by every node: a path, or an address such as s3://bucket/runs."""
    cache_folder: str = "~/.cache/ranet"
    """Folder on every node's own disk for copies of prepared images that lie in S3."""
    cache_bytes: int = 0
    """Bytes that a node's copies may take together; 0: what the disk holds."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; each one also holds the best weights so far."""
    max_failures: int = 0
    """Times that lost or failed workers are started again within one run."""
    start_timeout_seconds: float = 120.0
    """How long to wait for the resources of all workers, in seconds; after that the run fails."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.{name} must be 1 or more, got {getattr(self, name)}")
        if self.device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"cluster.device must be auto, cpu or gpu, got {self.device!r}")
        if not self.storage:
            raise ValueError("cluster.storage must name a folder, got an empty string")
        for name in ("max_failures", "cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"cluster.{name} must be 0 or more, got {getattr(self, name)}")
        if not self.cache_folder:
            raise ValueError("cluster.cache_folder must name a folder, got an empty string")
        if not self.start_timeout_seconds > 0:
            raise ValueError(
                f"cluster.start_timeout_seconds must be above 0, got {self.start_timeout_seconds}"
            )


def in_submitted_job() -> bool:
    """Say whether this is the script of a `ray job submit`, whose folder is thrown away."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
