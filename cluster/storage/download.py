"""Copies of S3 objects on a node's disk: loaded once, in parts, and kept for the next run."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.monitoring.prometheus import staged_bytes
from cluster.storage.s3 import LOG_SECONDS, ObjectStore

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
THREADS = 8
PATIENCE_SECONDS = 300.0
"""S3 may be away for so long in the middle of a load."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RemoteFile:
    """An object and what is known of it."""

    address: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its last name, under which the copy lies."""
        return self.address.rpartition("/")[2]


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
        records = [_record_path(folder / file.name) for file in files]
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
            done = sum(_loaded_bytes(folder, file) for file in files)
            total = sum(file.bytes for file in files)
            logger.info("another process loads %s: %d %%", files[0].address, 100 * done // total)
        time.sleep(POLL_SECONDS)


def _loaded_bytes(folder: Path, file: RemoteFile) -> int:
    if (folder / file.name).is_file():
        return file.bytes
    try:
        lines = _record_path(folder / file.name).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
    return min(max(lines - 1, 0) * PART_BYTES, file.bytes)


def _load(files: Sequence[RemoteFile], folder: Path, cache: Cache, patience_seconds: float) -> None:
    folder.mkdir(exist_ok=True)
    missing = [file for file in files if not (folder / file.name).is_file()]
    with ObjectStore(patience_seconds=patience_seconds, connections=THREADS) as store:
        # Asked of all before the first byte of any is loaded.
        etags = [_etag(store, file) for file in missing]
        try:
            _make_room(missing, folder, cache)
            for file, etag in zip(missing, etags, strict=True):
                _Download(store, file, etag, folder / file.name).run()
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


def _etag(store: ObjectStore, file: RemoteFile) -> str:
    found = store.read(file.address, length=1)
    if found.total_bytes != file.bytes:
        raise ValueError(
            f"{file.address} has {found.total_bytes:,} bytes, but {file.bytes:,} were written "
            "there; upload it again"
        )
    return found.etag


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


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


class _Download:
    """One object on its way to `target`: a `.part` file, and a record of the parts it has."""

    def __init__(self, store: ObjectStore, file: RemoteFile, etag: str, target: Path) -> None:
        self.store = store
        self.file = file
        self.etag = etag
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.record = _record_path(target)
        self.num_parts = -(-file.bytes // PART_BYTES)
        self.header = json.dumps({"etag": etag, "bytes": file.bytes, "part_bytes": PART_BYTES})

    def run(self) -> None:
        """Load what is missing, hold all of it against the checksum, and put it in its place."""
        done = self._recorded_parts()
        found = self._fetch(done)
        if found != self.file.sha256 and done:
            logger.warning("%s: what an earlier start left is damaged; loading anew", self.target)
            self.record.unlink()
            found = self._fetch(frozenset())
        if found != self.file.sha256:
            self.path.unlink()
            self.record.unlink()
            raise ValueError(
                f"{self.file.address} is damaged: its SHA-256 is {found}, but "
                f"{self.file.sha256} was written there; upload it again"
            )
        self.path.replace(self.target)
        self.record.unlink()

    def _recorded_parts(self) -> frozenset[int]:
        """Parts that an earlier start of this same object has on disk."""
        try:
            # What follows the last line's end is of a line that was not written whole.
            header, *lines = self.record.read_text().split("\n")[:-1]
        except (FileNotFoundError, ValueError):
            return frozenset()
        if header != self.header or not self.path.is_file():
            self.record.unlink()
            return frozenset()
        return frozenset(map(int, lines))

    def _fetch(self, done: frozenset[int]) -> str:
        """Bring the missing parts to disk; return the checksum of the whole."""
        digest = hashlib.sha256()
        progress = _Progress(self.file, len(done) * PART_BYTES)
        count = staged_bytes()
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="stage")
        with self.path.open("r+b" if self.path.is_file() else "w+b") as file:
            self._reserve(file.fileno(), is_new=not done)
            with self.record.open("a") as record:
                if not done:
                    record.truncate(0)
                    record.write(f"{self.header}\n")
                    record.flush()
                waiting: deque[Future[bytes]] = deque()
                submitted = 0
                try:
                    for number in range(self.num_parts):
                        while submitted < min(self.num_parts, number + 2 * THREADS):
                            read = self._read_back if submitted in done else self._load_part
                            waiting.append(pool.submit(read, submitted, file.fileno()))
                            submitted += 1
                        part = waiting.popleft().result()
                        digest.update(part)
                        if number not in done:
                            record.write(f"{number}\n")
                            record.flush()
                            progress.add(len(part))
                            count(len(part))
                        else:
                            os.utime(self.record)  # a sign of life for those who wait
                except BaseException:
                    self.store.close()  # ends the other threads' patience
                    raise
                finally:
                    pool.shutdown(cancel_futures=True)
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _reserve(self, descriptor: int, *, is_new: bool) -> None:
        """Take the whole room at once, so that a disk is full before an hour of loading."""
        try:
            os.posix_fallocate(descriptor, 0, self.file.bytes)
        except OSError:
            if is_new:
                self.path.unlink()
            raise

    def _load_part(self, number: int, descriptor: int) -> bytes:
        start = number * PART_BYTES
        length = min(PART_BYTES, self.file.bytes - start)
        part = self.store.read(self.file.address, start=start, length=length, etag=self.etag).data
        os.pwrite(descriptor, part, start)
        return part

    def _read_back(self, number: int, descriptor: int) -> bytes:
        return os.pread(descriptor, PART_BYTES, number * PART_BYTES)


class _Progress:
    """A line in the log now and then, with the rate and the time that is left."""

    def __init__(self, file: RemoteFile, done: int) -> None:
        self.file = file
        self.done = done
        self.begun_with = done
        self.begun = self.logged = time.monotonic()
        logger.info("loading %s: %s", file.address, self._so_far())

    def add(self, size: int) -> None:
        """Count bytes that have come."""
        self.done += size
        now = time.monotonic()
        if now - self.logged > LOG_SECONDS or self.done >= self.file.bytes:
            self.logged = now
            rate = (self.done - self.begun_with) / max(now - self.begun, 1e-6)
            left = max(self.file.bytes - self.done, 0) / rate
            logger.info(
                "loading %s: %s, %.0f MB/s, %.0f s left",
                self.file.address, self._so_far(), rate / 1e6, left,
            )  # fmt: skip

    def _so_far(self) -> str:
        return f"{min(self.done, self.file.bytes) / 1e9:.2f} of {self.file.bytes / 1e9:.2f} GB"
