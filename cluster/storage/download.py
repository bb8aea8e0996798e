"""Resumable download of an S3 object in parts."""

import hashlib
import json
import logging
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster.monitoring.prometheus import staged_bytes
from cluster.progress import Progress
from cluster.storage.s3 import ObjectStore

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Size of a part."""
THREADS = 8
"""Parts that are downloaded in parallel."""


@dataclass(frozen=True)
class RemoteFile:
    """S3 object with its expected size and checksum."""

    uri: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """File name of the object and of its local copy."""
        return self.uri.rpartition("/")[2]


def downloaded_bytes(folder: Path, file: RemoteFile) -> int:
    """Return the number of bytes that a download has written so far."""
    if (folder / file.name).is_file():
        return file.bytes
    try:
        lines = parts_path(folder / file.name).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
    return min(max(lines - 1, 0) * PART_BYTES, file.bytes)


def parts_path(target: Path) -> Path:
    """Return the file that lists the downloaded parts of `target`."""
    return target.with_name(f"{target.name}.parts")


def check_size(store: ObjectStore, file: RemoteFile) -> str:
    """Check that an object has the expected size, and return its ETag.

    Raises:
        ValueError: the object has another size.
    """
    found = store.read(file.uri, length=1)
    if found.total_bytes != file.bytes:
        raise ValueError(
            f"{file.uri} has {found.total_bytes:,} bytes, but {file.bytes:,} were written "
            "there; upload it again"
        )
    return found.etag


class Download:
    """Resumable download of one object to `target`.

    Until the object is complete, a `.part` file has its content and a `.parts` file lists the
    downloaded parts.
    """

    def __init__(self, store: ObjectStore, file: RemoteFile, etag: str, target: Path) -> None:
        self.store = store
        self.file = file
        self.etag = etag
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.parts = parts_path(target)
        self.num_parts = -(-file.bytes // PART_BYTES)
        self.header = json.dumps({"etag": etag, "bytes": file.bytes, "part_bytes": PART_BYTES})

    def run(self) -> None:
        """Download missing parts, verify the checksum, and rename to `target`.

        Raises:
            ValueError: the object's content has another checksum.
        """
        done = self._listed_parts()
        found = self._fetch(done)
        if found != self.file.sha256 and done:
            logger.warning(
                "%s: the parts of an interrupted download are damaged; downloading from scratch",
                self.target,
            )
            self.parts.unlink()
            found = self._fetch(frozenset())
        if found != self.file.sha256:
            self.path.unlink()
            self.parts.unlink()
            raise ValueError(
                f"{self.file.uri} is damaged: its SHA-256 is {found}, but "
                f"{self.file.sha256} was written there; upload it again"
            )
        self.path.replace(self.target)
        self.parts.unlink()

    def _listed_parts(self) -> frozenset[int]:
        """Return the parts that an interrupted download left on the disk.

        Parts of another version of the object are discarded.
        """
        try:
            # The text after the last newline is an incomplete line.
            header, *lines = self.parts.read_text().split("\n")[:-1]
        except (FileNotFoundError, ValueError):
            return frozenset()
        if header != self.header or not self.path.is_file():
            self.parts.unlink()
            return frozenset()
        return frozenset(map(int, lines))

    def _fetch(self, done: frozenset[int]) -> str:
        """Download the missing parts, and return the checksum of the whole file."""
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="download")
        with self.path.open("r+b" if self.path.is_file() else "w+b") as file:
            self._reserve(file.fileno(), is_new=not done)
            with self.parts.open("a") as parts:
                if not done:
                    parts.truncate(0)
                    parts.write(f"{self.header}\n")
                    parts.flush()
                try:
                    checksum = self._fetch_parts(pool, file.fileno(), parts, done)
                except BaseException:
                    self.store.close()  # ends the retries of the other threads
                    raise
                finally:
                    pool.shutdown(cancel_futures=True)
            os.fsync(file.fileno())
        return checksum

    def _fetch_parts(
        self, pool: ThreadPoolExecutor, descriptor: int, parts: TextIO, done: frozenset[int]
    ) -> str:
        digest = hashlib.sha256()
        count = staged_bytes()
        waiting: deque[Future[bytes]] = deque()
        submitted = 0
        title = f"downloading {self.file.uri}"
        with Progress(title, self.file.bytes, unit="byte", done=len(done) * PART_BYTES) as progress:
            progress.log()
            # The checksum needs the parts in order, so a bounded number of them waits in memory.
            for number in range(self.num_parts):
                while submitted < min(self.num_parts, number + 2 * THREADS):
                    read = self._read_back if submitted in done else self._download_part
                    waiting.append(pool.submit(read, submitted, descriptor))
                    submitted += 1
                part = waiting.popleft().result()
                digest.update(part)
                if number not in done:
                    parts.write(f"{number}\n")
                    parts.flush()
                    progress.add(len(part))
                    count(len(part))
                else:
                    os.utime(self.parts)  # heartbeat for the processes that wait
            progress.log()
        return digest.hexdigest()

    def _reserve(self, descriptor: int, *, is_new: bool) -> None:
        """Reserve disk space, so that a full disk is found early."""
        try:
            os.posix_fallocate(descriptor, 0, self.file.bytes)
        except OSError:
            if is_new:
                self.path.unlink()
            raise

    def _download_part(self, number: int, descriptor: int) -> bytes:
        start = number * PART_BYTES
        length = min(PART_BYTES, self.file.bytes - start)
        part = self.store.read(self.file.uri, start=start, length=length, etag=self.etag).data
        os.pwrite(descriptor, part, start)
        return part

    def _read_back(self, number: int, descriptor: int) -> bytes:
        return os.pread(descriptor, PART_BYTES, number * PART_BYTES)
