"""Processes of a pipeline, started as by a user."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from mlflow import MlflowClient

from cluster.local.processes import kill_marked, marked_processes, ray_folder
from tests.support.paths import PROJECT
from tests.support.sqlite import empty_database

CONFIG = """
name: small
model:
  scales: [1, 2]
  growth_factors: [2, 1]
  bottleneck_factors: [2, 1]
  growth_rate: 4
  stem_channels: 8
  layers_per_block: 2
  num_blocks: 1
  extra_blocks: 1
  exit_channels: 16
  image_size: 16
data: {source: digits, prepared_dir: data/digits, loader: memory, augment: {flip: false}}
train:
  epochs: 6
  optim: {schedule: cosine}
cluster: {num_workers: 1}
registry: {model_name: small}
evaluation: {budget_fractions: [0.8, 1.0]}
"""


WORKER_NICENESS = "RAY_worker_niceness"
"""Ray's default for its workers is 15, at which tests in other processes would starve them."""


def user_environment() -> dict[str, str]:
    """Return this environment without the tests' settings of Ray and MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return kept | {WORKER_NICENESS: "0"}


class TrainingProcess:
    """Process of a pipeline with its own folder and Ray cluster."""

    def __init__(
        self,
        folder: Path,
        ray_folder: str,
        *arguments: str,
        script: str = "train.py",
        config: str = "config.yaml",
        **environment: str,
    ) -> None:
        (folder / "config.yaml").write_text(CONFIG)
        if not (folder / "mlflow.db").exists():
            (folder / "mlflow.db").write_bytes(empty_database())
        self.folder = folder
        self.ray_folder = ray_folder
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, PROJECT / "pipelines" / script, "--config", config, *arguments],
                cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**user_environment(), "RAY_TMPDIR": self.ray_folder, **environment},
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text()

    def wait(self, timeout: float = 240) -> int:
        return self.process.wait(timeout)

    def wait_until(self, condition: Callable[[], Any], timeout: float = 240) -> Any:
        """Wait for a condition while the training runs; return its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return value

    def family(self) -> list[psutil.Process]:
        return marked_processes("RAY_TMPDIR", self.ray_folder)

    def left(self) -> list[psutil.Process]:
        """Those of them that do not end within half a minute."""
        return psutil.wait_procs(self.family(), timeout=30)[1]

    def worker(self) -> psutil.Process:
        return next(each for each in self.family() if "RayTrainWorker" in " ".join(each.cmdline()))


@contextmanager
def training(folder: Path, *arguments: str, **environment: str) -> Iterator[TrainingProcess]:
    """Start a pipeline, and leave nothing of it behind."""
    with ray_folder() as for_ray:
        started = TrainingProcess(folder, for_ray, *arguments, **environment)
        try:
            yield started
        finally:
            kill_marked("RAY_TMPDIR", for_ray)
            started.process.wait(30)


def committed_epochs(folder: Path) -> int:
    """Epochs of the newest checkpoint that Ray has committed."""
    return committed(folder)[0]


def committed(folder: Path) -> tuple[int, int]:
    """Return epoch and step of the latest checkpoint that Ray has committed."""
    states = list(folder.glob("outputs/runs/*/checkpoint_manager_snapshot.json"))
    if not states:
        return 0, 0
    try:
        return place_in(max(states, key=lambda path: path.stat().st_mtime).read_bytes())
    except json.JSONDecodeError:  # being written
        return 0, 0


def place_in(state: bytes) -> tuple[int, int]:
    """Return epoch and step of the latest checkpoint in Ray's list."""
    metrics = json.loads(state)["latest_checkpoint_result"]["metrics"]
    return int(metrics["epoch"]), int(metrics.get("step", 0))


def newest_checkpoint(folder: Path) -> Path:
    """Folder of the newest checkpoint that Ray has committed."""
    [state] = folder.glob("outputs/runs/*/checkpoint_manager_snapshot.json")
    latest = json.loads(state.read_text())["latest_checkpoint_result"]
    return state.parent / latest["checkpoint_dir_name"]


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("ranet")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def steps(client: MlflowClient, run_id: str, metric: str = "val/exit1/top1") -> list[int]:
    return sorted(entry.step for entry in client.get_metric_history(run_id, metric))


def snapshot(folder: Path, client: MlflowClient, run_id: str) -> dict[str, Any]:
    """The last snapshot of a run, as MLflow keeps it."""
    path = client.download_artifacts(run_id, "checkpoints/last/snapshot.pt", str(folder))
    return torch.load(path, weights_only=True)


def assert_equal_states(left: Any, right: Any) -> None:
    """Compare nested states bit by bit."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_states(left[key], right[key])
    else:
        assert left == right
