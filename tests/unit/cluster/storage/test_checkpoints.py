"""Checkpoints that an unfinished run can resume from."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import ray.train
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.train import Checkpoint

from cluster.storage import checkpoints
from cluster.storage.checkpoints import (
    RAY_LIST,
    SNAPSHOT,
    has_checkpoints,
    load_newest,
    write_checkpoint,
)
from cluster.tracking import runs
from pipelines.run import Run
from pipelines.start import track

NODES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Node rank and local rank of each worker."""
FIRST = "checkpoint_2026-11-28_10-00-00.000001"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((RAY_LIST, f"{FIRST}/snapshot.pt"), True),
        ((RAY_LIST,), False),
        ((f"{FIRST}/snapshot.pt",), False),
        ((), False),
    ],
)
def test_checkpoints_need_their_folder_and_the_list_of_ray(files, expected, tmp_path):
    for name in files:
        path = tmp_path / "digits-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert has_checkpoints(str(tmp_path), "digits-1") == expected
    assert not has_checkpoints(str(tmp_path / "missing"), "digits-1")


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("has_results", [False, True])
def test_unfinished_run_without_its_checkpoints_starts_a_new_attempt(
    is_deleted, has_results, empty_database, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.0)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run = Run(name="digits")
    with pytest.raises(KeyboardInterrupt), track(run) as first:  # noqa: PT012
        if has_results:
            first.log_history([{"epoch": 1.0}])
        raise KeyboardInterrupt
    folder = tmp_path / "outputs" / "runs" / first.storage_name
    (folder / FIRST).mkdir(parents=True)
    (folder / RAY_LIST).touch()
    if is_deleted:
        shutil.rmtree(folder)
    with caplog.at_level("WARNING"), track(run) as second:
        pass
    is_lost = is_deleted and has_results
    assert (second.attempt, second.resumed) == ((2, False) if is_lost else (1, True))
    assert ("are gone: a new attempt starts from scratch" in caplog.text) == is_lost


class Worker(threading.local):
    """Context of a worker that runs in a thread."""

    rank = 0

    def get_world_rank(self) -> int:
        return self.rank

    def get_node_rank(self) -> int:
        return NODES[self.rank][0]

    def get_local_rank(self) -> int:
        return NODES[self.rank][1]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_every_node_downloads_the_newest_intact_checkpoint_once(is_damaged, tmp_path, monkeypatch):
    store = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    old, new = Checkpoint("run/old", store), Checkpoint("run/new", store)
    for checkpoint, value in ((old, 1.0), (new, 2.0)):
        (tmp_path / checkpoint.path).mkdir(parents=True)
        write_checkpoint(tmp_path / checkpoint.path, {SNAPSHOT: {"weight": torch.tensor(value)}})
    if is_damaged:
        (tmp_path / new.path / SNAPSHOT).write_bytes(b"damaged")
    worker, gate, sent = Worker(), threading.Barrier(len(NODES), timeout=60), []
    downloads: list[tuple[int, str]] = []
    to_directory = Checkpoint.to_directory

    def download(self, path):
        downloads.append((worker.get_node_rank(), self.path))
        return to_directory(self, path)

    def broadcast(data):
        if worker.rank == 0:
            sent.append(data)
        gate.wait()
        return sent[0]

    monkeypatch.setattr(Checkpoint, "to_directory", download)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: new)
    monkeypatch.setattr(ray.train, "get_context", lambda: worker)
    monkeypatch.setattr(
        ray.train, "get_all_reported_checkpoints", lambda *_: [SimpleNamespace(checkpoint=old)]
    )
    monkeypatch.setattr(checkpoints, "broadcast_from_rank_zero", broadcast)
    monkeypatch.setattr(checkpoints, "barrier", gate.wait)

    def load(rank):
        worker.rank = rank
        return load_newest()

    with ThreadPoolExecutor(len(NODES)) as pool:
        loaded = list(pool.map(load, range(len(NODES))))
    expected = 1.0 if is_damaged else 2.0
    assert [files[SNAPSHOT]["weight"].item() for files in loaded] == [expected] * 4
    used = (old if is_damaged else new).path
    assert downloads.count((0, used)) == downloads.count((1, used)) == 1
    assert len(downloads) == 2 + is_damaged
