"""Files of a checkpoint, with checksums."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint

SNAPSHOT = "snapshot.pt"
CHECKSUMS = "sha256.json"
"""File of a checkpoint that holds the checksums of the others."""


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not as it was written; the message names it."""


def checkpoint_uri(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint lies: a path, or an address such as s3://bucket/runs/...."""
    filesystem = checkpoint.filesystem
    assert filesystem is not None, "Ray gives every reported checkpoint its filesystem"
    kind = filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"


def write_checkpoint(folder: Path, files: Mapping[str, Any]) -> None:
    """Write states to files, and last of all what `load_checkpoint` holds them against."""
    checksums = {}
    for name, state in files.items():
        written = io.BytesIO()
        torch.save(state, written)  # to a full disk, it would not say what is wrong
        (folder / name).write_bytes(written.getbuffer())
        checksums[name] = hashlib.sha256(written.getbuffer()).hexdigest()
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1))


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the files of a checkpoint by name and onto the CPU.

    Raises:
        DamagedCheckpointError: a file is missing, or is not what was written.
    """
    place = checkpoint_uri(checkpoint)
    files = {}
    try:
        with checkpoint.as_directory() as folder:
            for name, checksum in json.loads((Path(folder) / CHECKSUMS).read_text()).items():
                content = (Path(folder) / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != checksum:
                    raise DamagedCheckpointError(
                        f"the checkpoint {place} is damaged: {name}, of {len(content)} bytes, is "
                        "not what was written"
                    )
                files[name] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(
            f"the checkpoint {place} is damaged: {Path(error.filename or place).name} is missing"
        ) from error
    except json.JSONDecodeError as error:
        raise DamagedCheckpointError(
            f"the checkpoint {place} is damaged: {CHECKSUMS} cannot be read ({error})"
        ) from error
    return files
