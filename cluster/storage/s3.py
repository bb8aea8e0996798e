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
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as NoConnectionError,
)

from cluster.retry import Retry

logger = logging.getLogger(__name__)

RETRY_TIMEOUT_SECONDS = 60.0
"""Longest outage of S3 that a call survives."""
START_TIMEOUT_SECONDS = 30.0
"""Longest outage of S3 that a check before the start of a run survives."""
LOG_SECONDS = 15.0
"""Interval of the log lines on an outage."""

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")

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
    if "@" in uri or "?" in uri:
        raise ValueError(
            f"{setting} must be s3://bucket/folder without keys: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, or give the nodes a role"
        )
    fits = re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{2,62}(/[^/?#\x00-\x1f\x7f]+)+", uri)
    if not fits or {".", ".."} & set(uri.split("/")):
        raise ValueError(f"{setting} must be a path or s3://bucket/folder, got {uri!r}")


def check_writable(setting: str, folder: str) -> None:
    """Check that a folder in S3 can be written.

    Raises:
        ValueError: names the setting and the cause.
    """
    try:
        with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
            store.check_writable(folder.rstrip("/"))
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
        return Session().client(
            "s3",
            config=Config(
                connect_timeout=5,
                read_timeout=20,
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=self.connections,
            ),
        )

    def read(
        self, uri: str, *, start: int = 0, length: int | None = None, etag: str | None = None
    ) -> Content:
        """Read an object, or `length` bytes from offset `start`.

        Raises:
            ValueError: the object's ETag differs from `etag`, or the object is too short.
        """
        bucket, key = _split(uri)
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
        bucket, key = _split(uri)
        self._retry(uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data))

    def write_new(self, uri: str, data: bytes) -> bool:
        """Write a small object unless it exists.

        Returns:
            Whether the object was written.
        """
        bucket, key = _split(uri)

        def put() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") != 412:
                    raise
                return False
            return True

        return self._retry(uri, put)

    def upload(self, path: Path, uri: str) -> None:
        """Upload a file of any size in parts.

        The object appears only when it is complete.
        """
        bucket, key = _split(uri)
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
        bucket, key = _split(uri)
        self._retry(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def check_writable(self, folder: str) -> None:
        """Check write access to a folder with a temporary object."""
        self.write(f"{folder}/writable", b"")
        self.delete(f"{folder}/writable")

    def names(self, folder: str) -> Iterator[str]:
        """List the objects below a folder in order, by relative name."""
        return (entry.name for entry in self.entries(folder))

    def entries(self, folder: str) -> Iterator[StoredObject]:
        """List the objects below a folder in order."""
        bucket, key = _split(folder)
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
                if (rejection := _permanent_error(uri, error)) is not None:
                    raise rejection from None
                problem = _error_code(error)
            if not retry.wait(self._closed):
                if self._closed.is_set():
                    raise ConnectionError(f"{uri}: interrupted ({problem})")
                raise ConnectionError(
                    f"{uri}: {self._endpoint()} did not answer for "
                    f"{self.retry_timeout_seconds:g} seconds ({problem}); check the network, and "
                    "AWS_ENDPOINT_URL where S3 is not Amazon's"
                )
            if time.monotonic() - self._logged > LOG_SECONDS:
                self._logged = time.monotonic()
                logger.warning("%s: %s; retrying", uri, problem)

    def _endpoint(self) -> str:
        return urlsplit(self._client.meta.endpoint_url).netloc.rpartition("@")[2]


def _store(retry_timeout_seconds: float, connections: int) -> ObjectStore:
    return ObjectStore(retry_timeout_seconds=retry_timeout_seconds, connections=connections)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _permanent_error(uri: str, error: Exception) -> Exception | None:
    """Return the exception for a permanent error, None for a transient one."""
    if isinstance(error, HTTPClientError | NoConnectionError):
        return None
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return PermissionError(
            f"{uri}: no credentials for S3 in the environment of this process; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        )
    code = str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""
    if isinstance(error, SSOError | TokenRetrievalError) or code in _EXPIRED:
        return PermissionError(
            f"{uri}: the credentials of this process have expired ({_error_code(error)}); get new "
            "ones in the same way, or give the node a role, which renews them"
        )
    if not isinstance(error, ClientError):
        return OSError(f"{uri}: {_error_code(error)}")
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{uri}: no such bucket; create it, or correct the URI")
    if status == 404:
        return FileNotFoundError(f"{uri}: no such object")
    if status in (401, 403):
        return PermissionError(
            f"{uri}: S3 denies access ({code}) with the credentials of this process; use "
            "others, or give these permission to read and write there"
        )
    if status == 412:
        return ValueError(f"{uri} changed while it was read; start again")
    if status == 416:
        return ValueError(f"{uri} is shorter than expected; upload it again")
    if status >= 500 or status in (409, 429) or code in ("RequestTimeout", "SlowDown"):
        return None
    return OSError(f"{uri}: S3 rejects the call ({_error_code(error)})")


def _error_code(error: Exception) -> str:
    """Return an error's code or class.

    The error's text may contain URIs with passwords.
    """
    if isinstance(error, ClientError):
        return str(error.response["Error"].get("Code", "unknown error"))
    return type(error).__name__
