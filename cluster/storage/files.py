"""Atomic writes to local files."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, unique: bool = False, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path, and rename the file to `path` afterwards.

    A reader sees the old file or the complete new one. After an exception in the context the
    temporary file is removed.

    Args:
        path: the file to write.
        unique: use a random temporary name, for a file that several processes write at once.
        mode: permissions of the file.
    """
    infix = f".{uuid.uuid4().hex}" if unique else ""
    part = path.with_name(f"{path.name}{infix}.part")
    try:
        yield part
        # Flush the data before the rename, so that a power cut leaves no incomplete file.
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
