"""Copies of S3 objects on a node's disk, kept for the next run."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.storage.download import (
    THREADS,
    Download,
    RemoteFile,
    check_size,
    downloaded_bytes,
    record_path,
)
from cluster.storage.s3 import LOG_SECONDS, ObjectStore

logger = logging.getLogger(__name__)
PATIENCE_SECONDS = 300.0
"""S3 may be away for so long in the middle of a load."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Cache:
    """Where a node keeps its copies."""

    folder: Path
    max_bytes: int = 0
    """Bytes that all copies together may take; 0: what the disk holds."""


@contextmanager
def staged(
    files: Sequence[RemoteFile], cache: Cache, *, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[Path]:
    """Have copies of `files` in one folder of this node, which stay there inside the context.

    Any number of processes may ask at once: one loads, the others wait as long as it gets on. A
    load that was killed is gone on with. Copies that nobody uses are removed where their room is
    needed, those used longest ago first.

    Raises:
        FileNotFoundError: an object or its bucket is not there.
        PermissionError: no credentials, or they do not allow it.
        ConnectionError: S3 did not answer for `patience_seconds`.
        ValueError: an object is not what its size and checksum say, or changed meanwhile.
        TimeoutError: another process loads them, but has not got on for twice that long.
        OSError: the disk is full, or the folder cannot be written.
    """
    digest = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode())
    folder = cache.folder / digest.hexdigest()[:16]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        use_lock = _lock_file(folder, "use")
    except OSError as error:
        raise OSError(
            error.errno, f"cluster.cache_dir is {cache.folder}: {error.strerror}; name another"
        ) from error
    with use_lock:
        fcntl.flock(use_lock, fcntl.LOCK_SH)  # held exclusively only while copies are removed
        os.utime(use_lock.fileno())
        if not _complete(folder, files):
            with _lock_file(folder, "load") as load_lock:
                _wait_for(load_lock, folder, files, 2 * patience_seconds)
                if not _complete(folder, files):
                    _load(files, folder, cache, patience_seconds)
        yield folder


def _lock_file(folder: Path, purpose: str) -> BinaryIO:
    """Open a lock beside the folder; it stays when the copies go, as others may be waiting."""
    return folder.with_name(f"{folder.name}.{purpose}").open("ab")


def _complete(folder: Path, files: Sequence[RemoteFile]) -> bool:
    return all((folder / file.name).is_file() for file in files)


def _wait_for(
    lock: BinaryIO, folder: Path, files: Sequence[RemoteFile], patience_seconds: float
) -> None:
    """Wait for the process that loads, and tell how far it is."""
    seen, seen_at = -1.0, time.monotonic()
    logged = -LOG_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        records = [record_path(folder / file.name) for file in files]
        moved = max((path.stat().st_mtime for path in records if path.is_file()), default=0.0)
        now = time.monotonic()
        if moved != seen:
            seen, seen_at = moved, now
        elif now - seen_at > patience_seconds:
            raise TimeoutError(
                f"another process of this node loads {files[0].address} to {folder}, but has not "
                f"got on for {patience_seconds:g} seconds; end it, and start again"
            )
        if now - logged > LOG_SECONDS:
            logged = now
            done = sum(downloaded_bytes(folder, file) for file in files)
            total = sum(file.bytes for file in files)
            logger.info("another process loads %s: %d %%", files[0].address, 100 * done // total)
        time.sleep(POLL_SECONDS)


def _load(files: Sequence[RemoteFile], folder: Path, cache: Cache, patience_seconds: float) -> None:
    folder.mkdir(exist_ok=True)
    missing = [file for file in files if not (folder / file.name).is_file()]
    with ObjectStore(patience_seconds=patience_seconds, connections=THREADS) as store:
        # Asked of all before the first byte of any is loaded.
        etags = [check_size(store, file) for file in missing]
        try:
            _make_room(missing, folder, cache)
            for file, etag in zip(missing, etags, strict=True):
                Download(store, file, etag, folder / file.name).run()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"the disk of cluster.cache_dir {cache.folder} is full: "
                f"{sum(file.bytes for file in files):,} bytes of {files[0].address} and its "
                f"like do not fit, {shutil.disk_usage(cache.folder).free:,} are free; free some, "
                "or name a folder on another disk",
            ) from error


def _make_room(missing: Sequence[RemoteFile], folder: Path, cache: Cache) -> None:
    """Remove what was used longest ago until there is room, on the disk and in the cache."""
    others = sorted(
        (path for path in cache.folder.iterdir() if path.is_dir() and path != folder),
        key=lambda path: path.with_name(f"{path.name}.use").stat().st_mtime,
    )
    total = sum(file.bytes for file in missing)

    def is_short() -> bool:
        taken = sum(_allocated(path) for path in folder.glob("*.part"))
        walk = os.walk(cache.folder)  # copies may go meanwhile, which is no error to it
        kept = sum(_allocated(Path(at, name)) for at, _, names in walk for name in names)
        over = cache.max_bytes and kept - taken + total > cache.max_bytes
        return bool(over) or total - taken > shutil.disk_usage(folder).free

    for other in others:
        if not is_short():
            return
        with _lock_file(other, "use") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            logger.info("removing the copies in %s: their room is needed", other)
            shutil.rmtree(other)
    if not is_short():
        return
    if total > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise OSError(
        f"cluster.cache_max_bytes is {cache.max_bytes:,}, too few for {total:,} bytes of "
        f"{missing[0].address} and its like beside the copies in use; allow more"
    )


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:  # renamed or removed meanwhile by its own process
        return 0
