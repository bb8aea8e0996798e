"""Checkpoints with checksums; a run resumes from the newest intact one."""

import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.collective import barrier, broadcast_from_rank_zero

from cluster.storage.filesystem import upload
from cluster.storage.s3 import ObjectStore, is_uri

logger = logging.getLogger(__name__)

SNAPSHOT = "snapshot.pt"
RAY_LIST = "checkpoint_manager_snapshot.json"
"""File with Ray Train's list of the checkpoints of a run."""
CHECKSUMS = "sha256.json"
"""File with the checksums of a checkpoint's other files."""
LIST_SECONDS = 60.0
"""Timeout for Ray's list of checkpoints."""


class DamagedCheckpointError(ValueError):
    """Checkpoint whose files are missing or differ from their checksums."""


def has_checkpoints(storage: str, name: str) -> bool:
    """Return whether Ray Train can resume from a run's folder.

    Args:
        storage: path or URI of all runs.
        name: name of the run's folder.
    """
    if is_uri(storage):
        with ObjectStore() as store:
            names = {file.partition("/")[0] for file in store.names(f"{storage}/{name}")}
    elif "://" in storage:
        return True  # only Ray can read other URIs
    else:
        folder = Path(storage, name)
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return RAY_LIST in names and any(each.startswith("checkpoint_") for each in names - {RAY_LIST})


def checkpoint_uri(checkpoint: Checkpoint) -> str:
    """Return a checkpoint's location: a path, or an s3:// URI."""
    filesystem = checkpoint.filesystem
    assert filesystem is not None, "Ray gives every reported checkpoint its filesystem"
    kind = filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"


def write_checkpoint(folder: Path, files: Mapping[str, Any]) -> None:
    """Write states to files, and their checksums to `CHECKSUMS` last."""
    checksums = {}
    for name, state in files.items():
        written = io.BytesIO()
        torch.save(state, written)  # torch.save's error on a full disk hides the cause
        (folder / name).write_bytes(written.getbuffer())
        checksums[name] = hashlib.sha256(written.getbuffer()).hexdigest()
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1))


def store_checkpoint(checkpoint: Checkpoint, files: Mapping[str, Any]) -> None:
    """Write states to a checkpoint of a run.

    Raises:
        OSError: a file was not stored.
    """
    if _is_local(checkpoint):
        Path(checkpoint.path).mkdir(parents=True)
        write_checkpoint(Path(checkpoint.path), files)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), files)
        assert checkpoint.filesystem is not None
        upload(Path(folder), checkpoint.filesystem, checkpoint.path)


def _is_local(checkpoint: Checkpoint) -> bool:
    filesystem = checkpoint.filesystem
    assert filesystem is not None, "the storage of a run has one"
    return filesystem.type_name == "local"


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Load the states of a checkpoint onto the CPU, by file name.

    Raises:
        DamagedCheckpointError: a file is missing or differs from its checksum.
    """
    with _damage_named(checkpoint), checkpoint.as_directory() as folder:
        return _load_folder(checkpoint, Path(folder))


def _load_folder(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Load the states of a checkpoint from its local folder."""
    files = {}
    for name, checksum in json.loads((folder / CHECKSUMS).read_text()).items():
        path = folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise DamagedCheckpointError(
                    f"the checkpoint {checkpoint_uri(checkpoint)} is damaged: {name}, of "
                    f"{path.stat().st_size} bytes, differs from its checksum"
                )
        files[name] = torch.load(path, map_location="cpu", weights_only=True)
    return files


@contextmanager
def _damage_named(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the checkpoint whose files are missing or cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        location = checkpoint_uri(checkpoint)
        raise DamagedCheckpointError(
            f"the checkpoint {location} is damaged: {Path(error.filename or location).name} is "
            "missing"
        ) from error
    except json.JSONDecodeError as error:
        raise DamagedCheckpointError(
            f"the checkpoint {checkpoint_uri(checkpoint)} is damaged: {CHECKSUMS} cannot be read "
            f"({error})"
        ) from error


def load_newest() -> dict[str, Any]:
    """Load the newest intact checkpoint of the run, if any.

    A barrier: rank 0 selects the checkpoint, and the other workers load the same one. One worker
    of each node downloads it.

    Raises:
        DamagedCheckpointError: all checkpoints of the run are damaged.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return {}
    context = ray.train.get_context()
    run = hashlib.sha256(newest.path.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"checkpoint-{run}-node{context.get_node_rank()}")
    is_downloader = context.get_local_rank() == 0
    try:
        files, selected = {}, newest
        if context.get_world_rank() == 0:
            files, selected = _newest_intact(newest, folder)
        selected = Checkpoint(broadcast_from_rank_zero(selected.path), newest.filesystem)
        if is_downloader and not files:
            files = _download(selected, folder)
        barrier()
        if not is_downloader:
            with _damage_named(selected):
                files = _load_folder(selected, _local_folder(selected, folder))
        barrier()  # every worker of the node has read the folder
        return files
    finally:
        if is_downloader:
            shutil.rmtree(folder, ignore_errors=True)


def _local_folder(checkpoint: Checkpoint, folder: Path) -> Path:
    """Return the folder of a checkpoint's files on this node."""
    return Path(checkpoint.path) if _is_local(checkpoint) else folder


def _download(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Load a checkpoint, downloaded to a folder if it is remote."""
    with _damage_named(checkpoint):
        if not _is_local(checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
            checkpoint.to_directory(folder)
        return _load_folder(checkpoint, _local_folder(checkpoint, folder))


def _newest_intact(newest: Checkpoint, folder: Path) -> tuple[dict[str, Any], Checkpoint]:
    try:
        return _download(newest, folder), newest
    except DamagedCheckpointError as error:
        logger.warning("%s; resuming from the previous checkpoint", error)
    for reported in reversed(
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, LIST_SECONDS)
    ):
        if reported.checkpoint.path == newest.path:
            continue
        try:
            return _download(reported.checkpoint, folder), reported.checkpoint
        except DamagedCheckpointError as error:
            logger.warning("%s; resuming from the previous checkpoint", error)
    raise DamagedCheckpointError(
        f"all checkpoints of this run are damaged, the newest is {checkpoint_uri(newest)}; start "
        "from scratch with --new-attempt, and increase cluster.keep_checkpoints"
    )
