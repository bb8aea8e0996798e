"""Destinations of prepared files: a local folder or a prefix in S3."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from filelock import FileLock, Timeout

from cluster.storage.files import atomic_write
from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import SPLITS, Split
from pipelines.data.format.metadata import (
    SplitMetadata,
    is_prepared,
    metadata_path,
    read_metadata,
    read_remote_metadata,
    split_path,
)

logger = logging.getLogger(__name__)

LOCK_OBJECT = "being-prepared.json"
"""Object in S3 that contains the settings of the files while they are written."""

SHARD_FOLDERS = "shards-"
"""Begin of the names of folders of shards."""

CHUNK_BYTES = 1 << 26
"""Bytes of an object that are read at once."""

Settings: TypeAlias = dict[str, str | int | float]


class Destination(Protocol):
    """Folder of the prepared files."""

    @property
    def location(self) -> str:
        """Absolute path or S3 URI."""
        ...

    def present(self) -> dict[Split, SplitMetadata]:
        """Return the metadata of the splits that are complete."""
        ...

    def lock(self, settings: Settings) -> AbstractContextManager[None]:
        """Reserve the destination for files of these settings inside the context."""
        ...

    def working_folder(self) -> AbstractContextManager[Path]:
        """Provide a local folder for files that are being written."""
        ...

    def publish(self, path: Path) -> None:
        """Make a written file and its metadata file available at the destination."""
        ...

    def make_shard_folder(self, name: str) -> None:
        """Create the folder of the shards below the destination."""
        ...

    def remove_shards(self) -> None:
        """Remove all shards, also those of earlier sources and settings."""
        ...


@contextmanager
def open_destination(location: str) -> Iterator[Destination]:
    """Open the destination at a path or S3 URI."""
    if is_uri(location):
        with ObjectStore() as store:
            yield S3Destination(location, store)
    else:
        yield LocalDestination(Path(location))


@dataclass(frozen=True)
class LocalDestination:
    """Local folder; a file lock admits one process at a time."""

    folder: Path

    @property
    def location(self) -> str:
        """Absolute path."""
        return str(self.folder)

    def present(self) -> dict[Split, SplitMetadata]:
        """Return the metadata of the splits that are complete."""
        return {
            split: read_metadata(split_path(self.folder, split))
            for split in SPLITS
            if is_prepared(self.folder, split)
        }

    @contextmanager
    def lock(self, settings: Settings) -> Iterator[None]:
        """Create the folder and hold its lock."""
        del settings
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"data.prepared_dir is {self.folder}: it cannot be created ({error.strerror}); "
                "choose another folder",
            ) from error
        lock = FileLock(self.folder / ".lock", fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("waiting for another process that prepares %s", self.folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Provide the folder itself, for files that are renamed when complete."""
        yield self.folder

    def publish(self, path: Path) -> None:
        """Log that a file is complete; the working folder is the destination."""
        logger.info("%s is written", path)

    def make_shard_folder(self, name: str) -> None:
        """Create the folder of the shards."""
        (self.folder / name).mkdir(exist_ok=True)

    def remove_shards(self) -> None:
        """Remove all shards, also those of earlier sources and settings."""
        for folder in self.folder.glob(f"{SHARD_FOLDERS}*"):
            shutil.rmtree(folder)


@dataclass(frozen=True)
class S3Destination:
    """Prefix in S3, for several writers with the same settings."""

    location: str
    store: ObjectStore

    def present(self) -> dict[Split, SplitMetadata]:
        """Return the metadata of the splits that are complete."""
        present: dict[Split, SplitMetadata] = {}
        for split in SPLITS:
            with suppress(FileNotFoundError):
                present[split] = read_remote_metadata(self._file(split), self.store)[0]
        return present

    @contextmanager
    def lock(self, settings: Settings) -> Iterator[None]:
        """Exclude writers with other settings; finally remove all shards.

        Processes with the same settings write the same bytes and need no exclusion.
        """
        # This first write also reveals missing permissions before hours of work.
        self._reserve(settings)
        present = self.present()
        try:
            yield
        except FileNotFoundError:
            # Another process with the same settings may have finished first and removed the shards.
            if self.present().keys() == present.keys():
                raise
        finally:
            self.store.delete(self._lock_uri)
        if len(self.present()) == len(SPLITS):
            self.remove_shards()

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Provide a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="ranet-prepare-") as folder:
            yield Path(folder)

    def publish(self, path: Path) -> None:
        """Upload a file and its metadata file, and delete the local file."""
        uri = f"{self.location}/{path.name}"
        logger.info("uploading %s: %d bytes", uri, path.stat().st_size)
        self.store.upload(path, uri)
        # The metadata file is last because its presence marks the file as complete.
        self.store.write(f"{uri}.json", metadata_path(path).read_bytes())
        path.unlink()

    def make_shard_folder(self, name: str) -> None:
        """Do nothing: S3 has no folders."""

    def remove_shards(self) -> None:
        """Remove all shards, also those of earlier sources and settings."""
        for name in self.store.names(self.location):
            if name.startswith(SHARD_FOLDERS):
                self.store.delete(f"{self.location}/{name}")

    @property
    def _lock_uri(self) -> str:
        return f"{self.location}/{LOCK_OBJECT}"

    def _file(self, split: Split) -> str:
        return f"{self.location}/{split}.beton"

    def _reserve(self, settings: Settings) -> None:
        """Write the lock object unless it exists with the same settings.

        Raises:
            ValueError: a process with other settings writes to the same prefix.
        """
        own = json.dumps(settings, sort_keys=True).encode()
        while not self.store.write_new(self._lock_uri, own):
            try:
                found = self.store.read(self._lock_uri).data
            except FileNotFoundError:  # the other process has finished
                continue
            if found != own:
                raise ValueError(
                    f"data.prepared_dir is {self.location}: another process writes there now, "
                    f"with the settings {found.decode()}; wait until it ends, or delete "
                    f"{self._lock_uri} if it was killed"
                )
            return


@contextmanager
def opened_file(location: str) -> Iterator[BinaryIO]:
    """Open a file at a path or S3 URI.

    An object is copied to a temporary file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_uri(location):
        with Path(location).open("rb") as file:
            yield file
        return
    with ObjectStore() as store, tempfile.TemporaryFile() as file:
        etag = None
        while True:
            content = store.read(location, start=file.tell(), length=CHUNK_BYTES, etag=etag)
            file.write(content.data)
            etag = content.etag
            if file.tell() >= content.total_bytes:
                break
        file.seek(0)
        yield file


@contextmanager
def new_file(location: str) -> Iterator[Path]:
    """Yield a local path, and publish its file atomically."""
    if is_uri(location):
        with tempfile.TemporaryDirectory(prefix="ranet-shard-") as folder, ObjectStore() as store:
            path = Path(folder, "shard")
            yield path
            store.upload(path, location)
        return
    try:
        with atomic_write(Path(location), unique=True) as part:
            yield part
    except OSError as error:
        if error.filename is not None or error.errno is None:  # names its image already
            raise
        raise OSError(
            error.errno,
            f"{location} cannot be written: {error.strerror}; free disk space or set "
            "data.prepared_dir",
        ) from error
