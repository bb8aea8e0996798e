"""The file system of the checkpoints: S3 with the patience that a server's restart needs."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

from cluster.config import in_submitted_job
from cluster.storage.s3 import check_uri, check_writable, is_uri

ATTEMPTS = 10
"""Tries of a request, with pauses that grow to 20 seconds: about a minute, where the server is
away. Arrow's own six seconds would end a run, as Ray writes its state there after every report."""
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""How long a try may go without an answer."""
UPLOAD_BYTES = 16 << 20
"""Bytes of a file that are read at once to be uploaded."""


class RetryingS3FileSystem(S3FileSystem):
    """An S3FileSystem that stays patient in other processes: Arrow does not send that along.

    Address and keys come from the environment of the process, so that none of them is sent.
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
    """Return path and file system of a storage; no file system where Ray finds the right one."""
    if not storage.startswith("s3://") or "?" in storage:  # with options of its own
        return storage, None
    found, path = FileSystem.from_uri(storage)
    assert isinstance(found, S3FileSystem)
    return path, RetryingS3FileSystem(found.region)


def upload(folder: Path, filesystem: FileSystem, path: str) -> None:
    """Store the files of a folder below `path`.

    Arrow's `copy_files`, by which Ray would do it, says nothing where the last bytes of a file were
    refused: a checkpoint that is not there would count as made, and an older one be deleted.

    Raises:
        OSError: one of them was not stored.
    """
    filesystem.create_dir(path)
    for file in folder.iterdir():
        with (
            file.open("rb") as source,
            filesystem.open_output_stream(f"{path}/{file.name}") as target,
        ):
            shutil.copyfileobj(source, target, UPLOAD_BYTES)


def resolve_storage(storage: str) -> str:
    """Return `storage` as an absolute path that can be written, or as it is where it is an address.

    Raises:
        ValueError: it is relative inside a submitted job, or cannot be written.
    """
    if "://" in storage:
        if is_uri(storage) and "?" not in storage:  # with options it is Ray's alone
            check_uri("cluster.storage_path", storage)
            check_writable("cluster.storage_path", storage)
        return storage
    path = Path(storage)
    if not path.is_absolute() and in_submitted_job():
        raise ValueError(
            f"cluster.storage_path is {storage}: a submitted job runs in a folder that is thrown away; "
            "give a full path or an s3:// address that every node sees"
        )
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(1 << 20))
    except OSError as error:
        raise ValueError(
            f"cluster.storage_path is {storage}: cannot write to {path} ({error.strerror}); "
            "free space there or give another folder"
        ) from error
    return str(path)
