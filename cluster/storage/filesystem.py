"""File system of checkpoints: S3 with retries across server restarts."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

from cluster.config import in_submitted_job
from cluster.storage.s3 import check_uri, check_writable, is_uri

ATTEMPTS = 10
"""Attempts of a request, with pauses that grow to 20 seconds: about a minute during an outage.
Arrow's default of six seconds would end a run, as Ray writes its state after every report."""
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""Timeout of one attempt."""
UPLOAD_BYTES = 16 << 20
"""Size of the blocks in which a file is read for its upload."""


class RetryingS3FileSystem(S3FileSystem):
    """S3FileSystem that keeps its retry strategy when pickled; Arrow's own loses it.

    Endpoint and keys come from the environment of each process, so pickles contain none of them.
    """

    def __init__(self, region: str) -> None:
        super().__init__(
            region=region,
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL"),
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryingS3FileSystem, (self.region,)


def open_storage(storage: str) -> tuple[str, FileSystem | None]:
    """Return the path and the file system of a storage path.

    The file system is None where Ray derives it from the path.
    """
    if not storage.startswith("s3://") or "?" in storage:  # only Ray parses options of a URI
        return storage, None
    found, path = FileSystem.from_uri(storage)
    assert isinstance(found, S3FileSystem)
    return path, RetryingS3FileSystem(found.region)


def upload(folder: Path, filesystem: FileSystem, path: str) -> None:
    """Upload the files of a folder to `path`.

    Ray uses Arrow's `copy_files`, which raises no error when the last bytes of a file are
    rejected: a missing checkpoint would count as written, and an older one would be deleted.

    Raises:
        OSError: a file was not stored.
    """
    filesystem.create_dir(path)
    for file in folder.iterdir():
        with (
            file.open("rb") as source,
            filesystem.open_output_stream(f"{path}/{file.name}") as target,
        ):
            shutil.copyfileobj(source, target, UPLOAD_BYTES)


def resolve_storage(storage: str) -> str:
    """Return a storage path in absolute form, checked to be writable.

    URIs are returned unchanged.

    Raises:
        ValueError: the path is relative in a submitted job, or cannot be written.
    """
    if "://" in storage:
        if is_uri(storage) and "?" not in storage:  # only Ray parses options of a URI
            check_uri("cluster.storage_path", storage)
            check_writable("cluster.storage_path", storage)
        return storage
    path = Path(storage)
    if not path.is_absolute() and in_submitted_job():
        raise ValueError(
            f"cluster.storage_path is {storage}: the working folder of a submitted job is deleted "
            "after the job; set an absolute path or s3:// URI that every node can reach"
        )
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(1 << 20))
    except OSError as error:
        raise ValueError(
            f"cluster.storage_path is {storage}: cannot write to {path} ({error.strerror}); "
            "free space there or set another folder"
        ) from error
    return str(path)
