"""Download of an S3 object in parts, which can be resumed."""

import hashlib
import json
import logging
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.monitoring.prometheus import staged_bytes
from cluster.storage.s3 import LOG_SECONDS, ObjectStore

logger = logging.getLogger(__name__)
PART_BYTES = 8 << 20
THREADS = 8


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


def downloaded_bytes(folder: Path, file: RemoteFile) -> int:
    if (folder / file.name).is_file():
        return file.bytes
    try:
        lines = record_path(folder / file.name).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
    return min(max(lines - 1, 0) * PART_BYTES, file.bytes)


def check_size(store: ObjectStore, file: RemoteFile) -> str:
    found = store.read(file.address, length=1)
    if found.total_bytes != file.bytes:
        raise ValueError(
            f"{file.address} has {found.total_bytes:,} bytes, but {file.bytes:,} were written "
            "there; upload it again"
        )
    return found.etag


def record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


class Download:
    """One object on its way to `target`: a `.part` file, and a record of the parts it has."""

    def __init__(self, store: ObjectStore, file: RemoteFile, etag: str, target: Path) -> None:
        self.store = store
        self.file = file
        self.etag = etag
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.record = record_path(target)
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
