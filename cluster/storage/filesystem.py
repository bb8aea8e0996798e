"""File system of checkpoints: S3 with retries across server restarts."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import botocore.session
from boto3 import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow.fs import AwsStandardS3RetryStrategy, FileSelector, FileSystem, S3FileSystem

from cluster.config import in_submitted_job
from cluster.storage.s3 import check_uri, check_writable, is_uri, split_uri

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""Attempts of a request, with pauses that grow to 20 seconds: about a minute during an outage.
Arrow's default of six seconds would end a run, as Ray writes its state after every report."""
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""Timeout of one attempt."""
SLOW_SECONDS = 10.0
"""Interval of the log lines on an upload that is not complete."""
DEFAULT_REGION = "us-east-1"
"""Region where none is configured, which stores other than Amazon's ignore."""
UPLOAD_BYTES = 16 << 20
"""Size of the blocks in which a file is read for its upload."""


class RetryingS3FileSystem(S3FileSystem):
    """S3FileSystem that keeps its retry strategy when pickled; Arrow's own loses it.

    Endpoint, CA bundle, proxy and keys are those of boto3 in each process, which also reads AWS's
    config file; pickles contain none of them.
    """

    def __init__(self, region: str) -> None:
        # Some stores reject the checksums that newer SDKs add; checkpoints have their own.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        super().__init__(
            region=region,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            **_boto3_options(),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryingS3FileSystem, (self.region,)


def _boto3_options() -> dict[str, Any]:
    """Return the options of Arrow's client that boto3 takes from the environment or a file."""
    session = botocore.session.get_session()
    client = session.create_client("s3", session.get_config_variable("region") or DEFAULT_REGION)
    endpoint = client.meta.endpoint_url
    options: dict[str, Any] = {"tls_ca_file_path": session.get_config_variable("ca_bundle")}
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        options["endpoint_override"] = endpoint
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(host):
        options["proxy_options"] = proxy
    credentials = session.get_credentials()
    if credentials is not None and credentials.method == "config-file":
        # Arrow reads keys from the credentials file only.
        frozen = credentials.get_frozen_credentials()
        options |= {
            "access_key": frozen.access_key,
            "secret_key": frozen.secret_key,
            "session_token": frozen.token,
        }
    return options


def _region_of(bucket: str) -> str:
    """Return the region of a bucket."""
    client = Session().client("s3", config=Config(connect_timeout=5, read_timeout=20))
    region = client.meta.region_name or DEFAULT_REGION
    with suppress(BotoCoreError, ClientError):  # the check of the storage names the problem
        return client.head_bucket(Bucket=bucket).get("BucketRegion") or region
    return region


def open_storage(storage: str) -> tuple[str, FileSystem | None]:
    """Return the path and the file system of a storage path.

    The file system is None where Ray derives it from the path.
    """
    if not storage.startswith("s3://") or "?" in storage:  # only Ray parses options of a URI
        return storage, None
    # Not from_uri, which decodes %20: every client reads a URI in the same way.
    bucket, key = split_uri(storage)
    return f"{bucket}/{key}", RetryingS3FileSystem(_region_of(bucket))


def _check_arrow(storage: str) -> None:
    """Check that Arrow's client, which writes checkpoints, has access as well as boto3.

    Raises:
        ValueError: the client has no access.
    """
    path, filesystem = open_storage(storage)
    assert filesystem is not None
    try:
        filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise ValueError(
            f"cluster.storage_path cannot be read: {storage}: {error}; boto3 has access, so set "
            "keys, endpoint and region in the environment variables AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
        ) from error


def upload(folder: Path, filesystem: FileSystem, path: str) -> None:
    """Upload the files of a folder to `path`.

    Ray uses Arrow's `copy_files`, which raises no error when the last bytes of a file are
    rejected: a missing checkpoint would count as written, and an older one would be deleted.

    Raises:
        OSError: a file was not stored.
    """
    with _slow_upload_logged(path):
        filesystem.create_dir(path)
        for file in folder.iterdir():
            with (
                file.open("rb") as source,
                filesystem.open_output_stream(f"{path}/{file.name}") as target,
            ):
                shutil.copyfileobj(source, target, UPLOAD_BYTES)


@contextmanager
def _slow_upload_logged(path: str) -> Iterator[None]:
    """Log an upload that takes long: Arrow retries without a word."""
    done, started = Event(), time.monotonic()

    def log() -> None:
        while not done.wait(SLOW_SECONDS):
            logger.warning(
                "s3://%s: not uploaded after %.0f seconds; S3 is slow or away, retrying",
                path,
                time.monotonic() - started,
            )

    thread = Thread(target=log, name="slow-upload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def resolve_storage(storage: str) -> str:
    """Return a storage path in absolute form, checked to be writable.

    URIs are returned unchanged.

    Raises:
        ValueError: the path is in the folder of a submitted job, or cannot be written.
    """
    if "://" in storage:
        if is_uri(storage) and "?" not in storage:  # only Ray parses options of a URI
            check_uri("cluster.storage_path", storage)
            check_writable("cluster.storage_path", storage)
            _check_arrow(storage)
        return storage
    path = Path(storage).absolute()
    if in_submitted_job() and path.is_relative_to(Path.cwd()):
        raise ValueError(
            f"cluster.storage_path is {storage}: the working folder of a submitted job is deleted "
            "after the job; set an absolute path or s3:// URI that every node can reach"
        )
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
