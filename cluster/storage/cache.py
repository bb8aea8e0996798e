"""LRU cache of S3 objects on the node's disk."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from cluster.storage.download import (
    THREADS,
    Download,
    RemoteFile,
    check_size,
    downloaded_bytes,
    parts_path,
)
from cluster.storage.s3 import LOG_SECONDS, ObjectStore

logger = logging.getLogger(__name__)

RETRY_TIMEOUT_SECONDS = 300.0
"""Longest outage of S3 that a download survives."""
POLL_SECONDS = 0.2
"""Interval at which a process checks the download of another one."""


@dataclass(frozen=True)
class Cache:
    """Folder of a node's cached files, and its limit."""

    folder: Path
    max_bytes: int = 0
    """Max. size of all cached files in bytes. 0: limited by the disk."""


@contextmanager
def staged(
    files: Sequence[RemoteFile],
    cache: Cache,
    *,
    retry_timeout_seconds: float = RETRY_TIMEOUT_SECONDS,
) -> Iterator[Path]:
    """Download files into this node's cache and pin them there.

    The files stay pinned for the duration of the context. Of several processes one downloads, and
    the others wait while that download makes progress. Interrupted downloads resume. Least
    recently used files are evicted when their space is needed.

    Raises:
        FileNotFoundError: no such object or bucket.
        PermissionError: no credentials, or they do not permit access.
        ConnectionError: S3 did not answer for `retry_timeout_seconds`.
        ValueError: an object differs from its size or checksum, or changed during the download.
        TimeoutError: the download of another process has stalled for twice that time.
        OSError: the disk is full, or the folder cannot be written.
    """
    digest = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode())
    folder = cache.folder / digest.hexdigest()[:16]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        use_lock = _open_use_lock(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cluster.cache_dir is {cache.folder}: {error.strerror}; set another folder",
        ) from error
    with use_lock:
        # A shared lock pins the files: eviction needs the exclusive one.
        fcntl.flock(use_lock, fcntl.LOCK_SH)
        os.utime(use_lock.fileno())  # for the order of eviction
        if not _is_complete(folder, files):
            with _download_lock(folder, files, 2 * retry_timeout_seconds):
                if not _is_complete(folder, files):
                    _download(files, folder, cache, retry_timeout_seconds)
        yield folder


def _open_use_lock(folder: Path) -> BinaryIO:
    """Open the lock file that pins a folder.

    The lock file outlives the folder, as other processes may wait for the lock. The package
    filelock has no shared lock on `flock`: its `ReadWriteLock` is a SQLite database.
    """
    return folder.with_name(f"{folder.name}.use").open("ab")


def _is_complete(folder: Path, files: Sequence[RemoteFile]) -> bool:
    return all((folder / file.name).is_file() for file in files)


@contextmanager
def _download_lock(
    folder: Path, files: Sequence[RemoteFile], stall_seconds: float
) -> Iterator[None]:
    """Hold the lock of a folder's download during the context.

    While another process holds the lock, the progress of its download is logged.

    Raises:
        TimeoutError: the holder made no progress for `stall_seconds`.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.load"), fallback_to_soft=False)
    last_change, changed_at = -1.0, time.monotonic()
    logged = -LOG_SECONDS
    while True:
        with suppress(Timeout):
            lock.acquire(blocking=False)
            break
        lists = [parts_path(folder / file.name) for file in files]
        change = max((path.stat().st_mtime for path in lists if path.is_file()), default=0.0)
        now = time.monotonic()
        if change != last_change:
            last_change, changed_at = change, now
        elif now - changed_at > stall_seconds:
            raise TimeoutError(
                f"another process of this node is downloading {files[0].uri} to {folder} but has "
                f"made no progress for {stall_seconds:g} s; stop that process, and start again"
            )
        if now - logged > LOG_SECONDS:
            logged = now
            done = sum(downloaded_bytes(folder, file) for file in files)
            percent = 100 * done // sum(file.bytes for file in files)
            logger.info("another process is downloading %s: %d %%", files[0].uri, percent)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _download(
    files: Sequence[RemoteFile], folder: Path, cache: Cache, retry_timeout_seconds: float
) -> None:
    folder.mkdir(exist_ok=True)
    missing = [file for file in files if not (folder / file.name).is_file()]
    with ObjectStore(retry_timeout_seconds=retry_timeout_seconds, connections=THREADS) as store:
        # All sizes are checked before the first byte is downloaded.
        etags = [check_size(store, file) for file in missing]
        try:
            _make_space(missing, folder, cache)
            for file, etag in zip(missing, etags, strict=True):
                Download(store, file, etag, folder / file.name).run()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                errno.ENOSPC,
                f"the disk of cluster.cache_dir {cache.folder} is full: "
                f"{sum(file.bytes for file in files):,} bytes of {files[0].uri} and the files "
                f"beside it do not fit, {shutil.disk_usage(cache.folder).free:,} are free; free "
                "space, or set a folder on another disk",
            ) from error


def _make_space(missing: Sequence[RemoteFile], folder: Path, cache: Cache) -> None:
    """Evict least recently used files until the missing files fit.

    The missing files must fit onto the disk and into the size limit of the cache.
    """
    others = sorted(
        (path for path in cache.folder.iterdir() if path.is_dir() and path != folder),
        key=lambda path: path.with_name(f"{path.name}.use").stat().st_mtime,
    )
    total = sum(file.bytes for file in missing)

    def is_short() -> bool:
        taken = sum(_allocated(path) for path in folder.glob("*.part"))
        walk = os.walk(cache.folder)  # other processes may remove files at the same time
        kept = sum(_allocated(Path(at, name)) for at, _, names in walk for name in names)
        over = cache.max_bytes and kept - taken + total > cache.max_bytes
        return bool(over) or total - taken > shutil.disk_usage(folder).free

    for other in others:
        if not is_short():
            return
        with _open_use_lock(other) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # pinned
            logger.info("evicting %s from the cache to make space", other)
            shutil.rmtree(other)
    if not is_short():
        return
    if total > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise OSError(
        f"cluster.cache_max_bytes is {cache.max_bytes:,}, too small for {total:,} bytes of "
        f"{missing[0].uri} and the files beside it, in addition to the files in use; raise it"
    )


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:  # its own process renamed or removed the file
        return 0
