"""S3 objects by their addresses: read, written and listed, with patience and clear errors.

Endpoint and credentials are those that boto3 finds in the environment of the process. Nothing
of them is in an error, and an `ObjectStore` takes none of them along when it is pickled.
"""

import logging
import random
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

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
START_PATIENCE_SECONDS = 30.0
"""How long S3 may take to answer before anything was started."""
LONGEST_PAUSE_SECONDS = 5.0
LOG_SECONDS = 15.0

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Content:
    """What was read of an object."""

    data: bytes
    etag: str
    """Changes with the object's content."""
    total_bytes: int
    """Size of the whole object."""


def is_uri(place: str) -> bool:
    """Say whether a place is an address in S3 rather than a path."""
    return place.startswith("s3://")


def check_uri(setting: str, address: str) -> None:
    """Refuse an address that is not s3://bucket/folder, or leads out of that folder.

    Raises:
        ValueError: it names the setting.
    """
    if "@" in address or "?" in address:
        raise ValueError(
            f"{setting} must be s3://bucket/folder without keys: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY of the environment, or the role of the nodes, are used"
        )
    fits = re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{2,62}(/[^/?#\x00-\x1f\x7f]+)+", address)
    if not fits or {".", ".."} & set(address.split("/")):
        raise ValueError(f"{setting} must be a path or s3://bucket/folder, got {address!r}")


def check_writable(setting: str, folder: str) -> None:
    """Refuse a folder in S3 that cannot be written, before anything was started.

    Raises:
        ValueError: it names the setting.
    """
    try:
        with ObjectStore(patience_seconds=START_PATIENCE_SECONDS) as store:
            store.check_writable(folder.rstrip("/"))
    except OSError as error:
        raise ValueError(f"{setting} cannot be written: {error}") from error


class ObjectStore:
    """S3, for several threads at a time; an outage shorter than `patience_seconds` is waited out.

    Every method may raise:
        FileNotFoundError: no such object or bucket.
        PermissionError: no credentials, or they do not allow it.
        ConnectionError: no answer for `patience_seconds`.
        OSError: S3 refuses for another reason.
    """

    def __init__(
        self, *, patience_seconds: float = PATIENCE_SECONDS, connections: int = 10
    ) -> None:
        self.patience_seconds = patience_seconds
        self.connections = connections
        self._closed = Event()
        self._logged = -LOG_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        return _store, (self.patience_seconds, self.connections)

    def __enter__(self) -> "ObjectStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what other threads still try, and close the connections."""
        self._closed.set()
        for name in ("_client", "_uploader"):
            if name in self.__dict__:
                self.__dict__[name].close()

    @cached_property
    def _client(self) -> Any:
        return self._connect(attempts=1)  # `_patiently` makes the others

    @cached_property
    def _uploader(self) -> Any:
        return self._connect(attempts=6)  # of every part, before `_patiently` sends all anew

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
        self, address: str, *, start: int = 0, length: int | None = None, etag: str | None = None
    ) -> Content:
        """Read an object, or `length` bytes of it from `start` on.

        Raises:
            ValueError: it has another `etag` now, or no such bytes.
        """
        bucket, key = _split(address)
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

        return self._patiently(address, get)

    def write(self, address: str, data: bytes) -> None:
        """Write a small object, whole or not at all."""
        bucket, key = _split(address)
        self._patiently(address, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data))

    def write_new(self, address: str, data: bytes) -> bool:
        """Write a small object unless there is one already; say whether there was none."""
        bucket, key = _split(address)

        def put() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") != 412:
                    raise
                return False
            return True

        return self._patiently(address, put)

    def upload(self, path: Path, address: str) -> None:
        """Write a file of any size, in parts; the object is there when all of it is."""
        bucket, key = _split(address)
        transfer = TransferConfig(
            multipart_chunksize=max(16 << 20, -(-path.stat().st_size // 9000)),  # at most 10,000
            max_concurrency=self.connections,
        )

        def send() -> None:
            with path.open("rb") as file:
                self._uploader.upload_fileobj(file, bucket, key, Config=transfer)

        self._patiently(address, send)

    def delete(self, address: str) -> None:
        """Remove an object, if there is one."""
        bucket, key = _split(address)
        self._patiently(address, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def check_writable(self, folder: str) -> None:
        """Write an object below a folder, and remove it."""
        self.write(f"{folder}/writable", b"")
        self.delete(f"{folder}/writable")

    def names(self, folder: str) -> Iterator[str]:
        """List the objects below a folder by their names from there on, in order."""
        bucket, key = _split(folder)
        following: dict[str, str] = {}
        while True:

            def page(following: dict[str, str] = following) -> dict[str, Any]:
                return self._client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/", **following)

            answer = self._patiently(folder, page)
            for entry in answer.get("Contents", ()):
                yield entry["Key"][len(key) + 1 :]
            if not answer.get("IsTruncated"):
                return
            following = {"ContinuationToken": answer["NextContinuationToken"]}

    def _patiently(self, address: str, call: Callable[[], _Result]) -> _Result:
        """Call, and again after errors that pass, until patience or the store ends."""
        deadline = time.monotonic() + self.patience_seconds
        pause = 0.25
        while True:
            try:
                return call()
            except (BotoCoreError, ClientError) as error:
                # Not chained: botocore's own errors cannot be pickled to another process.
                if (refusal := _refusal(address, error)) is not None:
                    raise refusal from None
                problem = _brief(error)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            wait = pause * random.uniform(0.5, 1)
            if time.monotonic() + wait > deadline:
                raise ConnectionError(
                    f"{address}: {self._endpoint()} did not answer for "
                    f"{self.patience_seconds:g} seconds ({problem}); check the network, and "
                    "AWS_ENDPOINT_URL where S3 is not Amazon's"
                )
            if time.monotonic() - self._logged > LOG_SECONDS:
                self._logged = time.monotonic()
                logger.warning("%s: %s; trying again", address, problem)
            if self._closed.wait(wait):
                raise ConnectionError(f"{address}: given up ({problem})")

    def _endpoint(self) -> str:
        return urlsplit(self._client.meta.endpoint_url).netloc.rpartition("@")[2]


def _store(patience_seconds: float, connections: int) -> ObjectStore:
    return ObjectStore(patience_seconds=patience_seconds, connections=connections)


def _split(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def _refusal(address: str, error: Exception) -> Exception | None:
    """What to raise for an error that will not pass; None for one that may."""
    if isinstance(error, HTTPClientError | NoConnectionError):
        return None
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return PermissionError(
            f"{address}: no credentials for S3 in the environment of this process; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        )
    code = str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""
    if isinstance(error, SSOError | TokenRetrievalError) or code in _EXPIRED:
        return PermissionError(
            f"{address}: the credentials of this process have expired ({_brief(error)}); get new "
            "ones as you got these, or give the node a role, which renews them"
        )
    if not isinstance(error, ClientError):
        return OSError(f"{address}: {_brief(error)}")
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{address}: no such bucket; create it, or correct the address")
    if status == 404:
        return FileNotFoundError(f"{address}: no such object")
    if status in (401, 403):
        return PermissionError(
            f"{address}: S3 denies access ({code}) with the credentials of this process; use "
            "others, or let these read and write there"
        )
    if status == 412:
        return ValueError(f"{address} changed while it was read; start again")
    if status == 416:
        return ValueError(f"{address} is shorter than expected; upload it again")
    if status >= 500 or status in (409, 429) or code in ("RequestTimeout", "SlowDown"):
        return None
    return OSError(f"{address}: S3 refuses ({_brief(error)})")


def _brief(error: Exception) -> str:
    """An error's kind and code: its text may name addresses with passwords in them."""
    if isinstance(error, ClientError):
        return str(error.response["Error"].get("Code", "unknown error"))
    return type(error).__name__
