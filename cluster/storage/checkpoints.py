"""Checkpoints with checksums; a run resumes from the newest intact one."""

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.collective import broadcast_from_rank_zero

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
    """Return whether a run's folder has checkpoints that Ray Train can resume from.

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


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Load the states of a checkpoint onto the CPU, by file name.

    Raises:
        DamagedCheckpointError: a file is missing or differs from its checksum.
    """
    location = checkpoint_uri(checkpoint)
    files = {}
    try:
        with checkpoint.as_directory() as folder:
            for name, checksum in json.loads((Path(folder) / CHECKSUMS).read_text()).items():
                content = (Path(folder) / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != checksum:
                    raise DamagedCheckpointError(
                        f"the checkpoint {location} is damaged: {name}, of {len(content)} bytes, "
                        "differs from its checksum"
                    )
                files[name] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(
            f"the checkpoint {location} is damaged: {Path(error.filename or location).name} is "
            "missing"
        ) from error
    except json.JSONDecodeError as error:
        raise DamagedCheckpointError(
            f"the checkpoint {location} is damaged: {CHECKSUMS} cannot be read ({error})"
        ) from error
    return files


def load_newest() -> dict[str, Any]:
    """Load the newest intact checkpoint of the run, if any.

    A barrier: rank 0 selects the checkpoint, and the other workers load the same one.

    Raises:
        DamagedCheckpointError: all checkpoints of the run are damaged.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return {}
    if ray.train.get_context().get_world_rank() == 0:
        files, selected = _newest_intact(newest)
        broadcast_from_rank_zero(selected.path)
        return files
    path: str | None = broadcast_from_rank_zero(None)
    assert path is not None, "rank 0 sends a path"
    return load_checkpoint(Checkpoint(path, newest.filesystem))


def _newest_intact(newest: Checkpoint) -> tuple[dict[str, Any], Checkpoint]:
    try:
        return load_checkpoint(newest), newest
    except DamagedCheckpointError as error:
        logger.warning("%s; resuming from the previous checkpoint", error)
    for reported in reversed(
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, LIST_SECONDS)
    ):
        if reported.checkpoint.path == newest.path:
            continue
        try:
            return load_checkpoint(reported.checkpoint), reported.checkpoint
        except DamagedCheckpointError as error:
            logger.warning("%s; resuming from the previous checkpoint", error)
    raise DamagedCheckpointError(
        f"all checkpoints of this run are damaged, the newest is {checkpoint_uri(newest)}; start "
        "from scratch with --new-attempt, and increase cluster.keep_checkpoints"
    )
