"""Jobs on the cluster of several hosts."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.local.cluster import LocalCluster
from cluster.local.services import BUCKET
from tests.support.training import CONFIG, PROJECT, runs, steps

STORAGE = f"s3://{BUCKET}/runs"
IMAGES = f"s3://{BUCKET}/digits"
"""Prepared images of all jobs that read them from S3."""


def check_copies(cluster: LocalCluster) -> None:
    """Check that each training host has one copy of the images."""
    homes = Path(cluster.folder) / "home"
    copies = sorted(path.relative_to(homes).parts[0] for path in homes.glob("*/**/train.beton"))
    assert copies == ["host1", "host2"]


def check_nothing_is_held(cluster: LocalCluster) -> None:
    """Check that ended runs hold no resources of the cluster."""
    deadline = time.monotonic() + 30
    while held := [
        place for place in cluster.ray_state("placement_groups") if place["state"] != "REMOVED"
    ]:
        assert time.monotonic() < deadline, held
        time.sleep(0.5)


def from_a_page(server: str, origin: str, **more: Any) -> int:
    """Return the status of MLflow's search for runs from a page's origin."""
    return requests.post(
        f"{server}/ajax-api/2.0/mlflow/runs/search", json={"experiment_ids": ["0"]},
        headers={"Origin": origin}, timeout=20, **more,
    ).status_code  # fmt: skip


class Job:
    """A submitted `pipelines/train.py`, or another command."""

    def __init__(
        self,
        cluster: LocalCluster,
        folder: Path,
        name: str,
        *arguments: str,
        tracking_uri: str | None = None,
        command: Sequence[str] = (),
    ) -> None:
        config = folder / "config.yaml"
        config.write_text(CONFIG)
        command = command or (
            "python", "pipelines/train.py", "--config", str(config), f"--name={name}",
            f"--cluster.storage_path={STORAGE}", f"--data.prepared_dir={folder}/digits", *arguments,
        )  # fmt: skip
        self.name = name
        self.cluster = cluster
        self._client = JobSubmissionClient(
            cluster.environment["RAY_API_SERVER_ADDRESS"], headers=cluster.ray_headers
        )
        self.tracking_uri = tracking_uri or cluster.environment["MLFLOW_TRACKING_URI"]
        self.id = self._client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": str(PROJECT),
                "env_vars": {"MLFLOW_TRACKING_URI": self.tracking_uri},
                "excludes": ["/tests", "/outputs", "/data", "/mlruns", "/docs"],
            },
        )  # fmt: skip

    def status(self) -> JobStatus:
        return self._client.get_job_status(self.id)

    def output(self) -> str:
        return self._client.get_job_logs(self.id)

    def details(self) -> Any:
        """Return Ray's public information about the job."""
        return self._client.get_job_info(self.id)

    def stop(self) -> None:
        """Stop the job, as `ray job stop` does."""
        self._client.stop_job(self.id)

    def wait(self, timeout: float = 200) -> JobStatus:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while not (status := self.status()).is_terminal():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.3)
        return status

    def wait_until(self, condition: Callable[[], Any], timeout: float = 180) -> Any:
        """Wait for a condition while the job runs; return its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert not self.status().is_terminal(), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)
        return value

    def run(self) -> Any:
        """The one MLflow run of its name."""
        [run] = [run for run in runs(self.tracking) if run.data.tags.get("ranet.name") == self.name]
        return run

    @property
    def tracking(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def epochs(self, metric: str = "val/exit1/top1") -> Sequence[int]:
        """Epochs that MLflow knows, doubled ones twice."""
        found = [r for r in runs(self.tracking) if r.data.tags.get("ranet.name") == self.name]
        return steps(self.tracking, found[0].info.run_id, metric) if found else []
