"""S3 client: read, write and list objects by URI, with retries.

boto3 takes endpoint and credentials from the environment of the process. No error contains a
credential, and neither does a pickled `ObjectStore`.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urlsplit

from boto3 import Session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.environment import proxy_remedy
from cluster.retry import Retry
from cluster.storage.s3_errors import error_code, http_status, permanent_error

logger = logging.getLogger(__name__)

RETRY_TIMEOUT_SECONDS = 60.0
"""Longest outage of S3 that a call survives."""
START_TIMEOUT_SECONDS = 30.0
"""Longest outage of S3 that a check before the start of a run survives."""
LOG_SECONDS = 15.0
"""Interval of the log lines on an outage."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StoredObject:
    """Entry of a listing."""

    name: str
    """Name relative to the listed folder."""
    bytes: int
    """Size of the object."""
    etag: str
    """Identifier that changes with the object's content."""


@dataclass(frozen=True)
class Content:
    """Bytes of an object, and its ETag."""

    data: bytes
    etag: str
    """Identifier that changes with the object's content."""
    total_bytes: int
    """Size of the whole object."""


def is_uri(path: str) -> bool:
    """Return whether a path is an S3 URI."""
    return path.startswith("s3://")


def check_uri(setting: str, uri: str) -> None:
    """Check that a URI has the form s3://bucket/folder.

    Credentials and the path segments `.` and `..` are rejected.

    Raises:
        ValueError: names the setting.
    """
    location = uri.removeprefix("s3://")
    bucket, _, folder = location.partition("/")
    if "@" in bucket or "?" in uri:
        raise ValueError(
            f"{setting} must be s3://bucket/folder without keys: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, or give the nodes a role"
        )
    segments = folder.rstrip("/").split("/")
    problem = ""
    if not is_uri(uri):
        problem = "the URI does not begin with s3://"
    elif not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        problem = (
            f"the name of a bucket has 3 to 63 lower-case letters, digits, dots and hyphens, not "
            f"{bucket!r}"
        )
    elif segments == [""]:
        problem = "a folder in the bucket is missing"
    elif {"", ".", ".."} & set(segments):
        problem = "the folder has an empty segment or the segment . or .."
    elif re.search(r"[\x00-\x1f\x7f]", folder):
        problem = "the folder contains a control character"
    if problem:
        raise ValueError(f"{setting} must be a path or s3://bucket/folder, got {uri!r}: {problem}")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an S3 URI; no character of a key is encoded."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def check_writable(setting: str, folder: str, *, needs_lock: bool = False) -> None:
    """Check that a folder in S3 can be written.

    Args:
        setting: setting that names the folder.
        folder: URI of the folder.
        needs_lock: whether conditional writes, which locks are made of, must work as well.

    Raises:
        ValueError: names the setting and the cause.
    """
    try:
        with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
            store.check_writable(folder.rstrip("/"), needs_lock=needs_lock)
    except OSError as error:
        raise ValueError(f"{setting} cannot be written: {error}") from error


class ObjectStore:
    """Thread-safe S3 client that survives outages shorter than `retry_timeout_seconds`.

    Every method may raise:
        FileNotFoundError: no such object or bucket.
        PermissionError: no credentials, or they do not permit access.
        ConnectionError: no answer for `retry_timeout_seconds`.
        OSError: S3 rejects the call for another reason.
    """

    def __init__(
        self, *, retry_timeout_seconds: float = RETRY_TIMEOUT_SECONDS, connections: int = 10
    ) -> None:
        self.retry_timeout_seconds = retry_timeout_seconds
        self.connections = connections
        self._closed = Event()
        self._logged = -LOG_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        return _store, (self.retry_timeout_seconds, self.connections)

    def __enter__(self) -> "ObjectStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the retries of all threads, and close the connections."""
        self._closed.set()
        for name in ("_client", "_uploader"):
            if name in self.__dict__:
                self.__dict__[name].close()

    @cached_property
    def _client(self) -> Any:
        return self._connect(attempts=1)  # `_retry` makes the other attempts

    @cached_property
    def _uploader(self) -> Any:
        return self._connect(attempts=6)  # per part, before `_retry` sends the whole file again

    def _connect(self, attempts: int) -> Any:
        try:
            return Session().client(
                "s3",
                config=Config(
                    connect_timeout=5,
                    read_timeout=20,
                    retries={"mode": "standard", "total_max_attempts": attempts},
                    max_pool_connections=self.connections,
                    # Some stores reject the checksums that newer SDKs add; files have their own.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except ValueError as error:  # an endpoint without a scheme
            raise ValueError(
                f"{error}: AWS_ENDPOINT_URL, or endpoint_url in AWS's config file, must be "
                "http://HOST:PORT or https://HOST"
            ) from None

    def read(
        self, uri: str, *, start: int = 0, length: int | None = None, etag: str | None = None
    ) -> Content:
        """Read an object, or `length` bytes from offset `start`.

        Raises:
            ValueError: the object's ETag differs from `etag`, or the object is too short.
        """
        bucket, key = split_uri(uri)
        arguments = {"Bucket": bucket, "Key": key}
        if length is not None:
            arguments["Range"] = f"bytes={start}-{start + length - 1}"
        if etag is not None:
            arguments["IfMatch"] = etag

        def get() -> Content:
            answer = self._client.get_object(**arguments)
            data = answer["Body"].read()
            total = answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2]
            return Content(data, answer["ETag"], int(total))

        return self._retry(uri, get)

    def write(self, uri: str, data: bytes) -> None:
        """Write a small object atomically."""
        bucket, key = split_uri(uri)
        self._retry(uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data))

    def write_new(self, uri: str, data: bytes) -> bool:
        """Write a small object unless it exists.

        Returns:
            Whether the object was written.
        """
        bucket, key = split_uri(uri)

        def put() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if http_status(error) == 412:
                    return False
                if http_status(error) == 501 or error_code(error) == "NotImplemented":
                    raise _no_conditional_writes(uri, error_code(error)) from None
                raise
            return True

        return self._retry(uri, put)

    def upload(self, path: Path, uri: str) -> None:
        """Upload a file of any size in parts.

        The object appears only when it is complete.
        """
        bucket, key = split_uri(uri)
        transfer = TransferConfig(
            multipart_chunksize=max(16 << 20, -(-path.stat().st_size // 9000)),  # at most 10,000
            max_concurrency=self.connections,
        )

        def send() -> None:
            with path.open("rb") as file:
                self._uploader.upload_fileobj(file, bucket, key, Config=transfer)

        self._retry(uri, send)

    def delete(self, uri: str) -> None:
        """Delete an object if it exists."""
        bucket, key = split_uri(uri)
        self._retry(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def check_writable(self, folder: str, *, needs_lock: bool = False) -> None:
        """Check write access to a folder, and conditional writes, with a temporary object."""
        uri = f"{folder}/writable"
        self.write(uri, b"")
        try:
            if needs_lock and self.write_new(uri, b""):
                raise _no_conditional_writes(uri, "it ignores If-None-Match")
        finally:
            self.delete(uri)

    def names(self, folder: str) -> Iterator[str]:
        """List the objects below a folder in order, by relative name."""
        return (entry.name for entry in self.entries(folder))

    def entries(self, folder: str) -> Iterator[StoredObject]:
        """List the objects below a folder in order."""
        bucket, key = split_uri(folder)
        following: dict[str, str] = {}
        while True:

            def page(following: dict[str, str] = following) -> dict[str, Any]:
                return self._client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/", **following)

            answer = self._retry(folder, page)
            for entry in answer.get("Contents", ()):
                yield StoredObject(entry["Key"][len(key) + 1 :], entry["Size"], entry["ETag"])
            if not answer.get("IsTruncated"):
                return
            following = {"ContinuationToken": answer["NextContinuationToken"]}

    def _retry(self, uri: str, call: Callable[[], _Result]) -> _Result:
        """Retry transient errors until the timeout, or until the store is closed."""
        retry = Retry(timeout_seconds=self.retry_timeout_seconds)
        while True:
            try:
                return call()
            except (BotoCoreError, ClientError) as error:
                # Not chained: botocore's own errors cannot be pickled to another process.
                if (rejection := permanent_error(uri, error)) is not None:
                    raise rejection from None
                problem = error_code(error)
            if not retry.wait(self._closed):
                if self._closed.is_set():
                    raise ConnectionError(f"{uri}: interrupted ({problem})")
                endpoint = urlsplit(self._client.meta.endpoint_url)
                remedy = proxy_remedy(endpoint.geturl()) or (
                    "check the network, and AWS_ENDPOINT_URL where S3 is not Amazon's"
                )
                raise ConnectionError(
                    f"{uri}: {endpoint.netloc.rpartition('@')[2]} did not answer for "
                    f"{self.retry_timeout_seconds:g} seconds ({problem}); {remedy}"
                )
            if time.monotonic() - self._logged > LOG_SECONDS:
                self._logged = time.monotonic()
                logger.warning("%s: %s; retrying", uri, problem)


def _store(retry_timeout_seconds: float, connections: int) -> ObjectStore:
    return ObjectStore(retry_timeout_seconds=retry_timeout_seconds, connections=connections)


def _no_conditional_writes(uri: str, reason: str) -> OSError:
    return OSError(
        f"{uri}: this store has no conditional writes ({reason}), which keep two preparations from "
        "writing at once; prepare the images in a local folder and copy its files to the store"
    )
