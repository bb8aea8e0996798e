"""Files of a checkpoint: written with checksums, and verified when read."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint

from cluster.storage.s3 import ObjectStore, is_uri

SNAPSHOT = "snapshot.pt"
RAY_LIST = "checkpoint_manager_snapshot.json"
"""File with Ray Train's list of the checkpoints of a run."""
CHECKSUMS = "sha256.json"
"""File with the checksums of a checkpoint's other files."""


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
